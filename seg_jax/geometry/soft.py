"""Compares polygons with masks by a soft IoU that has gradients in their vertices.

A pixel belongs to a polygon by its centre's distance to the outline, positive inside: the logistic
function turns it into a share between 0 and 1. Which edge is nearest and what is inside are found
without gradients, edge by edge; the distance to that edge is then worked out again, with them.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Bool, Float, UInt32

from seg_jax.geometry import bitmask, raster
from seg_jax.records import Array

_PIXELS = 1 << 22
"""Pixels of the shapes that are worked out at once."""


def soft_iou(
    points_px: Float[Array, "*n R P 2"],
    used: Bool[Array, "*n R P"],
    mask: UInt32[Array, "*m K W"] | Bool[Array, "*m H W"],
    *,
    height: int,
    width: int,
    temperature_px: float | int | Float[Array, ""] = 1.0,
    rings: Literal["union", "evenodd"] = "union",
) -> Float[Array, "*n"]:
    """Returns the IoU of polygons whose outlines are blurred with masks, in 0..1, differentiable.

    A pixel whose centre lies d pixels inside (outside: -d) counts as p = 1 / (1 + exp(-d / t)); the
    IoU is sum(p m) over sum(p + m - p m). As the temperature t falls it becomes the IoU of
    `raster.fill(rule="center")`, and gradients fade but near the outline; a temperature of about a
    tenth of the shape leads towards masks from afar. An empty polygon has p = 0 and no gradient;
    with an empty mask its IoU is 1.

    Args:
      points_px: ring vertices, x then y, in pixels; (0, 0) is the outer corner of the first pixel.
        Vertices that are not finite count as unused. The result is of their type.
      used: False for padding.
      mask: packed or boolean masks, whose leading axes broadcast against those of the points.
      height: rows of the canvas.
      width: columns of the canvas.
      temperature_px: distance from the outline at which a pixel counts as 0.73 (inside) or 0.27.
      rings: "union" of the rings, each filled by the even-odd rule, or "evenodd" across them, under
        which a ring within a ring is a hole. A ring with fewer than three vertices is empty.

    Raises:
      ValueError: the mask is of another canvas, or the temperature (unless traced) is not positive.
    """
    _check(points_px, used, mask, height, width)
    if not isinstance(temperature_px, Tracer) and not 0 < temperature_px < math.inf:
        raise ValueError(
            f"overlap.soft_iou: expected a temperature above 0, got {temperature_px}; do: use "
            "overlap.iou for hard edges"
        )
    points = jnp.asarray(points_px)
    lead = points.shape[:-3]
    if not used.size:
        used, points = jnp.zeros((*lead, 1, 1), bool), jnp.zeros((*lead, 1, 1, 2), points.dtype)
    mask = jnp.asarray(mask)
    if mask.dtype == jnp.uint32:
        mask = bitmask.unpack(mask, height=height)
    mask = jnp.broadcast_to(mask, (*lead, height, width)).reshape(-1, height, width)

    @jax.checkpoint  # what is kept for the gradients is no more than what comes in
    def one(item):
        points, used, mask = item
        depth = _depth(points, used, height, width, rings)
        drawn = depth > -jnp.inf
        share = jax.nn.sigmoid(jnp.where(drawn, depth, 0) / temperature_px)
        share, mask = jnp.where(drawn, share, 0), mask.astype(share.dtype)
        shared, covered = (share * mask).sum(), (share + mask - share * mask).sum()
        return jnp.where(covered > 0, shared / jnp.where(covered > 0, covered, 1), 1)

    items = points.reshape(-1, *points.shape[-3:]), used.reshape(-1, *used.shape[-2:]), mask
    at_once = max(1, _PIXELS // (height * width))
    return lax.map(one, items, batch_size=at_once).reshape(lead)


def _depth(points, used, height: int, width: int, rings) -> Float[Array, "{height} {width}"]:
    """Returns how far pixel centres lie inside the rings (negative: outside), -inf without any."""
    begin, end, real = _edges(points, used)
    if rings == "evenodd":
        begin, end, real = (leaf.reshape(1, -1, *leaf.shape[2:]) for leaf in (begin, end, real))
    x = jnp.arange(width, dtype=points.dtype) + 0.5
    y = (jnp.arange(height, dtype=points.dtype) + 0.5)[:, None]

    def group(deepest, ring):
        begin, end, real = ring
        nearest, inside = _nearest(*lax.stop_gradient((begin, end)), real, x, y)
        square = _squared_distance(begin[nearest], end[nearest], x, y)
        # The root has no slope at 0: a centre on the outline moves nothing.
        distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        depth = jnp.where(real.any(), jnp.where(inside, distance, -distance), -jnp.inf)
        return jnp.maximum(deepest, depth), None

    start = jnp.full((height, width), -jnp.inf, points.dtype)
    return lax.scan(group, start, (begin, end, real))[0]


def _edges(points, used):
    """Returns both ends of the edges of rings [R P 2], and which are real."""
    begin, used = raster.move_used_first(points, used)
    count = used.sum(-1, keepdims=True)
    index = jnp.arange(used.shape[-1])
    last = (index == count - 1)[..., None]
    end = jnp.where(last, begin[..., :1, :], jnp.roll(begin, -1, axis=-2))
    return begin, end, used & (count >= 3)


def _nearest(begin, end, real, x, y):
    """Returns for each pixel centre the index of the nearest edge, and whether it lies inside."""

    def visit(number, state):
        best, nearest, inside = state
        (x0, y0), (x1, y1) = begin[number], end[number]
        square = jnp.where(
            real[number], _squared_distance(begin[number], end[number], x, y), jnp.inf
        )
        closer = square < best
        spans = (x0 <= x) != (x1 <= x)
        level = y0 + (x - x0) * ((y1 - y0) / jnp.where(x0 == x1, 1, x1 - x0))
        crossed = real[number] & spans & (level <= y)
        nearest = jnp.where(closer, number, nearest)
        return jnp.where(closer, square, best), nearest, inside ^ crossed

    shape = jnp.broadcast_shapes(x.shape, y.shape)
    start = jnp.full(shape, jnp.inf, x.dtype), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    return lax.fori_loop(0, real.shape[0], visit, start)[1:]


def _squared_distance(begin, end, x, y):
    """Returns the squared distance of pixel centres from segments."""
    (x0, y0), (x1, y1) = jnp.moveaxis(begin, -1, 0), jnp.moveaxis(end, -1, 0)
    dx, dy = x1 - x0, y1 - y0
    length = dx * dx + dy * dy
    along = ((x - x0) * dx + (y - y0) * dy) / jnp.where(length > 0, length, 1)
    along = jnp.clip(along, 0, 1)
    return (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2


def _check(points, used, mask, height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise ValueError(
            f"overlap.soft_iou: expected a canvas with pixels, got {height}x{width}; do: drop the "
            "image"
        )
    if not jnp.issubdtype(points.dtype, jnp.floating) or points.shape != (*used.shape, 2):
        raise ValueError(
            "overlap.soft_iou: expected float points [.., R, P, 2] beside used [.., R, P], got "
            f"{points.dtype} {list(points.shape)} and {list(used.shape)}; do: pad rings to one "
            "length"
        )
    rows = {"uint32": -(-height // bitmask.WORD), "bool": height}.get(str(mask.dtype))
    if mask.shape[-2:] != (rows, width):
        raise ValueError(
            f"overlap.soft_iou: expected packed or bool masks of {height}x{width}, got "
            f"{mask.dtype} {list(mask.shape)}; do: pack masks on this canvas"
        )
