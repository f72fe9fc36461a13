"""The grammar of boxes and clicks for constrained decoding, as a machine over bytes.

An answer is what `clicks` writes: perhaps a thought, which may be any text without "<"; boxes;
clicks and as many labels. Numbers go up to the side of the frame and have no leading zeros. The
corners of a box are kept in order by comparing numbers (`models.vlm.constraint`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seg_jax.grammar import automaton, clicks
from seg_jax.grammar.automaton import Machine, WholeNumbers

_BOX, _POINT = "box>[A,A,B,B]</bbox>, <?", "[N,N]:"
_WORDS = "*/think> "
_ANY = [chr(byte) for byte in range(256) if chr(byte) != "<"]


class _Number(NamedTuple):
    """The digits of a number so far."""

    more: int
    """Digits that may follow at most."""
    shared: int = 0
    """Digits that are those of the bound, if they all are; else 0."""


class _State(NamedTuple):
    """Where in the grammar a text has arrived."""

    rest: str
    """What remains of the script: A a number of a first corner, B of a second one, N another; *
    any text up to "<"; ? another box or the points; : after a point; L a label; $ the end token;
    others themselves."""
    number: _Number | None = None
    """The digits of the number that the script has come to; None before the first."""
    boxes: int = 0
    """Boxes so far."""
    points: int = 0
    """Complete points; while labels are written, labels to come."""


def _digits(number: _Number | None, bound: str) -> dict[str, _Number]:
    """Returns the number after each digit that may follow."""
    if number is None:
        number, moves = _Number(len(bound)), {"0": _Number(0)}
        digits, place = "123456789", 0
    else:
        moves, digits, place = {}, "0123456789" if number.more else "", number.shared
        if not place:
            return dict.fromkeys(digits, _Number(number.more - 1))
    for digit in digits:
        left = len(bound) - place - 1
        if digit == bound[place]:
            moves[digit] = _Number(left, place + 1)
        elif digit < bound[place]:
            moves[digit] = _Number(left)
        elif left > 0:  # Above the bound's digits it can only stay shorter than the bound.
            moves[digit] = _Number(left - 1)
    return moves


class _Grammar(NamedTuple):
    """The limits of answers."""

    frame: int
    boxes: int
    points: int

    def bound(self, state: _State) -> str:
        """Returns the largest number that may stand where a state is."""
        return str(self.frame - (state.rest[0] == "A"))

    def moves(self, state: _State) -> dict[str, _State]:
        """Returns the state after each byte that may follow."""
        head, tail = state.rest[:1], state.rest[1:]
        if head in ("A", "B", "N"):
            digits = _digits(state.number, self.bound(state))
            moves = {digit: state._replace(number=number) for digit, number in digits.items()}
            if state.number is not None:
                moves[tail[0]] = state._replace(rest=tail[1:], number=None)
            return moves
        if head == "*":
            return dict.fromkeys(_ANY, state) | {"<": state._replace(rest=tail)}
        if head == "?":
            moves = {"p": _State(f"oints>[{_POINT}")}
            if state.boxes < self.boxes:
                moves["b"] = _State(_BOX, boxes=state.boxes + 1)
            return moves
        if head == ":":
            count, apart = state.points + 1, ", " if self.boxes else " "
            moves = {"]": _State(f"</points>{apart}<labels>[L", points=count)}
            if count < self.points:
                moves[","] = _State(_POINT, points=count)
            return moves
        if head == "L":
            rest = ",L" if state.points > 1 else "]</labels>$"
            return dict.fromkeys("01", _State(rest, points=state.points - 1))
        return {} if head == "$" else {head: state._replace(rest=tail)}

    def counted_bytes(self, state: _State) -> set[str]:
        """Returns the bytes that ways to the end are counted in.

        Any of a number's digits may be barred, but for those that leave most to follow: one of them
        leads on whatever the number has to be.
        """
        moves = self.moves(state)
        if not state.rest.startswith("B"):
            return set(moves)
        digits = _digits(state.number, self.bound(state))
        most = max((number.more for number in digits.values()), default=-1)
        return {digit for digit, number in digits.items() if number.more == most} or set(moves)


def machine(*, frame: int, boxes: int, points: int, thinks: bool) -> Machine:
    """Returns the grammar of boxes and clicks.

    It takes every text that `clicks.write` makes within the limits if boxes have areas. Whatever it
    takes, `clicks.read` with these limits reads with the verdict `OK`, and `clicks` writes alike.

    Args:
      frame: side of the frame that numbers are written in.
      boxes: at most so many boxes, at least one; 0: none.
      points: at most so many clicks, at least one.
      thinks: whether there is a thought before them.

    Raises:
      ValueError: limits are too low or too high.
    """
    clicks.check_frame(frame)
    if boxes < 0 or points < 1:
        raise ValueError(
            f"clicks_automaton: expected no box or more, and a click or more, got {boxes} and "
            f"{points}; do: raise the limits"
        )
    grammar = _Grammar(frame, boxes, points)
    rest = f"<b{_BOX}" if boxes else f"<points>[{_POINT}"
    first = _State(f"<think>{_WORDS}{rest}" if thinks else rest, boxes=min(boxes, 1))
    limits = f"{boxes} boxes and {points} clicks"
    edges, states = automaton.explore([_State(""), first], grammar.moves, limits=limits)
    counted = np.ones(edges.shape, bool)
    for place, state in enumerate(states):
        for character in sorted(set(grammar.moves(state)) - grammar.counted_bytes(state)):
            counted[place, ord(character)] = False
    return Machine(
        edges,
        start=[1],
        final=np.array([state.rest == "$" for state in states]),
        coordinates=np.array([_coordinate_state(state) for state in states], np.int32),
        whole=WholeNumbers(frame, np.array([s.rest.startswith("*") for s in states]), counted),
    )


def _coordinate_state(state: _State) -> tuple[int, int, int, int]:
    """Returns what is known of the number that the next digit belongs to; see `Automaton`."""
    places = ("A,A", "A,B", "B,B", "B]")
    place = places.index(state.rest[:3].rstrip("<")) if state.rest[:1] in ("A", "B") else -1
    return int(state.number is not None), 0, place, 0
