"""The grammar of outlines for constrained decoding: what `outline` writes, as a machine over bytes.

An answer is what `outline` writes, with the full stop of `chat.answer`'s fixed form. Its characters
are a walk along short scripts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from seg_jax.grammar import automaton, chat, outline
from seg_jax.grammar.automaton import Machine
from seg_jax.records import Kind

FEWEST = 3
"""The fewest points of a ring."""


class _State(NamedTuple):
    """Where in the grammar a text has arrived."""

    kind: Kind
    rest: str
    """What remains of the script: W a whole digit, 0 or 1; Z a whole digit 0; F a digit of a
    fraction; : after a point and ; after a ring of a mask; ? after the first bracket, where the
    list may stay empty; $ the end token; others themselves."""
    one: bool = False
    """The number's whole digit is 1, so that only zeros follow."""
    ring: int = 0
    """Rings before this one, 0 where they are not limited."""
    point: int = 0
    """Complete points of this ring; stays at the highest number that makes a difference."""


def _scripts(digits: int) -> dict[Kind, str]:
    fraction = "." + "F" * digits
    low, high = f"Z{fraction}", f"W{fraction}"
    return {
        Kind.POINT: f"[{high}, {high}]",
        Kind.BOX: f"[{low}, {low}, {high}, {high}]",
        Kind.MASK: f"[{high}, {high}]:",
    }


def _moves(state: _State, item: str, rings: int | None, points: int | None) -> dict[str, _State]:
    """Returns the state after each character that may follow."""
    head, tail = state.rest[:1], state.rest[1:]
    end = chat.answer("", state.kind) + "$"
    if head == "?":
        usual = _moves(state._replace(rest=tail), item, rings, points)
        return usual | {"]": state._replace(rest=end)}
    if head == ":":
        moves = {}
        if state.point >= FEWEST:
            moves["]"] = state._replace(rest=";")
        if points is None or state.point < points:
            moves[","] = state._replace(rest=f" {item}")
        return moves
    if head == ";":
        moves = {"]": state._replace(rest=end, point=0)}
        if rings is None or state.ring + 1 < rings:
            ring = 0 if rings is None else state.ring + 1
            moves[","] = state._replace(rest=f" [{item}", ring=ring, point=0)
        return moves
    if head == "$":
        return {}
    if tail == ":":
        state = state._replace(point=min(state.point + 1, FEWEST if points is None else points))
    if head == "F":
        after = state._replace(rest=tail, one=state.one and tail[:1] == "F")
        return dict.fromkeys("0" if state.one else "0123456789", after)
    if head in "WZ":
        moves = {digit: state._replace(rest=tail, one=digit == "1") for digit in "01"}
        return moves if head == "W" else {"0": moves["0"]}
    return {head: state._replace(rest=tail)}


def machine(
    *,
    digits: int = 3,
    rings: int | None = None,
    points: int | None = None,
    nothing: bool = False,
) -> Machine:
    """Returns the grammar of points, boxes and outlines.

    It takes every text that `outline` writes within the limits, but for a ring that returns to its
    first point with the third, and for "[]" unless it is switched on. Whatever it takes,
    `outline.read` with these limits reads with the verdict `OK`, and `outline` writes alike, but
    for a ring that ends with its first point, which it leaves out.

    Args:
      digits: decimals of each number, 1 to 6.
      rings: at most so many rings of a mask; None: no limit.
      points: at most so many points of a ring; None: no limit.
      nothing: whether "[]" is an answer of every kind: there is no such object.

    Raises:
      ValueError: limits are too low or too high.
    """
    if not 1 <= digits <= outline.DECIMALS:
        raise ValueError(
            f"automaton.table: expected 1 to {outline.DECIMALS} decimals, got {digits}; do: choose "
            "a value in this range"
        )
    if (rings is not None and rings < 1) or (points is not None and points < FEWEST):
        raise ValueError(
            f"automaton.table: expected 1 ring of {FEWEST} points or more, got {rings} of "
            f"{points}; do: raise the limits"
        )
    scripts = _scripts(digits)
    first = []
    for kind, script in scripts.items():
        rest = f"[[{script}" if kind == Kind.MASK else f"{script}{chat.answer('', kind)}$"
        first.append(_State(kind, f"{rest[0]}?{rest[1:]}" if nothing else rest))

    def moves(state: _State) -> dict[str, _State]:
        return _moves(state, scripts[state.kind], rings, points)

    edges, states = automaton.explore(
        [_State(Kind.POINT, ""), *first], moves, limits=f"{rings} rings of {points} points"
    )
    return Machine(
        edges,
        start=[states.index(state) for state in first],
        final=np.array([state.rest == "$" for state in states]),
        coordinates=np.array([_coordinate_state(state, digits) for state in states], np.int32),
        digits=digits,
    )


def _coordinate_state(state: _State, digits: int) -> tuple[int, int, int, int]:
    """Returns what is known of the number that the next digit belongs to; see `Automaton`."""
    within = re.match(r"F+|\.F+", state.rest)
    left = within.group().count("F") if within else digits + 1
    numbers = state.rest.count("W") + state.rest.count("Z") + bool(within)
    total = 4 if state.kind == Kind.BOX else 2
    role = total - numbers if numbers else 0
    return digits + 1 - left, left, role, min(state.point, FEWEST)
