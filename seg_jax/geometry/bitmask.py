"""Packs masks into 32-row words, measures and dilates them, and writes them as COCO run lengths.

A packed mask is uint32[K, W]: bit j of word k is row 32 k + j. Bits below the last row are 0; every
function here keeps that and relies on it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Bool, Float32, Int, Int32, UInt32

from seg_jax.geometry import dilation as dilations
from seg_jax.records import Array

WORD = 32
MOST_PIXELS = 2**28
"""Pixels of a mask that run lengths may claim; the largest images that are read have a third."""
_MOST_DIGITS = 7
"""Digits of five bits that a compressed number may have: more than any run of `MOST_PIXELS`."""
# For each bit of a row number within its word: the rows that have it.
ROWS_OF_BITS = tuple(
    np.uint32(sum(1 << row for row in range(WORD) if row >> bit & 1)) for bit in range(5)
)


def pack(mask: Bool[Array, "*n H W"]) -> UInt32[Array, "*n K W"]:
    """Returns masks as words, K = ceil(H / 32).

    Raises:
      ValueError: the masks are not boolean arrays [.., H, W] with pixels.
    """
    _check_masks(mask)
    height, width = mask.shape[-2:]
    padding = [(0, 0)] * (mask.ndim - 2) + [(0, -height % WORD), (0, 0)]
    rows = jnp.pad(mask, padding).reshape(*mask.shape[:-2], -1, WORD, width)
    return (rows.astype(jnp.uint32) << _bit_numbers()).sum(-2, dtype=jnp.uint32)


def unpack(words: UInt32[Array, "*n K W"], *, height: int) -> Bool[Array, "*n {height} W"]:
    """Returns words as masks of their first `height` rows.

    Raises:
      ValueError: the words are not packed masks of so many rows.
    """
    check(words)
    if not 1 <= height <= WORD * words.shape[-2]:
        raise ValueError(
            f"bitmask.unpack: expected a height of 1 to {WORD * words.shape[-2]}, got {height}; "
            "do: give the height of the canvas that was packed"
        )
    bits = (words[..., None, :] >> _bit_numbers()) & 1
    rows = bits.reshape(*words.shape[:-2], -1, words.shape[-1])
    return rows[..., :height, :].astype(bool)


def frame(size: Int[Array, "*n 2"], *, height: int, width: int) -> UInt32[Array, "*n K {width}"]:
    """Returns the masks of images on a larger canvas: all of their pixels, none beyond.

    Args:
      size: height and width of each image; more than the canvas counts as the canvas.
      height: rows of the canvas.
      width: columns of the canvas.

    Raises:
      ValueError: the canvas has no pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"bitmask.frame: expected a canvas with pixels, got {height}x{width}; do: drop the "
            "image"
        )
    size = jnp.minimum(jnp.asarray(size, jnp.int32), jnp.array([height, width], jnp.int32))
    top = WORD * jnp.arange(-(-height // WORD), dtype=jnp.int32)
    rows = jnp.clip(size[..., :1] - top, 0, WORD).astype(jnp.uint32)
    full = jnp.full(rows.shape, 0xFFFFFFFF, jnp.uint32)
    column = ~lax.shift_left(full, rows)
    return jnp.where(jnp.arange(width) < size[..., None, 1:], column[..., None], jnp.uint32(0))


def area(words: UInt32[Array, "*n K W"]) -> Int32[Array, "*n"]:
    """Returns the number of pixels.

    Raises:
      ValueError: the words are not packed masks.
    """
    check(words)
    # Down the columns first: three times as fast on CPU as both axes at once.
    return lax.population_count(words).sum(-2, dtype=jnp.uint32).sum(-1, dtype=jnp.int32)


def intersection(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels of both masks.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    check(words_a, words_b)
    return words_a & words_b


def union(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels of either mask.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    check(words_a, words_b)
    return words_a | words_b


def xor(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels of exactly one of both masks.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    check(words_a, words_b)
    return words_a ^ words_b


def centroid_px(words: UInt32[Array, "*n K W"]) -> Float32[Array, "*n 2"]:
    """Returns the mean x, y of the pixels' centres; 0, 0 for an empty mask (see `area`).

    The sums are exact in int32 up to 4096x4096 pixels.

    Raises:
      ValueError: the words are not packed masks.
    """
    check(words)
    counts = _bit_count(words)
    total = counts.sum((-1, -2), dtype=jnp.int32)
    columns = counts.sum(-2, dtype=jnp.int32)
    high, low = jnp.divmod(jnp.arange(words.shape[-1], dtype=jnp.int32), 64)
    x = 64.0 * _weighted_sum(columns, high) + _weighted_sum(columns, low)
    within = sum(
        (1 << bit) * _bit_count(words & rows).sum((-1, -2), dtype=jnp.int32)
        for bit, rows in enumerate(ROWS_OF_BITS)
    )
    word = jnp.arange(words.shape[-2], dtype=jnp.int32)
    y = 1.0 * WORD * _weighted_sum(counts.sum(-1, dtype=jnp.int32), word) + within
    mean = jnp.stack([x, y], axis=-1) / jnp.maximum(total, 1)[..., None].astype(jnp.float32)
    return jnp.where((total > 0)[..., None], mean + 0.5, 0.0).astype(jnp.float32)


def box(words: UInt32[Array, "*n K W"]) -> Int32[Array, "*n 4"]:
    """Returns the bounding box x0 y0 x1 y1, half open; all 0 for an empty mask.

    Raises:
      ValueError: the words are not packed masks.
    """
    check(words)
    columns = (words != 0).any(-2)
    merged = lax.reduce(words, np.uint32(0), lax.bitwise_or, (words.ndim - 1,))
    rows = unpack(merged[..., None], height=merged.shape[-1] * WORD)[..., 0]
    (x0, x1), (y0, y1) = _first_and_end(columns), _first_and_end(rows)
    return jnp.stack([x0, y0, x1, y1], axis=-1)


def dilation(
    words: UInt32[Array, "*n K W"],
    frame: UInt32[Array, "*n K W"],
    radius: Int[Array, "*n"] | int,
    *,
    shape: Literal["square", "disk"] = "square",
    max_radius: int | None = None,
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels of images that lie within a radius of masks.

    Args:
      words: packed masks.
      frame: all pixels of the images, as `frame` gives them: nothing grows beyond.
      radius: in pixels, one for all masks or one for each.
      shape: "square" reaches |dx| and |dy| up to the radius, "disk" dx^2 + dy^2 up to its square;
        a disk of radius 1 is the cross of a pixel and its four neighbours.
      max_radius: the largest radius, which jit cannot see in a traced one; larger ones count as
        this.

    Raises:
      ValueError: the radius is negative, or traced without `max_radius`; or the words are not
        packed masks of one canvas.
    """
    check(words, frame)
    max_radius = _radius_bound(radius, max_radius)
    words = words & frame
    radius = jnp.broadcast_to(jnp.asarray(radius, jnp.int32), words.shape[:-2])
    return frame & dilations.dilate(words, radius, shape=shape, max_radius=max_radius, beyond=False)


def erosion(
    words: UInt32[Array, "*n K W"],
    frame: UInt32[Array, "*n K W"],
    radius: Int[Array, "*n"] | int,
    *,
    shape: Literal["square", "disk"] = "square",
    max_radius: int | None = None,
    outside: bool = False,
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels of masks that have nothing but mask within a radius.

    Args:
      words: packed masks.
      frame: as in `dilation`.
      radius: as in `dilation`.
      shape: as in `dilation`.
      max_radius: as in `dilation`.
      outside: whether what lies outside the images counts as mask, as OpenCV has it by default;
        else masks wear off at the border of their images too.

    Raises:
      ValueError: as in `dilation`.
    """
    check(words, frame)
    max_radius = _radius_bound(radius, max_radius)
    rest = frame & ~words if outside else ~(frame & words)
    radius = jnp.broadcast_to(jnp.asarray(radius, jnp.int32), rest.shape[:-2])
    return frame & ~dilations.dilate(
        rest, radius, shape=shape, max_radius=max_radius, beyond=not outside
    )


def check(*words: Any) -> None:
    """Checks that arrays are packed masks of one canvas.

    Raises:
      ValueError: an array is none of uint32 [.., K, W], or has other K and W than the first.
    """
    for each in words:
        if not _is_mask_of(each, np.uint32):
            raise ValueError(
                "bitmask.check: expected packed masks, uint32 [.., K, W] with pixels, got "
                f"{_type_and_shape(each)}; do: make them with bitmask.pack or raster.fill"
            )
        if each.shape[-2:] != words[0].shape[-2:]:
            raise ValueError(
                f"bitmask.check: expected words of {list(words[0].shape[-2:])} as the first, got "
                f"{_type_and_shape(each)}; do: pack the masks on one canvas"
            )


def to_rle(mask: Bool[np.ndarray, "H W"], *, compressed: bool = True) -> dict[str, Any]:
    """Returns a mask as COCO run lengths (host): `size` [H, W] and `counts`.

    Counts are the lengths of runs down the columns, zeros first; compressed to the bytes that
    pycocotools writes, or as a list.

    Raises:
      ValueError: the mask is not a boolean array [H, W] with pixels.
    """
    _check_masks(mask)
    if mask.ndim != 2:
        raise ValueError(
            f"bitmask.to_rle: expected one mask [H, W], got {_type_and_shape(mask)}; do: give one "
            "at a time"
        )
    return _rle(mask.T, compressed)


def from_rle(rle: Mapping[str, Any]) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of COCO run lengths, compressed (bytes or str) or a list (host).

    Raises:
      ValueError: size or counts are missing, or the runs do not fill the mask.
    """
    return _columns(rle).T


def run_lengths(rle: Mapping[str, Any]) -> Int[np.ndarray, " n"]:
    """Returns the lengths of a mask's runs down its columns, zeros first (host).

    Raises:
      ValueError: size or counts are missing, or the runs do not fill the mask.
    """
    height, width = _size(rle)
    given = rle["counts"]
    try:
        if isinstance(given, str):
            given = given.encode("ascii")
        runs = np.asarray(_expand(given) if isinstance(given, bytes) else given, np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # Lists of lists, letters, ..
        raise ValueError(
            f"bitmask.run_lengths: expected counts as a list or compressed, got {_short(given)} "
            f"({_short(str(error))}); do: encode the mask again"
        ) from None
    if runs.ndim != 1:
        raise ValueError(
            f"bitmask.run_lengths: expected counts in one row, got {_short(given)}; do: give one "
            "mask's"
        )
    # No run is longer than the mask: without this sums could wrap around.
    if not ((runs >= 0) & (runs <= height * width) & (runs == np.floor(runs))).all():
        raise ValueError(
            f"bitmask.run_lengths: expected runs of 0 to {height * width} pixels for "
            f"{height}x{width}, got others; do: check that size is [height, width] and that counts "
            "are whole"
        )
    runs = runs.astype(np.int64)
    if runs.sum() != height * width:
        raise ValueError(
            f"bitmask.run_lengths: expected runs of {height * width} pixels for {height}x{width}, "
            f"got {runs.sum()}; do: check that size is [height, width] and that counts are whole"
        )
    return runs


def _size(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of run lengths, of which masks may be made."""
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= {*rle}:
        got = list(rle)[:4] if isinstance(rle, Mapping) else type(rle).__name__
        raise ValueError(
            f"bitmask.run_lengths: expected run lengths with size and counts, got {_short(got)}; "
            "do: give one mask's"
        )
    size = rle["size"]
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height, width = 0, 0
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise ValueError(
            "bitmask.run_lengths: expected size as [height, width] of a mask of 1 to "
            f"{MOST_PIXELS} pixels, got {_short(size)}; do: check the mask"
        )
    return height, width


def _short(value: Any) -> str:
    """Returns what a message shows of a value, however long it is."""
    if isinstance(value, list | tuple | dict) and len(value) > 4:
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def compress(counts: Int[np.ndarray, " n"]) -> bytes:
    """Returns the compressed text of run lengths, as COCO's files have it.

    From the fourth on each is written as its difference from the one two places before it.

    A number is written in digits of 5 bits, lowest first, in two's complement; a sixth bit says
    that more follow, and 48 makes it printable.

    Source: rleToString of the COCO API, Lin et al. 2014.
    """
    value = counts.astype(np.int64)
    value[3:] -= counts[1:-2]
    digits, last = [], []
    done = np.zeros(value.size, bool)
    while not done.all():
        digit = value & 31
        value = value >> 5
        ends = np.where(digit & 16, value == -1, value == 0)
        digits.append(digit + np.where(ends, 48, 80))
        last.append(~done)
        done = done | ends
    return np.stack(digits, 1)[np.stack(last, 1)].astype(np.uint8).tobytes()


def unpack_rle(
    words: UInt32[Array, "n K W"], size: Int[Array, "n 2"], *, compressed: bool = True
) -> list[dict[str, Any]]:
    """Returns packed masks as COCO run lengths, as `to_rle` gives them (host).

    Args:
      words: packed masks.
      size: height and width of each image, which lies at the top left of the canvas.
      compressed: as in `to_rle`.

    Raises:
      ValueError: the words are not packed masks, or an image is empty or larger than the canvas.
    """
    check(words)
    depth, width = words.shape[-2:]
    size = np.asarray(size)
    if size.size and (size.min() < 1 or (size > [WORD * depth, width]).any()):
        raise ValueError(
            f"bitmask.unpack_rle: expected images of 1x1 to {WORD * depth}x{width}, got "
            f"{size.tolist()}; do: give height and width of each"
        )
    # Bytes from the first row on, column by column.
    packed = np.asarray(words).swapaxes(-1, -2).astype("<u4", order="C").view(np.uint8)
    return [
        _rle(np.unpackbits(one[:w], 1, count=h, bitorder="little").astype(bool), compressed)
        for one, (h, w) in zip(packed, size.tolist(), strict=True)
    ]


def pack_rle(
    rles: Sequence[Mapping[str, Any]], *, height: int, width: int
) -> UInt32[np.ndarray, "n K {width}"]:
    """Returns COCO run lengths as packed masks at the top left of a canvas (host).

    Args:
      rles: run lengths as `from_rle` takes them, of any sizes up to the canvas.
      height: rows of the canvas.
      width: columns of the canvas.

    Raises:
      ValueError: the canvas has no pixels, a mask exceeds it, or as in `from_rle`.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"bitmask.pack_rle: expected a canvas with pixels, got {height}x{width}; do: drop the "
            "masks"
        )
    depth = -(-height // WORD)
    packed = np.zeros((len(rles), width, 4 * depth), np.uint8)
    for row, rle in zip(packed, rles, strict=True):
        columns = _columns(rle)
        if columns.shape[0] > width or columns.shape[1] > height:
            raise ValueError(
                f"bitmask.pack_rle: expected masks of at most {height}x{width}, got size "
                f"{rle['size']}; do: give a canvas that holds the largest"
            )
        bits = np.packbits(columns, 1, bitorder="little")
        row[: bits.shape[0], : bits.shape[1]] = bits
    return packed.view("<u4").astype(np.uint32, copy=False).swapaxes(-1, -2).copy()


def _rle(columns: Bool[np.ndarray, "W H"], compressed: bool) -> dict[str, Any]:
    """Returns the run lengths of a mask that is given column by column."""
    flat = np.concatenate([[False], columns.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), columns.size)
    counts = np.diff(ends, prepend=0)
    return {
        "size": [*columns.shape[::-1]],
        "counts": compress(counts) if compressed else counts.tolist(),
    }


def _columns(rle: Mapping[str, Any]) -> Bool[np.ndarray, "W H"]:
    """Returns the mask of run lengths, column by column."""
    lengths = run_lengths(rle)
    height, width = _size(rle)
    return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height)


def _expand(text: bytes) -> Int[np.ndarray, " n"]:
    """Returns the run lengths of a compressed text."""
    code = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not code.size:
        return code
    last = (code & 32) == 0
    starts = np.append(0, np.flatnonzero(last)[:-1] + 1)
    long = np.diff(starts, append=code.size).max() > _MOST_DIGITS
    if not last[-1] or (code < 0).any() or (code > 63).any() or long:
        raise ValueError(
            f"bitmask: expected compressed run lengths, got {text[-16:]!r} at their end; do: give "
            "them whole"
        )
    place = 5 * (np.arange(code.size) - np.repeat(starts, np.diff(starts, append=code.size)))
    value = np.add.reduceat((code & 31) << place, starts)
    value -= np.where(code[last] & 16, np.int64(1) << (place[last] + 5), 0)
    # Undo the change to the last but one: runs of either parity add up on their own.
    value[1::2] = np.cumsum(value[1::2])
    value[2::2] = np.cumsum(value[2::2])
    return value


def _is_mask_of(array: Any, dtype: type) -> bool:
    """Returns whether an array [.., rows, columns] has this type and any pixels."""
    shape = np.shape(array)
    return getattr(array, "dtype", None) == dtype and len(shape) > 1 and 0 not in shape[-2:]


def _type_and_shape(array: Any) -> str:
    return f"{getattr(array, 'dtype', type(array).__name__)} {list(np.shape(array))}"


def _check_masks(masks: Any) -> None:
    if not _is_mask_of(masks, np.bool_):
        raise ValueError(
            f"bitmask: expected bool masks [.., H, W] with pixels, got {_type_and_shape(masks)}; "
            "do: compare maps with a threshold"
        )


def _radius_bound(radius, max_radius: int | None) -> int:
    """Returns the largest radius: as it was given, or else that of the values."""
    if max_radius is None:
        if isinstance(radius, Tracer):
            raise ValueError(
                "bitmask: expected max_radius beside a traced radius, got None; do: give the "
                "largest radius"
            )
        max_radius = int(np.max(radius, initial=0))
    if max_radius < 0 or (not isinstance(radius, Tracer) and np.min(radius, initial=0) < 0):
        raise ValueError(
            f"bitmask: expected a radius of 0 or more, got {radius}; do: give 0 to keep the mask"
        )
    return max_radius


def _bit_numbers():
    return jnp.arange(WORD, dtype=jnp.uint32)[:, None]


def _bit_count(words):
    return lax.population_count(words).astype(jnp.int32)


def _weighted_sum(counts, weight):
    return (counts * weight).sum(-1, dtype=jnp.int32).astype(jnp.float32)


def _first_and_end(line):
    """Returns the first index that is True and the one after the last; 0 and 0 if none is."""
    length = line.shape[-1]
    begin = jnp.argmax(line, axis=-1)
    end = length - jnp.argmax(line[..., ::-1], axis=-1)
    found = line.any(-1)
    return tuple(jnp.where(found, v, 0).astype(jnp.int32) for v in (begin, end))
