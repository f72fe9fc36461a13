"""The dialect of `/v1/segment`: text, clicks and boxes in; outlines, run lengths and scores out.

A model is asked by one clue at a time. So each box without other clues is an object of its own, and
where clues are about one object each of them is a question; of the answers the one that agrees best
with all clicks and the box is taken, then the one that the model finds likeliest. Where even that
one disagrees with a click, more answers are drawn at random.
"""

from __future__ import annotations

import asyncio
import dataclasses
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from seg_jax import schemas
from seg_jax.data.image_files import RgbImage
from seg_jax.geometry import bitmask, contour, host_raster
from seg_jax.grammar import chat
from seg_jax.records import Kind
from seg_jax.serving import faults, pictures
from seg_jax.serving.answering import Answered, Answering, Manner
from seg_jax.tasks.referring import RegionPrediction

MORE_ANSWERS = 4
"""Drawn for each clue where the likeliest answers disagree with a click."""
WARMTH = 1.0
"""Temperature of these."""
ADVICE = "see the README of seg_jax/serving"

Unit = Annotated[float, Meta(ge=0, le=1)]
Words = Annotated[str, Meta(min_length=1, max_length=2000)]
Picture = Annotated[str, Meta(min_length=1)]


class Request(schemas.Record, frozen=True, forbid_unknown_fields=True):
    """The body of `/v1/segment`; numbers are fractions of width and height."""

    image: Picture
    """Data URI; with `--images` also a path below that folder."""
    text: Words | None = None
    points: tuple[tuple[Unit, Unit], ...] = ()
    labels: tuple[Literal[0, 1], ...] | None = None
    """One for each point: 1 for on the object, 0 for beside it; left out: all 1."""
    boxes: tuple[tuple[Unit, Unit, Unit, Unit], ...] = ()
    """x0 y0 x1 y1; beside other clues one at most."""
    answer: Annotated[str, Meta(max_length=40)] | None = None
    """The kind of answer: mask, box or point; left out: as the model's task has it."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    max_tokens: schemas.Whole | None = None


class MaskRequest(schemas.Record, frozen=True, forbid_unknown_fields=True):
    """The body of `/v1/mask`: outlines that somebody drew, to be filled as answers are."""

    height: schemas.Whole
    width: schemas.Whole
    polygons_px: tuple[tuple[tuple[schemas.Coordinate, schemas.Coordinate], ...], ...]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the clues about one object say."""

    clues: tuple[chat.Clue, ...]
    clicks_unit: np.ndarray
    """All clicks, [n 2]."""
    inside: np.ndarray
    box_unit: np.ndarray | None


class Segment:
    """Answers `/v1/segment` and `/v1/mask`."""

    def __init__(self, answering: Answering, *, images: Path | None = None):
        """Takes a model.

        Args:
          answering: the model.
          images: folder of pictures that requests may name; None: they have to be in the request.
        """
        self._answering, self._images = answering, images

    async def segment(self, value: Any) -> dict[str, Any]:
        """Returns the reply to a request.

        Raises:
          Fault: it is refused.
        """
        request = schemas.check(value, Request, where="request", advice=ADVICE)
        data = pictures.bytes_in(self._images, request.image, where="image")
        image = await self._answering.picture(data, where="image")
        objects = _objects(request, self._answering.limits.questions)
        manner = Manner(
            temperature=request.temperature, seed=request.seed, max_tokens=request.max_tokens
        )
        kind = kind_of(self._answering, request.answer)
        found = await asyncio.gather(
            *(self._outline(image, one, kind=kind, manner=manner) for one in objects)
        )
        height, width = image.shape[:2]
        return {
            "model": self._answering.name,
            "size": {"height": height, "width": width},
            "objects": found,
        }

    async def best(
        self, image: RgbImage, one: Asked, *, kind: int | None, manner: Manner
    ) -> Answered:
        """Returns the answer about one object that agrees best with what is said of it."""
        found = await self._ask_all(image, one, kind=kind, manner=manner)
        best = max(found, key=lambda answered: _rank(answered, one))
        if _agreement(best, one) < 1:
            more = dataclasses.replace(manner, answers=MORE_ANSWERS, temperature=WARMTH)
            found += await self._ask_all(image, one, kind=kind, manner=more)
            best = max(found, key=lambda answered: _rank(answered, one))
        return best

    async def _outline(
        self, image: RgbImage, one: Asked, *, kind: int | None, manner: Manner
    ) -> dict[str, Any]:
        best = await self.best(image, one, kind=kind, manner=manner)
        return answer_as_json(best) | {"agreement": _agreement(best, one)}

    async def _ask_all(
        self, image: RgbImage, one: Asked, *, kind: int | None, manner: Manner
    ) -> list[Answered]:
        most = min(self._answering.engine.slots, self._answering.limits.answers)
        manner = dataclasses.replace(manner, answers=min(manner.answers, most))
        asked = (self._answering.ask(image, clue, kind=kind, manner=manner) for clue in one.clues)
        return [answered for some in await asyncio.gather(*asked) for answered in some]

    async def mask(self, value: Any) -> dict[str, Any]:
        """Returns run lengths, area and box of outlines, filled by the even-odd rule.

        Raises:
          Fault: it is refused.
        """
        request = schemas.check(value, MaskRequest, where="request", advice=ADVICE)
        if request.height * request.width > self._answering.limits.pixels:
            raise faults.TooLarge(
                f"size: expected at most {self._answering.limits.pixels} pixels, got "
                f"{request.height} x {request.width}; do: ask about a smaller picture"
            )
        sides = request.width, request.height
        if any(
            not 0 <= value <= side
            for ring in request.polygons_px
            for point in ring
            for value, side in zip(point, sides, strict=True)
        ):
            raise faults.Refused(
                f"polygons_px: expected points within 0..{sides[0]} and 0..{sides[1]}, got others; "
                "do: cut them off at the picture's edge"
            )
        return await self._answering.on_host(_mask_of, request)


def one_object(clue: chat.Clue) -> Asked:
    """Returns what a single clue says about its object."""
    box = clue if not isinstance(clue, str) and len(clue) == 4 else None
    clicks = np.zeros((0, 2))
    return Asked((clue,), clicks, np.zeros(0, bool), None if box is None else np.asarray(box))


def object_of_clicks(
    clicks_unit: np.ndarray, inside: np.ndarray, *, box_unit: np.ndarray | None, text: str | None
) -> Asked:
    """Returns what clicks, a box and words say about their one object.

    Args:
      clicks_unit: points x, y, [n 2].
      inside: whether each lies on the object, [n].
      box_unit: a box around it, if there is one.
      text: what it is called, if that is told.

    Raises:
      Refused: nothing says what is meant, only what is not.
    """
    clues: list[chat.Clue] = [] if text is None else [clean(text)]
    clues += [point for point, label in zip(clicks_unit, inside, strict=True) if label]
    clues += [] if box_unit is None else [box_unit]
    if not clues:
        raise faults.Refused(
            "request: expected text, a point on the object or a box, got none of them; do: say "
            "what to outline"
        )
    return Asked(tuple(clues), clicks_unit, inside, box_unit)


def kind_of(answering: Answering, name: str | None) -> int | None:
    """Returns the number of the kind of answer of a name.

    Raises:
      Refused: the task has no such kind.
    """
    names = answering.bundle.task.kind_names
    if name is None:
        return None
    if name not in names:
        raise faults.Refused(
            f"answer: expected one of {', '.join(names)}, got {schemas.short_repr(name)}; do: "
            "choose one, or leave it out"
        )
    return names.index(name)


def clean(text: str) -> str:
    """Returns an expression as a model can be asked about it.

    Raises:
      Refused: it is blank, or has characters that are no text.
    """
    odd = next((one for one in text if unicodedata.category(one) in ("Cc", "Cs")), None)
    if not text.strip() or (odd is not None and not odd.isspace()):
        got = "a blank one" if not text.strip() else f"the character U+{ord(odd or ' '):04X}"
        raise faults.Refused(
            f"text: expected an expression in plain text, got {got}; do: write what to find"
        )
    return text


def answer_as_json(answered: Answered) -> dict[str, Any]:
    """Returns an answer as plain values."""
    written = answered.written
    more = {"score": written.score, "tokens": written.tokens, "finish": written.finish}
    return answered.prediction.as_json() | more


def _objects(request: Request, most: int) -> list[Asked]:
    points = np.array(request.points, np.float64).reshape(-1, 2)
    labels = [1] * len(points) if request.labels is None else request.labels
    if len(labels) != len(points):
        raise faults.Refused(
            f"labels: expected one of each of {len(points)} points, got {len(labels)}; do: give "
            "1 for a point on the object, 0 for one beside it"
        )
    boxes = [np.array(box, np.float64) for box in request.boxes]
    for box in boxes:
        if (box[:2] >= box[2:]).any():
            raise faults.Refused(
                "boxes: expected x0 y0 x1 y1 with x0 < x1 and y0 < y1, got another order; do: give "
                "the upper left corner first"
            )
    alone = request.text is None and not len(points)
    if len(boxes) > 1 and not alone:
        raise faults.Refused(
            f"boxes: expected at most one beside text or points, got {len(boxes)}; do: ask about "
            "one object at a time"
        )
    if len(boxes) + len(points) + 1 > most:
        raise faults.TooLarge(
            f"request: expected at most {most - 1} points and boxes, got "
            f"{len(boxes) + len(points)}; do: send fewer"
        )
    if alone and boxes:
        return [one_object(box) for box in boxes]
    box = boxes[0] if boxes else None
    inside = np.array(labels, bool)
    return [object_of_clicks(points, inside, box_unit=box, text=request.text)]


def _agreement(answered: Answered, one: Asked) -> float:
    """Returns the share of clicks that an outline agrees with; 1 where nothing can be compared."""
    prediction = answered.prediction
    if not isinstance(prediction, RegionPrediction) or prediction.kind != Kind.MASK:
        return 1.0
    if not len(one.clicks_unit):
        return 1.0
    height, width = prediction.mask.shape
    size = np.array([width, height])
    columns, rows = np.minimum((one.clicks_unit * size).astype(int), size - 1).T
    return float((prediction.mask[rows, columns] == one.inside).mean())


def _rank(answered: Answered, one: Asked) -> tuple[float, float, float]:
    """Returns what answers are compared by: clicks, then the box, then likelihood."""
    prediction, overlap = answered.prediction, 0.0
    if one.box_unit is not None and isinstance(prediction, RegionPrediction):
        corners = [*prediction.rings_unit]
        if corners:
            points = np.concatenate(corners)
            overlap = _box_iou(np.r_[points.min(0), points.max(0)], one.box_unit)
    return _agreement(answered, one), overlap, answered.written.score


def _box_iou(one: np.ndarray, other: np.ndarray) -> float:
    shared = np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None)
    areas = [np.prod(box[2:] - box[:2]) for box in (one, other)]
    union = sum(areas) - shared.prod()
    return float(shared.prod() / union) if union > 0 else 0.0


def _mask_of(request: MaskRequest) -> dict[str, Any]:
    size = np.array([request.width, request.height])
    rings = [np.array(ring, np.float64) / size for ring in request.polygons_px if len(ring) > 2]
    mask = np.zeros((request.height, request.width), bool)
    if rings:
        mask = host_raster.fill(rings, height=request.height, width=request.width, rule="coco")
    rle = bitmask.to_rle(mask)
    box = contour.box_px(mask)
    return {
        "rle": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area_px": int(mask.sum()),
        "box_px": [float(number) for number in box],
    }
