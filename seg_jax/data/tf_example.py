"""Writes and reads tf.train.Example bytes, without TensorFlow and without protobuf.

An Example is a map from names to lists of bytes, floats or integers. Of one value there is one
text: names are sorted.

Source: tensorflow/core/example/{example,feature}.proto; the wire format of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

Value = list[bytes] | np.ndarray
"""A list of bytes, or a one-dimensional array, float32 or int64."""

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5
_FEW = 64
"""Bytes."""


def encode(features: Mapping[str, Value]) -> bytes:
    """Returns features as the bytes of an Example.

    Raises:
      ValueError: an array is neither float32 nor int64, or not of one dimension.
    """
    every = []
    for name in sorted(features):
        feature = _feature(name, features[name])
        entry = _length_delimited(1, name.encode()) + _length_delimited(2, feature)
        every.append(_length_delimited(1, entry))
    return _length_delimited(1, b"".join(every))


def decode(data: bytes) -> dict[str, Value]:
    """Returns the features of an Example; those without a list of any kind are empty.

    Raises:
      ValueError: the bytes are no Example.
    """
    try:
        return dict(_features(memoryview(data)))
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"record: expected the bytes of an Example, got others ({error!r}); do: build the "
            "data set "
            "anew"
        ) from None


def _feature(name: str, value: Value) -> bytes:
    if isinstance(value, list):
        return _length_delimited(_BYTES, b"".join(_length_delimited(1, one) for one in value))
    if value.ndim == 1 and value.dtype == np.float32:
        packed = value.astype("<f4").tobytes()
        return _length_delimited(_FLOATS, _length_delimited(1, packed) if packed else b"")
    if value.ndim == 1 and value.dtype == np.int64:
        packed = b"".join(_varint(int(one) % 2**64) for one in value)
        return _length_delimited(_INTEGERS, _length_delimited(1, packed) if packed else b"")
    raise ValueError(
        f"{name}: expected a list of float32 or int64, got {value.dtype}{[*value.shape]}"
        "; do: convert it to one of these"
    )


def _length_delimited(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | _SIZED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    digits = bytearray()
    while value >= 128:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _features(data: memoryview) -> Iterator[tuple[str, Value]]:
    for _, features in _fields(data, {1}):
        for _, entry in _fields(features, {1}):
            parts = dict(_fields(entry, {1, 2}))
            yield bytes(parts[1]).decode(), _list(parts.get(2, memoryview(b"")))


def _list(feature: memoryview) -> Value:
    """Returns the list in a feature, of whichever kind it is."""
    for kind, values in _fields(feature, {_BYTES, _FLOATS, _INTEGERS}):
        parts = [part for _, part in _fields(values, {1})]
        if kind == _BYTES:
            return [bytes(part) for part in parts]
        if kind == _FLOATS:
            return np.frombuffer(b"".join(parts), "<f4").astype(np.float32)
        return _integers(b"".join(parts))
    return []


def _integers(packed: bytes) -> np.ndarray:
    """Returns the integers of packed varints."""
    if len(packed) <= _FEW:  # Sooner done one by one.
        at, some = 0, []
        while at < len(packed):
            value, at = _read_varint(memoryview(packed), at)
            some.append(value % 2**64)
        return np.array(some, np.uint64).view(np.int64)
    code = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(code < 128)
    if code.size and (not ends.size or ends[-1] != code.size - 1):
        raise IndexError("an integer has no end")
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1]) if ends.size else ends
    sizes = ends - starts + 1
    if (sizes > 10).any():
        raise IndexError("an integer is too long")
    place = np.arange(code.size) - np.repeat(starts, sizes)
    digits = (code & 127).astype(np.uint64) << (7 * place).astype(np.uint64)
    found = np.add.reduceat(digits, starts) if ends.size else digits
    return found.astype(np.uint64).view(np.int64)


def _fields(data: memoryview, wanted: set[int]) -> Iterator[tuple[int, memoryview]]:
    """Yields number and bytes of the wanted fields; a varint that is not packed as its bytes."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        begin = at
        if kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind == _SIZED:
            size, begin = _read_varint(data, at)
            at = begin + size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise KeyError(f"wire type {kind}")
        if at > len(data):
            raise IndexError("it ends early")
        if number in wanted:
            yield number, data[begin:at]


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the varint at a place, and the place behind it."""
    value = shift = 0
    while True:
        digit = data[at]
        at += 1
        value |= (digit & 127) << shift
        if digit < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a number is too long")
