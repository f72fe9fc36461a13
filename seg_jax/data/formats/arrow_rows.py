"""Reads rows of Arrow's streams, as `Dataset.save_to_disk` of Hugging Face's datasets writes them.

They are read as `parquet_rows` reads Parquet: as values, nothing of which is looked up or run. A
file is mapped, not loaded; what it says of its rows is bounded and its offsets are checked before
a value is made. Compressed batches, of which nobody knows how much memory they fill, are refused.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seg_jax.data.formats import parquet_rows

_ADVICE = "save the data set anew by save_to_disk"
_HEADER, _LENGTH, _COMPRESSION = 2, 0, 3
"""Places of fields in the tables Message and RecordBatch of Arrow's Message.fbs."""


def _bad(path: Path, expected: str, got: object, advice: str = _ADVICE) -> ValueError:
    return ValueError(f"{path}: expected {expected}, got {got}; do: {advice}")


class _Stream:
    """The batches of a file, read when they are asked for; the one that was read last is kept."""

    def __init__(self, path: Path):
        self._path, self._pyarrow = path, parquet_rows.library(path)
        parquet_rows.check_file(path)
        try:
            source = self._pyarrow.memory_map(str(path))
            first, *self._messages = self._pyarrow.ipc.MessageReader.open_stream(source)
            self.schema = self._pyarrow.ipc.read_schema(first)
            self.names: list[str] = [*self.schema.names]
        except Exception as error:  # A damaged file fails in any way it can.
            got = f"a damaged one ({type(error).__name__})"
            raise _bad(path, "a stream of Arrow", got) from None
        counts = [self._count(message) for message in self._messages]
        if (count := sum(counts)) > parquet_rows.MOST_ROWS:
            raise _bad(path, f"at most {parquet_rows.MOST_ROWS} rows", count, "cut it in pieces")
        self._ends = list(itertools.accumulate(counts))
        self._place, self._batch = -1, None

    def __len__(self) -> int:
        return sum(self._ends[-1:])

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Returns some columns of a row.

        Raises:
          ValueError: there is no such row, or the file is damaged there.
        """
        place = bisect.bisect_right(self._ends, row)
        if place == len(self._ends):
            raise _bad(self._path, f"a row below {len(self)}", row)
        try:
            if place != self._place:
                batch = self._pyarrow.ipc.read_record_batch(self._messages[place], self.schema)
                batch.validate(full=True)
                self._place, self._batch = place, batch
            assert self._batch is not None
            inside = row - (self._ends[place - 1] if place else 0)
            (found,) = self._batch.select([*columns]).slice(inside, 1).to_pylist()
        except Exception as error:
            got = f"damaged ones ({type(error).__name__})"
            raise _bad(self._path, "rows", got) from None
        return found

    def _count(self, message: Any) -> int:
        """Returns the rows of a batch, as its head tells them; they are checked when it is read."""
        if message.type != "record batch":
            raise _bad(self._path, "batches of rows", f"a {message.type}")
        head, count = message.metadata.to_pybytes(), 0
        try:
            batch = _field(head, struct.unpack_from("<I", head)[0], _HEADER)
            table = batch + struct.unpack_from("<I", head, batch)[0]
            compressed = bool(_field(head, table, _COMPRESSION))
            if at := _field(head, table, _LENGTH):  # Nought is not written.
                (count,) = struct.unpack_from("<q", head, at)
        except struct.error:
            raise _bad(self._path, "batches of rows", "a damaged one") from None
        if compressed:
            raise _bad(self._path, "batches as they are", "compressed ones")
        if count < 0:
            raise _bad(self._path, "batches of rows", f"one of {count}")
        return count


def _field(data: bytes, table: int, number: int) -> int:
    """Returns where a field of a table of FlatBuffers lies; 0 if it is not there."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, fields)[0]
    if 4 + 2 * number >= size:
        return 0
    offset = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + offset if offset else 0


@functools.lru_cache(maxsize=1)
def _stream_of(path: Path, _state: tuple[int, int]) -> _Stream:
    return _Stream(path)


def _stream(path: Path) -> _Stream:
    """Returns the stream of a file; the last one is kept while its file does not change."""
    try:
        state = path.stat()
    except OSError:
        raise _bad(path, "a regular file", "none or another kind", "check --source") from None
    return _stream_of(path, (state.st_size, state.st_mtime_ns))


def columns(path: Path) -> list[str]:
    """Returns the names of the columns of a file, in order.

    Raises:
      ValueError: it is no such file.
    """
    return _stream(path).names


def metadata(path: Path) -> bytes:
    """Returns what Hugging Face's library notes of the columns, as JSON; else nothing.

    Raises:
      ValueError: it is no such file.
    """
    return (_stream(path).schema.metadata or {}).get(b"huggingface", b"")


def texts(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields some columns of every row; what they are is for the caller to check.

    Raises:
      ValueError: it is no such file, or it is damaged.
    """
    stream = _Stream(path)
    for row in range(len(stream)):
        yield stream.read(row, columns)


def value(path: Path, row: int, column: str) -> Any:
    """Returns what a row has in a column.

    Raises:
      ValueError: it has none, or the file is damaged.
    """
    return _stream(path).read(row, [column])[column]
