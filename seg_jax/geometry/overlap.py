"""Compares packed masks and boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt32

from seg_jax.geometry import bitmask, raster
from seg_jax.geometry.batching import vmap_as_leading_axis
from seg_jax.geometry.snapping import Snapped
from seg_jax.geometry.soft import soft_iou as soft_iou
from seg_jax.records import Array


class Counts(NamedTuple):
    """Areas of the intersection and the union of two masks: their quotient is the exact IoU."""

    intersection: Int32[Array, "*n"]
    union: Int32[Array, "*n"]


class Totals(NamedTuple):
    """Counts of many pairs added up, as high * 2^24 + low: exact where int32 would overflow.

    Holds 2^56 pixels. Before they are divided, totals of up to 256 devices may be added field by
    field (`psum`).
    """

    intersection: UInt32[Array, " 2"]
    """High and low."""
    union: UInt32[Array, " 2"]


def counts(words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]) -> Counts:
    """Returns the areas of the intersection and the union of packed masks.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    bitmask.check(words_a, words_b)
    return Counts(bitmask.area(words_a & words_b), bitmask.area(words_a | words_b))


def polygon_counts(
    points_px: Float[Array, "*n R P 2"] | Snapped,
    used: Bool[Array, "*n R P"],
    words: UInt32[Array, "*m K W"],
    *,
    height: int,
    width: int,
    rule: Literal["coco", "center"] = "coco",
    rings: Literal["union", "evenodd"] = "union",
) -> Counts:
    """Returns the areas of the intersection and the union of polygons with packed masks.

    As `counts` of what `raster.fill` gives, in one pass that writes no mask to memory.

    Args:
      points_px: as in `raster.fill`.
      used: as in `raster.fill`.
      words: packed masks whose leading axes broadcast against those of the points.
      height: as in `raster.fill`.
      width: as in `raster.fill`.
      rule: as in `raster.fill`.
      rings: as in `raster.fill`.

    Raises:
      ValueError: as in `raster.fill`, or the words are of another canvas.
    """
    area, shared = raster.fill_counts(
        points_px, used, words, height=height, width=width, rule=rule, rings=rings
    )
    return Counts(shared, area + bitmask.area(words) - shared)


def totals(counts: Counts, before: Totals | None = None) -> Totals:
    """Returns counts of up to 2^19 pairs, of 2^24 pixels each at most, added to those before.

    Leave out what does not count by setting it to 0 in both fields.
    """
    before = before or Totals(*(jnp.zeros(2, jnp.uint32) for _ in range(2)))
    return Totals(*(_add_to_total(*pair) for pair in zip(before, counts, strict=True)))


def cumulative_iou(totals: Totals) -> Float32[Array, ""]:
    """Returns the sum of intersections over the sum of unions (cIoU), in 0..1; 1 for no pixels.

    Source: the "overall IoU" of referring segmentation, Yang et al. 2022 (LAVT), section 4.
    """
    shared, covered = (
        jnp.float32(1 << 24) * t[0].astype(jnp.float32) + t[1].astype(jnp.float32) for t in totals
    )
    return _ratio(shared, covered, empty=1.0)


def iou(words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]) -> Float32[Array, "*n"]:
    """Returns intersection over union in 0..1; two empty masks agree: 1.

    Raises:
      ValueError: the words are not packed masks of one canvas.

    Differs: pycocotools gives 0 for two empty masks.
    """
    shared, covered = counts(words_a, words_b)
    return _ratio(shared, covered, empty=1.0)


def dice(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]
) -> Float32[Array, "*n"]:
    """Returns twice the intersection over the sum of areas, in 0..1; 1 for two empty masks.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    shared, covered = counts(words_a, words_b)
    return _ratio(2 * shared, covered + shared, empty=1.0)


def box_iou(boxes_a: Float[Array, "*n 4"], boxes_b: Float[Array, "*n 4"]) -> Float32[Array, "*n"]:
    """Returns the IoU of boxes x0 y0 x1 y1 in any one unit, in 0..1.

    A box whose x1 or y1 is not beyond x0 or y0 has no area and meets nothing: its IoU is 0, also
    with itself.
    """
    a, b = jnp.asarray(boxes_a, jnp.float32), jnp.asarray(boxes_b, jnp.float32)
    return _ratio(*_box_counts(a, b), empty=0.0)


def box_giou(boxes_a: Float[Array, "*n 4"], boxes_b: Float[Array, "*n 4"]) -> Float32[Array, "*n"]:
    """Returns the generalised IoU of boxes x0 y0 x1 y1 in any one unit, in -1..1.

    It is the IoU (see `box_iou`) less the share of the smallest box around both that neither
    covers; 0 where that box has no area.

    Source: Rezatofighi et al. 2019, algorithm 1.
    """
    a, b = jnp.asarray(boxes_a, jnp.float32), jnp.asarray(boxes_b, jnp.float32)
    shared, covered = _box_counts(a, b)
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    around = _box_area(low, high)
    empty = _ratio(around - covered, around, empty=0.0)
    return _ratio(shared, covered, empty=0.0) - empty


def boundary(
    words: UInt32[Array, "*n K W"], size: Int[Array, "*n 2"], *, ratio: float | int = 0.02
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels of masks that lie close to their outline.

    Those within d pixels, across or down, of a pixel that is not of the mask; beyond the border of
    the image there is no mask. d is `ratio` times the image's diagonal, rounded (halves to
    even), at least 1.

    Args:
      words: packed masks.
      size: height and width of each image in pixels; the masks' pixels beyond are dropped.
      ratio: of the diagonal.

    Raises:
      ValueError: the words are not packed masks, or ratio is no positive number.

    Source: Cheng et al. 2021, "Boundary IoU", section 4; the constants of its published code.
    """
    frame, radius, max_radius = _radius_of_ratio(words, size, ratio, lambda x: max(1, round(x)))
    words = words & frame
    return words & ~bitmask.erosion(words, frame, radius, max_radius=max_radius)


def boundary_iou(
    words_a: UInt32[Array, "*n K W"],
    words_b: UInt32[Array, "*n K W"],
    size: Int[Array, "*n 2"],
    *,
    ratio: float | int = 0.02,
) -> Float32[Array, "*n"]:
    """Returns the IoU of the boundaries of masks, in 0..1; two empty masks agree: 1.

    Where many masks meet one, `iou` of what `boundary` gives saves work.

    Args:
      words_a: packed masks.
      words_b: packed masks.
      size: as in `boundary`.
      ratio: as in `boundary`.

    Raises:
      ValueError: as in `boundary`.

    Source: Cheng et al. 2021, "Boundary IoU", equation 4.
    """
    bitmask.check(words_a, words_b)

    def at_once(words_a, words_b, size):
        return counts(*(boundary(words, size, ratio=ratio) for words in (words_a, words_b)))

    def pair_by_pair(pairs, size):
        def one(item):
            # Mask by mask, or XLA works each band out for each of the two sums.
            bands = lax.map(lambda words: boundary(words, item[1], ratio=ratio), item[0])
            return counts(bands[0], bands[1])

        return lax.map(one, (pairs, size))

    def count_all(words_a, words_b, size):
        lead = words_a.shape[:-2]
        flat = [x.reshape(-1, *x.shape[len(lead) :]) for x in (words_a, words_b, size)]
        # On a CPU one pair at a time stays in the cache.
        found = lax.platform_dependent(
            *flat, cpu=lambda a, b, size: pair_by_pair(jnp.stack([a, b], 1), size), default=at_once
        )
        return [total.reshape(lead) for total in found]

    words_a, words_b = jnp.broadcast_arrays(words_a, words_b)
    size = jnp.broadcast_to(jnp.asarray(size, jnp.int32), (*words_a.shape[:-2], 2))
    return _ratio(*vmap_as_leading_axis(count_all)(words_a, words_b, size), empty=1.0)


def outline(words: UInt32[Array, "*n K W"], size: Int[Array, "*n 2"]) -> UInt32[Array, "*n K W"]:
    """Returns the pixels that differ from their neighbour right, below or right below.

    So a border has one pixel, on its left or upper side, in the mask or outside. What lies beyond
    the image differs from nothing.

    Args:
      words: packed masks.
      size: height and width of each image in pixels.

    Raises:
      ValueError: the words are not packed masks.

    Source: boundary maps of the Berkeley segmentation benchmark, as DAVIS takes them (Perazzi et
      al. 2016).
    """
    bitmask.check(words)
    canvas = {"height": 32 * words.shape[-2], "width": words.shape[-1]}
    size = jnp.asarray(size, jnp.int32)
    words = words & bitmask.frame(size, **canvas)
    has_right = bitmask.frame(size - jnp.array([0, 1]), **canvas)
    has_below = bitmask.frame(size - jnp.array([1, 0]), **canvas)
    right, below = _shift_left(words), _shift_up(words)
    corner = words ^ _shift_left(below)
    return (
        (words ^ right) & has_right | (words ^ below) & has_below | corner & has_right & has_below
    )


def boundary_f(
    words_a: UInt32[Array, "*n K W"],
    words_b: UInt32[Array, "*n K W"],
    size: Int[Array, "*n 2"],
    *,
    ratio: float | int = 0.008,
) -> Float32[Array, "*n"]:
    """Returns the boundary F measure of masks, in 0..1; the same either way round.

    Precision is the share of one mask's outline that lies within d pixels (a disk) of the other's,
    recall the reverse, F their harmonic mean. d is `ratio` times the image's diagonal, rounded
    up. If only one outline is empty F is 0, if both are 1.

    Args:
      words_a: packed masks.
      words_b: packed masks.
      size: height and width of each image in pixels; the masks' pixels beyond are dropped.
      ratio: of the diagonal.

    Raises:
      ValueError: the words are not packed masks of one canvas, or ratio is no positive number.

    Source: Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object
      segmentation", section 4; the constants of its published code.
    """
    bitmask.check(words_a, words_b)
    frame, radius, max_radius = _radius_of_ratio(words_a, size, ratio, math.ceil)
    lines = [outline(words, size) for words in (words_a, words_b)]
    wide = [bitmask.dilation(x, frame, radius, shape="disk", max_radius=max_radius) for x in lines]
    hits = [bitmask.area(x & y) for x, y in zip(lines, wide[::-1], strict=True)]
    empty = [bitmask.area(x) == 0 for x in lines]
    precision, recall = (
        _ratio(hit, bitmask.area(x), empty=1.0) for hit, x in zip(hits, lines, strict=True)
    )
    f = _ratio(2 * precision * recall, precision + recall, empty=0.0)
    return jnp.where(empty[0] ^ empty[1], 0.0, f)


def centroid_distance(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"], size: Int[Array, "*n 2"]
) -> Float32[Array, "*n"]:
    """Returns how far the centroids of masks lie apart, in 0..1 (1 is the image's diagonal).

    Centroids are taken as fractions of width and height, so the unit is the diagonal of the unit
    square. If one mask is empty the distance is 1, if both are 0.

    Args:
      words_a: packed masks.
      words_b: packed masks.
      size: height and width of each image in pixels.

    Raises:
      ValueError: the words are not packed masks of one canvas.
    """
    bitmask.check(words_a, words_b)
    offset = bitmask.centroid_px(words_a) - bitmask.centroid_px(words_b)
    unit = offset / jnp.asarray(size)[..., ::-1].astype(jnp.float32)
    distance = jnp.sqrt((unit * unit).sum(-1) / 2)
    empty_a, empty_b = bitmask.area(words_a) == 0, bitmask.area(words_b) == 0
    distance = jnp.where(empty_a ^ empty_b, 1.0, distance)
    return jnp.where(empty_a & empty_b, 0.0, distance)


def _ratio(part, whole, *, empty):
    """Returns part / whole in float32, `empty` where whole is 0."""
    quotient = part.astype(jnp.float32) / jnp.where(whole > 0, whole, 1).astype(jnp.float32)
    return jnp.where(whole > 0, quotient, jnp.float32(empty))


def _box_area(low, high):
    return jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)


def _box_counts(a, b):
    """Returns the areas of the intersection and the union of boxes."""
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    shared = _box_area(low, high)
    return shared, _box_area(a[..., :2], a[..., 2:]) + _box_area(b[..., :2], b[..., 2:]) - shared


def _add_to_total(total: UInt32[Array, " 2"], counts: Int32[Array, "*n"]) -> UInt32[Array, " 2"]:
    """Returns a total with counts added: their upper and lower 12 bits apart, which fit."""
    counts = counts.astype(jnp.uint32)
    upper, lower = (counts >> 12).sum(dtype=jnp.uint32), (counts & 4095).sum(dtype=jnp.uint32)
    upper = upper + (lower >> 12)
    low = total[1] + ((upper & 4095) << 12 | (lower & 4095))
    return jnp.stack([total[0] + (upper >> 12) + (low >> 24), low & 0xFFFFFF])


def _radius_of_ratio(words, size, ratio: float | int, rounded: Callable[[float], int]):
    """Returns the images' frames, the rounded part of their diagonals, and the largest of it."""
    bitmask.check(words)
    if not 0 < ratio < math.inf:
        raise ValueError(
            f"overlap: expected a ratio above 0, got {ratio}; do: give 0.02 for 2 % of the diagonal"
        )
    height, width = 32 * words.shape[-2], words.shape[-1]
    size = jnp.clip(jnp.asarray(size, jnp.int32), 0, jnp.array([height, width], jnp.int32))
    square = (size * size).sum(-1, dtype=jnp.int32)
    most = rounded(ratio * math.hypot(height, width))
    # float64 rounds on the host: what counts is the least square of a diagonal for each radius.
    steps = jnp.asarray(_radius_steps(ratio, rounded, most, height**2 + width**2), jnp.int32)
    radius = (square[..., None] >= steps).sum(-1, dtype=jnp.int32)
    return bitmask.frame(size, height=height, width=width), radius, most


def _radius_steps(
    ratio: float | int, rounded: Callable[[float], int], most: int, end: int
) -> Int[np.ndarray, " most"]:
    """Returns for each n of 1..most the least square q for which ratio * sqrt(q) rounds to n.

    Where no q up to `end` does, it is end + 1.
    """
    found = np.empty(most, np.int64)
    low = 0
    for value in range(1, most + 1):
        high = end + 1
        while low < high:
            middle = (low + high) // 2
            enough = rounded(ratio * math.sqrt(middle)) >= value
            low, high = (low, middle) if enough else (middle + 1, high)
        found[value - 1] = low
    return found


def _shift_left(words):
    """Returns masks moved one column to the left."""
    return jnp.pad(words[..., 1:], [(0, 0)] * (words.ndim - 1) + [(0, 1)])


def _shift_up(words):
    """Returns masks moved one row up."""
    following = jnp.pad(words[..., 1:, :], [(0, 0)] * (words.ndim - 2) + [(0, 1), (0, 0)])
    return words >> 1 | following << 31
