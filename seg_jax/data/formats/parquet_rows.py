"""Reads rows of Parquet files, texts and images, as data sets of Hugging Face's hub come.

They are read as tables of values; nothing of a file is looked up or run (pyarrow from 14.0.1 on). A
file is a regular one, and what it says of its rows and bytes is bounded before they are read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seg_jax.data import image_files

MOST_BYTES = 8 << 30
"""Bytes of a file; rows are read by groups."""
MOST_ROWS = 1_000_000
"""Rows of a file."""
MOST_GROUP_BYTES = 2 << 30
"""Bytes of a group of rows once decompressed, as the file tells them."""
_ADVICE = "fetch the file again"


def _bad(path: Path, expected: str, got: object, advice: str = _ADVICE) -> ValueError:
    return ValueError(f"{path}: expected {expected}, got {got}; do: {advice}")


def _opened(path: Path) -> Any:
    """Returns a file of rows, closed by whoever asked.

    Raises:
      ValueError: pyarrow is not there, or it is no such file.
    """
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        advice = "pip install 'seg-jax[parquet]'"
        raise _bad(path, "pyarrow, which reads Parquet", "none", advice) from None
    if not path.is_file():
        raise _bad(path, "a regular file", "none or another kind", "check --source")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise _bad(path, f"at most {MOST_BYTES} bytes", size)
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except Exception as error:  # A damaged file fails in any way it can.
        raise _bad(path, "a Parquet file", f"a damaged one ({type(error).__name__})") from None
    told = file.metadata
    if told.num_rows > MOST_ROWS:
        raise _bad(path, f"at most {MOST_ROWS} rows", told.num_rows, "cut it in pieces")
    for group in range(told.num_row_groups):
        if (size := told.row_group(group).total_byte_size) > MOST_GROUP_BYTES:
            raise _bad(path, f"groups of at most {MOST_GROUP_BYTES} bytes", size)
    return file


def _values(path: Path, file: Any, group: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns some columns of a group of rows, a dict a row.

    Raises:
      ValueError: the file is damaged there.
    """
    try:
        return file.read_row_group(group, columns=[*columns], use_threads=False).to_pylist()
    except Exception as error:
        raise _bad(path, "rows", f"damaged ones ({type(error).__name__})") from None


def texts(path: Path, columns: Sequence[str], image: str) -> Iterator[dict[str, Any]]:
    """Yields the texts of every row, and no image; what they are is for the caller to check.

    Args:
      path: of the file.
      columns: names of the texts' columns.
      image: name of the images' column.

    Raises:
      ValueError: it is no such file, it is damaged, or a column is missing.
    """
    with _opened(path) as file:
        there = {one.split(".")[0] for one in _names(file)}
        if missing := sorted({*columns, image} - there):
            raise _bad(
                path,
                f"columns {', '.join([image, *columns])}",
                f"none named {', '.join(missing)}",
                "give the files of the data set as published",
            )
        for group in range(file.metadata.num_row_groups):
            yield from _values(path, file, group, columns)


def _names(file: Any) -> list[str]:
    """Returns the names of a file's columns, those within others after a dot."""
    schema = file.metadata.schema
    return [schema.column(place).path for place in range(len(schema))]


def image_bytes(path: Path, row: int, column: str = "image") -> bytes:
    """Returns the bytes of an image's file that a row holds; the last group of rows is kept.

    Raises:
      image_files.Unreadable: the row holds none, or the file is damaged.
    """
    try:
        state = path.stat()
        value = _images(path, (state.st_size, state.st_mtime_ns), *_place(path, row), column)
    except (OSError, ValueError, IndexError) as error:
        value, got = None, str(error).partition("; do: ")[0]
    else:
        got = "none"
    if not isinstance(value, bytes) or not value:
        where = f"{path}, row {row}"
        raise image_files.Unreadable(
            where,
            reason="image is missing",
            expected="the bytes of an image",
            got=got,
            advice=_ADVICE,
        )
    return value


def _place(path: Path, row: int) -> tuple[int, int]:
    """Returns the group of a row, and its place there."""
    with _opened(path) as file:
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row < count:
                return group, row
            row -= count
    raise IndexError(f"{path}: expected a row of the file, got one beyond; do: {_ADVICE}")


def _images(path: Path, state: tuple[int, int], group: int, place: int, column: str) -> Any:
    """Returns what a row holds as the bytes of its image."""
    value = _group(path, state, group, column)[place].get(column)
    return value.get("bytes") if isinstance(value, dict) else value


@functools.lru_cache(maxsize=1)
def _group(path: Path, _state: tuple[int, int], group: int, column: str) -> list[dict[str, Any]]:
    """Returns the images of a group of rows; it is kept while its file does not change."""
    with _opened(path) as file:
        return _values(path, file, group, [column])
