"""Weights that `torch.save` has written, read as data: nothing in them is looked up, called or run.

Such a file is a zip archive: a pickle that says which tensors there are, and their numbers, stored
as they are. Of the pickle's instructions a machine of our own follows those that describe tensors.

Source: the serialization semantics of PyTorch, pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from seg_jax import safe_pickle, schemas
from seg_jax.models.io import safetensors
from seg_jax.safe_pickle import Machine, RefusedInstruction

SUFFIXES = (".pt", ".pth")
ADVICE = "get the file from where it was published"
MOST_PICKLE_BYTES = 4 << 20
"""The largest pickle that is read, in seconds even where each byte is an instruction; that of a
thousand tensors has a hundred thousand bytes."""
MOST_ENTRIES = 100_000
MOST_AXES = 8
ROOTS = ("state_dict", "model", "model_state_dict")
"""Entries that hold the tensors in a checkpoint of a training, in the order they are looked for."""
_PARALLEL = "module."
_CRC_BYTES = 1 << 20
"""Bytes of a storage that are held while its CRC is computed."""
_LOCAL = struct.Struct("<4s22xHH")
"""What stands before an entry: a mark, and how long its name and its extra field are."""

_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


_EXPECTED = "expected weights as torch.save writes them"


class _Storage(NamedTuple):
    """Numbers in an entry of the archive."""

    dtype: np.dtype
    key: str
    count: int


class _Place(NamedTuple):
    """Where the bytes of a storage lie in the file, and their CRC-32."""

    begin: int
    size: int
    crc: int


class _Tensor(NamedTuple):
    """A view of a storage; offsets and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """What a pickle names, without its being looked up."""

    module: str
    name: str


class _Script(ValueError):
    """An archive with a program beside its numbers."""


class Archive(safetensors.Arrays):
    """The tensors of an archive; a block at a time is mapped, and never more."""

    def __init__(self, path: Path):
        """Reads which tensors there are.

        Of a dict with an entry of `ROOTS` it takes that one, as published checkpoints have it; a
        `module.` before all names, as training on several devices leaves it, is dropped.

        Raises:
          ValueError: no such archive, a broken one, or one with anything but tensors, plain values
            and dicts of them.
        """
        self.where = f"{path}: "
        self._path = path
        try:
            self._tensors = self._read()
        except RefusedInstruction as error:
            raise ValueError(f"{path}: {error}; do: {ADVICE}") from None
        except _Script:
            raise ValueError(
                f"{path}: {_EXPECTED}, got a program of TorchScript, which is not run; do: give "
                "the model's folder of the hub, or, where you trust the file, save what "
                "torch.jit.load(FILE).state_dict() returns by torch.save"
            ) from None
        except (
            OSError,
            ValueError,
            EOFError,
            LookupError,
            RuntimeError,
            struct.error,
            zipfile.BadZipFile,
        ) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"{path}: {_EXPECTED}, got {kind}{error}; do: {ADVICE}") from None

    def names(self) -> Sequence[str]:
        """Returns all names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor."""
        return self._tensors[name].storage.dtype

    def blocks(
        self, name: str, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields rows begin..end of a tensor (all of a scalar) in pieces, each with its first.

        Raises:
          ValueError: the numbers that it is a view of are not those that were saved.
        """
        tensor = self._tensors[name]
        self._check(tensor.storage.key)
        if not tensor.shape or not math.prod(tensor.shape):
            yield begin, self._view(tensor)
            return
        end = tensor.shape[0] if end is None else end
        row = math.prod(tensor.shape[1:]) * tensor.storage.dtype.itemsize
        step = max(1, safetensors.BLOCK_BYTES // row)
        for first in range(begin, end, step):
            rows = min(step, end - first)
            at = tensor.offset + first * tensor.strides[0]
            yield first, self._view(tensor._replace(offset=at, shape=(rows, *tensor.shape[1:])))

    def _check(self, key: str) -> None:
        """Compares a storage with its CRC, the first time that one of its tensors is read."""
        if key in self._checked:
            return
        begin, size, crc = self._places[key]
        found = 0
        with self._path.open("rb") as file:
            file.seek(begin)
            while size and (block := file.read(min(size, _CRC_BYTES))):
                found = zlib.crc32(block, found)
                size -= len(block)
        if size or found != crc:
            raise ValueError(
                f"{self._path}: expected the storage {schemas.short_repr(key)} as it was saved, "
                f"got other bytes (its CRC differs); do: {ADVICE}"
            )
        self._checked.add(key)

    def _view(self, tensor: _Tensor) -> np.ndarray:
        """Returns a tensor, of which only its own part of the file is mapped."""
        kind, item = tensor.storage.dtype, tensor.storage.dtype.itemsize
        if not math.prod(tensor.shape):
            return np.zeros(tensor.shape, kind)
        begin = self._places[tensor.storage.key].begin + tensor.offset * item
        whole = np.memmap(self._path, kind, "r", begin, (_extent(tensor),))
        strides = [stride * item for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(whole, tensor.shape, strides, writeable=False)

    def _read(self) -> dict[str, _Tensor]:
        """Returns the tensors by name; where their numbers lie is kept too."""
        if not self._path.is_file():  # A pipe would be waited for.
            raise ValueError("no file, a folder or a pipe")
        with zipfile.ZipFile(self._path) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise ValueError(f"more than {MOST_ENTRIES} entries")
            if any(one.filename.endswith("/constants.pkl") for one in entries):
                raise _Script
            pickles = [one for one in entries if one.filename.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"{len(pickles)} entries data.pkl, not one")
            root = pickles[0].filename.removesuffix("data.pkl")
            for one in entries:
                if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1:
                    raise ValueError(f"{schemas.short_repr(one.filename)} compressed or encrypted")
            if pickles[0].file_size > MOST_PICKLE_BYTES:
                raise ValueError(f"a pickle of more than {MOST_PICKLE_BYTES} bytes")
            named = {one.filename: one for one in entries}
            if len(named) < len(entries):  # Nobody can know which was meant.
                raise ValueError("two entries of one name")
            if f"{root}byteorder" in named:
                order = named[f"{root}byteorder"]
                if order.file_size > 16 or archive.read(order) != b"little":
                    raise ValueError("numbers whose first byte is the largest")
            value = safe_pickle.loads(archive.read(pickles[0]), more=_STEPS)
        tensors = _named_tensors(value)
        stored = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        self._places: dict[str, _Place] = {}
        self._checked: set[str] = set()
        for key, storage in stored.items():
            entry = named.get(f"{root}data/{key}")
            size = -1 if entry is None else entry.file_size
            if entry is None or size != storage.count * storage.dtype.itemsize:
                raise ValueError(f"{size} bytes of the storage {schemas.short_repr(key)}")
            self._places[key] = _Place(self._begin(entry), entry.file_size, entry.CRC)
        for name, tensor in tensors.items():
            if stored[tensor.storage.key] != tensor.storage:
                raise ValueError(f"{schemas.short_repr(name)}: two kinds of one storage")
        return tensors

    def _begin(self, entry: zipfile.ZipInfo) -> int:
        """Returns where the bytes of an entry begin, known to lie within the file."""
        with self._path.open("rb") as file:
            file.seek(entry.header_offset)
            mark, name, extra = _LOCAL.unpack(file.read(_LOCAL.size).ljust(_LOCAL.size))
            begin = entry.header_offset + _LOCAL.size + name + extra
            if mark != b"PK\3\4" or begin + entry.file_size > file.seek(0, 2):
                raise ValueError(f"no whole entry {schemas.short_repr(entry.filename)}")
        return begin


class Renamed(safetensors.Arrays):
    """Tensors under other names; one may be made of several, row behind row."""

    def __init__(self, source: safetensors.Arrays, sources: Mapping[str, Sequence[str]]):
        """Takes tensors, and which of them each name is made of: all of equal inner axes."""
        self.where = source.where
        self._inner, self._sources = source, sources

    def names(self) -> Sequence[str]:
        """Returns all names."""
        return list(self._sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        shapes = [self._inner.shape(one) for one in self._sources[name]]
        if len(shapes) == 1:
            return shapes[0]
        if len({shape[1:] for shape in shapes}) != 1 or not all(shapes):
            return (-1,)  # Of no model: it is told as a wrong shape.
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor."""
        return np.result_type(*(self._inner.dtype(one) for one in self._sources[name]))

    def blocks(
        self, name: str, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields rows begin..end of a tensor (all of a scalar) in pieces, each with its first."""
        sources = self._sources[name]
        if len(sources) == 1:
            yield from self._inner.blocks(sources[0], begin, end)
            return
        at = 0
        for one in sources:
            rows = self._inner.shape(one)[0]
            low, high = (
                max(begin - at, 0),
                min(self.shape(name)[0] if end is None else end, at + rows) - at,
            )
            if low < high:
                for first, block in self._inner.blocks(one, low, high):
                    yield at + first, block
            at += rows


def _named_tensors(value: Any) -> dict[str, _Tensor]:
    """Returns the tensors of what a pickle holds."""
    if isinstance(value, dict):
        inner = (value.get(root) for root in ROOTS)
        value = next((one for one in inner if isinstance(one, dict)), value)
    if not isinstance(value, dict):
        raise ValueError(f"{schemas.short_repr(value)} in place of a dict of tensors")
    found = {}
    for name, tensor in value.items():
        known = isinstance(name, str) and isinstance(tensor, _Tensor)
        if known and jnp.issubdtype(tensor.storage.dtype, jnp.floating):  # Others are counters.
            found[name] = tensor
    if not found:
        raise ValueError("no tensor")
    if all(name.startswith(_PARALLEL) for name in found):
        found = {name.removeprefix(_PARALLEL): tensor for name, tensor in found.items()}
    return found


def _extent(tensor: _Tensor) -> int:
    """Returns how many numbers a view of at least one number reaches over."""
    pairs = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def _name(machine: Machine, module: Any, name: Any) -> None:
    """Pushes what is named: a kind of storage, a function that we know; nothing is looked up."""
    known = (module == "torch" and name in _DTYPES) or (module, name) in _BUILDERS
    if not known:
        got = schemas.short_repr(f"{module}.{name}")
        raise RefusedInstruction(
            f"{_EXPECTED}, got {got} at byte {machine.at}, which could run code; none was run"
        )
    machine.push(_Name(module, name))


def _global(machine: Machine) -> None:
    module, name = (machine.line().decode("utf-8", "replace") for _ in range(2))
    _name(machine, module, name)


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    _name(machine, module, name)


def _reduce(machine: Machine) -> None:
    """Pushes what a function that we know would make, made by our own."""
    arguments, what = machine.pop(), machine.pop()
    builder = _BUILDERS.get(what) if isinstance(what, _Name) else None
    if builder is None or not isinstance(arguments, tuple):
        raise RefusedInstruction(
            f"{_EXPECTED}, got the instruction REDUCE at byte {machine.at - 1}, which could run "
            "code; none was run"
        )
    machine.push(builder(*arguments))


def _persistent(machine: Machine) -> None:
    """Pushes a storage: (storage, kind, key, device, count)."""
    found = machine.pop()
    if not (isinstance(found, tuple) and len(found) == 5 and found[0] == "storage"):
        raise ValueError("no storage")
    _, kind, key, _, count = found
    if not isinstance(kind, _Name) or kind.name not in _DTYPES or not isinstance(key, str):
        raise ValueError("no kind of storage")
    machine.push(_Storage(np.dtype(jnp.dtype(_DTYPES[kind.name])), key, _count(count)))


def _build(machine: Machine) -> None:
    """Leaves out what else a dict knows, as the versions of its modules."""
    machine.pop()
    machine.top(dict)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Returns a tensor, known to lie within its storage."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple | list):
        raise RefusedInstruction(f"{_EXPECTED}, got no tensor of a storage")
    if not isinstance(strides, tuple | list) or not len(shape) == len(strides) <= MOST_AXES:
        raise RefusedInstruction(f"{_EXPECTED}, got no strides of the axes")
    made = _Tensor(storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))
    if math.prod(made.shape) and made.offset + _extent(made) > storage.count:
        raise RefusedInstruction(f"{_EXPECTED}, got a tensor beyond its storage")
    if math.prod(made.shape) > storage.count:
        raise RefusedInstruction(f"{_EXPECTED}, got a tensor larger than its storage")
    return made


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs)


def _count(value: Any) -> int:
    """Returns a number that counts something."""
    if type(value) is not int or not 0 <= value < 2**48:
        raise RefusedInstruction(
            f"{_EXPECTED}, got {schemas.short_repr(value)} in place of a count"
        )
    return value


_BUILDERS = {
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
    _Name("collections", "OrderedDict"): _dict,
}
_STEPS = {b"c": _global, b"\x93": _stack_global, b"R": _reduce, b"Q": _persistent, b"b": _build}
