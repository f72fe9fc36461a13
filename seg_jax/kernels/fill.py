"""Fills polygons into packed masks on a TPU, visiting only the tiles of columns that edges touch.

A shape's words stay in the chip's vector memory, columns on lanes. Edges are taken `_EDGES` at a
time, on sublanes: neighbours of an outline mostly lie in one tile of 128 columns, so the work grows
with the outline, not with edges times columns. An edge flips, in each column it toggles, all bits
of one word from its row down; what that says of the words below follows once, at the end, from the
last bits of the words. Nothing here knows the rules: rows come from functions that are passed in.

Axes here: `G` groups of a shape, `E` edges of a group, `L` entries of a list of visits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Int, Int32, UInt32

from seg_jax.records import Array

_LANES, _SUBLANES = 128, 8
_EDGES = 16
"""Edges of a step."""
_HEAD = 4
"""Numbers before those of the steps of a list: its visits, its first step, the tiles of its group,
and its steps up to the last one with work.

A visit is a step in a tile. The number of a step holds its first tile, one beyond its last, and the
step that comes next, those without work being left out.
"""
_TILE_BITS = 6
_TOGETHER, _BLOCK_BYTES, _SCALAR_BYTES, _VMEM_BYTES = 8, 2**22, 2**16, 12 * 2**20
"""Shapes of a pass at most; bytes of their blocks, numbers, and of all that a kernel holds."""

Rows = Callable[[Sequence[Array], Array], Array]
"""(fields of edges [E, 1], columns [E, 128]) to the rows of toggles, at most the height."""


class Edges(NamedTuple):
    """Edges of N shapes; a shape is the union of G groups, each filled by the even-odd rule."""

    first: Int32[Array, "N G E"]
    end: Int32[Array, "N G E"]
    """Columns that an edge toggles, one beyond the last; none where `end` is not above `first`."""
    sure: Bool[Array, "N G E"]
    """Where the `straight` rows hold; the `exact` ones hold everywhere."""
    straight: tuple[Int32[Array, "N G E"], ...]
    """Fields for the rows of straight edges, or none if no edge is sure."""
    exact: tuple[Int32[Array, "N G E"], ...]


class _Plan(NamedTuple):
    """Sizes that are known when a program is traced."""

    height: int
    width: int
    shapes: int
    groups: int
    steps: int  # of a group at most
    straight: int  # fields of straight edges
    exact: int
    together: int = 1  # shapes of a pass

    @property
    def depth(self) -> int:
        """Words of a column, rounded up to whole sublanes."""
        return _round_up(-(-self.height // 32), _SUBLANES)

    @property
    def wide(self) -> int:
        """Columns, rounded up to whole lanes."""
        return _round_up(self.width, _LANES)

    @property
    def lanes(self) -> int:
        """Edges of a group, rounded up to whole lanes."""
        return _round_up(self.steps * _EDGES, _LANES)

    @property
    def fields(self) -> int:
        """Numbers of an edge, rounded up to whole sublanes."""
        return _round_up(1 + self.lists + self.straight + self.exact, _SUBLANES)

    @property
    def lists(self) -> int:
        """Lists of visits per group: one for straight edges, if any, and one for the others."""
        return 2 if self.straight else 1

    @property
    def parts(self) -> list[tuple[int, ...]]:
        """Fields that each list needs: the columns of an edge, then those of its rows."""
        begin = 1 + self.lists
        middle = begin + self.straight
        exact = 0, self.lists, *range(middle, middle + self.exact)
        return [(0, 1, *range(begin, middle)), exact] if self.straight else [exact]

    @property
    def passes(self) -> int:
        return -(-self.shapes // self.together)

    @property
    def scalars(self) -> int:
        """Numbers that say what is to be visited."""
        return self.groups * self.lists * (_HEAD + self.steps)

    @property
    def block(self) -> int:
        """Bytes that a shape reads and writes, doubled: one is computed while another is copied."""
        return 8 * (self.groups * self.fields * self.lanes + self.depth * self.wide)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _plan(edges: Edges, height: int, width: int) -> _Plan:
    shapes, groups, count = edges.first.shape
    steps = max(1, -(-count // _EDGES))
    plan = _Plan(height, width, shapes, groups, steps, len(edges.straight), len(edges.exact))
    most = min(_BLOCK_BYTES // plan.block, _SCALAR_BYTES // (4 * plan.scalars))
    return plan._replace(together=max(1, min(_TOGETHER, shapes, most)))


def fits(edges: Edges, *, height: int, width: int) -> bool:
    """Returns whether a shape of so many edges fits the memories of a core."""
    plan = _plan(edges, height, width)
    scratch = 4 * (plan.lanes * _LANES + (plan.together + 1) * plan.depth * plan.wide)
    return (
        plan.together * plan.block + scratch <= _VMEM_BYTES
        and 4 * plan.scalars <= 4 * _SCALAR_BYTES
    )


def fill(
    edges: Edges, straight: Rows, exact: Rows, *, height: int, width: int, interpret: bool = False
) -> UInt32[Array, "N K {width}"]:
    """Returns the packed masks of shapes: bit j of word k is row 32 k + j."""
    plan = _plan(edges, height, width)

    def kernel(visits, fields, out, *scratch):
        out[...] = jnp.zeros_like(out)
        _draw_shapes(plan, (straight, exact), visits, fields, out, *scratch)

    inputs, specs = _kernel_inputs(edges, plan)
    whole = plan.depth, plan.wide
    words = pl.pallas_call(
        kernel,
        grid=(plan.passes,),
        in_specs=specs,
        out_specs=pl.BlockSpec((plan.together, *whole), lambda i: (i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((plan.passes * plan.together, *whole), jnp.int32),
        scratch_shapes=_scratch_shapes(plan),
        interpret=interpret,
        name="fill",
    )(*inputs)
    words = words[: plan.shapes, : -(-height // 32), :width]
    return lax.bitcast_convert_type(words, jnp.uint32)


def counts(
    edges: Edges,
    straight: Rows,
    exact: Rows,
    *,
    words: UInt32[Array, "M K W"],
    which: Int[Array, " N"],
    height: int,
    interpret: bool = False,
) -> tuple[Int32[Array, " N"], Int32[Array, " N"]]:
    """Returns the areas of shapes and of what they share with mask `which` of `words`."""
    plan = _plan(edges, height, words.shape[-1])
    whole, together = (plan.depth, plan.wide), plan.together

    def kernel(chosen, visits, fields, *refs):
        del chosen
        masks, (area, shared, drawn, *scratch) = refs[:together], refs[together:]
        _clear_shapes(plan, visits, drawn)
        _draw_shapes(plan, (straight, exact), visits, fields, drawn, *scratch)
        for s, mask in enumerate(masks):
            found = _count_bits(plan, _tile_span(plan, visits, s), drawn.at[s], mask.at[0])
            area[0, s : s + 1, :], shared[0, s : s + 1, :] = found

    inputs, specs = _kernel_inputs(edges, plan)
    which = jnp.pad(which.astype(jnp.int32), (0, plan.passes * together - plan.shapes))
    size = ((0, most - now) for most, now in zip(whole, words.shape[1:], strict=True))
    words = jnp.pad(words, ((0, 0), *size))
    masks = [
        pl.BlockSpec((1, *whole), lambda i, chosen, s=s: (chosen[i * together + s], 0, 0))
        for s in range(together)
    ]
    rows = jax.ShapeDtypeStruct((plan.passes, together, _LANES), jnp.int32)
    found = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.passes,),
            in_specs=[*specs, *masks],
            out_specs=[pl.BlockSpec((1, together, _LANES), lambda i, _: (i, 0, 0))] * 2,
            scratch_shapes=[pltpu.VMEM((together, *whole), jnp.int32), *_scratch_shapes(plan)],
        ),
        out_shape=[rows, rows],
        interpret=interpret,
        name="fill_counts",
    )(which, *inputs, *[words] * together)
    area, shared = (n.sum(-1, dtype=jnp.int32).reshape(-1)[: plan.shapes] for n in found)
    return area, shared


def _scratch_shapes(plan: _Plan):
    """Returns room for the edges of a group, on sublanes, and for the toggles of one of several."""
    turned = pltpu.VMEM((plan.lanes, plan.fields), jnp.int32)
    flips = pltpu.VMEM((2, _EDGES, _LANES), jnp.int32)
    toggles = pltpu.VMEM((plan.depth, plan.wide), jnp.int32)
    return [turned, flips] if plan.groups == 1 else [turned, flips, toggles]


def _kernel_inputs(edges: Edges, plan: _Plan):
    """Returns what is to be visited and the fields of the edges, and how they are cut."""
    bent = jnp.where(edges.sure, 0, edges.end)
    lists = [_visits(edges.first, bent, plan)]
    ends = [bent]
    if plan.straight:
        sure = jnp.where(edges.sure, edges.end, 0)
        lists, ends = [_visits(edges.first, sure, plan), *lists], [sure, bent]
    visits = jnp.stack(lists, axis=2)
    span = visits[..., 2]
    low, high = (span & 63).min(-1), (span >> _TILE_BITS).max(-1)
    visits = visits.at[..., 2].set((low | high << _TILE_BITS)[..., None])

    fields = jnp.stack([edges.first, *ends, *edges.straight, *edges.exact], axis=2)
    more = plan.passes * plan.together - plan.shapes
    size = plan.fields - fields.shape[2], plan.lanes - fields.shape[3]
    fields = jnp.pad(fields, ((0, more), (0, 0), *((0, n) for n in size)))
    visits = jnp.pad(visits.reshape(plan.shapes, -1), ((0, more), (0, 0)))
    visits = visits.reshape(plan.passes, plan.together, -1)
    specs = [
        pl.BlockSpec((1, *visits.shape[1:]), lambda i, *_: (i, 0, 0), memory_space=pltpu.SMEM),
        pl.BlockSpec((plan.together, *fields.shape[1:]), lambda i, *_: (i, 0, 0, 0)),
    ]
    return (visits, fields), specs


def _visits(first, end, plan: _Plan) -> Int32[Array, "N G L"]:
    """Returns for each group which of its edges meet which tiles of columns, as one list."""
    on = end > first
    size = plan.steps * _EDGES - first.shape[-1]
    none = 1 << (_TILE_BITS - 1)

    def steps(tile, value):
        tile = jnp.where(on, tile, value)
        tile = jnp.pad(tile, ((0, 0), (0, 0), (0, size)), constant_values=value)
        return tile.reshape(*tile.shape[:2], plan.steps, _EDGES)

    low, high = steps(first >> 7, none).min(-1), steps((end + 127) >> 7, 0).max(-1)
    step = jnp.arange(plan.steps, dtype=jnp.int32)
    follows = jnp.where(high > 0, step, plan.steps)
    follows = lax.cummin(follows, axis=2, reverse=True)
    # A step after the last one is read, but what comes of it is not used.
    follows = jnp.minimum(jnp.pad(follows, ((0, 0), (0, 0), (0, 1)), mode="edge"), plan.steps - 1)
    visits = low | high << _TILE_BITS | follows[..., 1:] << 2 * _TILE_BITS
    total = jnp.maximum(high - low, 0).sum(-1, dtype=jnp.int32)
    span = low.min(-1) | high.max(-1) << _TILE_BITS
    count = jnp.where(high > 0, step + 1, 0).max(-1)
    return jnp.concatenate([jnp.stack([total, follows[..., 0], span, count], -1), visits], -1)


def _tile_columns(tile):
    return pl.ds(pl.multiple_of(tile * _LANES, _LANES), _LANES)


def _for_tiles(span, visit, start: Any = 0):
    """Calls `visit` for each tile of a span as `lax.fori_loop` does, and returns its last value."""
    return lax.fori_loop(span & 63, span >> _TILE_BITS & 63, visit, start)


def _list_begin(plan: _Plan, group, which=0):
    """Returns where a list begins."""
    return (group * plan.lists + which) * (_HEAD + plan.steps)


def _tile_span(plan: _Plan, visits, s):
    """Returns the tiles of a shape of a pass."""
    spans = [visits[0, s, _list_begin(plan, g) + 2] for g in range(plan.groups)]
    low = functools.reduce(jnp.minimum, [span & 63 for span in spans])
    high = functools.reduce(jnp.maximum, [span >> _TILE_BITS for span in spans])
    return low | high << _TILE_BITS


def _clear_shapes(plan: _Plan, visits, drawn):
    """Clears the tiles of the shapes of a pass."""

    def shape(s, _):
        return _clear_tiles(plan, drawn.at[s], _tile_span(plan, visits, s))

    lax.fori_loop(0, plan.together, shape, 0)


def _clear_tiles(plan: _Plan, words, span):
    """Clears the tiles of a span."""

    def tile(t, _):
        words[:, _tile_columns(t)] = jnp.zeros((plan.depth, _LANES), jnp.int32)
        return 0

    return _for_tiles(span, tile)


def _draw_shapes(plan: _Plan, rows, visits, fields, drawn, turned, flips, toggles=None):
    """Writes the shapes of a pass into words that are clear."""

    def group(g, s):
        own = drawn.at[s] if toggles is None else toggles
        span = visits[0, s, _list_begin(plan, g) + 2]
        if toggles is not None:
            _clear_tiles(plan, own, span)
        _toggle_edges(plan, rows, (visits, s, g), fields, (turned, flips), own)

        def tile(t, _):
            words = _filled_words(plan, own[:, _tile_columns(t)])
            drawn[s, :, _tile_columns(t)] = (
                words if toggles is None else drawn[s, :, _tile_columns(t)] | words
            )
            return 0

        _for_tiles(span, tile)
        return s

    def shape(s, _):
        if plan.groups == 1:
            group(0, s)
        else:
            lax.fori_loop(0, plan.groups, group, s)
        return 0

    lax.fori_loop(0, plan.together, shape, 0)


def _toggle_edges(plan: _Plan, rows, place, fields, scratch, toggles):
    """Flips the toggles of a group of a shape: in each word the parity of those above a bit."""
    (visits, s, g), turned = place, scratch[0]
    heads = [_list_begin(plan, g, which) for which in range(plan.lists)]
    count = functools.reduce(jnp.maximum, [visits[0, s, head + 3] for head in heads])

    def turn(c, _):
        turned[_tile_columns(c), :] = fields[s, g, :, _tile_columns(c)].T
        return 0

    each = np.int32(_LANES // _EDGES)
    lax.fori_loop(0, lax.div(count + (each - 1), each), turn, 0)
    for head, part, function in zip(heads, plan.parts, rows[-plan.lists :], strict=True):

        @pl.when(visits[0, s, head] > 0)
        def _(head=head, part=part, function=function):
            _walk_visits(plan, (function, part), (visits, s, head), scratch, toggles)


def _walk_visits(plan: _Plan, rows, place, scratch, toggles):
    """Makes the visits of a list.

    Three of them are under way: while the fields of one are spread over the lanes, rows of the one
    before are worked out, and the toggles of the one before that are flipped. The first waits for
    another unit, the second is a long chain of operations, the third many that do not wait.
    """
    (function, part), (visits, s, head), (turned, flips) = rows, place, scratch

    def number(i):
        return visits[0, s, head + i]

    def spread(step):
        edge = turned[pl.ds(pl.multiple_of(step * _EDGES, _EDGES), _EDGES), :]
        return [jnp.broadcast_to(edge[:, i : i + 1], (_EDGES, _LANES)) for i in part]

    def following(step, tile):
        visited = number(_HEAD + step)
        last = tile + 1 >= visited >> _TILE_BITS & 63
        after = jnp.where(last, visited >> 2 * _TILE_BITS, step)
        return after, jnp.where(last, number(_HEAD + after) & 63, tile + 1)

    def visit(_, carry):
        after, tile, before, *fields = carry
        now = _toggles(function, fields, tile)
        _flip_bits(plan, toggles, before, flips)
        flips[0], flips[1] = now
        return following(*after), after[1], tile, *spread(after[0])

    first = number(1)
    flips[0] = jnp.full((_EDGES, _LANES), -1, jnp.int32)
    tile = number(_HEAD + first) & 63
    lax.fori_loop(0, number(0) + 1, visit, (following(first, tile), tile, tile, *spread(first)))


def _toggles(rows, edge, tile):
    """Returns the words and the bits in them that edges flip in a tile of columns."""
    first, end, *fields = edge
    column = tile * _LANES + lax.broadcasted_iota(jnp.int32, (_EDGES, _LANES), 1)
    row = rows(fields, column)
    on = (column >= first) & (column < end)
    return jnp.where(on, row >> 5, -1), jnp.int32(-1) << (row & 31)


def _flip_bits(plan: _Plan, toggles, tile, flips):
    index = lax.broadcasted_iota(jnp.int32, (plan.depth, _LANES), 0)
    word, bits = ([flips[j, i : i + 1, :] for i in range(_EDGES)] for j in range(2))
    found = [jnp.where(index == w, b, 0) for w, b in zip(word, bits, strict=True)]
    while len(found) > 1:  # Two by two, so that few wait for each other.
        found = [a ^ b for a, b in zip(found[::2], found[1::2], strict=True)]
    toggles[:, _tile_columns(tile)] ^= found[0]


def _filled_words(plan: _Plan, toggles):
    """Returns the words of a tile: an odd word turns over all words below it."""
    index = lax.broadcasted_iota(jnp.int32, toggles.shape, 0)
    odd, step = toggles >> 31, 1
    while step < plan.depth:
        odd ^= jnp.where(index >= step, pltpu.roll(odd, step, 0), 0)
        step *= 2
    above = jnp.where(index >= 1, pltpu.roll(odd, 1, 0), 0)
    last, over = divmod(plan.height, 32)
    within = jnp.where(index == last, np.int32((1 << over) - 1), jnp.where(index < last, -1, 0))
    return (toggles ^ above) & within


def _count_bits(plan: _Plan, span, words, mask):
    """Returns the area of a shape and of what it shares with a mask, lane by lane."""

    def tile(t, sums):
        now = words[:, _tile_columns(t)]
        both = now & lax.bitcast_convert_type(mask[:, _tile_columns(t)], jnp.int32)
        return tuple(
            total + lax.population_count(w) for total, w in zip(sums, (now, both), strict=True)
        )

    zeros = jnp.zeros((plan.depth, _LANES), jnp.int32)
    found = _for_tiles(span, tile, (zeros, zeros))
    return [total.sum(0, keepdims=True, dtype=jnp.int32) for total in found]
