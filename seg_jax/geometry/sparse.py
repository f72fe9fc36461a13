"""Fills shapes on a CPU with work that grows with their outlines and boxes, not with the canvas.

Shapes are sorted by the window that holds them. For a block of shapes the toggles of their edges
are set one bit each in packed tables as small as the window, and each table is filled at once. All
loops have run-time lengths: an edge costs its columns, a shape its window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Bool, Int, Int32, UInt32

from seg_jax.geometry.rules import Rule
from seg_jax.records import Array

_SIDES = (128, 256, 512)
"""Sides of the windows; what fits in none takes the whole canvas."""
_BLOCK = 16
"""Shapes whose tables exist at once: few enough to stay in the cache."""
_EDGES = 1024
"""Edges of a block, about."""
_AHEAD = 8
"""Columns of an edge that are taken before its rest becomes pieces."""
_PIECE, _PIECES = 8, 256
"""Columns of a piece, and pieces that are taken at once."""


class Shapes(NamedTuple):
    """Edges of many shapes in grid steps of a rule; a shape is the union of its G groups."""

    x0: Int32[Array, "N G E"]
    y0: Int32[Array, "N G E"]
    x1: Int32[Array, "N G E"]
    y1: Int32[Array, "N G E"]
    used: Bool[Array, "N G E"]
    """False for what is no edge."""


class _Boxes(NamedTuple):
    """The window that each shape needs, on the canvas."""

    left: Array  # first column
    top: Array  # first word
    width: Array  # columns, 0 for a shape that toggles none
    depth: Array  # words


def fill(shapes: Shapes, rule: Rule, *, height: int, width: int) -> UInt32[Array, "N K {width}"]:
    """Returns the packed masks of shapes."""
    blank = jnp.zeros((shapes.x0.shape[0], -(-height // 32), width), jnp.uint32)

    def draw(words, shape, top, left, toggles):
        return lax.dynamic_update_slice(words, _filled(toggles)[None], (shape, top, left))

    return _each(shapes, rule, height, width, blank, draw)


def counts(
    shapes: Shapes,
    rule: Rule,
    words: UInt32[Array, "M K W"],
    which: Int[Array, " N"],
    *,
    height: int,
) -> tuple[Int32[Array, " N"], Int32[Array, " N"]]:
    """Returns the areas of shapes and of what they share with mask `which` of `words`."""
    zeros = jnp.zeros(which.shape, jnp.int32)

    def count(totals, shape, top, left, toggles):
        area, shared = _counted(toggles, words, (which[shape], top, left))
        return totals[0].at[shape].set(area), totals[1].at[shape].set(shared)

    return _each(shapes, rule, height, words.shape[-1], (zeros, zeros), count)


def _each(shapes: Shapes, rule: Rule, height: int, width: int, carry, visit: Callable):
    """Returns carry after `visit(carry, shape, top, left, toggles [G k w])` of every shape.

    Toggles lie in a window of k words and w columns whose corner is at (top, left); shapes without
    toggles are left out.
    """
    depth = -(-height // 32)
    windows = [(min(side // 32, depth), min(side, width)) for side in _SIDES]
    windows = [w for w in dict.fromkeys(windows) if w != (depth, width)] + [(depth, width)]
    boxes, shapes = _boxes(shapes, rule, height, width)
    fits = [(boxes.depth <= k) & (boxes.width <= w) for k, w in windows[:-1]]
    kind = sum([1 - fit.astype(jnp.int32) for fit in fits], jnp.zeros_like(boxes.left))
    kind = jnp.where(boxes.width > 0, kind, len(windows))
    order = jnp.argsort(kind).astype(jnp.int32)
    order = jnp.concatenate([order, jnp.zeros(_BLOCK, jnp.int32)])
    items = jax.tree.map(lambda leaf: leaf[order], (shapes, boxes))
    for number, window in enumerate(windows):
        begin = (kind < number).sum(dtype=jnp.int32)
        end = (kind <= number).sum(dtype=jnp.int32)
        size = _block_size(shapes.x0.shape[1:], window)

        def block(i, carry, begin=begin, end=end, size=size, window=window):
            at = begin + i * size
            part, box = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, at, size), items)
            top = jnp.minimum(box.top, depth - window[0])
            left = jnp.minimum(box.left, width - window[1])
            table = _table(part, rule, height, width, top, left, window)

            def one(j, carry):
                return visit(carry, order[at + j], top[j], left[j], table[j])

            return lax.fori_loop(0, jnp.minimum(end - at, size), one, carry)

        carry = lax.fori_loop(0, (end - begin + size - 1) // size, block, carry)
    return carry


def _block_size(edges: tuple[int, ...], window: tuple[int, int]) -> int:
    """Returns how many shapes are taken at once."""
    groups, count = edges
    bits = groups * window[0] * window[1] * 32
    if bits >= 2**30:
        raise ValueError(
            f"expected fewer than {2**30} bits a shape, got {bits} for {groups} rings: "
            "join rings with rings='evenodd' or fill them apart"
        )
    return max(1, min(_BLOCK, _EDGES // max(groups * count, 1), 2**30 // bits))


def _boxes(shapes: Shapes, rule: Rule, height: int, width: int) -> tuple[_Boxes, Shapes]:
    """Returns the boxes of shapes, and the shapes with what is no edge put into a corner of it."""
    most = np.iinfo(np.int32).max

    def extent(a, b):
        low = jnp.where(shapes.used, jnp.minimum(a, b), most).min((1, 2))
        high = jnp.where(shapes.used, jnp.maximum(a, b), -most).max((1, 2))
        none = low > high
        return jnp.where(none, 0, low), jnp.where(none, 0, high)

    (x0, x1), (y0, y1) = extent(shapes.x0, shapes.x1), extent(shapes.y0, shapes.y1)
    left, right = (jnp.clip(rule.column(x), 0, width) for x in (x0, x1))
    above, below = (jnp.clip(rule.top(y), 0, height) for y in (y0, y1))
    empty = (left >= right) | (above >= below)
    top = jnp.minimum(above, height - 1) >> 5
    boxes = _Boxes(
        left=jnp.minimum(left, width - 1),
        top=top,
        width=jnp.where(empty, 0, right - left),
        depth=(jnp.minimum(below, height - 1) >> 5) - top + 1,
    )
    x, y = x0[:, None, None], y0[:, None, None]
    kept = [jnp.where(shapes.used, v, c) for v, c in zip(shapes[:4], (x, y, x, y), strict=True)]
    return boxes, Shapes(*kept, used=shapes.used)


def _table(part: Shapes, rule: Rule, height: int, width: int, top, left, window):
    """Returns the toggles of a block of shapes in their windows, as bits [n G k w]."""
    size, groups = part.x0.shape[:2]
    cells, depth = window[0] * window[1], -(-height // 32)
    origin = cells * jnp.arange(size * groups, dtype=jnp.int32).reshape(size, groups)
    origin -= (top * window[1] + left)[:, None]
    origin = jnp.broadcast_to(origin[..., None], part.x0.shape).reshape(-1)
    ends = [v.reshape(-1) for v in part[:4]]

    def toggled(table, edges, origin, begin, steps):
        """XORs in the toggles of `steps` columns of each edge from the `begin`-th one on.

        Their codes are carried, since what a loop carries is worked out once: XLA would do so for
        the place and again for the bit.
        """

        def code(j):
            on = begin + j
            column = edges.first + jnp.clip(on, 0, jnp.maximum(edges.count - 1, 0))
            row = rule.row(edges, column, height)
            # Row `height` ends a column within its last word, where that has bits to spare.
            real = (on < edges.count) & (row < 32 * depth)
            code = (origin + (row >> 5) * window[1] + column) * 32 + (row & 31)
            return jnp.where(real, code, -1)

        def step(j, carry):
            table, codes = carry
            return _flipped(table, codes), code(j + 1)

        return lax.fori_loop(0, steps, step, (table, code(0)))[0]

    edges = rule.edges(*ends, width)
    table = jnp.zeros(size * groups * cells, jnp.uint32)
    table = toggled(table, edges, origin, 0, jnp.minimum(edges.count.max(), _AHEAD))
    pieces = (jnp.maximum(edges.count - _AHEAD, 0) + _PIECE - 1) // _PIECE
    until = _running_sum(pieces)
    since = until - pieces

    def more(i, table):
        number = i * _PIECES + jnp.arange(_PIECES, dtype=jnp.int32)
        edge = jnp.searchsorted(until, number, side="right", method="scan").astype(jnp.int32)
        edge = jnp.minimum(edge, pieces.size - 1)
        rest = rule.edges(*(v[edge] for v in ends), width)
        rest = rest._replace(count=jnp.where(number < until[-1], rest.count, 0))
        begin = _AHEAD + _PIECE * (number - since[edge])
        return toggled(table, rest, origin[edge], begin, _PIECE)

    table = lax.fori_loop(0, (until[-1] + _PIECES - 1) // _PIECES, more, table)
    return table.reshape(size, groups, *window)


def _running_sum(counts: Int32[Array, " E"]) -> Int32[Array, " E"]:
    """Returns cumulative sums below 2**24: two small products, where XLA's own scan is slow."""
    side = 32
    padded = jnp.pad(counts, (0, -counts.size % side)).reshape(-1, side).astype(jnp.float32)
    within = padded @ jnp.triu(jnp.ones((side, side), jnp.float32))
    rows = padded.shape[0]
    before = jnp.tril(jnp.ones((rows, rows), jnp.float32), -1) @ within[:, -1]
    return (within + before[:, None]).reshape(-1)[: counts.size].astype(jnp.int32)


_XOR = jax.make_jaxpr(lax.bitwise_xor)(np.uint32(0), np.uint32(0))


def _flipped(table: UInt32[Array, " n"], codes: Int32[Array, " m"]) -> UInt32[Array, " n"]:
    """Returns the table with bits flipped: code 32 i + b flips bit b of i, a negative one none.

    JAX has scatters that add or multiply; that which XORs exists as a primitive only.
    """
    place = jnp.maximum(codes, 0) >> 5
    bits = jnp.where(codes < 0, 0, jnp.uint32(1) << (codes & 31).astype(jnp.uint32))
    return primitives.scatter_p.bind(
        table,
        place[:, None],
        bits.astype(jnp.uint32),
        update_jaxpr=_XOR.jaxpr,
        update_consts=tuple(_XOR.consts),
        dimension_numbers=lax.ScatterDimensionNumbers((), (0,), (0,)),
        indices_are_sorted=False,
        unique_indices=False,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def _within(word):
    """Returns the parity of the bits at or below each bit."""
    for shift in (1, 2, 4, 8, 16):
        word = word ^ (word << shift)
    return word


def _filled(toggles: UInt32[Array, "G k w"]) -> UInt32[Array, "k w"]:
    """Returns the union of groups, each filled from its toggles."""
    depth = toggles.shape[1]
    parity = _within(toggles)
    odd = jnp.zeros((toggles.shape[0], toggles.shape[2]), jnp.uint32)
    parts = []
    for begin in range(0, depth, 32):
        part = parity[:, begin : begin + 32]
        place = jnp.arange(part.shape[1], dtype=jnp.uint32)[:, None]
        tops = _within((part >> 31 << place).sum(1, dtype=jnp.uint32))
        before = ((tops << 1)[:, None] >> place & 1) ^ odd[:, None]
        parts.append(part ^ -before)
        odd = odd ^ (tops >> (part.shape[1] - 1) & 1)
    words = parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)
    return lax.reduce(words, np.uint32(0), lax.bitwise_or, (0,))


def _counted(toggles: UInt32[Array, "G k w"], words: UInt32[Array, "M K W"], corner: Any):
    """Returns the area of the filled toggles, and of what they share with a window of words."""
    groups, depth, width = toggles.shape
    step = max(d for d in range(1, 17) if depth % d == 0)

    def rows(i, carry):
        odd, total = carry
        part = lax.dynamic_slice_in_dim(toggles, i * step, step, 1)
        at = (corner[0], corner[1] + i * step, corner[2])
        truth = lax.dynamic_slice(words, at, (1, step, width))[0]
        for k in range(step):
            union = jnp.zeros(width, jnp.uint32)
            for g in range(groups):
                word = _within(part[g, k]) ^ odd[g]
                odd[g] = -(word >> 31)
                union = union | word
            both = lax.population_count(union & truth[k])
            total = total + lax.population_count(union) + (both << 16)
        return odd, total

    start = [jnp.zeros(width, jnp.uint32)] * groups, jnp.zeros(width, jnp.uint32)
    # A column has at most 4096 rows: two sums fit into one word.
    total = (rows(0, start) if step == depth else lax.fori_loop(0, depth // step, rows, start))[1]
    return (total & 0xFFFF).sum(dtype=jnp.int32), (total >> 16).sum(dtype=jnp.int32)
