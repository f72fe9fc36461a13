"""Reads token ids on the device: the machine of `clicks`, over many answers at once."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from seg_jax.grammar import clicks, clicks_table, token_table
from seg_jax.grammar.clicks_table import Effect
from seg_jax.grammar.token_table import Table
from seg_jax.records import Array, Clicks, Verdict


def table(pieces: Sequence[bytes | None], *, vocab_size: int | None = None) -> Table:
    """Returns the table of a tokenizer; see `token_table.make`."""

    def classes(piece: bytes) -> bytes:
        return _shorten(piece.translate(clicks_table.BYTE_CLASS))

    return token_table.make(pieces, classes, nothing=clicks_table.NOTHING, vocab_size=vocab_size)


_SPACE, _OTHER = bytes([clicks_table.SPACE]), bytes([clicks_table.OTHER])
_LESS, _STROKE = (sign.encode().translate(clicks_table.BYTE_CLASS) for sign in "</")
_LETTERS = clicks_table.LETTERS.encode().translate(clicks_table.BYTE_CLASS)
_TAGS = [tag.encode().translate(clicks_table.BYTE_CLASS) for tag in ("think", *clicks_table.LISTS)]
_PART = re.compile(
    b"(?P<start>(?:%b)?(?:%b)?)(?P<word>[%b]*)(?P<list>[^%b]*)"
    % tuple(map(re.escape, (_LESS, _STROKE, _LETTERS, _LETTERS + _STROKE + _OTHER))),
    re.DOTALL,
)
"""A tag or the rest of one, as much of a list as follows, and what is deaf to all but "<"."""
_RUNS = re.compile(rb"([\x00-\x09])\1{6,}|([^\x00-\x09])\2{2,}", re.DOTALL)
_LONG = re.compile(rb"([\x00-\x09]{7})[\x00-\x09]+")


def _shorten(classes: bytes) -> bytes:
    """Returns few classes that have the same effect on the machine.

    A letter that is of no tag breaks a list as OTHER does, and so does one that stands neither at
    the beginning of the token nor after "<"; then the machine is in prose, where only "<" counts.
    """
    short = []
    for text in re.split(b"(?=" + re.escape(_LESS) + b")", classes):
        part = _PART.match(text)
        assert part is not None  # The expression takes the empty text.
        start, word, rest = part.group("start", "word", "list")
        if any(word in tag for tag in _TAGS):
            deaf = part.end() < len(text)
            start += word + (rest.rstrip(_SPACE) if deaf else rest)
        else:
            deaf = True
        short.append(start + _OTHER * deaf)
    runs = _RUNS.sub(lambda run: run[0][: 6 if run[1] else 3], b"".join(short))
    return _LONG.sub(rb"\1", re.sub(re.escape(_SPACE) + b"+", _SPACE, runs))


class _Registers(NamedTuple):
    """The registers of `clicks`, one lane per answer."""

    state: Int[Array, " N"]
    worst: Int[Array, " N"]
    value: Int[Array, " N"]
    count: Int[Array, " N"]
    """Points, labels or corners of the list so far."""
    odd: Bool[Array, " N"]
    over: Bool[Array, " N"]
    """A number of the list was above the frame, a label above 1."""
    corners: tuple[Int[Array, " N"], ...]
    """The last four numbers of boxes, the latest last."""
    boxes: Int[Array, " N"]
    """Boxes kept."""
    points: Int[Array, " N"]
    labels: Int[Array, " N"]
    """Members of the list that is kept, 0 before it is closed."""
    alien: Bool[Array, " N"]
    """A label that is kept was above 1."""
    lost: Bool[Array, " N"]
    thinks: Int[Array, " N"]
    """0; 1 within a thought; 2 after it."""


class _Layout(NamedTuple):
    """Where the numbers of an answer go: four for each box, two for each point, one each label."""

    frame: int
    boxes: int
    points: int

    @property
    def points_at(self) -> int:
        """The first place of a point."""
        return 4 * self.boxes

    @property
    def labels_at(self) -> int:
        """The first place of a label."""
        return self.points_at + 2 * self.points

    @property
    def places(self) -> int:
        """All places."""
        return self.labels_at + self.points


_NUMBER_BITS = 14
"""An event is the number that a character completed and, above these bits, the place where it goes:
`_Layout.places` for none. Half as much to write as two numbers; writing is half of the time."""


def _initial_registers(lanes: int) -> _Registers:
    zero, false = jnp.zeros(lanes, jnp.int32), jnp.zeros(lanes, bool)
    return _Registers(
        *(zero,) * 4,
        odd=false,
        over=false,
        corners=(zero,) * 4,
        boxes=zero,
        points=zero,
        labels=zero,
        alien=false,
        lost=false,
        thinks=zero,
    )


def _step(m: _Registers, char_class: Array, *, layout: _Layout, released: bool):
    """Returns the registers after one character per lane, and the event."""
    cells = jnp.asarray(clicks_table.TABLE).reshape(-1)
    cell = cells[m.state * clicks_table.CLASSES + char_class]

    def has(effect: Effect) -> Array:
        return (cell & (int(effect) << clicks_table.STATE_BITS)) != 0

    begin, corner, label = has(Effect.BEGIN), has(Effect.CORNER), has(Effect.LABEL)
    first, digit, x, y = has(Effect.FIRST), has(Effect.DIGIT), has(Effect.X), has(Effect.Y)
    number = jnp.minimum(m.value, jnp.where(label, 9, layout.frame))
    over = m.over | (label & (m.value > 1)) | ((corner | x | y) & (m.value > layout.frame))
    shifted = zip((*m.corners[1:], number), m.corners, strict=True)
    grown = jnp.minimum(m.value * 10 + char_class, layout.frame + 1)
    place = _place(m, layout, corner=corner, x=x, y=y, label=label)
    m = m._replace(
        state=cell & ((1 << clicks_table.STATE_BITS) - 1),
        worst=jnp.maximum(m.worst, jnp.where(has(Effect.BREAK), int(Verdict.MALFORMED), 0)),
        value=jnp.where(first, char_class, jnp.where(digit, grown, m.value)),
        count=jnp.where(begin, 0, m.count + (corner | y | label)),
        odd=~begin & (m.odd | has(Effect.ODD) | (digit & (m.value == 0) & (char_class > 0))),
        over=~begin & over,
        corners=tuple(jnp.where(corner, new, old) for new, old in shifted),
        thinks=jnp.where(
            has(Effect.THINK),
            jnp.maximum(m.thinks, 1),
            jnp.where(has(Effect.THOUGHT) & (m.thinks > 0), 2, m.thinks),
        ),
    )
    closed = has(Effect.BBOX), has(Effect.POINTS), has(Effect.LABELS)
    return _close_list(m, *closed, layout=layout, released=released), (
        place << _NUMBER_BITS
    ) + number


def _place(m: _Registers, layout: _Layout, *, corner, x, y, label) -> Array:
    """Returns where the number goes that is complete.

    A list that breaks off leaves its numbers to be overwritten, or beyond what is counted.
    """
    point = (x | y) & (m.points == 0) & (m.count < layout.points)
    label &= (m.labels == 0) & (m.count < layout.points)
    corner &= m.boxes < layout.boxes
    place = jnp.where(point, layout.points_at + 2 * m.count + y, layout.places)
    place = jnp.where(label, layout.labels_at + m.count, place)
    return jnp.where(corner, 4 * m.boxes + m.count, place)


def _close_list(m: _Registers, box, points, labels, *, layout: _Layout, released: bool):
    """Returns the registers after a list that is closed was kept or dropped."""
    again = (points & (m.points > 0)) | (labels & (m.labels > 0))
    closed = (box | points | labels) & ~again
    kept = closed & ~m.odd
    x0, y0, x1, y1 = m.corners
    swapped = box & ((x0 > x1) | (y0 > y1))
    box, points, labels = box & kept, points & kept, labels & kept
    flat = box & ((x0 == x1) | (y0 == y1)) & (not released)
    box &= ~flat
    cut = (box & (m.boxes >= layout.boxes)) | (points & (m.count > layout.points))
    faults = [
        (again | (closed & m.odd) | (box & swapped), Verdict.MALFORMED),
        (cut, Verdict.TRUNCATED),
        (flat, Verdict.DEGENERATE),
        ((box | points) & m.over, Verdict.CLAMPED),
    ]
    return _raise_verdict(m, faults)._replace(
        boxes=m.boxes + (box & (m.boxes < layout.boxes)),
        points=jnp.where(points, m.count, m.points),
        labels=jnp.where(labels, m.count, m.labels),
        alien=m.alien | (labels & m.over),
        lost=m.lost | (closed & m.odd),
    )


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
    frame: int,
    boxes: int,
    points: int,
    released: bool = False,
) -> tuple[Clicks, Int[Array, "*n"]]:
    """Returns what answers say and a `Verdict` of each; equals `clicks.read` of their text.

    Args:
      ids: tokens of the answers; ids outside the table have no text.
      used: False for tokens to skip: padding, or what follows the end token.
      table: of the tokenizer that wrote them.
      frame: side of the frame that numbers are written in.
      boxes: Q, boxes that are kept; answers with more are cut and `TRUNCATED`.
      points: P, clicks that are kept; answers with more are cut, `TRUNCATED`.
      released: reads as the release does: see `clicks.read`.
    """
    clicks.check_frame(frame)
    if boxes < 1 or points < 1:
        raise ValueError(
            f"clicks_reader.read: expected room for 1 box and 1 click or more, got {boxes} and "
            f"{points}; do: raise boxes or points"
        )
    layout, lead = _Layout(frame, boxes, points), ids.shape[:-1]
    lanes = int(np.prod(lead))
    classes = token_table.characters(table, ids, used, nothing=clicks_table.NOTHING)
    step = functools.partial(_step, layout=layout, released=released)
    end, events = jax.lax.scan(step, _initial_registers(lanes), classes)

    fit = (end.points == end.labels) & (released | ~end.alien)
    cut_off = jnp.asarray(clicks_table.OPEN)[end.state] | (end.thinks == 1)
    end = _raise_verdict(end, [(~fit | end.alien, Verdict.MALFORMED), (cut_off, Verdict.TRUNCATED)])
    kept = ~end.lost if released else jnp.ones(lanes, bool)
    boxed = jnp.arange(boxes) < jnp.where(kept, end.boxes, 0)[:, None]
    clicked = jnp.arange(points) < jnp.where(kept & fit, end.points, 0)[:, None]
    numbers = _gather_numbers(events, layout)
    corners = numbers[:, : layout.points_at].reshape(lanes, boxes, 4)
    spots = numbers[:, layout.points_at : layout.labels_at].reshape(lanes, points, 2)
    if not released:
        low, high = corners[..., :2], corners[..., 2:]
        corners = jnp.concatenate([jnp.minimum(low, high), jnp.maximum(low, high)], -1)
    answer = Clicks(
        boxes_unit=jnp.where(boxed[..., None], corners.astype(jnp.float32) / frame, 0.0),
        boxed=boxed,
        points_unit=jnp.where(clicked[..., None], spots.astype(jnp.float32) / frame, 0.0),
        labels=jnp.where(clicked, numbers[:, layout.labels_at :], 0),
        used=clicked,
        thought=end.thinks == 2,
    )
    nothing = ~boxed.any(-1) & ~clicked.any(-1)
    verdict = jnp.where(nothing, int(Verdict.EMPTY), end.worst)
    answer = jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), answer)
    return answer, verdict.reshape(lead)


def _gather_numbers(events: Int[Array, "T N"], layout: _Layout) -> Int[Array, "N places"]:
    """Returns the last number that each place was given; any where it was given none."""
    length, lanes = events.shape
    size, place = layout.places, events >> _NUMBER_BITS
    own = size * jnp.arange(lanes, dtype=jnp.int32)
    target = jnp.where(place < size, place + own, lanes * size)
    when = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[:, None], target.shape)
    found = jnp.zeros(lanes * size, jnp.int32)
    found = found.at[target.reshape(-1)].max(when.reshape(-1), mode="drop")
    last = jnp.take_along_axis(events, found.reshape(lanes, size).T, axis=0).T
    return last & ((1 << _NUMBER_BITS) - 1)
