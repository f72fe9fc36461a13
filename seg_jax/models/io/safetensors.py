"""Safetensors folders as the hub keeps them, read and written a block at a time.

Source: the safetensors format, github.com/huggingface/safetensors: eight bytes of length, a JSON
header with dtype, shape and place of each tensor, then the tensors.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from seg_jax import files, schemas

SHARD_BYTES = 5 * 10**9
"""Largest file that is written, as on the hub."""
BLOCK_BYTES = 4 * 2**20
"""Bytes of a tensor that are compared together."""
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
MOST_INDEX_BYTES = 64 << 20
"""The largest index that is read; those of the largest models have ten million bytes."""

BUFFER = re.compile(r"(^|\.)(inv_freq|original_inv_freq|position_ids|cos_cached|sin_cached)$")
"""Names of tensors that are computed and no weights; transformers passes over them too."""
_KINDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {kind: code for code, kind in _KINDS.items()}


class Arrays:
    """Tensors by name, in memory."""

    where = ""
    """Begins an error's line: the folder, if they come from one."""

    def __init__(self, source: Mapping[str, Any]):
        self._source = source

    def names(self) -> Iterable[str]:
        """Returns all names."""
        return self._source.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return tuple(self._source[name].shape)

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor."""
        return np.dtype(self._source[name].dtype)

    def blocks(
        self, name: str, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields rows begin..end of a tensor (all of a scalar) in pieces, each with its first."""
        array = np.asarray(self._source[name])
        yield begin, array[begin:end] if array.ndim else array


class Place(NamedTuple):
    """Where a tensor lies."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""


class Files(Arrays):
    """Tensors in safetensors files; a block at a time is mapped, and never more."""

    def __init__(self, places: Mapping[str, Place], folder: Path):
        self.where = f"{folder}: "
        self._places = places

    def names(self) -> Iterable[str]:
        """Returns all names."""
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._places[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor."""
        return self._places[name].dtype

    def blocks(
        self, name: str, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields rows begin..end of a tensor (all of a scalar) in pieces, each with its first."""
        place = self._places[name]
        if not math.prod(place.shape) or not place.shape:
            yield begin, _map_block(place, place.offset, place.shape)
            return
        end = place.shape[0] if end is None else end
        row = math.prod(place.shape[1:]) * place.dtype.itemsize
        step = max(1, BLOCK_BYTES // row)
        for first in range(begin, end, step):
            rows = min(step, end - first)
            offset = place.offset + first * row
            yield first, _map_block(place, offset, (rows, *place.shape[1:]))


def _map_block(place: Place, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    if not math.prod(shape):
        return np.zeros(shape, place.dtype)
    return np.memmap(place.path, place.dtype, "r", offset, shape)


def open_folder(folder: Path) -> Files:
    """Returns the tensors of a folder.

    Raises:
      ValueError: there are none, or files are missing, broken or not those of the index.
    """
    if (folder / INDEX).exists():
        return Files(_indexed(folder), folder)
    if (folder / WHOLE).exists():
        return Files(_header(folder / WHOLE), folder)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pth", ".pt"))
    if pickles:
        raise ValueError(
            f"{folder}: expected safetensors, got {pickles[0]}: such a file can run code when it "
            "is opened; do: convert it with transformers' save_pretrained where you trust it, or "
            "fetch a revision with safetensors"
        )
    raise ValueError(f"{folder}: expected {WHOLE} or its index, got neither; do: fetch the weights")


def open_file(path: Path) -> Files:
    """Returns the tensors of one file.

    Raises:
      ValueError: it is missing, broken or truncated.
    """
    return Files(_header(path), path)


def _indexed(folder: Path) -> dict[str, Place]:
    path = folder / INDEX
    try:
        named = dict(files.read_json(path, most=MOST_INDEX_BYTES)["weight_map"])
        parts = sorted({Path(file).name for file in named.values()})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected an index with a weight_map, got {type(error).__name__}: {error}; "
            "do: fetch it again"
        ) from None
    headers = {file: _header(folder / file) for file in parts}
    for name, file in named.items():
        if name not in headers.get(file, {}):
            others = [other for other, header in headers.items() if name in header]
            raise ValueError(
                f"{path}: expected {name} in {file}, got "
                f"{f'it in {others[0]}' if others else 'none'}; do: fetch index and files again"
            )
    if surplus := sorted(name for h in headers.values() for name in h if name not in named):
        raise ValueError(
            f"{path}: expected all tensors of its files, got none for {surplus[0]} "
            f"({len(surplus)} in all); do: fetch index and files again"
        )
    return {name: headers[file][name] for name, file in named.items()}


class _Tensor(schemas.Record, frozen=True):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _header(path: Path) -> dict[str, Place]:
    """Returns what a whole file holds, or says in one line what is wrong with it."""
    if path.exists() and not path.is_file():  # A pipe would be waited for.
        raise ValueError(
            f"{path}: expected a safetensors file, got a folder or a pipe; do: fetch it again"
        )
    try:
        with safe_open(path, framework="numpy"):  # The library checks every offset.
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            text = file.read(length)
        header = files.parse_json(text, where=str(path))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected a file named by the index, got none; do: fetch it"
        ) from None
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got a broken or truncated one ({error}); "
            "do: fetch it again"
        ) from None
    header.pop("__metadata__", None)
    places = {}
    # The library takes lists for objects; they would be read differently here.
    entries = schemas.check(header, dict[str, _Tensor], where=str(path), advice="fetch it again")
    for name, entry in entries.items():
        if entry.dtype not in _KINDS and not BUFFER.search(name):
            raise ValueError(
                f"{path}: {name}: expected one of {', '.join(_KINDS)}, got "
                f"{schemas.short_repr(entry.dtype)}; do: fetch weights that are not quantised"
            )
        dtype = np.dtype(jnp.dtype(_KINDS.get(entry.dtype, "uint8")))
        places[name] = Place(path, dtype, tuple(entry.shape), 8 + length + entry.data_offsets[0])
    return places


class Entry(NamedTuple):
    """A tensor that is to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class File(NamedTuple):
    """A file that is to be written."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the file, header included."""
        return len(_written_header(self)) + sum(entry.nbytes for entry in self.entries)


class Written(NamedTuple):
    """A file that has been written."""

    name: str
    nbytes: int
    xxh3: str


def plan(entries: Iterable[Entry]) -> list[File]:
    """Returns the files of tensors, none larger than SHARD_BYTES unless one tensor is."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if groups[-1] and size + entry.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.nbytes
    if len(groups) == 1:
        return [File(WHOLE, _aligned(groups[0]))]
    return [
        File(f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors", _aligned(group))
        for i, group in enumerate(groups)
    ]


def one_file(name: str, entries: Iterable[Entry]) -> File:
    """Returns a file of tensors, however large."""
    return File(name, _aligned(list(entries)))


def write(file: File, folder: Path, pieces: Callable[[str], Iterator[np.ndarray]]) -> Written:
    """Writes a file.

    Args:
      file: what it is to hold.
      folder: where it goes.
      pieces: yields the rows of a tensor, in its dtype, in pieces of any size.
    """
    digest = xxhash.xxh3_128()
    path = folder / file.name
    with path.open("wb") as out:
        head = _written_header(file)
        digest.update(head)
        out.write(head)
        for entry in file.entries:
            for piece in pieces(entry.name):
                data: Any = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
                digest.update(data)
                out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return Written(file.name, path.stat().st_size, digest.hexdigest())


def write_index(parts: Sequence[File], folder: Path) -> None:
    """Writes which file holds which tensor, where there are several."""
    if len(parts) == 1:
        return
    total = sum(entry.nbytes for file in parts for entry in file.entries)
    named = {entry.name: file.name for file in parts for entry in file.entries}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(named.items()))}
    files.write_json(folder / INDEX, index)


def _aligned(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Returns wide dtypes first, so that every tensor begins at a multiple of its item."""
    return tuple(sorted(entries, key=lambda entry: -entry.dtype.itemsize))


def _written_header(file: File) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in file.entries:
        offsets = [at, at + entry.nbytes]
        header[entry.name] = {
            "dtype": _CODES[entry.dtype.name],
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
