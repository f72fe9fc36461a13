"""Fills rings into packed masks, bit for bit the same on every device.

A column of a mask is known by the rows at which it changes between outside and inside: every edge
of a ring toggles a column at most once, and a pixel is inside where an odd number of toggles lie at
or above it. Both rules differ only in which columns an edge toggles, and at which row; this is
worked out in int32 on the vertices snapped to a fine grid, so no float rounding can change a bit.
"""

from __future__ import annotations

import functools
import operator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Float32, Int, UInt32

from seg_jax.records import Array

MAX_SIDE = 4096
"""Largest height and width of a canvas."""
REACH_PX = (-1200.0, 5296.0)
"""Vertices beyond are pulled here, which keeps every product of `fill` below 2**31."""

_FIFTH, _SUBPIXEL = 5, 256  # grid steps per pixel of the two rules
# The least float32 that is not below 0.1, 0.3, .. 0.9: where rounding to fifths steps up.
_STEPS = tuple(
    f if float(f) * 10 >= k else np.nextafter(f, np.float32(2))
    for k, f in ((k, np.float32(k / 10)) for k in (1, 3, 5, 7, 9))
)


def to_pixels(
    points_unit: Float[Array, "*n R P 2"], size: Int[Array, "*n 2"]
) -> Float32[Array, "*n R P 2"]:
    """Returns unit points in the pixels of their pictures: the float32 product, nothing else.

    Args:
      points_unit: x then y as fractions of width and height.
      size: height and width of each picture in pixels.
    """
    scale = size[..., None, None, ::-1].astype(jnp.float32)
    product = points_unit.astype(jnp.float32) * scale
    # Without this a compiler may fuse the product into what follows, and skip its rounding.
    return lax.reduce_precision(product, exponent_bits=8, mantissa_bits=23)


@functools.partial(jax.jit, static_argnames=("height", "width", "rule", "rings"))
def fill(
    points_px: Float32[Array, "*n R P 2"],
    used: Bool[Array, "*n R P"],
    *,
    height: int,
    width: int,
    rule: Literal["coco", "center"] = "coco",
    rings: Literal["union", "evenodd"] = "union",
) -> UInt32[Array, "*n K {width}"]:
    """Returns the packed masks of filled rings: bit j of word k is row 32 k + j.

    Each ring alone is filled by the even-odd rule. A ring with fewer than three used vertices, or
    with one that is not finite, is empty. Pixels off the canvas are dropped, so the mask of a
    smaller canvas is the corner of that of a larger one; bits below the last row are 0.

    Args:
      points_px: ring vertices, x then y; (0, 0) is the outer corner of the first pixel. Exact
        within `REACH_PX`; vertices beyond are pulled to it.
      used: False for padding; the used vertices of a ring come first.
      height: rows of the canvas, 1 to `MAX_SIDE`.
      width: columns of the canvas, 1 to `MAX_SIDE`.
      rule: "coco" gives the masks of pycocotools (`frPyObjects`, as built for x86-64; builds that
        contract multiply-adds, such as for arm64, differ from it in rare pixels). "center" gives
        the pixels whose centre lies inside, after vertices are rounded to 1/256 px; a centre on an
        edge belongs to the shape right of it or, on a level one, below it, so shapes that share an
        edge neither overlap nor leave a gap.
      rings: "union" of the rings as pycocotools merges them, or "evenodd" across them, under which
        a ring within a ring is a hole.

    Raises:
      ValueError: when traced, for a canvas out of range or an unknown rule.

    Source: rleFrPoly of the COCO API, Lin et al. 2014, restated in integers; crossing-number test,
      Shimrat 1962.
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(
            f"expected a canvas of 1x1 to {MAX_SIDE}x{MAX_SIDE}, got {height}x{width}: "
            "fill at a smaller size"
        )
    if rule not in ("coco", "center") or rings not in ("union", "evenodd"):
        raise ValueError(
            f"expected rule coco or center and rings union or evenodd, got {rule} and {rings}: "
            "pick one of each"
        )
    count = used.sum(-1, dtype=jnp.int32)
    finite = (jnp.isfinite(points_px).all(-1) | ~used).all(-1)
    count = jnp.where(finite & (count >= 3), count, 0)
    points = jnp.clip(jnp.where(used[..., None], points_px, 0.0), *REACH_PX)
    if rule == "coco":
        edges = _coco_edges(*_ends(_to_fifths(points), count))
        toggle = _coco_toggle
    else:
        edges = _center_edges(*_ends(_to_subpixels(points), count))
        toggle = _center_toggle
    words = _toggled(edges, toggle, height, width)
    join = lax.bitwise_or if rings == "union" else lax.bitwise_xor
    return lax.reduce(words, np.uint32(0), join, (words.ndim - 3,))


def _ends(
    grid: Int[Array, "*n R P 2"], count: Int[Array, "*n R"]
) -> tuple[Int[Array, "*n R P 2"], Int[Array, "*n R P 2"]]:
    """Returns where each edge begins and ends; edges of padding have no length."""
    index = jnp.arange(grid.shape[-2])
    following = jnp.where(
        (index == count[..., None] - 1)[..., None], grid[..., :1, :], jnp.roll(grid, -1, axis=-2)
    )
    return grid, jnp.where((index < count[..., None])[..., None], following, grid)


def _toggled(edges, toggle, height, width):
    """Returns the parity of all toggles at or above each pixel, as words [*n, R, K, W].

    `toggle(edge, column, height)` gives whether an edge toggles a column, and the row.
    """
    rows = 32 * -(-height // 32)
    column = jnp.arange(width, dtype=jnp.int32)
    top = 32 * jnp.arange(rows // 32, dtype=jnp.int32)[:, None]
    full = jnp.uint32(0xFFFFFFFF)

    def add(words, edge):
        edge = jax.tree.map(lambda leaf: leaf[..., None], edge)
        toggles, row = toggle(edge, column, height)
        row = jnp.where(toggles, row, rows)[..., None, :]
        # Shifting by 32 or more leaves nothing: words above the toggle stay as they are.
        return words ^ lax.shift_left(*jnp.broadcast_arrays(full, _u32(row - top))), None

    lead = edges[0].shape[:-1]
    start = jnp.zeros((*lead, rows // 32, width), jnp.uint32)
    edges = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), edges)
    return lax.scan(add, start, edges)[0]


def _u32(x):
    return jnp.maximum(x, 0).astype(jnp.uint32)


def _divide(numerator, denominator, inverse):
    """Returns floor and remainder of an int32 division whose quotient is below 2**20 or so.

    The float32 estimate is off by one at most, and is put right in integers.
    """
    quotient = jnp.floor(numerator.astype(jnp.float32) * inverse).astype(jnp.int32)
    rest = numerator - quotient * denominator
    low, high = rest < 0, rest >= denominator
    quotient = quotient - low + high
    return quotient, rest + jnp.where(low, denominator, 0) - jnp.where(high, denominator, 0)


# --- The COCO rule -------------------------------------------------------------------------------
#
# Vertices are snapped to fifths of a pixel, u across and v down. An edge of extent D along its
# longer (major) and N along its other axis is walked one step t of the major axis at a time, the
# other coordinate being rounded: start +- floor(N t / D + 1/2). Column n toggles where the walk
# passes from u = 5 n + 2 to 5 n + 3, at the upper v of both steps, hence at row ceil((v - 2) / 5).
# Solved for v this is v = start + floor((slope n + base) / over):
#   flat edges (major axis across):  v is the rounded coordinate at t = u - start (+ 1 if it rises);
#   steep edges: v is the step before t, the first one whose rounded coordinate has passed u.
#
# pycocotools computes N t / D in float64. Its rounding shows only at exact ties, N t / D = h + 1/2,
# where the sum may fall just short of the next integer. With r the signed remainder of
# N 2**(52+c) by D, c the least with N 2**c >= D, the quotient N / D is stored r / (D 2**(52+c)) too
# small; times t that is lost again to rounding unless 2 r t > D 2**(c + floor(log2 h)), and lost to
# the addition of start if the sum has more bits than h.


class _CocoEdge(NamedTuple):
    """An edge in fifths of a pixel, ready to be asked for the toggle of a column (int32)."""

    low: Array
    high: Array  # toggles columns with low <= 5 n + 2 < high
    start: Array
    slope: Array
    base: Array
    over: Array
    inverse: Array  # float32 estimate of 1 / over
    tie: Array  # the remainder that means a tie, -1 where ties do no harm
    half: Array  # h = half[0] n + half[1] floor + half[2]
    half_floor: Array
    half_base: Array
    step: Array  # t = step n + step_floor floor + step_base
    step_floor: Array
    step_base: Array
    lost: Array  # 2 r
    scale: Array  # D 2**c
    flat: Array
    shift: Array  # what a lowered tie adds to v


def _to_fifths(points):
    """Returns trunc(5 x + 1/2), exactly, in int32."""
    size = jnp.abs(points)
    whole = jnp.floor(size)
    part = size - whole
    rounded = _FIFTH * whole.astype(jnp.int32)
    rounded += functools.reduce(operator.add, [(part >= s).astype(jnp.int32) for s in _STEPS])
    return jnp.where(points >= 0, rounded, -jnp.maximum(rounded - 1, 0))


def _coco_edges(begin, end) -> _CocoEdge:
    """Returns the edges between vertices in fifths of a pixel."""
    (x0, y0), (x1, y1) = (jnp.moveaxis(p, -1, 0) for p in (begin, end))
    dx, dy = jnp.abs(x1 - x0), jnp.abs(y1 - y0)
    flat = dx >= dy
    flip = jnp.where(flat, x0 > x1, y0 > y1)
    xs, xe = jnp.where(flip, x1, x0), jnp.where(flip, x0, x1)
    ys, ye = jnp.where(flip, y1, y0), jnp.where(flip, y0, y1)
    major, minor = jnp.maximum(jnp.maximum(dx, dy), 1), jnp.minimum(dx, dy)
    back = jnp.where(flat, ye < ys, xe < xs)
    lost, scale = _float64_loss(major, minor)
    lost = jnp.maximum(jnp.where(back, -lost, lost), 0)

    def pick(flat_on, flat_back, steep_on, steep_back):
        steep = jnp.where(back, steep_back, steep_on)
        return jnp.where(flat, jnp.where(back, flat_back, flat_on), steep)

    over = jnp.maximum(jnp.where(flat, 2 * major, 2 * minor), 1)
    return _CocoEdge(
        low=jnp.minimum(x0, x1),
        high=jnp.maximum(x0, x1),
        start=ys,
        slope=pick(10 * minor, -10 * minor, 10 * major, -10 * major),
        base=pick(
            2 * minor * (2 - xs) + major,
            2 * minor * (xs - 3) + major,
            (5 - 2 * xs) * major - 1,
            (2 * xs - 5) * major,
        ),
        over=over,
        inverse=1.0 / over.astype(jnp.float32),
        tie=jnp.where(lost > 0, pick(0, 0, over - 1, 0), -1),
        half=pick(0, 0, 5, -5),
        half_floor=pick(1, -1, 0, 0),
        half_base=pick(-1, 0, 2 - xs, xs - 3),
        step=pick(5, 5, 0, 0),
        step_floor=pick(0, 0, 1, 1),
        step_base=pick(2 - xs, 3 - xs, 1, 0),
        lost=2 * lost,
        scale=scale,
        flat=flat,
        shift=pick(-1, -1, 1, -1),
    )


def _float64_loss(major, minor):
    """Returns r and D 2**c: what float64 loses of N / D (see above)."""
    inverse = 1.0 / major.astype(jnp.float32)
    scaled, scale = jnp.maximum(minor, 1), major
    for bits in (8, 4, 2, 1):
        small = (scaled << bits) <= major
        scaled, scale = (jnp.where(small, v << bits, v) for v in (scaled, scale))
    small = scaled < major
    scaled, scale = (jnp.where(small, v << 1, v) for v in (scaled, scale))
    rest = _divide(scaled, major, inverse)[1]
    for _ in range(4):
        rest = _divide(rest << 13, major, inverse)[1]
    rest = jnp.where(2 * rest > major, rest - major, rest)
    return jnp.where(minor > 0, rest, 0), scale


def _coco_toggle(edge: _CocoEdge, column, height):
    """Returns whether an edge toggles a column, and the row in 0..height."""
    u = _FIFTH * column + 2
    floor, rest = _divide(edge.slope * column + edge.base, edge.over, edge.inverse)
    v = edge.start + floor
    half = edge.half * column + edge.half_floor * floor + edge.half_base
    step = edge.step * column + edge.step_floor * floor + edge.step_base
    power = lax.shift_left(jnp.int32(1), 31 - lax.clz(jnp.maximum(half, 1)))
    survives = jnp.where(edge.flat, v - 1, u) < 2 * power
    lowered = (rest == edge.tie) & (half >= 1) & survives
    lowered &= edge.lost * step > edge.scale * power
    v = _u32(v + jnp.where(lowered, edge.shift, 0) + 2)
    row = (v * np.uint32(52429) >> 18).astype(jnp.int32)  # v // 5 for v < 2**16
    return (edge.low <= u) & (u < edge.high), jnp.minimum(row, height)


# --- The centre rule -----------------------------------------------------------------------------
#
# Vertices are snapped to 1/256 px. An edge from (x0, y0) to (x1, y1), x0 < x1, toggles the columns
# whose centre line X = 256 n + 128 has x0 <= X < x1, at the first row whose centre is not above
# y0 +- t dy / dx, t = X - x0. That product needs 42 bits, so it is divided in parts: 64 a + b
# columns after the first one t has grown by 256 (64 a + b). Each part is divided by dx once per
# edge, and only the sum of the remainders, below 2**30, is divided again for every column.


class _CenterEdge(NamedTuple):
    """An edge in 1/256 px, ready to be asked for the toggle of a column (int32)."""

    low: Array
    high: Array  # toggles columns with low <= 256 n + 128 < high
    first: Array  # first column
    start: Array  # y0 less half a pixel
    falls: Array  # +1 where y grows with x, else -1
    dx: Array
    inverse: Array  # float32 estimate of 1 / dx
    base: Array  # floor and remainder of dy * (t of the first column) / dx
    base_rest: Array
    one: Array  # of dy * 256 / dx: one column on
    one_rest: Array
    many: Array  # of dy * 256 * 64 / dx: 64 columns on
    many_rest: Array


def _to_subpixels(points):
    """Returns floor(256 x + 1/2), exactly, in int32."""
    fine = points * np.float32(_SUBPIXEL)
    whole = jnp.floor(fine)
    return whole.astype(jnp.int32) + (fine - whole >= 0.5)


def _center_edges(begin, end) -> _CenterEdge:
    """Returns the edges between vertices in 1/256 px."""
    (x0, y0), (x1, y1) = (jnp.moveaxis(p, -1, 0) for p in (begin, end))
    flip = x0 > x1
    x0, x1 = jnp.where(flip, x1, x0), jnp.where(flip, x0, x1)
    y0, y1 = jnp.where(flip, y1, y0), jnp.where(flip, y0, y1)
    dx, dy = jnp.maximum(x1 - x0, 1), jnp.abs(y1 - y0)
    inverse = 1.0 / dx.astype(jnp.float32)
    first = (x0 + 127) >> 8  # the least n with 256 n + 128 >= x0
    whole, rest = dy // dx, dy % dx
    begin = _SUBPIXEL * first + 128 - x0
    base, base_rest = _divide(rest * begin, dx, inverse)
    one, one_rest = _divide(rest * _SUBPIXEL, dx, inverse)
    one = one + whole * _SUBPIXEL
    many, many_rest = _divide(one_rest * 64, dx, inverse)
    return _CenterEdge(
        low=x0,
        high=x1,
        first=first,
        start=y0 - 128,
        falls=jnp.where(y1 >= y0, 1, -1),
        dx=dx,
        inverse=inverse,
        base=base + whole * begin,
        base_rest=base_rest,
        one=one,
        one_rest=one_rest,
        many=many + one * 64,
        many_rest=many_rest,
    )


def _center_toggle(edge: _CenterEdge, column, height):
    """Returns whether an edge toggles a column, and the row in 0..height."""
    centre = _SUBPIXEL * column + 128
    on = column - edge.first
    a, b = on >> 6, on & 63
    rest = a * edge.many_rest + b * edge.one_rest + edge.base_rest
    floor, rest = _divide(rest, edge.dx, edge.inverse)
    floor += a * edge.many + b * edge.one + edge.base
    up = edge.start + jnp.where(edge.falls > 0, floor + (rest > 0), -floor)
    row = (up + 255) >> 8
    return (edge.low <= centre) & (centre < edge.high), jnp.clip(row, 0, height)
