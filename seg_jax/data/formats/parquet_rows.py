"""Reads rows of Parquet files, texts and images, as data sets of Hugging Face's hub come.

They are read as tables of values; nothing of a file is looked up or run (pyarrow from 14.0.1 on). A
file is a regular one, what it says of its rows and bytes is bounded before they are read, and they
are decoded a row at a time: rows that name one long value of a dictionary would fill any memory.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 8 << 30
"""Bytes of a file; rows are read by groups."""
MOST_ROWS = 1_000_000
"""Rows of a file, and groups of rows."""
MOST_GROUP_BYTES = 2 << 30
"""Bytes of a group of rows once decompressed, as the file tells them."""
FIRST_SAFE = (14, 0, 1)
"""The release of pyarrow from which on nothing of a file's schema is run (CVE-2023-47248)."""
_ADVICE = "fetch the file again"
_BUFFER_BYTES = 1 << 20
_INSTALL = "pip install 'seg-jax[parquet]'"


def _bad(path: Path, expected: str, got: object, advice: str = _ADVICE) -> ValueError:
    return ValueError(f"{path}: expected {expected}, got {got}; do: {advice}")


def _opened(path: Path) -> Any:
    """Returns a file of rows, closed by whoever asked.

    Raises:
      ValueError: pyarrow is not there or runs what it reads, or it is no such file.
    """
    pyarrow = library(path)
    check_file(path)
    try:
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except Exception as error:  # A damaged file fails in any way it can.
        raise _bad(path, "a Parquet file", f"a damaged one ({type(error).__name__})") from None
    told = file.metadata
    if (count := max(told.num_rows, told.num_row_groups)) > MOST_ROWS:
        raise _bad(path, f"at most {MOST_ROWS} rows", count, "cut it in pieces")
    for group in range(told.num_row_groups):
        if (size := told.row_group(group).total_byte_size) > MOST_GROUP_BYTES:
            raise _bad(path, f"groups of at most {MOST_GROUP_BYTES} bytes", size)
    return file


def library(path: Path) -> Any:
    """Returns pyarrow with its readers of Parquet and Arrow.

    Raises:
      ValueError: it is not there, or runs what it reads.
    """
    try:
        import pyarrow.ipc
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _bad(path, "pyarrow, which reads Parquet and Arrow", "none", _INSTALL) from None
    if _release(pyarrow.__version__) < FIRST_SAFE:
        raise _bad(path, "pyarrow 14.0.1 or newer", pyarrow.__version__, _INSTALL)
    return pyarrow


def check_file(path: Path) -> None:
    """Raises ValueError unless it is a regular file that is not too large."""
    if not path.is_file():
        raise _bad(path, "a regular file", "none or another kind", "check --source")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise _bad(path, f"at most {MOST_BYTES} bytes", size)


def _release(version: str) -> tuple[int, ...]:
    """Returns the numbers of a release, for comparison."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _rows(path: Path, file: Any, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields some columns of a group of rows, a dict a row.

    Raises:
      ValueError: the file is damaged there.
    """
    try:
        for batch in file.iter_batches(
            1, row_groups=[group], columns=[*columns], use_threads=False
        ):
            yield from batch.to_pylist()
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
            yield from _rows(path, file, group, columns)


def columns(path: Path) -> list[str]:
    """Returns the names of the columns of a file, in order.

    Raises:
      ValueError: it is no such file.
    """
    with _opened(path) as file:
        return list(dict.fromkeys(one.split(".")[0] for one in _names(file)))


def metadata(path: Path) -> bytes:
    """Returns what Hugging Face's library notes of the columns, as JSON; else nothing.

    Raises:
      ValueError: it is no such file.
    """
    with _opened(path) as file:
        return (file.metadata.metadata or {}).get(b"huggingface", b"")


def _names(file: Any) -> list[str]:
    """Returns the names of a file's columns, those within others after a dot."""
    schema = file.metadata.schema
    return [schema.column(place).path for place in range(len(schema))]


def value(path: Path, row: int, column: str) -> Any:
    """Returns what a row has in a column; rows are read one after the other.

    Raises:
      ValueError: it has none, or the file is damaged.
    """
    state = path.stat()
    return _images(path, (state.st_size, state.st_mtime_ns), column).read(row)


class _Images:
    """A column of a file; the row after the one that was read last costs no more than itself."""

    def __init__(self, path: Path, column: str):
        self._path, self._column, self._file = path, column, _opened(path)
        told = self._file.metadata
        counts = (told.row_group(group).num_rows for group in range(told.num_row_groups))
        self._ends = list(itertools.accumulate(counts))
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._group, self._next = -1, 0

    def read(self, row: int) -> Any:
        """Returns what a row holds.

        Raises:
          ValueError: there is no such row, or the file is damaged there.
        """
        group = bisect.bisect_right(self._ends, row)
        if group == len(self._ends):
            raise _bad(self._path, f"a row below {sum(self._ends[-1:])}", row)
        if group != self._group or row < self._next:
            self._rows = _rows(self._path, self._file, group, [self._column])
            self._group, self._next = group, self._ends[group - 1] if group else 0
        skipped, self._next = row - self._next, row + 1
        found = next(itertools.islice(self._rows, skipped, None), None)
        if found is None:
            self._group = -1
            raise _bad(self._path, "as many rows as it tells", "fewer")
        return found.get(self._column)


@functools.lru_cache(maxsize=1)
def _images(path: Path, _state: tuple[int, int], column: str) -> _Images:
    """Returns a column of a file; it is kept while the file does not change."""
    return _Images(path, column)
