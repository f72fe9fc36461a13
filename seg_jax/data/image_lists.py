"""Finds the images that a user names: by a folder, a pattern, a list or a file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from seg_jax import files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import picture_paths

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""File name endings of images."""


class ImageFile(NamedTuple):
    """An image that a user named."""

    key: str
    """Names it within its folder, pattern or list."""
    path: Path


def list_images(source: str, findings: Findings | None = None) -> list[ImageFile]:
    """Returns images with their keys, in the order of the keys.

    Args:
      source: a folder, whose images get their paths in it as keys; a pattern as `web/*/*.jpg`;
        or a text file with a path a line, relative to its folder.
      findings: is told what is passed over.

    Raises:
      ValueError: there are none.
    """
    path = Path(source)
    met = Findings() if findings is None else findings
    if path.is_dir():
        images = _images_of_folder(path, met)
    elif path.is_file():
        if path.suffix.lower() in SUFFIXES:
            images = [ImageFile(path.name, path)]
        else:
            images = _images_of_list(path, met)
    else:
        images = _images_of_pattern(path)
    if not images:
        raise ValueError(
            f"images: expected a folder, a pattern or a list of images, got none at {source}; "
            f"do: check the path; names of images end with one of {', '.join(SUFFIXES)}"
        )
    return sorted(images)


def _images_of_folder(folder: Path, met: Findings) -> list[ImageFile]:
    """Returns the images in a folder by the ends of their names."""
    images = []
    # Broken links and pipes are images by their names, which cannot be read: that is told of each.
    for one in sorted(picture_paths.walk(folder, met, hidden=True)):
        if one.suffix.lower() in SUFFIXES:
            images.append(ImageFile(one.relative_to(folder).as_posix(), one))
        else:
            reason = "file left out, as its name does not end as an image's"
            met.add(reason, str(one), advice="rename or convert it, if it is an image")
    return images


def _images_of_list(path: Path, met: Findings) -> list[ImageFile]:
    """Returns the images whose paths a text file lists."""
    text = files.read_text(
        path,
        expected="a text file with the path of an image a line",
        advice="save the list in UTF-8, or give a folder of images",
    )
    images: dict[str, ImageFile] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not (name := line.strip()):
            continue
        if name in images:
            met.add("image listed again, taken once", f"{path}, line {number}: {name}")
        images.setdefault(name, ImageFile(name, path.parent / name))
    return [*images.values()]


def _images_of_pattern(path: Path) -> list[ImageFile]:
    """Returns the files that a pattern matches."""
    fixed, pattern = _split_pattern(path)
    try:
        found = [one for one in fixed.glob(pattern) if one.is_file()] if pattern else []
    except (ValueError, OSError) as error:  # As "**a", or what no file system can name.
        raise ValueError(
            f"images: expected a pattern as web/*/*.jpg, got {str(path)!r} ({error}); do: correct "
            "--images"
        ) from None
    return [ImageFile(one.relative_to(fixed).as_posix(), one) for one in found]


def _split_pattern(path: Path) -> tuple[Path, str]:
    """Returns the folder before the first wild card, and the pattern from there on."""
    parts = path.parts
    wild = next((n for n, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return Path(*parts[:wild]), "/".join(parts[wild:])
