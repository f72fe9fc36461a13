"""Widens packed masks by squares and disks of any radius with shifts of whole words.

A window of L pixels is the union of four windows of a quarter of it, so the work for a square grows
with the logarithm of the radius; that for a disk grows with the radius. Radii are data: every mask
of a batch has its own.
"""

from __future__ import annotations

import functools
import operator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int, Int32, UInt32

from seg_jax.geometry.batching import vmap_as_leading_axis
from seg_jax.records import Array

_JOINED = 8
"""Windows that are joined at last."""
FULL = np.uint32(0xFFFFFFFF)
"""A word of 32 set rows."""


def dilate(
    words: UInt32[Array, "*n K W"],
    radius: Int[Array, "*n"],
    *,
    shape: Literal["square", "disk"],
    most: int,
    beyond: bool,
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels within a radius of a mask, on its whole canvas of 32 K rows.

    Args:
      words: packed masks; all 32 K rows count.
      radius: of each mask in pixels, 0 to `most`; a larger one counts as `most`.
      shape: "square" takes |dx| and |dy| up to the radius, "disk" dx^2 + dy^2 up to its square.
      most: the largest radius.
      beyond: whether all pixels off the canvas count as set.
    """
    one = functools.partial(_one, shape=shape, most=most, fill=FULL if beyond else np.uint32(0))

    def all_of(words, radius):
        if words.ndim == 2:
            return one(words, radius)
        flat = words.reshape(-1, *words.shape[-2:]), radius.reshape(-1)
        # On a CPU one mask at a time stays in the cache.
        wide = lax.platform_dependent(
            *flat,
            cpu=lambda words, radius: lax.map(lambda item: one(item[0], item[1]), (words, radius)),
            default=jax.vmap(one),
        )
        return wide.reshape(words.shape)

    return vmap_as_leading_axis(all_of)(words, jnp.clip(jnp.asarray(radius, jnp.int32), 0, most))


def _one(words: UInt32[Array, "K W"], radius: Int32[Array, ""], *, shape, most: int, fill):
    """Returns one mask widened, with words `fill` off the canvas."""
    if shape == "disk":
        return _rounded(words, radius, most, fill)
    return _down(_across(words, radius, most, fill), radius, most, fill)


def _levels(most: int) -> int:
    """Returns how often a window grows fourfold before `_JOINED` of it make 2 * most + 1."""
    levels = 0
    while _JOINED * 4**levels < 2 * most + 1:
        levels += 1
    return levels


def _across(words, radius, most, fill):
    """Returns the union of 2 * radius + 1 columns around each.

    Every stage is a branch that is taken at run time, which XLA keeps apart: fused, the stages
    would be worked out again for each of their readers.
    """
    length = 2 * radius + 1
    last = most + 4 ** _levels(most)
    table, span = words, jnp.int32(1)
    for level in range(_levels(most)):
        step = 4**level
        size = words.shape[1] + most + last - (4 * step - 1)

        def widest(table, first=level == 0):
            return jnp.pad(table, ((0, 0), (most, last)), constant_values=fill) if first else table

        def grow(table, step=step, size=size, widest=widest):
            table = widest(table)
            a, b, c, d = (table[:, i * step : i * step + size] for i in range(4))
            return a | b | c | d

        grows = length >= 4 * step
        table = lax.cond(grows, grow, lambda table, size=size, w=widest: w(table)[:, :size], table)
        span = jnp.where(grows, 4 * step, span)
    if not _levels(most):
        table = jnp.pad(words, ((0, 0), (most, last)), constant_values=fill)

    def at(offset):
        return lax.dynamic_slice_in_dim(table, most - radius + offset, words.shape[1], 1)

    return _joined(at, span, length, most, words)


def _down(words, radius, most, fill):
    """Returns the union of 2 * radius + 1 rows around each (see `_across`)."""
    if most < 32:
        return _down_within(words, radius, most, fill)
    length, depth = 2 * radius + 1, words.shape[0]
    above = -(-most // 32)
    below = -(-(most + 4 ** _levels(most)) // 32) + _levels(most) + 1
    table = jnp.pad(words, ((above, below), (0, 0)), constant_values=fill)
    span = jnp.int32(1)
    for level in range(_levels(most)):
        step = 4**level
        size = table.shape[0] - 1 - 3 * step // 32

        def grow(table, step=step, size=size):
            a, b, c, d = (_raised(table, i * step, size) for i in range(4))
            return a | b | c | d

        grows = length >= 4 * step
        table = lax.cond(grows, grow, lambda table, size=size: table[:size], table)
        span = jnp.where(grows, 4 * step, span)

    def at(offset):
        first = 32 * above - radius + offset
        near = lax.dynamic_slice_in_dim(table, first >> 5, depth, 0)
        far = lax.dynamic_slice_in_dim(table, (first >> 5) + 1, depth, 0)
        bits = jnp.broadcast_to((first & 31).astype(jnp.uint32), near.shape)
        return lax.shift_right_logical(near, bits) | lax.shift_left(far, 32 - bits)

    return _joined(at, span, length, most, words)


def _down_within(words, radius, most, fill):
    """Returns what `_down` does for radii below 32: no bit passes more than one word."""

    def smeared(word, shift, reach):
        covered = jnp.int32(0)
        for _ in range((most + 1).bit_length()):  # Each step doubles what is covered, and one.
            step = jnp.minimum(covered + 1, reach - covered)
            word, covered = word | shift(word, step.astype(jnp.uint32)), covered + step
        return word

    def near(word, shift):
        return smeared(word, shift, radius)

    def far(word, shift, back):
        # The bits that pass into the next word, moved there; they go on for a row less.
        moved = shift(word, 32 - jnp.maximum(radius, 1).astype(jnp.uint32))
        return smeared(jnp.where(radius > 0, moved, 0), back, jnp.maximum(radius - 1, 0))

    def left(word, bits):
        return word << bits

    def right(word, bits):
        return word >> bits

    row = jnp.full((1, words.shape[1]), fill)
    above = jnp.concatenate([row, words[:-1]])
    below = jnp.concatenate([words[1:], row])
    here = near(words, left) | near(words, right)
    return here | far(above, right, right) | far(below, left, left)


def _raised(table, rows: int, size: int):
    """Returns the first `size` words of a table whose first rows are cut off."""
    whole, bits = divmod(rows, 32)
    near, far = table[whole : whole + size], table[whole + 1 : whole + 1 + size]
    return near >> bits | far << (32 - bits) if bits else near


def _joined(at, span, length, most, words):
    """Returns the union of windows of `span` that cover `length`."""
    # Before a window grows fourfold, four of it nearly make the next one.
    count = max(4, -(-(2 * most + 1) // 4 ** _levels(most)))

    def join(_):
        offsets = [jnp.minimum(i * span, length - span) for i in range(count)]
        return functools.reduce(operator.or_, map(at, offsets))

    return lax.cond(length > 0, join, lambda words: words, words)


def _rounded(words: UInt32[Array, "K W"], radius: Int32[Array, ""], most: int, fill):
    """Returns the union of disks: columns up to the radius away, each as tall as the disk there."""
    width = words.shape[1]
    row = jnp.full((1, width + 2 * most), fill)

    def taller(state):
        tall, half = state
        above = jnp.concatenate([row, tall[:-1]])
        below = jnp.concatenate([tall[1:], row])
        return tall | tall << 1 | above >> 31 | tall >> 1 | below << 31, half + 1

    def column(number, state):
        tall, half, wide = state
        away = radius - number

        def fits(state):
            return (state[1] + 1) ** 2 + away**2 <= radius**2

        tall, half = lax.while_loop(fits, taller, (tall, half))
        right = lax.dynamic_slice_in_dim(tall, most + away, width, 1)
        left = lax.dynamic_slice_in_dim(tall, most - away, width, 1)
        return tall, half, wide | left | right

    start = jnp.pad(words, ((0, 0), (most, most)), constant_values=fill)
    state = start, jnp.int32(0), words
    return lax.fori_loop(0, radius + 1, column, state)[2]
