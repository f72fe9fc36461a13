"""Writes points, boxes and polygons as text; reads them back from whatever a model wrote.

The grammar, coordinates being fractions of the image's width and height:

    point   [x, y]
    box     [x0, y0, x1, y1]
    mask    [[[x, y], [x, y], [x, y]], [[x, y], ...]]     rings; holes are rings too (even-odd)

That an object is not in the image is written as the empty list, `NOTHING_THERE`, for every kind of
answer; `Reading.says_nothing` is True for an answer with such a list and no point.

The reader is a machine that sees one character at a time: a `STATE`, eight classes of characters,
the `TABLE` below and a few registers. `reader.py` runs the same table on the device.

Registers: `depth` of open brackets; `level`, the depth at which points stand, 0 until the first
one is complete ("committed"); the number being read; the last four numbers. Until it is
committed a list that breaks off is prose after all ("[sic]", an echoed "[0.1, 0.2]" before a
polygon), so reading starts afresh; a committed list that breaks is kept up to the break.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from seg_jax.records import Kind, Verdict

DECIMALS = 6
"""The reader keeps so many decimals; further digits are ignored."""
ONE = 10**DECIMALS
DEEPEST = 3
NOTHING_THERE = "[]"
"""The answer that there is no such object."""

STATES = (
    "prose",  # no list yet
    "opened",  # after [: a number or a further [
    "sign",  # after -
    "dot",  # after a . without digits before it
    "whole",  # in the digits before the .
    "fraction",  # in the digits after the .
    "number",  # spaces after a number
    "comma",  # after a comma between numbers
    "closed",  # after ] of a point or a ring
    "next",  # after a comma between points or rings
    "done",  # the list is closed
    "stopped",  # the list broke
)
PROSE, OPENED, SIGN, DOT, WHOLE, FRACTION, NUMBER, COMMA, CLOSED, NEXT, DONE, STOPPED = range(12)

ACTIONS = (
    "",
    "break",
    "begin",
    "deeper",
    "minus",
    "digit",
    "push",
    "point",
    "list",
    "surplus",
    "void",  # an empty list
)
STAY, BREAK, BEGIN, DEEPER, MINUS, DIGIT, PUSH, POINT, LIST, SURPLUS, VOID = range(11)

# Classes of characters: a digit is its own value; NOTHING pads and changes nothing.
(DIGITS, STOP, SEPARATOR, HYPHEN, OPEN, CLOSE, SPACE, OTHER, NOTHING) = (0, *range(10, 18))
CLASSES = 18

# Rows: state. Cells: the next state and, after a colon, the action; "." stays, "!" breaks.
_WRITTEN = """
            0-9             .          ,           -            [               ]               space   other
prose       .               .          .           .            opened:begin    .               .       .
opened      whole:digit     dot        !           sign:minus   opened:deeper   prose:void      .       !
sign        whole:digit     dot        !           !            !               !               !       !
dot         fraction:digit  !          !           !            !               !               !       !
whole       whole:digit     fraction   comma:push  !            !               closed:point    number  !
fraction    fraction:digit  !          comma:push  !            !               closed:point    number  !
number      !               !          comma:push  !            !               closed:point    .       !
comma       whole:digit     dot        !           sign:minus   !               !               .       !
closed      !               !          next        !            !               closed:list     .       !
next        !               !          !           !            opened:deeper   !               .       !
done        .               .          .           .            done:surplus    done:surplus    .       .
stopped     .               .          .           .            .               .               .       .
"""  # noqa: E501


def _table() -> np.ndarray:
    """Returns the written table as next state + 16 * action, i32[states, CLASSES]."""
    table = np.zeros((len(STATES), CLASSES), np.int32)
    for row in _WRITTEN.strip().splitlines()[1:]:
        name, *cells = row.split()
        state = STATES.index(name)
        for column, cell in enumerate(cells):
            word, _, action = {".": name, "!": f"{name}:break"}.get(cell, cell).partition(":")
            code = STATES.index(word) + 16 * ACTIONS.index(action)
            table[state, slice(0, 10) if column == 0 else column + 9] = code
        table[state, NOTHING] = state
    return table


TABLE = _table()


def _byte_classes() -> bytes:
    """Returns the class of each byte; bytes above 127 are OTHER."""
    classes = bytearray([OTHER] * 256)
    for value in range(10):
        classes[ord("0") + value] = DIGITS + value
    named = {".": STOP, ",": SEPARATOR, "-": HYPHEN, "[": OPEN, "]": CLOSE}
    for character, char_class in {**named, **dict.fromkeys(" \t\r\n", SPACE)}.items():
        classes[ord(character)] = char_class
    return bytes(classes)


BYTE_CLASS = _byte_classes()


def _steps(values: object, shape: tuple[int | None, ...], digits: int) -> np.ndarray:
    """Returns coordinates as whole steps of 10**-digits, clamped to 0..10**digits."""
    if not 1 <= digits <= DECIMALS:
        raise ValueError(
            f"outline: expected 1 to {DECIMALS} decimals, got {digits}; do: choose a value in this "
            "range"
        )
    array = np.asarray(values, np.float64)
    if array.ndim != len(shape) or any(
        want not in (None, got) for want, got in zip(shape, array.shape, strict=True)
    ):
        raise ValueError(
            f"outline: expected coordinates of shape {shape}, got {array.shape}; do: pass (x, y) "
            "pairs for rings and points, (x0, y0, x1, y1) for boxes"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            "outline: expected finite coordinates, got nan or infinity; do: drop them first"
        )
    return np.rint(np.clip(array, 0.0, 1.0) * 10**digits).astype(np.int64)


Outline = Float[np.ndarray, "_ 2"]
"""A `records.Ring` among others: its length is its own."""
Numbers = Sequence[float | int] | np.ndarray
"""Coordinates in unit of the image."""


def _number(step: int, digits: int) -> str:
    whole, fraction = divmod(step, 10**digits)
    return f"{whole}.{fraction:0{digits}d}"


def _list(steps: np.ndarray, digits: int) -> str:
    return "[" + ", ".join(_number(step, digits) for step in steps.tolist()) + "]"


def write_mask(rings: Sequence[Outline], *, digits: int = 3) -> str:
    """Returns rings as text, "[[[0.100, 0.200], ...], [[...]]]".

    Args:
      rings: unit coordinates, values outside 0..1 are clamped; holes are rings as well.
      digits: decimals of each number, 1 to 6.

    Consecutive vertices that fall together after rounding are written once; rings with fewer
    than three distinct vertices left are dropped, so the text may be "[]".

    Raises:
      ValueError: for coordinates that are not finite or not [P, 2].
    """
    written = []
    for ring in rings:
        steps = _steps(ring, (None, 2), digits)
        steps = steps[np.insert((np.diff(steps, axis=0) != 0).any(axis=1), 0, True)[: len(steps)]]
        if len(steps) and (steps[0] == steps[-1]).all():
            steps = steps[:-1]
        if len({tuple(step) for step in steps.tolist()}) >= 3:
            written.append("[" + ", ".join(_list(step, digits) for step in steps) + "]")
    return "[" + ", ".join(written) + "]"


def write_point(point: Numbers, *, digits: int = 3) -> str:
    """Returns a point (x, y) in unit coordinates as text, "[0.100, 0.200]"."""
    return _list(_steps(point, (2,), digits), digits)


def write_box(box: Numbers, *, digits: int = 3) -> str:
    """Returns a box (x0, y0, x1, y1) in unit coordinates as text, "[0.1, 0.2, 0.3, 0.4]".

    A side that rounding brought to zero is widened to one step, so the box can be read back.
    """
    low, high = _steps(box, (4,), digits).reshape(2, 2)
    low, high = np.minimum(low, high), np.maximum(low, high)
    high = np.where(low == high, np.minimum(high + 1, 10**digits), high)
    low = np.where(low == high, low - 1, low)
    return _list(np.concatenate([low, high]), digits)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an answer says, in unit coordinates; only the field of the requested kind is filled."""

    verdict: Verdict
    rings: tuple[Outline, ...] = ()
    point: Float[np.ndarray, " 2"] | None = None
    box: Float[np.ndarray, " 4"] | None = None
    says_nothing: bool = False
    """Whether it says that there is no such object; the verdict is then OK."""


def read(text: str, kind: Kind, *, rings: int | None = None, points: int | None = None) -> Reading:
    """Returns what an answer says; never raises, whatever the text; linear in its length.

    Args:
      text: the answer; prose around the list is ignored.
      kind: the kind of answer that the question requested.
      rings: at most so many rings are kept, further ones cut (None: no limit).
      points: at most so many points of a ring are kept, further ones cut.

    Tolerated as `OK`: any number of decimals (six count), spaces or none, ".5" or "1.", a mask
    of one ring without its outermost brackets, a point or box in further brackets, a lead-in
    with bracketed words or echoed points before a mask, prose after the list.

    Verdicts, the worst counts: CLAMPED, a number outside 0..1; DEGENERATE, a ring with fewer
    than three distinct points or a box without area, dropped; TRUNCATED, the text ended inside
    the list, or a limit cut it; MALFORMED, the list broke and is kept up to there, or a bracket
    follows the closed list, or an empty one stands before it, or the corners of a box are swapped
    (they are put right); EMPTY, nothing remains. An empty list without any point is no fault: it
    says that there is nothing.
    """
    machine = _Machine(Kind(kind), rings, points)
    machine.run(text.encode("ascii", "replace").translate(BYTE_CLASS))
    return machine.finish()


class _Machine:
    """The registers, and what the actions of the table do to them."""

    def __init__(self, kind: Kind, rings: int | None, points: int | None):
        self.kind, self.max_rings, self.max_points = kind, rings, points
        self.need = 4 if kind == Kind.BOX else 2
        self.state, self.depth, self.level, self.worst = PROSE, 0, 0, Verdict.OK
        self.clear()
        self.rings: list[list[tuple[int, int]]] = []
        self.ring: list[tuple[int, int]] = []
        self.box: tuple[int, ...] = ()
        self.nothing = False

    def clear(self) -> None:
        """Forgets the numbers of the point being read."""
        self.numbers: list[int] = []
        self.over = False
        self.whole, self.fraction, self.place, self.minus = 0, 0, ONE // 10, False

    def fault(self, verdict: Verdict) -> None:
        self.worst = max(self.worst, verdict)

    def run(self, classes: bytes) -> None:
        """Reads all characters; the many that only move the state or grow a number stay here."""
        table = TABLE.tolist()
        for char_class in classes:
            action, following = divmod(table[self.state][char_class], 16)
            if action == STAY:
                self.state = following
            elif action == DIGIT:
                self.state = following
                if following == WHOLE:
                    self.whole = min(self.whole * 10 + char_class, 10)
                else:
                    self.fraction += char_class * self.place
                    self.place //= 10
            elif self.act(action, following):
                continue
            elif self.level:
                self.state = STOPPED
                self.fault(Verdict.MALFORMED)
            else:
                self.state, self.depth = (OPENED, 1) if char_class == OPEN else (PROSE, 0)
                self.clear()

    def act(self, action: int, following: int) -> bool:
        """Carries out an action; returns False where it breaks the list."""
        if action == BREAK:
            return False
        if action in (BEGIN, DEEPER):
            if self.level and (self.kind != Kind.MASK or self.depth >= self.level):
                return False
            self.depth = min(self.depth + 1, DEEPEST)
            self.clear()
        elif action == MINUS:
            self.minus = True
        elif action == PUSH:
            if len(self.numbers) + 1 >= self.need:
                return False
            self.push()
        elif action == POINT:
            return self.close_point()
        elif action == LIST:
            if self.kind == Kind.MASK and self.depth == self.level - 1:
                self.close_ring()
            return self.rise()
        elif action == VOID:
            if self.level:
                return False
            self.nothing, self.depth = True, 0
        elif action == SURPLUS:
            self.fault(Verdict.MALFORMED)
        self.state = following
        return True

    def push(self) -> None:
        value = self.whole * ONE + self.fraction
        self.over |= value > ONE or (self.minus and value > 0)
        self.numbers.append(0 if self.minus else min(value, ONE))
        self.whole, self.fraction, self.place, self.minus = 0, 0, ONE // 10, False

    def rise(self) -> bool:
        self.depth -= 1
        self.state = CLOSED if self.depth else DONE
        return True

    def close_point(self) -> bool:
        if len(self.numbers) + 1 != self.need or self.depth != (self.level or self.depth):
            return False
        if self.kind == Kind.MASK and self.depth < 2:
            return False
        self.push()
        self.level = self.depth
        if self.over:
            self.fault(Verdict.CLAMPED)
        if self.nothing:
            self.fault(Verdict.MALFORMED)
        if self.kind == Kind.BOX:
            self.keep_box()
        elif len(self.rings) == self.max_rings or len(self.ring) == self.max_points:
            self.fault(Verdict.TRUNCATED)
        else:
            self.ring.append((self.numbers[0], self.numbers[1]))
        return self.rise()

    def keep_box(self) -> None:
        x0, y0, x1, y1 = self.numbers
        if x0 == x1 or y0 == y1:
            self.fault(Verdict.DEGENERATE)
            return
        if x0 > x1 or y0 > y1:
            self.fault(Verdict.MALFORMED)
        self.box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))

    def close_ring(self) -> None:
        if len(set(self.ring)) >= 3:
            self.rings.append(self.ring)
        elif self.ring:
            self.fault(Verdict.DEGENERATE)
        self.ring = []

    def finish(self) -> Reading:
        if self.level and self.state not in (DONE, STOPPED):
            self.fault(Verdict.TRUNCATED)
        if self.kind == Kind.POINT and self.ring:
            return Reading(self.worst, point=np.array(self.ring[0]) / ONE)
        if self.kind == Kind.BOX and self.box:
            return Reading(self.worst, box=np.array(self.box) / ONE)
        if self.kind == Kind.MASK:
            self.close_ring()
        if self.nothing and not self.level:
            return Reading(Verdict.OK, says_nothing=True)
        if self.kind != Kind.MASK or not self.rings:
            return Reading(Verdict.EMPTY)
        return Reading(self.worst, rings=tuple(np.array(ring) / ONE for ring in self.rings))
