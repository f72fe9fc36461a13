"""Compares packed masks and boxes."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt32

from seg_jax.geometry import bitmask, raster
from seg_jax.records import Array


class Counts(NamedTuple):
    """Pixels that two masks share and cover: their exact IoU is the quotient."""

    intersection: Int32[Array, "*n"]
    union: Int32[Array, "*n"]


def counts(words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]) -> Counts:
    """Returns the areas of the intersection and the union of packed masks."""
    return Counts(bitmask.area(words_a & words_b), bitmask.area(words_a | words_b))


def polygon_counts(
    points_px: Float32[Array, "*n R P 2"],
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
    area, shared = raster.shared(
        points_px, used, words, height=height, width=width, rule=rule, rings=rings
    )
    return Counts(shared, area + bitmask.area(words) - shared)


def iou(words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]) -> Float32[Array, "*n"]:
    """Returns intersection over union in 0..1; two empty masks agree: 1.

    Differs: pycocotools gives 0 for two empty masks.
    """
    shared, covered = counts(words_a, words_b)
    return _ratio(shared, covered, empty=1.0)


def dice(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"]
) -> Float32[Array, "*n"]:
    """Returns twice the intersection over the sum of areas, in 0..1; 1 for two empty masks."""
    shared, covered = counts(words_a, words_b)
    return _ratio(2 * shared, covered + shared, empty=1.0)


def box_iou(boxes_a: Float[Array, "*n 4"], boxes_b: Float[Array, "*n 4"]) -> Float32[Array, "*n"]:
    """Returns the IoU of boxes x0 y0 x1 y1 in any one unit, in 0..1.

    A box whose x1 or y1 is not beyond x0 or y0 has no area and meets nothing: its IoU is 0, also
    with itself.
    """
    a, b = jnp.asarray(boxes_a, jnp.float32), jnp.asarray(boxes_b, jnp.float32)
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    shared = _box_area(low, high)
    covered = _box_area(a[..., :2], a[..., 2:]) + _box_area(b[..., :2], b[..., 2:]) - shared
    return _ratio(shared, covered, empty=0.0)


def centroid_distance(
    words_a: UInt32[Array, "*n K W"], words_b: UInt32[Array, "*n K W"], size: Int[Array, "*n 2"]
) -> Float32[Array, "*n"]:
    """Returns how far the centroids of masks lie apart, in 0..1 (1 is the picture's diagonal).

    Centroids are taken as fractions of width and height, so the unit is the diagonal of the unit
    square. If one mask is empty the distance is 1, if both are 0.

    Args:
      words_a: packed masks.
      words_b: packed masks.
      size: height and width of each picture in pixels.
    """
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
