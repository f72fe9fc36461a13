"""Dilates packed masks by squares and disks of any radius with shifts of whole words.

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

_MAX_WINDOWS = 8
"""Windows whose union makes the full width at the end."""
FULL = np.uint32(0xFFFFFFFF)
"""A word of 32 set rows."""


def dilate(
    words: UInt32[Array, "*n K W"],
    radius: Int[Array, "*n"],
    *,
    shape: Literal["square", "disk"],
    max_radius: int,
    beyond: bool,
) -> UInt32[Array, "*n K W"]:
    """Returns the pixels within a radius of masks, on their whole canvas of 32 K rows.

    Args:
      words: packed masks; all 32 K rows count.
      radius: of each mask in pixels, 0 to `max_radius`; a larger one counts as `max_radius`.
      shape: "square" takes |dx| and |dy| up to the radius, "disk" dx^2 + dy^2 up to its square.
      max_radius: the largest radius.
      beyond: whether all pixels off the canvas count as set.
    """
    one = functools.partial(
        _dilate_mask, shape=shape, max_radius=max_radius, fill=FULL if beyond else np.uint32(0)
    )

    def dilate_all(words, radius):
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

    return vmap_as_leading_axis(dilate_all)(
        words, jnp.clip(jnp.asarray(radius, jnp.int32), 0, max_radius)
    )


def _dilate_mask(
    words: UInt32[Array, "K W"], radius: Int32[Array, ""], *, shape, max_radius: int, fill
):
    """Returns one dilated mask; words off the canvas are `fill`."""
    if shape == "disk":
        return _dilate_by_disk(words, radius, max_radius, fill)
    return _widen_rows(_widen_columns(words, radius, max_radius, fill), radius, max_radius, fill)


def _fourfold_steps(max_radius: int) -> int:
    """Returns how often a window grows fourfold before `_MAX_WINDOWS` of it cover a diameter."""
    levels = 0
    while _MAX_WINDOWS * 4**levels < 2 * max_radius + 1:
        levels += 1
    return levels


def _widen_columns(words, radius, max_radius, fill):
    """Returns the union of 2 * radius + 1 columns around each.

    Every stage is a branch that is taken at run time, which XLA keeps apart: fused, the stages
    would be worked out again for each of their readers.
    """
    length, levels = 2 * radius + 1, _fourfold_steps(max_radius)
    last = max_radius + 4**levels
    table, span = words, jnp.int32(1)

    def pad(table):
        return jnp.pad(table, ((0, 0), (max_radius, last)), constant_values=fill)

    for level in range(levels):
        step = 4**level
        size = words.shape[1] + max_radius + last - (4 * step - 1)

        def grow(table, step=step, size=size):
            table = pad(table) if step == 1 else table
            a, b, c, d = (table[:, i * step : i * step + size] for i in range(4))
            return a | b | c | d

        def keep(table, step=step, size=size):
            table = pad(table) if step == 1 else table
            return table[:, :size]

        grows = length >= 4 * step
        table = lax.cond(grows, grow, keep, table)
        span = jnp.where(grows, 4 * step, span)
    if levels == 0:
        table = pad(words)

    def window(offset):
        return lax.dynamic_slice_in_dim(table, max_radius - radius + offset, words.shape[1], 1)

    return _union_of_windows(window, span, length, max_radius, words)


def _widen_rows(words, radius, max_radius, fill):
    """Returns the union of 2 * radius + 1 rows around each (see `_widen_columns`)."""
    if max_radius < 32:
        return _widen_rows_within_word(words, radius, max_radius, fill)
    length, depth = 2 * radius + 1, words.shape[0]
    levels = _fourfold_steps(max_radius)
    above = -(-max_radius // 32)
    below = -(-(max_radius + 4**levels) // 32) + levels + 1
    table = jnp.pad(words, ((above, below), (0, 0)), constant_values=fill)
    span = jnp.int32(1)
    for level in range(levels):
        step = 4**level
        size = table.shape[0] - 1 - 3 * step // 32

        def grow(table, step=step, size=size):
            a, b, c, d = (_shift_rows_up(table, i * step, size) for i in range(4))
            return a | b | c | d

        grows = length >= 4 * step
        table = lax.cond(grows, grow, lambda table, size=size: table[:size], table)
        span = jnp.where(grows, 4 * step, span)

    def window(offset):
        first = 32 * above - radius + offset
        upper = lax.dynamic_slice_in_dim(table, first >> 5, depth, 0)
        lower = lax.dynamic_slice_in_dim(table, (first >> 5) + 1, depth, 0)
        bits = jnp.broadcast_to((first & 31).astype(jnp.uint32), upper.shape)
        return lax.shift_right_logical(upper, bits) | lax.shift_left(lower, 32 - bits)

    return _union_of_windows(window, span, length, max_radius, words)


def _widen_rows_within_word(words, radius, max_radius, fill):
    """Returns what `_widen_rows` does for radii below 32: no bit passes more than one word."""

    def smear(word, shift, reach):
        covered = jnp.int32(0)
        # Each step doubles what is covered, and one.
        for _ in range((max_radius + 1).bit_length()):
            step = jnp.minimum(covered + 1, reach - covered)
            word, covered = word | shift(word, step.astype(jnp.uint32)), covered + step
        return word

    def within_word(word, shift):
        return smear(word, shift, radius)

    def into_next_word(word, shift, opposite):
        # The bits that pass into the next word, moved there; they go on for a row less.
        moved = shift(word, 32 - jnp.maximum(radius, 1).astype(jnp.uint32))
        return smear(jnp.where(radius > 0, moved, 0), opposite, jnp.maximum(radius - 1, 0))

    def shift_down(word, bits):
        return word << bits

    def shift_up(word, bits):
        return word >> bits

    row = jnp.full((1, words.shape[1]), fill)
    above = jnp.concatenate([row, words[:-1]])
    below = jnp.concatenate([words[1:], row])
    own = within_word(words, shift_down) | within_word(words, shift_up)
    from_above = into_next_word(above, shift_up, shift_up)
    return own | from_above | into_next_word(below, shift_down, shift_down)


def _shift_rows_up(table, rows: int, size: int):
    """Returns the first `size` words of a table whose first rows are cut off."""
    whole, bits = divmod(rows, 32)
    upper, lower = table[whole : whole + size], table[whole + 1 : whole + 1 + size]
    return upper >> bits | lower << (32 - bits) if bits else upper


def _union_of_windows(window, span, length, max_radius, words):
    """Returns the union of windows of `span` that cover `length`."""
    # Before a window grows fourfold, four of it nearly make the next one.
    count = max(4, -(-(2 * max_radius + 1) // 4 ** _fourfold_steps(max_radius)))

    def join(_):
        offsets = [jnp.minimum(i * span, length - span) for i in range(count)]
        return functools.reduce(operator.or_, map(window, offsets))

    return lax.cond(length > 0, join, lambda words: words, words)


def _dilate_by_disk(words: UInt32[Array, "K W"], radius: Int32[Array, ""], max_radius: int, fill):
    """Returns the union of disks: columns up to the radius away, each as tall as the disk there."""
    width = words.shape[1]
    row = jnp.full((1, width + 2 * max_radius), fill)

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
        right = lax.dynamic_slice_in_dim(tall, max_radius + away, width, 1)
        left = lax.dynamic_slice_in_dim(tall, max_radius - away, width, 1)
        return tall, half, wide | left | right

    start = jnp.pad(words, ((0, 0), (max_radius, max_radius)), constant_values=fill)
    state = start, jnp.int32(0), words
    return lax.fori_loop(0, radius + 1, column, state)[2]
