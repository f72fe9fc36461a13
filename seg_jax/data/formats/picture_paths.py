"""Finds the images that annotation files name, by the relative rules of labelling tools."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from seg_jax import files
from seg_jax.data.findings import Findings

IMAGE = re.compile(r"[^.].*\.(jpe?g|png|webp|bmp|gif|tiff?|ppm)", re.IGNORECASE)
"""Names of images; those that a file manager leaves, as ._a.jpg, are none."""
_HASH = re.compile(r"^[0-9a-f]{8}-")
MOST_FILES = 2_000_000
"""Files of a folder, with those below it."""


def relative(told: str) -> str:
    """Returns the path that an annotation gives, with slashes, without scheme, host and query."""
    told = told.strip()
    parts = None
    if re.match(r"[a-z][a-z0-9+.-]+://", told, re.I):
        with contextlib.suppress(ValueError):  # An address of no host.
            parts = urllib.parse.urlsplit(told)
    if parts is None:
        path = told.replace("\\", "/")
        path, _, query = path.partition("?")
        if query.startswith("d="):  # Label Studio's files of its own machine.
            path = urllib.parse.unquote(query[2:])
        elif query:
            path = urllib.parse.unquote(path)
    else:
        path = urllib.parse.unquote(parts.path)
    return path.lstrip("/") if parts else path


def find(told: str, *, folders: list[Path]) -> Path:
    """Returns the image that a path means.

    Tried are the path as it stands, below each folder, and what is left of it without its first
    folders: tools write where the image lay on their own machine.

    Args:
      told: the path as the annotation gives it, with slashes or backslashes, or a URL.
      folders: where to look, in this order.

    Returns:
      The first that is there; else the likeliest, which is missing.
    """
    path = PurePosixPath(re.sub(r"^[A-Za-z]:", "", relative(told)) or "image")
    if path.is_absolute() and is_file(Path(path)):
        return Path(path)
    parts = [part for part in path.parts if part != "/"]
    for begin in range(len(parts)):
        for folder in folders:
            place = folder.joinpath(*parts[begin:])
            if is_file(place):
                return place
    return folders[0].joinpath(*parts)


def without_hash(path: Path, folders: Sequence[Path]) -> Path | None:
    """Returns an image whose name Label Studio has put eight letters before; None: there is none.

    Args:
      path: as the annotation names it.
      folders: where the image may lie under the name that it had.
    """
    plain = _HASH.sub("", path.name)
    if plain == path.name:
        return None
    return next((place for one in folders if is_file(place := one / plain)), None)


def is_file(path: Path) -> bool:
    """Returns whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def files_below(folder: Path, *, ending: str, met: Findings) -> list[Path]:
    """Returns files below a folder by the ending of their names, in order.

    Args:
      folder: that is looked through, with those in it; hidden ones are passed over.
      ending: a regular expression of names, as `IMAGE.pattern`.
      met: is told of folders that are not looked through.

    Raises:
      ValueError: there are too many, or a folder cannot be read.
    """
    kept = re.compile(ending, re.IGNORECASE)
    found = [path for path in walk(folder, met) if kept.fullmatch(path.name)]
    if len(found) > MOST_FILES:
        raise ValueError(
            f"{folder}: expected at most {MOST_FILES} files, got more; do: build part by part"
        )
    return sorted(found)


def walk(folder: Path, met: Findings, *, hidden: bool = False) -> Iterator[Path]:
    """Yields what is no folder in a folder and those below it, each folder's in order.

    Links to folders are not followed, as they may lead anywhere and in circles; they are told.

    Args:
      folder: that is looked through.
      met: is told of links.
      hidden: whether names that begin with a dot count.

    Raises:
      ValueError: a folder cannot be read.
    """
    for top, inner, names in os.walk(folder, onerror=_refuse):
        inner[:] = sorted(name for name in inner if hidden or not name.startswith("."))
        for name in inner:
            if (place := Path(top) / name).is_symlink():
                reason = "folder left out, as it is a link"
                met.add(reason, str(place), advice="put the folder itself there")
        yield from (Path(top) / one for one in sorted(names) if hidden or not one.startswith("."))


def _refuse(error: OSError) -> None:
    """Raises ValueError: what lies in a folder that cannot be read would be missed silently."""
    if isinstance(error, FileNotFoundError):
        return  # Nothing lies there.
    raise ValueError(
        f"{error.filename}: expected a folder that can be read, got {error.strerror}; do: allow it "
        "(chmod), or move it away"
    ) from None


def name_within(path: Path, folder: Path) -> str:
    """Returns a path as it names an image: relative to a folder that it lies in."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.as_posix()


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text that names images or labels.

    Raises:
      ValueError: see `files.read_text`.
    """
    return files.read_text(path, most=2**28, advice="save it in UTF-8").splitlines()
