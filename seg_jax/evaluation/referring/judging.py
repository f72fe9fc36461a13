"""Judges the text of one answer at the image's own resolution and says what went wrong (host).

What the answer says is read by `outline.read`, all of it: rings and points are not limited here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool

from seg_jax.evaluation.referring import text4seg
from seg_jax.evaluation.referring.protocols import Protocol, Question
from seg_jax.geometry import boxes, contour
from seg_jax.grammar import outline
from seg_jax.records import Kind, Verdict
from seg_jax.tasks.referring import DrawnAnswer, draw, several

Fault = Literal["none", "format", "semantic", "geometric"]
FAULTS: tuple[Fault, ...] = ("none", "format", "semantic", "geometric")
HIT = 0.5
"""An IoU above it is a hit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one question; a line of answers.jsonl."""

    key: str
    """Key of the sample."""
    index: int
    """Index of the sample in its source."""
    which: int
    """Which of the sample's masks."""
    given: str
    kind: str
    """What was asked for: "mask" or "box"."""
    phrase: str
    question: str
    text: str
    """The answer."""
    tokens: int
    """Tokens of the answer, end token included."""
    verdict: str
    says_nothing: bool
    """Whether the answer is that there is no such object."""
    iou: float
    """IoU of the masks, 1 where both are empty; that of the boxes where a box was requested."""
    intersection: int
    """Pixels of both masks that count; 0 for boxes."""
    union: int
    """Pixels of either mask that count; 0 for boxes."""
    box_iou: float
    """IoU of the half-open boxes around the masks, or of the answered box and that of the mask."""
    answer_px: int
    """Pixels of the answer's mask."""
    truth_px: int
    """Pixels of the true mask; 0: the expression means nothing in the image."""
    meant: int | None
    """Things that the expression means, 0 for nothing; None where they are not known one by one,
    or the protocol does not count them."""
    found: int
    """Those of them that the answer outlines, see `several.count`."""
    duplicates: int
    """Outlines of the answer that repeat another of it."""
    height: int
    width: int
    fault: Fault
    """What is wrong with the answer: see `fault_of`."""


Draw = Callable[[Question, str], DrawnAnswer]
"""Draws the mask of what an answer to a question points at."""


def judge(
    protocol: Protocol, asked: Question, text: str, *, tokens: int, pointed: Draw | None = None
) -> Row:
    """Returns what an answer to a question is worth.

    Masks are filled under the COCO rule. The pixels that a sample ignores count neither in the
    intersection nor in the union; boxes and faults are of the whole masks.

    Args:
      protocol: by which it is judged.
      asked: the question.
      text: of the answer.
      tokens: of the answer.
      pointed: draws what it points at, of an answer of boxes and clicks; None: it is an outline.

    Raises:
      ValueError: the image is larger than `host_raster.fill` takes.
    """
    truth, sample = asked.truth, asked.sample
    height, width = truth.shape
    if pointed is not None:
        drawn = pointed(asked, text)
    elif protocol.released:
        rings = text4seg.polygons(text)
        mask, truth = text4seg.answer(rings, height, width), text4seg.truth(sample, asked.which)
        nothing = outline.read(text, asked.kind).says_nothing
        verdict = Verdict.OK if rings or nothing else Verdict.EMPTY
        drawn = DrawnAnswer(mask, contour.box_px(mask), rings, verdict, nothing)
    else:
        drawn = draw(text, asked.kind, (height, width))
    shared, union = drawn.mask & truth, drawn.mask | truth
    if sample.ignored is not None and not protocol.released:
        shared, union = (pixels & ~sample.ignored[asked.which] for pixels in (shared, union))
    shared, union = int(shared.sum()), int(union.sum())
    if asked.kind == Kind.BOX:
        iou = box_iou = boxes.iou(drawn.box_px, contour.box_px(truth))
        shared = union = 0
    elif protocol.released:
        iou, box_iou = text4seg.iou(shared, union), text4seg.box_iou(drawn.mask, truth)
    else:
        iou = shared / union if union else 1.0
        box_iou = boxes.iou(drawn.box_px, contour.box_px(truth))
    meant, counted = _count(protocol, asked, drawn)
    return Row(
        key=sample.key,
        index=asked.index,
        which=asked.which,
        given=asked.given,
        kind=asked.kind.name.lower(),
        phrase=asked.phrase,
        question=asked.text,
        text=text,
        tokens=tokens,
        verdict=drawn.verdict.name,
        says_nothing=drawn.says_nothing,
        iou=iou,
        intersection=shared,
        union=union,
        box_iou=box_iou,
        answer_px=int(drawn.mask.sum()),
        truth_px=int(truth.sum()),
        meant=meant,
        found=counted.found,
        duplicates=counted.duplicates,
        height=height,
        width=width,
        fault=fault_of(asked, drawn, iou=iou),
    )


def _count(
    protocol: Protocol, asked: Question, drawn: DrawnAnswer
) -> tuple[int | None, several.Counted]:
    """Returns how many things are meant, if that is known, and what of them was outlined."""
    if not protocol.counts_things:
        return None, several.Counted(0, 0)
    things = several.things_of(asked.sample, asked.which)
    if things is None:
        together = several.count(drawn.rings_unit, (asked.truth,))
        return None, together._replace(found=0)
    return len(things), several.count(drawn.rings_unit, things)


def fault_of(asked: Question, drawn: DrawnAnswer, *, iou: float) -> Fault:
    """Returns what is wrong with an answer, "none" for a hit (an IoU above `HIT`).

    - format: nothing can be read, and it is not said that there is nothing; or what was read is
      of the right object, but the answer broke off or dropped a polygon.
    - semantic: the wrong object. One is outlined where none is meant or the other way round, the
      answer overlaps another mask of the image more (a higher IoU), shares nothing with the true
      one, or its centroid lies outside the true box.
    - geometric: the right object, poorly outlined.
    """
    if drawn.verdict == Verdict.EMPTY:
        return "format"
    if iou > HIT:
        return "none"
    if drawn.says_nothing or not asked.truth.any() or _elsewhere(asked, drawn, iou):
        return "semantic"
    return "format" if drawn.verdict >= Verdict.DEGENERATE else "geometric"


def _elsewhere(asked: Question, drawn: DrawnAnswer, iou: float) -> bool:
    """Returns whether an answer is about something else than the true mask."""
    box = contour.box_px(asked.truth)
    x, y = _centre_px(drawn, asked.truth.shape)
    if not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
        return True
    others = [mask for mask in asked.sample.masks if mask.any()]
    if asked.kind == Kind.BOX:
        overlaps = [boxes.iou(drawn.box_px, contour.box_px(mask)) for mask in others]
        return iou == 0 or max(overlaps) > iou
    if not drawn.mask.any():
        return False
    own, *overlaps = (_iou(drawn.mask, mask) for mask in [asked.truth, *others])
    return own == 0 or max(overlaps) > own


def _centre_px(drawn: DrawnAnswer, shape: tuple[int, int]) -> tuple[float, float]:
    """Returns the centroid of an answer; where no pixel is filled, the mean of its points."""
    rows, columns = np.nonzero(drawn.mask)
    if len(rows):
        return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
    x, y = np.concatenate([*drawn.rings_unit]).mean(0) * shape[::-1]
    return float(x), float(y)


def _iou(one: Bool[np.ndarray, "H W"], other: Bool[np.ndarray, "H W"]) -> float:
    return float((one & other).sum() / (one | other).sum())
