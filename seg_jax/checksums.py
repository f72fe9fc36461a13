"""Checksums of the files of a folder, by which any damage of them is noticed.

They are XXH3 of 128 bits: as fast as memory is read, and made against accidents, not against
people, who could write others.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import xxhash
from msgspec import Meta

from seg_jax import files, schemas

FILE = "checksums.json"
"""In a folder: size and checksum of its other files."""

_BLOCK = 1 << 20
"""Bytes that are read at once."""


class Sum(schemas.Record, frozen=True, kw_only=True):
    """Size and checksum of a file."""

    bytes: Annotated[int, Meta(ge=0)]
    xxh3: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


Sums = dict[schemas.FileName, Sum]
"""Those of files by their paths in a folder, with slashes."""


class _List(schemas.Record, frozen=True, kw_only=True):
    files: Sums
    own: str
    """Checksum of the list itself."""


def of_bytes(data: bytes) -> str:
    """Returns the checksum of bytes as 32 digits."""
    return xxhash.xxh3_128_hexdigest(data)


def of_file(path: Path) -> Sum:
    """Returns size and checksum of a file.

    Raises:
      OSError: it cannot be read.
    """
    digest, size = xxhash.xxh3_128(), 0
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return Sum(bytes=size, xxh3=digest.hexdigest())


def of_files(folder: Path, names: Iterable[str]) -> Sums:
    """Returns those of files of a folder, read by as many threads as there are processors.

    Raises:
      OSError: one cannot be read.
    """
    names = sorted(names)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(lambda name: of_file(folder / name), names), strict=True))


def write(path: Path, sums: Sums) -> None:
    """Writes a list of checksums.

    Raises:
      OSError: it cannot be written.
    """
    plain = {name: {"bytes": one.bytes, "xxh3": one.xxh3} for name, one in sorted(sums.items())}
    files.write_json(path, {"files": plain, "own": _own(sums)})


def read(path: Path) -> Sums:
    """Returns a list of checksums.

    Raises:
      ValueError: it is damaged.
    """
    advice = "fetch or save the folder again"
    found = schemas.check(
        files.read_json(path, advice=advice), _List, where=str(path), advice=advice
    )
    if found.own != _own(found.files):
        raise ValueError(
            f"{path}: expected what its own checksum is of, got other contents; do: {advice}"
        )
    return found.files


def _own(sums: Sums) -> str:
    plain = [[name, one.bytes, one.xxh3] for name, one in sorted(sums.items())]
    return of_bytes(json.dumps(plain).encode())


def files_of(folder: Path) -> list[str]:
    """Returns the paths of all files in a folder; names that begin with a dot are no part of it."""
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    ]
    return sorted(name for name in found if not any(p.startswith(".") for p in name.split("/")))


def find_damage(
    folder: Path, sums: Mapping[str, Sum], *, share: tuple[int, int] = (0, 1)
) -> str | None:
    """Returns what is wrong with the files of a folder, in words that begin with its name.

    Args:
      folder: of the files.
      sums: what they should be; files that are not named here are not looked at.
      share: number of this reader and of all readers, who each take their part of the bytes.

    Returns:
      The first damage, None if there is none.
    """
    for name, one in sorted(sums.items()):
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            return f"{name}: expected a file in the folder"
        try:
            if not path.is_file():
                return f"{name}: expected a file, got none"
            size = path.stat().st_size
        except OSError as error:  # As of a name that no file system can hold.
            return f"{name}: cannot be read ({error.strerror})"
        if size != one.bytes:
            return f"{name}: expected {one.bytes} bytes, got {size}"
    heavy = sorted(sums, key=lambda name: (-sums[name].bytes, name))
    mine = heavy[share[0] :: share[1]]
    try:
        found = of_files(folder, mine)
    except OSError as error:
        return f"{error.filename}: cannot be read ({error.strerror})"
    for name in sorted(mine):
        if found[name] != sums[name]:
            return f"{name}: its checksum differs"
    return None


def check_folder(
    folder: Path, chosen: Callable[[str], bool], *, share: tuple[int, int] = (0, 1)
) -> None:
    """Compares files of a folder with its list of checksums, if it has one.

    Args:
      folder: perhaps with such a list.
      chosen: of a path in it, whether to compare that file.
      share: as in `find_damage`.

    Raises:
      ValueError: a file is damaged, or the list is.
    """
    if not (folder / FILE).exists():
        return
    sums = {name: one for name, one in read(folder / FILE).items() if chosen(name)}
    if damage := find_damage(folder, sums, share=share):
        name, _, reason = damage.partition(": ")
        raise ValueError(
            f"{folder / name}: expected it as it was saved, got another one ({reason}); do: copy "
            f"the folder again, or remove its {FILE} if you have changed the file yourself"
        )
