"""Writes boxes and clicks as tagged text; reads them back from whatever a model wrote.

The grammar, coordinates being whole numbers from 0 to the side of a square frame, to which every
image is stretched:

    <think> words </think> <bbox>[x0,y0,x1,y1]</bbox>, <points>[[x,y],...]</points>,
    <labels>[1,0,...]</labels>

One box for each part of what is meant; label 1 is a click on it, 0 one beside it. The parts may
come in any order, and words may stand between them.

The reader is a machine that sees one character at a time: the table of `clicks_table.py` and a few
registers. `clicks_reader.py` runs the same table on the device.

Source: Seg-R1, arXiv 2506.22624, and the parser of its release.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from seg_jax.grammar import clicks_table
from seg_jax.grammar.clicks_table import Effect
from seg_jax.records import Verdict

LARGEST_FRAME = 8192
"""The largest side of a frame, in numbers."""


def write(
    boxes: Float[np.ndarray, "n 4"] | Sequence[Sequence[float]],
    points: Float[np.ndarray, "m 2"] | Sequence[Sequence[float]],
    labels: Int[np.ndarray, " m"] | Sequence[int],
    *,
    frame: int,
    thought: str = "",
) -> str:
    """Returns boxes and clicks as text, in the forms of the release.

    Args:
      boxes: x0 y0 x1 y1, unit; a side that rounding brought to zero is widened by one.
      points: x y, unit.
      labels: 1 for a click on the object, 0 for one beside it.
      frame: side of the frame that numbers are written in.
      thought: words before them; empty: there is no such part.

    Numbers outside of the frame are clamped. Without boxes the lists stand apart by a blank alone.

    Raises:
      ValueError: coordinates are not finite or of another shape, labels are neither 0 nor 1 or not
        as many as points, there is nothing to write, or a thought has a "<".
    """
    check_frame(frame)
    corners, spots = _numbers(boxes, 4, frame), _numbers(points, 2, frame)
    signs = np.asarray(labels, np.int64).reshape(-1)
    if len(signs) != len(spots) or not np.isin(signs, (0, 1)).all():
        raise ValueError(
            f"clicks.write: expected a label 0 or 1 for each of {len(spots)} points, got "
            f"{signs.tolist()[:8]}; do: give one to each"
        )
    if not len(corners) and not len(spots):
        raise ValueError("clicks.write: expected a box or a click, got none; do: give one")
    if "<" in thought:
        raise ValueError(
            'clicks.write: expected a thought without "<", which begins tags, got one; do: drop it'
        )
    low, high = (
        np.minimum(corners[:, :2], corners[:, 2:]),
        np.maximum(corners[:, :2], corners[:, 2:]),
    )
    high = np.where(low == high, np.minimum(high + 1, frame), high)
    low = np.where(low == high, low - 1, low)
    parts = [f"<bbox>{_list(box)}</bbox>" for box in np.concatenate([low, high], 1)]
    if len(spots):
        parts.append(f"<points>[{','.join(map(_list, spots))}]</points>")
        parts.append(f"<labels>{_list(signs)}</labels>")
    text = (", " if len(corners) else " ").join(parts)
    return f"<think> {thought} </think> {text}" if thought else text


def check_frame(frame: int) -> None:
    """Raises ValueError for a frame whose numbers are not read."""
    if not 2 <= frame <= LARGEST_FRAME:
        raise ValueError(
            f"frame: expected a side of 2 to {LARGEST_FRAME}, got {frame}; do: choose one in this "
            "range, such as 768 or 1024"
        )


def _numbers(values: object, width: int, frame: int) -> Int[np.ndarray, "n width"]:
    """Returns unit coordinates as whole numbers of the frame."""
    array = np.asarray(values, np.float64)
    array = array.reshape(0, width) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != width or not np.isfinite(array).all():
        raise ValueError(
            f"clicks.write: expected finite coordinates of shape (n, {width}), got shape "
            f"{array.shape}; do: pass boxes as (x0, y0, x1, y1) and points as (x, y)"
        )
    return np.rint(np.clip(array, 0.0, 1.0) * frame).astype(np.int64)


def _list(numbers: Int[np.ndarray, " _"]) -> str:
    return "[" + ",".join(map(str, numbers.tolist())) + "]"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an answer says, in unit coordinates."""

    verdict: Verdict
    boxes_unit: Float[np.ndarray, "n 4"]
    points_unit: Float[np.ndarray, "m 2"]
    labels: Int[np.ndarray, " m"]
    thought: bool
    """Whether it has a thought that is closed."""


def read(
    text: str,
    *,
    frame: int,
    boxes: int | None = None,
    points: int | None = None,
    released: bool = False,
) -> Reading:
    """Returns what an answer says; never raises, whatever the text; linear in its length.

    Args:
      text: the answer; what stands between its parts is passed over.
      frame: side of the frame that numbers are written in.
      boxes: at most so many boxes are kept (None: no limit).
      points: at most so many clicks are kept.
      released: reads as the release does: a list that Python cannot read loses the whole answer,
        corners keep their order, boxes may be flat, labels may be any digit.

    Tolerated as `OK`: spaces in lists, a comma after the last point or label, parts in any order,
    no box, no clicks, no thought (the task that asks for them looks).

    Verdicts, the worst counts: CLAMPED, a number above the frame; DEGENERATE, a box without area,
    dropped; TRUNCATED, the text ended within a list or a thought, or a limit cut it; MALFORMED, a
    list broke off and is dropped, as is one with a comma missing or a zero before a number (Python
    reads neither), a second list of points or labels followed, counts of points and labels differ
    or a label is neither 0 nor 1 (no click is kept), or corners are swapped (they are put right);
    EMPTY, neither a box nor a click remains.

    Differs from the release: numbers above the frame are clamped; digits and spaces beyond ASCII
    are none; a number of more than 4,300 digits, which Python refuses, is one above the frame; a
    label above 9 is a 9.
    """
    check_frame(frame)
    machine = _Machine(frame, boxes, points, released=released)
    machine.run(text.encode("ascii", "replace").translate(clicks_table.BYTE_CLASS))
    return machine.finish()


_TABLE = clicks_table.TABLE.tolist()


class _Machine:
    """The registers, and what the effects of the table do to them."""

    def __init__(self, frame: int, boxes: int | None, points: int | None, *, released: bool):
        self.frame, self.released = frame, released
        self.max_boxes, self.max_points = boxes, points
        self.state, self.value, self.worst = 0, 0, Verdict.OK
        self.numbers: list[int] = []
        self.odd = self.over = self.lost = self.alien = False
        self.boxes: list[list[int]] = []
        self.points: list[int] = []
        self.labels: list[int] = []
        self.thinks = 0

    def fault(self, verdict: Verdict, met: bool = True) -> None:
        if met:
            self.worst = max(self.worst, verdict)

    def run(self, classes: bytes) -> None:
        """Reads all characters; the many that only move the state or grow a number stay here."""
        mask = (1 << clicks_table.STATE_BITS) - 1
        for char_class in classes:
            cell = _TABLE[self.state][char_class]
            self.state = cell & mask
            effect = cell >> clicks_table.STATE_BITS
            if effect == Effect.DIGIT:
                self.odd |= self.value == 0 < char_class
                self.value = min(self.value * 10 + char_class, self.frame + 1)
            elif effect:
                self.act(effect)
                if effect & Effect.FIRST:
                    self.value = char_class

    def act(self, effect: int) -> None:
        """Carries out effects, but for digits."""
        if effect & Effect.BEGIN:
            self.numbers, self.odd, self.over = [], False, False
        if effect & (Effect.X | Effect.Y | Effect.CORNER):
            self.over |= self.value > self.frame
            self.numbers.append(min(self.value, self.frame))
        if effect & Effect.LABEL:
            self.over |= self.value > 1
            self.numbers.append(min(self.value, 9))
        self.odd |= bool(effect & Effect.ODD)
        self.fault(Verdict.MALFORMED, bool(effect & Effect.BREAK))
        if effect & Effect.THINK and not self.thinks:
            self.thinks = Effect.THINK
        if effect & Effect.THOUGHT and self.thinks:
            self.thinks = Effect.THOUGHT
        if effect & (Effect.BBOX | Effect.POINTS | Effect.LABELS):
            self.close(effect)

    def close(self, effect: int) -> None:
        """Keeps or drops a list that is closed."""
        before = {Effect.POINTS: self.points, Effect.LABELS: self.labels}.get(Effect(effect))
        self.fault(Verdict.MALFORMED, self.odd or bool(before))
        if before:
            return
        self.lost |= self.odd
        if self.odd:
            return
        if effect == Effect.BBOX:
            self.keep_box()
        elif effect == Effect.POINTS:
            self.points = self.numbers
            self.fault(Verdict.CLAMPED, self.over)
            self.fault(Verdict.TRUNCATED, len(self.points) > 2 * self.most(self.max_points))
        else:
            self.labels, self.alien = self.numbers, self.over

    def most(self, limit: int | None) -> int:
        return sys.maxsize // 2 if limit is None else limit

    def keep_box(self) -> None:
        x0, y0, x1, y1 = self.numbers
        if not self.released:
            if x0 == x1 or y0 == y1:
                self.fault(Verdict.DEGENERATE)
                return
            self.numbers = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        self.fault(Verdict.MALFORMED, x0 > x1 or y0 > y1)
        self.fault(Verdict.CLAMPED, self.over)
        if len(self.boxes) < self.most(self.max_boxes):
            self.boxes.append(self.numbers)
        else:
            self.fault(Verdict.TRUNCATED)

    def finish(self) -> Reading:
        fit = len(self.points) == 2 * len(self.labels) and (self.released or not self.alien)
        self.fault(Verdict.MALFORMED, not fit or self.alien)
        self.fault(
            Verdict.TRUNCATED, bool(clicks_table.OPEN[self.state]) or self.thinks == Effect.THINK
        )
        if not fit:
            self.points, self.labels = [], []
        if self.released and self.lost:
            self.boxes, self.points, self.labels = [], [], []
        empty = not self.boxes and not self.points
        kept = slice(self.max_points)
        return Reading(
            Verdict.EMPTY if empty else self.worst,
            np.array(self.boxes, np.float64).reshape(-1, 4) / self.frame,
            np.array(self.points, np.float64).reshape(-1, 2)[kept] / self.frame,
            np.array(self.labels, np.int64)[kept],
            self.thinks == Effect.THOUGHT,
        )
