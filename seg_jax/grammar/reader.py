"""Reads token ids on the device: the machine of `outline`, over many answers at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from seg_jax.grammar import outline, token_table
from seg_jax.grammar.token_table import Table
from seg_jax.records import Array, Kind, Polygons, Verdict

_LATE = np.iinfo(np.int32).max


def table(pieces: Sequence[bytes | None], *, vocab_size: int | None = None) -> Table:
    """Returns the table of a tokenizer.

    Args:
      pieces: the bytes of every token by id (`Tokenizer.pieces`); None for tokens without text.
      vocab_size: rows of the table, at least one per piece; further ids have no text.

    A token is shortened to what the machine can distinguish, so one long token of blanks or
    letters does not lengthen the table.
    """

    def classes(piece: bytes) -> bytes:
        return _shorten(piece.translate(outline.BYTE_CLASS))

    return token_table.make(pieces, classes, nothing=outline.NOTHING, vocab_size=vocab_size)


_LONGEST_RUN = {
    **dict.fromkeys(range(10), outline.DECIMALS + 2),
    outline.STOP: 2,
    outline.SEPARATOR: 2,
    outline.HYPHEN: 2,
    outline.OPEN: outline.DEEPEST,
    outline.CLOSE: outline.DEEPEST + 1,
    outline.SPACE: 1,
    outline.OTHER: 1,
}
"""A longer run of one class leaves the machine where a run of this length does."""


def _shorten(classes: bytes) -> bytes:
    """Returns the shortest classes known to have the same effect on the machine.

    After OTHER the machine is in prose, done or stopped, where only brackets count.
    """
    kept = bytearray()
    deaf = False
    for char_class in classes:
        bracket = char_class in (outline.OPEN, outline.CLOSE)
        if deaf and not bracket:
            continue
        longest = _LONGEST_RUN[char_class]
        if kept[-longest:] != bytes([char_class]) * longest:
            kept.append(char_class)
        deaf = char_class == outline.OTHER
    return bytes(kept)


class _Registers(NamedTuple):
    """The registers of `outline`, one lane per answer; coordinates in 10**-DECIMALS."""

    state: Int[Array, " N"]
    depth: Int[Array, " N"]
    level: Int[Array, " N"]
    worst: Int[Array, " N"]
    whole: Int[Array, " N"]
    fraction: Int[Array, " N"]
    place: Int[Array, " N"]
    minus: Bool[Array, " N"]
    over: Bool[Array, " N"]
    count: Int[Array, " N"]
    """Numbers of the point so far."""
    numbers: tuple[Int[Array, " N"], ...]
    """The last four numbers, the latest last."""
    rings: Int[Array, " N"]
    """Rings kept."""
    points: Int[Array, " N"]
    """Points of the ring so far."""
    distinct: Int[Array, " N"]
    """Distinct points among them, at most 3."""
    first: tuple[Int[Array, " N"], ...]
    """x and y of the first point of the ring, or of the low corner of the box."""
    second: tuple[Int[Array, " N"], ...]
    """The same of the next distinct point or of the high corner."""
    nothing: Bool[Array, " N"]
    """An empty list was met."""


class _Event(NamedTuple):
    """What one character completed."""

    slot: Int[Array, " N"]
    """Where the completed point goes, ring * P + place; -1 for none."""
    x: Int[Array, " N"]
    y: Int[Array, " N"]
    closed: Int[Array, " N"]
    """0; 1 for a ring that is dropped; 2 for a ring that is kept."""


def _initial_registers(lanes: int) -> _Registers:
    zero, false = jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool)
    return _Registers(
        *(zero,) * 6,
        place=zero + outline.ONE // 10,
        minus=false,
        over=false,
        count=zero,
        numbers=(zero,) * 4,
        rings=zero,
        points=zero,
        distinct=zero,
        first=(zero,) * 2,
        second=(zero,) * 2,
        nothing=false,
    )


def _step(m: _Registers, char_class: Array, *, kind: Array, rings: int, points: int):
    """Returns the registers after one character per lane, and the event."""
    cell = jnp.asarray(outline.TABLE).reshape(-1)[m.state * outline.CLASSES + char_class]
    following, action = cell % 16, cell // 16
    outlines, committed = kind == Kind.MASK, m.level > 0
    need = jnp.where(kind == Kind.BOX, 4, 2)

    opens = (action == outline.BEGIN) | (action == outline.DEEPER)
    may_open = ~committed | (outlines & (m.depth < m.level))
    may_close = (m.count + 1 == need) & (~outlines | (m.depth >= 2))
    may_close &= ~committed | (m.depth == m.level)
    broke = (action == outline.BREAK) | (opens & ~may_open)
    broke |= (action == outline.PUSH) & (m.count + 1 >= need)
    broke |= (action == outline.VOID) & committed
    broke |= (action == outline.POINT) & ~may_close
    void = (action == outline.VOID) & ~broke
    opens, point = opens & ~broke, (action == outline.POINT) & ~broke
    rises, push = point | (action == outline.LIST), point | ((action == outline.PUSH) & ~broke)
    afresh = broke & ~committed
    again = afresh & (char_class == outline.OPEN)

    depth = jnp.where(opens, jnp.minimum(m.depth + 1, outline.DEEPEST), m.depth - rises)
    depth = jnp.where(afresh, again, jnp.where(void, 0, depth))
    state = jnp.where(broke, outline.STOPPED, following)
    state = jnp.where(rises, jnp.where(depth > 0, outline.CLOSED, outline.DONE), state)
    state = jnp.where(afresh, jnp.where(again, outline.OPENED, outline.PROSE), state)

    m, over = _update_number(m, char_class, action, following, push, clear=opens | afresh)
    faults = [(point & over, Verdict.CLAMPED), (point & m.nothing, Verdict.MALFORMED)]
    faults += [((broke & committed) | (action == outline.SURPLUS), Verdict.MALFORMED)]
    ends = (action == outline.LIST) & outlines & (m.depth == m.level - 1)
    level = jnp.where(point, m.depth, m.level)
    m = m._replace(state=state, depth=depth, level=level, nothing=m.nothing | void)
    m, event, more = _complete_point(m, point, ends, kind=kind, rings=rings, points=points)
    return _raise_verdict(m, faults + more), event


def _update_number(m: _Registers, char_class, action, following, push, *, clear):
    """Returns the registers with the number that grows or ends, and whether one was outside 0..1.

    The second result counts a number of this point that ends just now.
    """
    value = m.whole * outline.ONE + m.fraction
    over = m.over | (push & ((value > outline.ONE) | (m.minus & (value > 0))))
    value = jnp.where(m.minus, 0, jnp.minimum(value, outline.ONE))
    shifted = (*m.numbers[1:], value)
    numbers = tuple(jnp.where(push, a, b) for a, b in zip(shifted, m.numbers, strict=True))
    digit = action == outline.DIGIT
    whole = digit & (following == outline.WHOLE)
    decimal = digit & (following == outline.FRACTION)
    fresh = push | clear
    m = m._replace(
        whole=jnp.where(
            fresh, 0, jnp.where(whole, jnp.minimum(m.whole * 10 + char_class, 10), m.whole)
        ),
        fraction=jnp.where(fresh, 0, m.fraction + jnp.where(decimal, char_class * m.place, 0)),
        place=jnp.where(fresh, outline.ONE // 10, jnp.where(decimal, m.place // 10, m.place)),
        minus=~fresh & (m.minus | (action == outline.MINUS)),
        over=over & ~clear,
        count=jnp.where(clear, 0, m.count + push),
        numbers=numbers,
    )
    return m, over


def _complete_point(m: _Registers, point, ends, *, kind, rings: int, points: int):
    """Returns the registers with the point or ring that is complete, the event and the faults."""
    x0, y0, x, y = m.numbers
    boxes = point & (kind == Kind.BOX)
    flat = boxes & ((x0 == x) | (y0 == y))
    box = boxes & ~flat
    swapped = box & ((x0 > x) | (y0 > y))
    cut = point & ~boxes & ((m.rings >= rings) | (m.points >= points))
    kept = point & ~boxes & ~cut

    def differs(other):
        return (x != other[0]) | (y != other[1])

    first = kept & (m.distinct == 0)
    second = kept & (m.distinct == 1) & differs(m.first)
    third = kept & (m.distinct == 2) & differs(m.first) & differs(m.second)
    whole = m.distinct >= 3
    hollow = ends & ~whole & (m.points > 0)
    event = _Event(
        slot=jnp.where(kept, m.rings * points + m.points, -1),
        x=x,
        y=y,
        closed=jnp.where(ends, 1 + whole, 0),
    )

    def corner(old, put, of_point, of_box):
        pairs = zip(old, of_point, of_box, strict=True)
        return tuple(jnp.where(box, c, jnp.where(put, b, a)) for a, b, c in pairs)

    m = m._replace(
        rings=m.rings + (ends & whole),
        points=jnp.where(ends, 0, m.points + (kept | box)),
        distinct=jnp.where(ends, 0, m.distinct + (first | second | third)),
        first=corner(m.first, first, (x, y), (jnp.minimum(x0, x), jnp.minimum(y0, y))),
        second=corner(m.second, second, (x, y), (jnp.maximum(x0, x), jnp.maximum(y0, y))),
    )
    faults = [(hollow | flat, Verdict.DEGENERATE), (cut, Verdict.TRUNCATED)]
    return m, event, [*faults, (swapped, Verdict.MALFORMED)]


def _raise_verdict(m: _Registers, faults) -> _Registers:
    worst = m.worst
    for met, verdict in faults:
        worst = jnp.maximum(worst, jnp.where(met, int(verdict), 0))
    return m._replace(worst=worst)


def read(
    ids: Int[Array, "*n L"],
    used: Bool[Array, "*n L"],
    table: Table,
    *,
    kind: Int[Array, "*n"] | Int[Array, ""] | int,
    rings: int,
    points: int,
) -> tuple[Polygons, Int[Array, "*n"]]:
    """Returns what answers say and a `Verdict` of each; equals `outline.read` of their text.

    Args:
      ids: tokens of the answers; ids outside the table have no text.
      used: False for tokens to skip: padding, or what follows the end token.
      table: of the tokenizer that wrote them.
      kind: the `Kind` that the questions requested, one for all or one each.
      rings: R, rings that are kept; answers with more are cut and `TRUNCATED`.
      points: P >= 2, points of a ring that are kept; rings with more are cut, `TRUNCATED`.

    A point comes as one used vertex of ring 0, a box as its two corners. Unused vertices are 0.
    An answer that says that there is nothing has none and is `OK` (`says_nothing`).
    Points are multiples of 10**-6, exact but for the rounding to float32.
    """
    if rings < 1 or points < 2:
        raise ValueError(
            f"reader.read: expected room for 1 ring of 2 points or more, got {rings} of {points}; "
            "do: raise rings or points"
        )
    lead = ids.shape[:-1]
    lanes = int(np.prod(lead))
    kinds = jnp.broadcast_to(jnp.asarray(kind, jnp.int32), lead).reshape(lanes)
    classes = token_table.characters(table, ids, used, nothing=outline.NOTHING)
    step = functools.partial(_step, kind=kinds, rings=rings, points=points)
    end, events = jax.lax.scan(step, _initial_registers(lanes), classes)

    cut_off = (end.level > 0) & (end.state != outline.DONE) & (end.state != outline.STOPPED)
    outlines, last = kinds == Kind.MASK, end.distinct >= 3
    hollow = outlines & (end.points > 0) & ~last
    end = _raise_verdict(end, [(cut_off, Verdict.TRUNCATED), (hollow, Verdict.DEGENERATE)])
    steps, filled = _gather_points(events, last, rings, points)
    corners = jnp.stack([jnp.stack(end.first, -1), jnp.stack(end.second, -1)], 1)
    single = jnp.zeros_like(steps).at[:, 0, :2].set(corners)
    place = jnp.arange(points) + points * jnp.arange(rings)[:, None]
    size = jnp.where(kinds == Kind.BOX, 2, 1) * (end.points > 0)
    filled = jnp.where(outlines[:, None, None], filled, place < size[:, None, None])
    steps = jnp.where(outlines[:, None, None, None], steps, single)
    unit = jnp.where(filled[..., None], steps.astype(jnp.float32) / outline.ONE, 0.0)
    empty = jnp.where(end.nothing & (end.level == 0), int(Verdict.OK), int(Verdict.EMPTY))
    verdict = jnp.where(filled.any((1, 2)), end.worst, empty)
    shape = (*lead, rings, points)
    return Polygons(unit.reshape(*shape, 2), filled.reshape(shape)), verdict.reshape(lead)


def says_nothing(answer: Polygons, verdict: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Returns which of the answers that were read say that there is no such object."""
    return (verdict == Verdict.OK) & ~answer.used.any((-2, -1))


def _gather_points(events: _Event, last: Array, rings: int, points: int):
    """Returns the points of kept rings, [N R P 2], and which places they fill, [N R P].

    A ring is known to be kept only when it ends: the next end after each point, or `last` for
    the ring that the answer leaves open, says so.
    """
    length, lanes = events.slot.shape
    time = 2 * jnp.arange(length, dtype=jnp.int32)[:, None] + (events.closed == 2)
    ending = jax.lax.cummin(jnp.where(events.closed > 0, time, _LATE), axis=0, reverse=True)
    kept = jnp.where(ending == _LATE, last, ending % 2 == 1) & (events.slot >= 0)
    size = rings * points
    target = jnp.where(kept, events.slot + size * jnp.arange(lanes), lanes * size)
    when = jnp.arange(1, length + 1, dtype=jnp.int32)[:, None]
    when = jnp.broadcast_to(when, target.shape).reshape(-1)
    found = jnp.zeros(lanes * size, jnp.int32)
    found = found.at[target.reshape(-1)].set(when, mode="drop", unique_indices=False)
    found = found.reshape(lanes, size).T
    row = jnp.maximum(found - 1, 0)
    x = jnp.take_along_axis(events.x, row, axis=0)
    y = jnp.take_along_axis(events.y, row, axis=0)
    shape = (lanes, rings, points)
    return jnp.stack([x, y], -1).swapaxes(0, 1).reshape(*shape, 2), (found > 0).T.reshape(shape)
