"""Reads JSON with errors that name the file, and writes files whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 2**32
"""Most bytes of a JSON file; the largest published annotations have 2**30."""


def read_json(path: Path, *, advice: str = "fetch it again") -> Any:
    """Returns the contents of a JSON file.

    Args:
      path: of the file.
      advice: what to do where the file is missing or broken; it ends the message.

    Raises:
      ValueError: there is no such file, it cannot be read, it is too large, or it is no JSON.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():  # A pipe would be waited for, a device never ends.
            got = "a folder" if path.is_dir() else "a pipe or a device"
            raise ValueError(f"{path}: expected a file, got {got}; do: {advice}")
        if size > MOST_JSON_BYTES:
            raise ValueError(
                f"{path}: expected at most {MOST_JSON_BYTES} bytes of JSON, got {size}"
                f"; do: {advice}"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a file, got none; do: {advice}") from None
    except OSError as error:
        reason = f"{error.strerror}".lower()
        raise ValueError(
            f"{path}: expected JSON, got what cannot be read ({reason}: {path}); do: {advice}"
        ) from None
    return parse_json(data, where=str(path), advice=advice)


def parse_json(data: bytes | str, *, where: str, advice: str) -> Any:
    """Returns the value of a JSON text: UTF-8, -16 or -32, with a byte order mark or without.

    Numbers beyond what floats and Python's integers hold become infinite, so that whoever checks
    the value refuses the place where they stand, not the file.

    Args:
      data: the text.
      where: names the file or its line.
      advice: what to do where it is no JSON; it ends the message.

    Raises:
      ValueError: it is no JSON, or nested too deep.
    """
    try:
        try:
            return json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except ValueError:  # An integer of thousands of digits.
            return json.loads(data, parse_int=_integer)
    except RecursionError:
        got = "lists or objects nested too deep"
    except ValueError as error:
        got = str(error)
    raise ValueError(f"{where}: expected JSON, got {got}; do: {advice}")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 1000 else float(digits)


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
        raise ValueError(f"{path}: expected a JSON object, got {found!r:.40}; do: {advice}")
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


def move_synced(temporary: Path, path: Path) -> None:
    """Moves a written file to its place on the same disk once the disk has all of it."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
