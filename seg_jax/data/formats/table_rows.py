"""Reads rows of tables of Hugging Face's hub, Parquet or Arrow by the ending of their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from seg_jax.data import image_files
from seg_jax.data.formats import arrow_rows, parquet_rows

ARROW = ".arrow"


def columns(path: Path) -> list[str]:
    """Returns the names of the columns of a file, in order.

    Raises:
      ValueError: it is no such file.
    """
    return _reader(path).columns(path)


def metadata(path: Path) -> bytes:
    """Returns what Hugging Face's library notes of the columns, as JSON; else nothing.

    Raises:
      ValueError: it is no such file.
    """
    return _reader(path).metadata(path)


def texts(path: Path, columns: Sequence[str], image: str) -> Iterator[dict[str, Any]]:
    """Yields the texts of every row, and no image; what they are is for the caller to check.

    Args:
      path: of the file.
      columns: names of the texts' columns.
      image: name of the images' column.

    Raises:
      ValueError: it is no such file, it is damaged, or a column is missing.
    """
    if path.suffix == ARROW:
        return arrow_rows.texts(path, columns)
    return parquet_rows.texts(path, columns, image)


def image_bytes(path: Path, row: int, column: str = "image") -> bytes:
    """Returns the bytes of an image's file that a row holds.

    Raises:
      image_files.Unreadable: the row holds none, or the file is damaged.
    """
    got = "none"
    try:
        value = _reader(path).value(path, row, column)
        if isinstance(value, list):  # A list of images, of which rows with one alone are read.
            value = value[0] if len(value) == 1 else None
        if isinstance(value, dict):
            got = "a path alone" if value.get("path") else got
            value = value.get("bytes")
    except (OSError, ValueError) as error:
        value, got = None, str(error).partition("; do: ")[0]
    if not isinstance(value, bytes) or not value:
        where = f"{path}, row {row}"
        raise image_files.Unreadable(
            where,
            reason="image is missing",
            expected="the bytes of an image",
            got=got,
            advice="fetch or save the file again, with its images",
        )
    return value


def _reader(path: Path) -> ModuleType:
    """Returns the module that reads such files; both have the same functions."""
    return arrow_rows if path.suffix == ARROW else parquet_rows
