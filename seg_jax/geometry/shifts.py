"""Widens packed masks by squares and disks of any radius with shifts of whole words.

A window of L pixels is the union of four windows of a quarter of it, so the work for a square grows
with the logarithm of the radius; that for a disk grows with the radius. Radii are data: every mask
of a batch has its own.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int, Int32, UInt32

from seg_jax.geometry.batching import batched
from seg_jax.records import Array

FULL = np.uint32(0xFFFFFFFF)
"""A word of 32 set rows."""


def widened(
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

    return batched(all_of)(words, jnp.clip(jnp.asarray(radius, jnp.int32), 0, most))


def _one(words: UInt32[Array, "K W"], radius: Int32[Array, ""], *, shape, most: int, fill):
    """Returns one mask widened, with words `fill` off the canvas."""
    if shape == "disk":
        return _rounded(words, radius, most, fill)
    return _down(_across(words, radius, most, fill), radius, most, fill)


def _levels(most: int) -> int:
    """Returns how often a window grows fourfold without exceeding 2 * most + 1."""
    return ((2 * most + 1).bit_length() - 1) // 2


def _across(words, radius, most, fill):
    """Returns the union of 2 * radius + 1 columns around each.

    Every stage is a branch or a loop of run-time length, which XLA keeps apart: fused, the stages
    would be worked out again for each of their readers.
    """
    length = 2 * radius + 1
    last = most + 4 ** _levels(most)
    table = jnp.pad(words, ((0, 0), (most, last)), constant_values=fill)
    span = jnp.int32(1)
    for level in range(_levels(most)):
        step = 4**level
        size = table.shape[1] - 3 * step

        def grow(table, step=step, size=size):
            a, b, c, d = (table[:, i * step : i * step + size] for i in range(4))
            return a | b | c | d

        grows = length >= 4 * step
        table = lax.cond(grows, grow, lambda table, size=size: table[:, :size], table)
        span = jnp.where(grows, 4 * step, span)

    def at(offset):
        return lax.dynamic_slice_in_dim(table, most - radius + offset, words.shape[1], 1)

    return _joined(at, span, length, words)


def _down(words, radius, most, fill):
    """Returns the union of 2 * radius + 1 rows around each (see `_across`)."""
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

    return _joined(at, span, length, words)


def _raised(table, rows: int, size: int):
    """Returns the first `size` words of a table whose first rows are cut off."""
    whole, bits = divmod(rows, 32)
    near, far = table[whole : whole + size], table[whole + 1 : whole + 1 + size]
    return near >> bits | far << (32 - bits) if bits else near


def _joined(at, span, length, words):
    """Returns the union of windows of `span` that cover `length`, less than four times as long."""

    def join(_, __):
        a, b, c, d = (at(jnp.minimum(i * span, length - span)) for i in range(4))
        return a | b | c | d

    return lax.fori_loop(0, jnp.minimum(length, 1), join, words)


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
