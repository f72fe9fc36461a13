"""Reads bytes, texts and JSON with bounds and errors that name the file; writes files whole."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

MOST_BYTES = 2 << 30
"""Most bytes of a file that is read at once: twice the largest annotations that are published."""
MOST_TEXT_BYTES = 64 << 20
"""Most bytes of a text that people write: lists of names and paths."""


def bytes_or_reason(path: Path, *, most: int = MOST_BYTES) -> bytes | str:
    """Returns the bytes of a regular file, or why there are none, as "no file" or "a folder".

    Its kind and size are known before it is read.

    Args:
      path: of the file.
      most: bytes that it may have.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return "a pipe or a device"
            if found.st_size <= most:
                data = file.read(found.st_size + 1)
                data += file.read(most) if len(data) > found.st_size else b""  # It grew.
                if len(data) <= most:
                    return data
            return f"{max(found.st_size, most + 1)} bytes, more than {most}"
    except (FileNotFoundError, NotADirectoryError):
        return "no file"
    except IsADirectoryError:
        return "a folder"
    except OSError as error:
        return f"what cannot be read ({f'{error.strerror}'.lower()})"
    except ValueError:  # A null byte in the path, or what no file system can name.
        return "a path that no file can have"


def read_bytes(
    path: Path,
    *,
    most: int = MOST_BYTES,
    expected: str = "a file",
    advice: str = "fetch it again",
) -> bytes:
    """Returns the bytes of a regular file, whose kind and size are known before it is read.

    Args:
      path: of the file.
      most: bytes that it may have.
      expected: what it should be, for the message.
      advice: what to do where it cannot be read; it ends the message.

    Raises:
      ValueError: there is no such file, it is no regular one, too large or not readable.
    """
    found = bytes_or_reason(path, most=most)
    if isinstance(found, bytes):
        return found
    got = "none" if (found, expected) == ("no file", "a file") else found
    raise ValueError(f"{path}: expected {expected}, got {got}; do: {advice}")


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe too, which would else wait for somebody to write into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(
    path: Path,
    *,
    most: int = MOST_TEXT_BYTES,
    expected: str = "a text file",
    advice: str | None = None,
) -> str:
    """Returns a text in UTF-8, without the mark (BOM) that some editors put before it.

    Args:
      path: of the file.
      most: bytes that it may have.
      expected: what it should be, for the message.
      advice: what to do where it cannot be read; None: to check the path, or to save it in UTF-8.

    Raises:
      ValueError: see `read_bytes`, or it is not in UTF-8.
    """
    data = read_bytes(path, most=most, expected=expected, advice=advice or "check the path")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected {expected}, got other bytes at byte {error.start}; do: "
            f"{advice or 'save it in UTF-8'}"
        ) from None


def parse_json(
    data: bytes | str,
    *,
    where: str,
    advice: str = "fetch it again",
    repeated: Callable[[str], Any] | None = None,
) -> Any:
    """Returns the value of a JSON text: UTF-8, -16 or -32, with a byte order mark or without.

    Numbers beyond what floats and Python's integers hold become infinite, so that whoever checks
    the value refuses the place where they stand, not the file. A name that stands twice in one
    object is refused, whatever its values: nobody can know which was meant.

    Args:
      data: the text.
      where: names the file or its line.
      advice: what to do where it is no JSON; it ends the message.
      repeated: given the name that an object has twice, returns what stands for that object; None:
        the whole text is refused.

    Raises:
      ValueError: it is no JSON, nested too deep, or an object in it has a name twice.
    """
    data = data.removeprefix("\ufeff") if isinstance(data, str) else data
    pairs = functools.partial(_object_of_pairs, repeated=repeated)
    try:
        try:
            return json.loads(data, object_pairs_hook=pairs)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except ValueError:  # An integer of thousands of digits.
            return json.loads(data, parse_int=_integer, object_pairs_hook=pairs)
    except RecursionError:
        got = "lists or objects nested too deep"
    except _RepeatedName as error:
        got = f"an object with the name {error.args[0][:60]!a} twice"
    except json.JSONDecodeError as error:
        # Of a text in one line, which may be any of its file, only the place in it is told.
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        got = f"{error.msg} at {place}character {error.colno}"
    except UnicodeDecodeError as error:
        got = f"bytes that are no text at byte {error.start}"
    except ValueError as error:
        got = str(error)
    raise ValueError(f"{where}: expected JSON, got {got}; do: {advice}")


class _RepeatedName(Exception):
    """A name that stands twice in one object."""


def _object_of_pairs(pairs: list[tuple[str, Any]], *, repeated: Callable[[str], Any] | None) -> Any:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    name = next(name for name, _ in pairs if name in seen or seen.add(name))
    if repeated is None:
        raise _RepeatedName(name)
    return repeated(name)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 1000 else float(digits)


def read_json(path: Path, *, most: int = MOST_BYTES, advice: str = "fetch it again") -> Any:
    """Returns the contents of a JSON file.

    Args:
      path: of the file.
      most: bytes that it may have.
      advice: what to do where the file is missing or broken; it ends the message.

    Raises:
      ValueError: there is no such file, it cannot be read, it is too large, or it is no JSON.
    """
    data = read_bytes(path, most=most, advice=advice)
    return parse_json(data, where=str(path), advice=advice)


def read_json_object(path: Path, *, advice: str = "fetch it again") -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: of the file.
      advice: what to do where the file is missing or broken; it ends the message.

    Raises:
      ValueError: there is no such file, or it holds something else.
    """
    found = read_json(path, advice=advice)
    if not isinstance(found, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
        got = kind.get(type(found), "a number")
        raise ValueError(f"{path}: expected a JSON object, got {got}; do: {advice}")
    return found


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all.

    Raises:
      OSError: see `write_bytes`.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all.

    Raises:
      OSError: see `write_bytes`.
    """
    write_bytes(path, text.encode())


def make_folder(folder: Path, what: str) -> None:
    """Makes the folder that something is to be written to, or finds it there.

    Args:
      folder: to make, with those above it.
      what: is written, for the error, as "the overlay".

    Raises:
      ValueError: it is a file, or lies below one.
      OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(
            f"{folder}: expected a folder for {what}, got a file, or a path below one; do: name a "
            "folder"
        ) from None


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, or whatever else stands in its place.

    `shutil.rmtree` alone waits for ever at a pipe, and fails at a link.

    Raises:
      OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, *, aside: Path | None = None) -> None:
    """Writes a file whole or not at all: the old one stays until the disk has all of the new.

    Args:
      path: of the file.
      data: its bytes.
      aside: folder on the same disk where the unfinished file lies, made if it is not there; None
        takes the folder of the file.

    Raises:
      OSError: no room, no folder, no permission; nothing is left behind.
    """
    folder = path.parent if aside is None else aside
    temporary = folder / f".{path.name[:80]}.{secrets.token_hex(4)}.tmp"
    try:
        if aside is not None:
            aside.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
        move_synced(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise OSError(
            error.errno,
            f"{str(path)!r}: expected to write {len(data)} bytes, got {error.strerror}; do: free "
            "space or choose another folder",
        ) from None


@contextlib.contextmanager
def open_whole(path: Path, *, aside: Path | None = None) -> Iterator[IO[str]]:
    """Opens a text in UTF-8 to write, which appears whole or not at all.

    Args:
      path: of the file; its folder is made.
      aside: folder on the same disk where the unfinished file lies; None: that of the file.

    Raises:
      OSError: no room, no folder, no permission.
    """
    folder = path.parent if aside is None else aside
    for place in (folder, path.parent):
        place.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name[:80]}.{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            yield file
        move_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_synced(temporary: Path, path: Path) -> None:
    """Moves a written file to its place on the same disk once the disk has all of it."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
