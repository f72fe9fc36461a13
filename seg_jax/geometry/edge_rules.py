"""Turns edges of polygons into the pixel columns that they toggle, in integers.

A column of a mask is known by the rows at which it changes between outside and inside: every edge
of a ring toggles a column at most once, and a pixel is inside where an odd number of toggles lie at
or above it. A rule says which columns an edge toggles, and at which row. It is worked out in int32
on vertices snapped to a fine grid, so no float rounding can change a bit on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int32

from seg_jax.records import Array

REACH_PX = (-1200.0, 5296.0)
"""Coordinates are clipped to this range, which keeps every product of the rules below 2**31."""

FIFTH, SUBPIXEL = 5, 256
"""Grid steps per pixel of the two rules."""


class Line(NamedTuple):
    """An edge that toggles column n at row max(floor((slope n + base) / over), 0) (int32)."""

    first: Array
    end: Array
    """The column after its last one."""
    slope: Array
    base: Array
    over: Array
    sure: Array
    """False where the row may be another one: the rule's `row` is always right."""

    def row(self, column, height):
        """Returns the row, 0..height, at which the edge toggles a column."""
        inverse = 1.0 / self.over.astype(jnp.float32)
        return straight_row((self.slope, self.base, self.over, inverse), column, height=height)


def straight_row(fields, column, *, height):
    """Returns the row of a `Line`; its fields are slope, base, over and a float32 1 / over."""
    slope, base, over, inverse = fields
    value = jnp.maximum(slope * column + base, 0)
    return jnp.minimum(_divide(value, over, inverse)[0], height)


class Rule(NamedTuple):
    """What a polygon covers, as functions of arrays of any shape."""

    edges: Callable[..., Any]
    """(x0, y0, x1, y1, width) of edges in grid steps to a NamedTuple of arrays of their shape.

    Its fields `first` and `count` are the columns in 0..width - 1 that an edge toggles.
    """
    row: Callable[..., Int32[Array, "*n"]]
    """(edge, column, height) to the row, 0..height, at which the edge toggles the column.

    Row `height` toggles nothing. Only for columns of the edge.
    """
    line: Callable[..., Line]
    """As `edges`, for edges that are straight to the last bit: cheaper, but valid where `sure`."""
    column: Callable[[Int32[Array, "*n"]], Int32[Array, "*n"]]
    """x in grid steps to the first column whose centre is not left of it."""
    top: Callable[[Int32[Array, "*n"]], Int32[Array, "*n"]]
    """y in grid steps to the row of a toggle there."""


def toggle(rule: Rule) -> Callable[..., tuple[Array, Array]]:
    """Returns the function (edge, column, height) -> (does the edge toggle the column, the row)."""

    def toggles(edge, column, height):
        on = (column - edge.first).astype(jnp.uint32) < edge.count.astype(jnp.uint32)
        return on, rule.row(edge, column, height)

    return toggles


def _columns_on_canvas(begin, end, width):
    """Returns first and count of the columns begin..end - 1 that lie on the canvas."""
    first = jnp.clip(begin, 0, width - 1)
    return first, jnp.maximum(jnp.minimum(end, width) - jnp.maximum(begin, 0), 0)


def _as_uint32(x):
    return jnp.maximum(x, 0).astype(jnp.uint32)


def _divide(numerator, denominator, inverse):
    """Returns floor and remainder of an int32 division whose quotient is below 2**20 or so.

    The float32 estimate is off by one at most, and is put right in integers.
    """
    quotient = jnp.floor(numerator.astype(jnp.float32) * inverse).astype(jnp.int32)
    return _correct_division(quotient, numerator - quotient * denominator, denominator)


def _correct_division(quotient, rest, denominator):
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
    """An edge in fifths of a pixel with what the toggle of a column is computed from (int32)."""

    first: Array
    count: Array
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


def _fifth(v):
    """Returns max(v, 0) // 5 for v < 2**16, without a division."""
    return (_as_uint32(v) * np.uint32(52429) >> 18).astype(jnp.int32)


def _coco_edges(x0, y0, x1, y1, width) -> _CocoEdge:
    """Returns the edges between vertices in fifths of a pixel."""
    dx, dy = jnp.abs(x1 - x0), jnp.abs(y1 - y0)
    flat = dx >= dy
    flip = jnp.where(flat, x0 > x1, y0 > y1)
    xs, xe = jnp.where(flip, x1, x0), jnp.where(flip, x0, x1)
    ys, ye = jnp.where(flip, y1, y0), jnp.where(flip, y0, y1)
    major, minor = jnp.maximum(jnp.maximum(dx, dy), 1), jnp.minimum(dx, dy)
    back = jnp.where(flat, ye < ys, xe < xs)
    lost, scale = float64_loss(major, minor)
    lost = jnp.maximum(jnp.where(back, -lost, lost), 0)

    def pick(flat_on, flat_back, steep_on, steep_back):
        steep = jnp.where(back, steep_back, steep_on)
        picked = jnp.where(flat, jnp.where(back, flat_back, flat_on), steep)
        return picked.astype(jnp.int32)  # Constants alone are int64 under jax_enable_x64.

    over = jnp.maximum(jnp.where(flat, 2 * major, 2 * minor), 1)
    # Columns with low <= 5 n + 2 < high.
    low, high = jnp.minimum(x0, x1), jnp.maximum(x0, x1)
    first, count = _columns_on_canvas(_fifth(low + 2), _fifth(high + 2), width)
    return _CocoEdge(
        first=first,
        count=count,
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


def _coco_line(x0, y0, x1, y1, width) -> Line:
    """Returns the edges between vertices in fifths of a pixel as if float64 lost nothing.

    It loses nothing unless there are ties, N t / D = h + 1/2 with h >= 1, so D has more factors 2
    than N, and N >= 2; and unless the sum has no more bits than h <= N.
    """
    dx, dy = jnp.abs(x1 - x0), jnp.abs(y1 - y0)
    flat = dx >= dy
    flip = jnp.where(flat, x0 > x1, y0 > y1)
    xs, xe = jnp.where(flip, x1, x0), jnp.where(flip, x0, x1)
    ys, ye = jnp.where(flip, y1, y0), jnp.where(flip, y0, y1)
    major, minor = jnp.maximum(jnp.maximum(dx, dy), 1), jnp.minimum(dx, dy)
    back = jnp.where(flat, ye < ys, xe < xs)
    twice = 2 * jnp.where(flat, minor, major)
    slope = jnp.where(back, -twice, twice)
    over = jnp.maximum(2 * jnp.where(flat, major, minor), 1)
    flat_base = slope * (2 - xs) + major - jnp.where(back, twice, 0)
    steep_base = (slope >> 1) * (5 - 2 * xs) - ~back
    ends = (jnp.clip(_fifth(x + 2), 0, width) for x in (x0, x1))
    near = jnp.where(flat, jnp.minimum(y0, y1), jnp.minimum(x0, x1)) < 2 * minor + 2
    tied = (minor >= 2) & ((major & -major) > (minor & -minor))
    first, end = ends
    # ceil((v - 2) / 5) of v = start + floor(..): one division by five times as much.
    return Line(
        first=jnp.minimum(first, end),
        end=jnp.maximum(first, end),
        slope=FIFTH * slope,
        base=jnp.where(flat, flat_base, steep_base) + (ys + 2) * over,
        over=FIFTH * over,
        sure=~(tied & near),
    )


def float64_loss(major, minor):
    """Returns r and D 2**c: what float64 loses of N / D (see above)."""
    scaled = jnp.maximum(minor, 1)
    bits = exponent(major) - exponent(scaled)
    scaled, scale = scaled << bits, major << bits
    small = scaled < major
    scaled, scale = jnp.where(small, scaled << 1, scaled), jnp.where(small, scale << 1, scale)
    rest, inverse = scaled - major, 1.0 / major.astype(jnp.float32)
    for bits in (18, 17, 17):
        # The products may overflow: their difference does not, and int32 arithmetic wraps.
        quotient = jnp.floor(rest.astype(jnp.float32) * (inverse * (1 << bits))).astype(jnp.int32)
        rest = _correct_division(quotient, (rest << bits) - quotient * major, major)[1]
    rest = jnp.where(2 * rest > major, rest - major, rest)
    return jnp.where(minor > 0, rest, 0), scale


def exponent(x):
    """Returns floor(log2 x) of integers in 1..2**24."""
    return (lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) >> 23) - 127


def _coco_row(edge: _CocoEdge, column, height):
    u = FIFTH * column + 2
    floor, rest = _divide(edge.slope * column + edge.base, edge.over, edge.inverse)
    v = edge.start + floor
    half = edge.half * column + edge.half_floor * floor + edge.half_base
    step = edge.step * column + edge.step_floor * floor + edge.step_base
    power = lax.shift_left(jnp.int32(1), 31 - lax.clz(jnp.maximum(half, 1)))
    survives = jnp.where(edge.flat, v - 1, u) < 2 * power
    lowered = (rest == edge.tie) & (half >= 1) & survives
    lowered &= edge.lost * step > edge.scale * power
    return jnp.minimum(_fifth(v + jnp.where(lowered, edge.shift, 0) + 2), height)


COCO = Rule(
    edges=_coco_edges,
    row=_coco_row,
    line=_coco_line,
    column=lambda x: _fifth(x + 2),
    top=lambda y: _fifth(y + 2),
)
"""The masks of pycocotools (`frPyObjects`, as built for x86-64).

Source: rleFrPoly of the COCO API, Lin et al. 2014, restated in integers.
"""

# --- The centre rule -----------------------------------------------------------------------------
#
# Vertices are snapped to 1/256 px. An edge from (x0, y0) to (x1, y1), x0 < x1, toggles the columns
# whose centre line X = 256 n + 128 has x0 <= X < x1, at the first row whose centre is not above
# y0 +- t dy / dx, t = X - x0. That product needs 42 bits, so it is divided in parts: 64 a + b
# columns after the first one t has grown by 256 (64 a + b). Each part is divided by dx once per
# edge, and only the sum of the remainders, below 2**30, is divided again for every column.


class _CenterEdge(NamedTuple):
    """An edge in 1/256 px with what the toggle of a column is computed from (int32)."""

    first: Array
    count: Array
    origin: Array  # first column, on the canvas or off it
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


def _center_edges(x0, y0, x1, y1, width) -> _CenterEdge:
    """Returns the edges between vertices in 1/256 px."""
    flip = x0 > x1
    x0, x1 = jnp.where(flip, x1, x0), jnp.where(flip, x0, x1)
    y0, y1 = jnp.where(flip, y1, y0), jnp.where(flip, y0, y1)
    dx, dy = jnp.maximum(x1 - x0, 1), jnp.abs(y1 - y0)
    inverse = 1.0 / dx.astype(jnp.float32)
    origin = _center_column(x0)
    first, count = _columns_on_canvas(origin, _center_column(x1), width)
    whole, rest = dy // dx, dy % dx
    begin = SUBPIXEL * origin + 128 - x0
    base, base_rest = _divide(rest * begin, dx, inverse)
    one, one_rest = _divide(rest * SUBPIXEL, dx, inverse)
    one = one + whole * SUBPIXEL
    many, many_rest = _divide(one_rest * 64, dx, inverse)
    return _CenterEdge(
        first=first,
        count=count,
        origin=origin,
        start=y0 - 128,
        falls=jnp.where(y1 >= y0, 1, -1).astype(jnp.int32),
        dx=dx,
        inverse=inverse,
        base=base + whole * begin,
        base_rest=base_rest,
        one=one,
        one_rest=one_rest,
        many=many + one * 64,
        many_rest=many_rest,
    )


def _center_line(x0, y0, x1, y1, width) -> Line:
    """Returns the columns of edges, none marked as sure: exact products would overflow int32."""
    del y0, y1
    first, end = (jnp.clip(_center_column(x), 0, width) for x in (x0, x1))
    zero = jnp.zeros_like(first)
    low, high = jnp.minimum(first, end), jnp.maximum(first, end)
    return Line(low, high, slope=zero, base=zero, over=zero + 1, sure=zero > 0)


def _center_row(edge: _CenterEdge, column, height):
    on = column - edge.origin
    a, b = on >> 6, on & 63
    rest = a * edge.many_rest + b * edge.one_rest + edge.base_rest
    floor, rest = _divide(rest, edge.dx, edge.inverse)
    floor += a * edge.many + b * edge.one + edge.base
    up = edge.start + jnp.where(edge.falls > 0, floor + (rest > 0), -floor)
    return jnp.clip((up + 255) >> 8, 0, height)


def _center_column(x):
    """Returns the least n with 256 n + 128 >= x."""
    return (x + 127) >> 8


CENTER = Rule(
    edges=_center_edges,
    row=_center_row,
    line=_center_line,
    column=_center_column,
    top=_center_column,
)
"""The pixels whose centre lies inside; one on an edge belongs to the right of it, or below it.

Source: crossing-number test, Shimrat 1962.
"""
