"""Fills shapes on a CPU in time that grows with their outlines and boxes, not with the canvas.

Edges are walked one by one and each toggle flips one bit of a table; then the words of the shape's
box are filled column by column. The loops are written as one would in C: every step touches a few
numbers only, so XLA turns a whole nest into machine code (a loop that touches more than a kilobyte
a step it runs piece by piece, a hundred times slower). What a loop does is kept that small, and
neither sorted nor padded: the used vertices, the columns of an edge, the words of a box.

Axes here: `N` shapes, `G` groups of a shape, `R` rings of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int, Int32, UInt32

from seg_jax.geometry.edge_rules import Rule
from seg_jax.records import Array

_LANES = 8
"""Columns that are filled at once."""
_BLOCK, _CELLS = 16, 2**19
"""Shapes whose tables exist at once, and words of these tables, at most: they stay in the cache."""


class Shapes(NamedTuple):
    """Rings of many shapes in grid steps of a rule; a shape is the union of its G groups."""

    x: Int32[Array, "N G R P"]
    y: Int32[Array, "N G R P"]
    count: Int32[Array, "N G R"]
    """Vertices of each ring; 0 for one that is empty."""


class _Canvas(NamedTuple):
    """Sizes that are known when a program is traced."""

    rule: Rule
    height: int
    width: int
    depth: int  # words of a column
    wide: int  # columns of the tables, a multiple of _LANES
    size: int  # shapes of a block

    @property
    def cells(self) -> int:
        """Words of one table: a row of words below takes what toggles nothing."""
        return (self.depth + 1) * self.wide


class _Boxes(NamedTuple):
    """The boxes of the shapes of a block, half open: in _LANES of columns and in words."""

    left: Array
    right: Array
    top: Array
    bottom: Array

    def union(self, other: _Boxes) -> _Boxes:
        """Returns the smallest boxes that hold both."""
        low = (jnp.minimum(a, b) for a, b in ((self.left, other.left), (self.top, other.top)))
        high = (
            jnp.maximum(a, b) for a, b in ((self.right, other.right), (self.bottom, other.bottom))
        )
        (left, top), (right, bottom) = low, high
        return _Boxes(left, right, top, bottom)


def _canvas(shapes: Shapes, rule: Rule, height: int, width: int) -> _Canvas:
    depth, wide = -(-height // 32), -(-width // _LANES) * _LANES
    size = max(1, min(_BLOCK, shapes.count.shape[0], _CELLS // (depth * wide)))
    return _Canvas(rule, height, width, depth, wide, size)


def fill(shapes: Shapes, rule: Rule, *, height: int, width: int) -> UInt32[Array, "N K {width}"]:
    """Returns the packed masks of shapes."""
    canvas = _canvas(shapes, rule, height, width)
    count, groups = shapes.count.shape[:2]

    def block(i, carry):
        begin = i * canvas.size

        def one(group, carry):
            words, table = carry
            table, boxes = _toggle_edges(table, shapes, canvas, begin, group)
            words = _draw_shapes(words, table, boxes, canvas, begin)
            return words, _clear_boxes(table, boxes, canvas, after=words)

        return _for_range(0, groups, one, carry)

    blank = jnp.zeros((count, canvas.depth, canvas.wide), jnp.uint32)
    blocks = -(-count // canvas.size)
    words = _for_range(0, blocks, block, (blank, _table(canvas)))[0]
    return words[..., :width]


def counts(
    shapes: Shapes,
    rule: Rule,
    *,
    words: UInt32[Array, "M K W"],
    which: Int[Array, " N"],
    height: int,
) -> tuple[Int32[Array, " N"], Int32[Array, " N"]]:
    """Returns the areas of shapes and of what they share with mask `which` of `words`."""
    canvas = _canvas(shapes, rule, height, words.shape[-1])
    count, groups = shapes.count.shape[:2]
    words = jnp.pad(words, ((0, 0), (0, 0), (0, canvas.wide - words.shape[-1])))

    def count_single(i, carry):
        totals, table = carry
        begin = i * canvas.size
        table, boxes = _toggle_edges(table, shapes, canvas, begin, 0)
        totals = _count_shapes(totals, table, boxes, canvas, begin, words, which)
        return totals, _clear_boxes(table, boxes, canvas, after=totals[0])

    def count_union(i, carry):
        totals, *tables = carry
        begin = i * canvas.size

        def one(group, carry):
            table, union, whole = carry
            table, boxes = _toggle_edges(table, shapes, canvas, begin, group)
            union = _draw_shapes(union, table, boxes, canvas, 0)
            return _clear_boxes(table, boxes, canvas, after=union), union, whole.union(boxes)

        table, union, whole = _for_range(0, groups, one, (*tables, nowhere))
        totals = _count_shapes(totals, union, whole, canvas, begin, words, which)
        return totals, table, _clear_boxes(union, whole, canvas, after=totals[0])

    zeros = jnp.zeros(count, jnp.int32)
    low, high = (jnp.full(canvas.size, end, jnp.int32) for end in (2**30, 0))
    nowhere = _Boxes(left=low, right=high, top=low, bottom=high)
    carry = (zeros, zeros), _table(canvas)
    if groups > 1:
        carry = *carry, _table(canvas).reshape(canvas.size, canvas.depth + 1, canvas.wide)
    visit = count_union if groups > 1 else count_single
    return _for_range(0, -(-count // canvas.size), visit, carry)[0]


def _table(canvas: _Canvas) -> UInt32[Array, " cells"]:
    return jnp.zeros(canvas.size * canvas.cells, jnp.uint32)


def _for_range(begin, end, visit, carry):
    """Returns what `lax.fori_loop` does; numbers are int32 also under `jax_enable_x64`."""
    return lax.fori_loop(begin, end, lambda i, carry: visit(_int32(i), carry), carry)


def _int32(number) -> Int32[Array, ""]:
    return lax.convert_element_type(number, jnp.int32)


def _slice(array: Array, place, shape) -> Array:
    """Returns the part of a shape that begins at a place."""
    place = tuple(map(_int32, place))
    return lax.dynamic_slice(array, place, shape, allow_negative_indices=False)


def _update(array: Array, part: Array, place) -> Array:
    """Returns the array with the part that begins at a place replaced."""
    place = tuple(map(_int32, place))
    return lax.dynamic_update_slice(array, part, place, allow_negative_indices=False)


def _element(array: Array, *place) -> Array:
    """Returns an element, whose place lies in the array."""
    return _slice(array, place, (1,) * array.ndim).reshape(())


def _set_element(array: Array, value, place) -> Array:
    """Returns the array with an element replaced."""
    return _update(array, value.astype(array.dtype)[None], (place,))


def _lane_values(array: Array, *place) -> Array:
    """Returns _LANES neighbours; a place beyond the end of the array is moved back into it."""
    shape = (1,) * (array.ndim - 1) + (_LANES,)
    return _slice(array, place, shape).reshape(-1)


def _flip_toggle(table: Array, canvas: _Canvas, shape, row, column) -> Array:
    """Returns the table with the toggle of a shape at a row and a column flipped."""
    place = shape * canvas.cells + (row >> 5) * canvas.wide + column
    bit = jnp.uint32(1) << (row & 31).astype(jnp.uint32)
    return _set_element(table, _element(table, place) ^ bit, place)


def _ends(shapes: Shapes, shape, group, ring, vertex):
    """Returns the edge that begins at a vertex: x0, y0, x1, y1."""
    last = vertex + 1 == _element(shapes.count, shape, group, ring)
    begin, end = (shape, group, ring, vertex), (shape, group, ring, jnp.where(last, 0, vertex + 1))
    x, y = shapes.x, shapes.y
    return _element(x, *begin), _element(y, *begin), _element(x, *end), _element(y, *end)


def _toggle_edges(table: Array, shapes: Shapes, canvas: _Canvas, begin, group):
    """Returns the table with the toggles of a block of shapes, and their boxes."""
    count, _, rings, points = shapes.x.shape
    rule, width, height = canvas.rule, canvas.width, canvas.height
    most = np.int32(2**30)

    def shape(s, carry):
        def ring(r, carry):
            def edge(i, carry):
                table, late, found, left, right, top, bottom = carry
                x0, y0, x1, y1 = _ends(shapes, begin + s, group, r, i)
                line = rule.line(x0, y0, x1, y1, width)

                def column(c, table):
                    return _flip_toggle(table, canvas, s, line.row(c, height), c)

                table = _for_range(
                    line.first, jnp.where(line.sure, line.end, line.first), column, table
                )
                # The place is written anyway, and kept if the edge is one for later.
                late = _set_element(late, (s * rings + r) * points + i, found)
                found += ~line.sure & (line.first < line.end)
                at = jnp.clip(rule.column(x0), 0, width)
                left, right = jnp.minimum(left, at), jnp.maximum(right, at)
                return (
                    table,
                    late,
                    found,
                    left,
                    right,
                    jnp.minimum(top, y0),
                    jnp.maximum(bottom, y0),
                )

            return _for_range(0, _element(shapes.count, begin + s, group, r), edge, carry)

        table, late, found, boxes = carry
        start = table, late, found, jnp.int32(width), jnp.int32(0), most, -most
        table, late, found, left, right, top, bottom = _for_range(0, rings, ring, start)
        top, bottom = (jnp.clip(rule.top(y), 0, height - 1) >> 5 for y in (top, bottom))
        box = left // _LANES, (right + _LANES - 1) // _LANES, top, bottom + 1
        boxes = _Boxes(*(_set_element(a, v, s) for a, v in zip(boxes, box, strict=True)))
        return table, late, found, boxes

    boxes = _Boxes(*[jnp.zeros(canvas.size, jnp.int32)] * 4)
    late = jnp.zeros(canvas.size * rings * points + 1, jnp.int32)
    start = table, late, jnp.int32(0), boxes
    many = jnp.minimum(canvas.size, count - begin)
    table, late, found, boxes = _for_range(0, many, shape, start)
    return _toggle_late_edges(table, late, found, shapes, canvas, begin, group), boxes


def _toggle_late_edges(table: Array, late, found, shapes: Shapes, canvas: _Canvas, begin, group):
    """Returns the table with the toggles of the edges that are not straight to the last bit.

    Args:
      table: of toggles.
      late: numbers of these edges, by shape, ring and vertex of the block.
      found: how many there are.
      shapes: all shapes.
      canvas: sizes.
      begin: the first shape of the block.
      group: the group of each shape.
    """
    _, _, rings, points = shapes.x.shape

    def visit(q, table):
        place = _element(late, q).astype(jnp.uint32)
        number, i = (place // points).astype(jnp.int32), (place % points).astype(jnp.int32)
        s, r = number // rings, number % rings
        edge = canvas.rule.edges(*_ends(shapes, begin + s, group, r, i), canvas.width)

        def column(c, table):
            row = canvas.rule.row(edge, c, canvas.height)
            return _flip_toggle(table, canvas, s, row, c)

        return _for_range(edge.first, edge.first + edge.count, column, table)

    return _for_range(0, found, visit, table)


def _for_strips(boxes: _Boxes, many, visit, carry):
    """Returns carry after `visit(carry, shape, top, bottom, column)` of every strip of boxes."""

    def shape(s, carry):
        left, right, top, bottom = (_element(v, s) for v in boxes)
        strip = lambda a, carry: visit(carry, s, top, bottom, a * _LANES)  # noqa: E731
        return _for_range(left, right, strip, carry)

    return _for_range(0, many, shape, carry)


def _prefix_parity(word):
    """Returns the parity of the bits at or below each bit."""
    for shift in (1, 2, 4, 8, 16):
        word = word ^ (word << shift)
    return word


def _filled_words(table: Array, canvas: _Canvas, s, k, column, above):
    """Returns words of a row of a shape, filled from its toggles and the words above."""
    toggles = _lane_values(table, s * canvas.cells + k * canvas.wide + column)
    return _prefix_parity(toggles) ^ -(above >> 31)


def _draw_shapes(words: Array, table: Array, boxes: _Boxes, canvas: _Canvas, begin):
    """Returns words to which the filled shapes of a block are added."""
    nothing = jnp.zeros(_LANES, jnp.uint32)

    def strip(words, s, top, bottom, column):
        def row(k, carry):
            words, above = carry
            word = _filled_words(table, canvas, s, k, column, above)
            place = begin + s, k, column
            both = word | _lane_values(words, *place)
            return _update(words, both[None, None], place), word

        return _for_range(top, bottom, row, (words, nothing))[0]

    return _for_strips(boxes, canvas.size, strip, words)


def _count_shapes(totals, source: Array, boxes: _Boxes, canvas: _Canvas, begin, words, which):
    """Returns areas and shared areas with those of the shapes of a block filled in.

    Args:
      totals: areas and shared areas of all shapes.
      source: toggles of the block in a table, or masks [shape, word, column] as they are.
      boxes: of the block.
      canvas: sizes.
      begin: the first shape of the block.
      words: masks to share with.
      which: the mask of each shape.
    """
    nothing = jnp.zeros(_LANES, jnp.uint32)

    def strip(sums, s, top, bottom, column):
        mask = _element(which, begin + s)

        def row(k, carry):
            # The words of the row above were carried here, so they are worked out once.
            word, total = carry
            both = word & _lane_values(words, mask, k - 1, column)
            total = total + lax.population_count(word) + (lax.population_count(both) << 16)
            if source.ndim > 1:
                return _lane_values(source, s, k, column), total
            return _filled_words(source, canvas, s, k, column, word), total

        # A column has at most 4096 rows: two sums fit into one number.
        total = _for_range(top, bottom + 1, row, (nothing, nothing))[1]
        area, shared = sums
        return area + (total & 0xFFFF).sum(dtype=jnp.uint32), shared + (total >> 16).sum(
            dtype=jnp.uint32
        )

    def shape(s, totals):
        left, right, top, bottom = (_element(v, s) for v in boxes)
        start = jnp.uint32(0), jnp.uint32(0)
        many = lambda a, sums: strip(sums, s, top, bottom, a * _LANES)  # noqa: E731
        found = _for_range(left, right, many, start)
        return tuple(_set_element(t, v, begin + s) for t, v in zip(totals, found, strict=True))

    return _for_range(0, jnp.minimum(canvas.size, which.shape[0] - begin), shape, totals)


def _clear_boxes(table: Array, boxes: _Boxes, canvas: _Canvas, *, after: Array) -> Array:
    """Returns the table with the boxes of a block cleared, once `after` is known.

    That is said by a number which is 0, but not to the compiler: it would copy the table otherwise.
    """
    zero = (lax.population_count(_element(after, *[0] * after.ndim)) >> 6).astype(jnp.int32)
    nothing = jnp.zeros(_LANES, jnp.uint32)

    def strip(table, s, top, bottom, column):
        def row(k, table):
            place = (s * canvas.cells + k * canvas.wide + column,)
            if table.ndim > 1:
                place = s, k, column
            return _update(table, nothing.reshape((1,) * (table.ndim - 1) + (-1,)), place)

        return _for_range(top, bottom, row, table)

    return _for_strips(boxes, canvas.size + zero, strip, table)
