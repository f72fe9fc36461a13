"""Snaps vertices to the grid of a rule, as precisely as they were written.

A vertex that rounding moves across a border of the grid may change pixels all along its edges. So
float32, float64 and decimals each have a way to the grid of their own, in which nothing is lost,
and what arrives there is int32: it passes through jit, where float64 would become float32.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32, UInt32

from seg_jax.geometry import edge_rules
from seg_jax.geometry.edge_rules import FIFTH, REACH_PX, SUBPIXEL
from seg_jax.records import Array

DECIMALS = 6
"""Decimals of unit coordinates that `from_decimals` takes."""
UNKNOWN = np.int32(-(2**31))
"""Both coordinates of a vertex that is not finite."""

_ONE = 10**DECIMALS
# The least float32 that is not below 0.1, 0.3, .. 0.9: where rounding to fifths steps up.
_STEPS = tuple(
    f if float(f) * 10 >= k else np.nextafter(f, np.float32(2))
    for k, f in ((k, np.float32(k / 10)) for k in (1, 3, 5, 7, 9))
)


class Snapped(NamedTuple):
    """Vertices on the grid of the rule that they were snapped for."""

    steps: Int32[Array, "*n R P 2"]


def from_float(points_px: Float[Array, "*n R P 2"], rule: Literal["coco", "center"]) -> Snapped:
    """Returns float32 or float64 vertices on the grid: exactly as pycocotools does of either.

    On the host for numpy's float64, which no device would get; for others where they are.

    Args:
      points_px: x then y; beyond `REACH_PX` they are pulled to it.
      rule: what the grid is for: fifths of a pixel for "coco", 1/256 px for "center".
    """
    host = isinstance(points_px, np.ndarray) and points_px.dtype == np.float64
    xp = np if host else jnp
    finite = xp.isfinite(points_px)
    points = xp.clip(xp.where(finite, points_px, 0.0), *REACH_PX)
    if points.dtype == np.float32:
        steps = (_float32_to_fifths if rule == "coco" else _float32_to_subpixels)(points)
    else:
        steps = _float64_to_steps(points, rule, xp)
    return Snapped(xp.where((finite[..., 0] & finite[..., 1])[..., None], steps, UNKNOWN))


def from_decimals(
    points_unit: Float[Array, "*n R P 2"],
    size: Int[Array, "*n 2"],
    rule: Literal["coco", "center"],
) -> Snapped:
    """Returns unit points of up to `DECIMALS` decimals on the grid of their images' pixels.

    They are what `from_float` makes of float64(decimal) * side, without a float64.

    Args:
      points_unit: x then y as fractions of width and height in 0..1; nearest multiples of 10**-6
        count, so those that float32 holds are no others than those that were written.
      size: height and width of each image in pixels, at most 4096.
      rule: as in `from_float`.
    """
    whole, side = _wholes(points_unit, size)
    return Snapped((_decimals_to_fifths if rule == "coco" else _decimals_to_subpixels)(whole, side))


def pixels_of_decimals(
    points_unit: Float[Array, "*n R P 2"], size: Int[Array, "*n 2"]
) -> Int32[Array, "*n R P 2"]:
    """Returns column and row of the pixels that unit points lie in: floor(decimal * side), exactly.

    Args:
      points_unit: as in `from_decimals`; at 1 they lie beyond the last pixel.
      size: as in `from_decimals`.
    """
    whole, side = _wholes(points_unit, size)
    return (whole * side // np.uint32(_ONE)).astype(jnp.int32)


def _wholes(points_unit, size) -> tuple[UInt32[Array, "*n R P 2"], UInt32[Array, "*n 1 1 2"]]:
    """Returns unit points in millionths, and the sides that go with x and y."""
    whole = jnp.rint(points_unit * np.float32(_ONE)).astype(jnp.uint32)
    return whole, size[..., None, None, ::-1].astype(jnp.uint32)


def _float32_to_fifths(points: Float32[Array, "*n"]) -> Int32[Array, "*n"]:
    """Returns trunc(5 x + 1/2), exactly."""
    size = jnp.abs(points)
    whole = jnp.floor(size)
    part = size - whole
    rounded = FIFTH * whole.astype(jnp.int32)
    rounded += functools.reduce(operator.add, [(part >= s).astype(jnp.int32) for s in _STEPS])
    return jnp.where(points >= 0, rounded, -jnp.maximum(rounded - 1, 0))


def _float32_to_subpixels(points: Float32[Array, "*n"]) -> Int32[Array, "*n"]:
    """Returns floor(256 x + 1/2), exactly."""
    fine = points * np.float32(SUBPIXEL)
    whole = jnp.floor(fine)
    return whole.astype(jnp.int32) + (fine - whole >= 0.5)


def _float64_to_steps(points: Float64[Array, "*n"], rule: str, xp: Any) -> Int32[Array, "*n"]:
    """Returns trunc(5 x + 1/2) as pycocotools' C code rounds it, or floor(256 x + 1/2)."""
    if rule == "coco":
        # No compiler can fuse this product and this sum, and skip the rounding between them.
        return xp.trunc((4 * points + points) + 0.5).astype(np.int32)
    return xp.floor(SUBPIXEL * points + 0.5).astype(np.int32)


# --- Decimals ------------------------------------------------------------------------------------
#
# Of a fraction k / 10**6 and a side w pycocotools' caller computes q = k / 10**6 and p = q w, and
# pycocotools 5 p + 1/2, all of them rounded to 53 bits. That is far more than tells numbers with so
# few digits apart, except for ties: where k w / 10**6 = T / 10 with an odd T, the sum is the
# integer (T + 1) / 2, or falls short of it by the roundings, as for 8 % of all ties there are.
#
# Let u be the last bit of p, F = T / 10 in units of u less its whole part, in fifths (0..4), and
# q = (k - r / 2**(52+c)) / 10**6 with c the least with k 2**c >= 10**6. Then q w lies r w / 10**6,
# in units 2**-b of u, b = c + floor(log2(T / 10)), below T / 10, and p is the n-th number above its
# whole part, n the nearest integer to F / 5 - r w / (10**6 2**b). 5 p is rounded to multiples of
# 4 u, or of 8 u where it has a bit more; so it falls short iff 5 n - F < -2, or < -4. That is
# n < 0, or n < 1 where multiples are of 4 u and F is 3 or 4, and comes down to r w against odd
# multiples of 10**5 2**b. Where they are equal q w lies halfway between two numbers, and the even
# one is p.


def _decimals_to_fifths(
    whole: UInt32[Array, "*n"], side: UInt32[Array, "*n"]
) -> Int32[Array, "*n"]:
    """Returns trunc(5 x + 1/2) of x = whole / 10**6 * side as float64 computes it."""
    product, half = whole * side, np.uint32(_ONE // 10)
    nearest = (product + half) // (2 * half)
    tied = (product + half) == nearest * (2 * half)
    tenths = jnp.maximum(2 * nearest.astype(jnp.int32) - 1, 1)  # T
    exponent = edge_rules.exponent(16 * tenths) - 3  # 4 + floor(log2(T / 10))
    exponent -= (16 * tenths) < (10 << exponent)
    below = jnp.maximum(edge_rules.exponent(whole.astype(jnp.int32)), 0)
    shift = 19 - below
    shift += (whole << shift.astype(jnp.uint32)) < _ONE  # c
    bits = jnp.maximum(shift + exponent - 4, 0).astype(jnp.uint32)  # b
    # T 2**(t-1) modulo 5, where u = 2**-t and t = 56 - exponent: powers of 2 are 1, 2, 4, 3, 1, ..
    power = jnp.array([3, 1, 2, 4], jnp.int32)[(-exponent) & 3]
    fifths = tenths * power % 5  # F
    fine = (16 * tenths) < (16 << exponent)
    early = fine & (fifths >= 3)
    multiple = jnp.minimum(jnp.where(early, 2 * fifths - 5, 2 * fifths + 5), 10).astype(jnp.uint32)
    lost, _ = edge_rules.float64_loss(jnp.full_like(tenths, _ONE), whole.astype(jnp.int32))
    short = jnp.maximum(lost, 0).astype(jnp.uint32) * side
    limit = (multiple * half) << bits
    to_even = jnp.where(early, 0, 1) == fifths % 2
    falls = tied & ((short > limit) | ((short == limit) & to_even))
    return nearest.astype(jnp.int32) - falls


def _decimals_to_subpixels(
    whole: UInt32[Array, "*n"], side: UInt32[Array, "*n"]
) -> Int32[Array, "*n"]:
    """Returns floor(256 x + 1/2) of x = whole / 10**6 * side; there are no ties."""
    part = np.uint32(_ONE * 4 // SUBPIXEL)  # 256 x = 4 product / part
    product = whole * side
    count = product // part
    rest = product - count * part
    return (4 * count + (8 * rest + part) // (2 * part)).astype(jnp.int32)
