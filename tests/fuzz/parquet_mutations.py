"""Mutations of Parquet files: other columns, rows and pages, or bytes of their parts (helper)."""

from __future__ import annotations

import datetime
import io
import random
from typing import Any

import byte_mutations
from byte_mutations import NUMBERS, WORDS, mutated

_COLUMNS = ("image", "problem", "thinking", "solution")
_VALUES: tuple[Any, ...] = (
    None,
    b"\xff\xfe",
    1.5,
    True,
    [],
    [None, "a"],
    [["a"], ["b"]],
    {"a": None},
    {"bytes": "no bytes", "path": 5},
    {"bytes": {"bytes": b"x"}},
    datetime.date(1, 1, 1),
    datetime.datetime(9999, 12, 31, 23, 59, 59, 999_999),
    datetime.timedelta(days=-(10**5)),
    "x" * 200_000,
    b"\0" * 3_000_000,
    "9" * 5000,
)
_CODECS = ("none", "snappy", "gzip", "brotli", "zstd", "lz4")


def mutated_parquet(data: bytes, rng: random.Random) -> bytes:
    """Returns a file with other values, types or pages, or with changed bytes."""
    if rng.random() < 0.5:
        data = _written(_rows(data), rng)
    return data if rng.random() < 0.2 else _changed_bytes(data, rng)


def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Returns changed bytes, which half of the time are of the table of contents at the end."""
    size = int.from_bytes(data[-8:-4], "little")
    begin = len(data) - 8 - size
    if begin < 4 or rng.random() < 0.4:
        return mutated(data, rng)
    if rng.random() < 0.5:  # The head of a page stands before its data.
        return data[:4] + byte_mutations.mutated(data[4:begin], rng) + data[begin:]
    end = mutated(data[begin:-8], rng)
    return data[:begin] + end + len(end).to_bytes(4, "little") + b"PAR1"


def _rows(data: bytes) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()


def _written(rows: list[dict[str, Any]], rng: random.Random) -> bytes:
    """Returns rows as a file, after changes to a column; types that do not fit become texts."""
    import pyarrow
    import pyarrow.parquet

    rows = rows * rng.choice((0, 1, 1, 1, 1, 40))
    table: dict[str, Any] = {name: [row.get(name) for row in rows] for name in _COLUMNS}
    name = rng.choice(_COLUMNS)
    match rng.randrange(5):
        case 0:
            del table[name]
        case 1:
            table[name] = [rng.choice((*_VALUES, *NUMBERS, *WORDS))] * len(rows)
        case 2 if rows:
            place = rng.randrange(len(rows))
            table[name][place] = rng.choice((None, "", *WORDS, *_VALUES))
        case 3:
            table[rng.choice(WORDS)] = list(range(len(rows)))
        case _:
            table[name] = [row.get(rng.choice(_COLUMNS)) for row in rows]
    out = io.BytesIO()
    arrays = {key: _array(values) for key, values in table.items()}
    if rng.random() < 0.3:
        arrays |= {key: one.dictionary_encode() for key, one in arrays.items() if _flat(one)}
    pyarrow.parquet.write_table(
        pyarrow.table(arrays),
        out,
        row_group_size=rng.choice((1, 2, 100)),
        compression=rng.choice(_CODECS),
        data_page_version=rng.choice(("1.0", "2.0")),
        data_page_size=rng.choice((1, 1 << 20)),
        use_dictionary=rng.random() < 0.5,
        write_page_checksum=rng.random() < 0.2,
    )
    return out.getvalue()


def _array(values: list[Any]) -> Any:
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return pyarrow.array([ascii(value)[:1000] for value in values])


def _flat(array: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_string(array.type) or pyarrow.types.is_binary(array.type)
