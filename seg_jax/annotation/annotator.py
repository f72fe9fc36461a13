"""Annotates one image: boxes, masks, contours, descriptions, and where each came from."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from seg_jax.annotation import filters, words
from seg_jax.annotation.filters import Dropped, Filters
from seg_jax.annotation.stages import Detection, Failed, Models, Question, Segment, Stages, Unusable
from seg_jax.annotation.words import Wording
from seg_jax.data import image_files
from seg_jax.data.findings import Findings
from seg_jax.data.image_lists import ImageFile
from seg_jax.geometry import bitmask, contour, host_raster, polygon

MODELS = ("detector", "segmenter", "describer")
"""Stages that are models; the others are read and contour."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contour:
    """How masks become outlines; with both numbers at 0 nothing of a mask is lost."""

    epsilon_px: float = 0.0
    """Largest distance of a dropped vertex from the new outline."""
    min_area_px: int = 16
    """Least area of a region or hole; smaller ones are removed."""

    def __post_init__(self):
        if not self.epsilon_px >= 0 or self.min_area_px < 0:
            raise ValueError(
                f"contour: expected numbers of 0 or more, got {self}; do: raise the negative one"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides what a record contains, except for the models."""

    labels: tuple[str, ...]
    """Names of the objects that the detector looks for."""
    filters: Filters = Filters()
    contour: Contour = Contour()
    wording: Wording = Wording()


class Outcome(NamedTuple):
    """What became of an image."""

    line: dict[str, Any] | None
    """Line of the plain-folder format, see `data.formats.folder`; None: the image has no use."""
    failed: list[dict[str, Any]]
    """What could not be done, and why: of the image, or of single objects."""
    dropped: Dropped


def annotate(
    file: ImageFile, stages: Stages, settings: Settings, *, models: Models, code: str = ""
) -> Outcome:
    """Returns what became of an image; whatever is wrong with it is reported, never raised.

    The line has the path of the image as given; the caller makes it relative.

    Raises:
      Unusable: a stage can process no image at all.
    """
    letter: dict[str, Any] = {"key": file.key, "image": file.path.as_posix()}
    dropped: Dropped = collections.Counter()
    failed: list[dict[str, Any]] = []
    try:
        with _stage("read"):
            data, image = _read(file)
            letter["sha256"] = hashlib.sha256(data).hexdigest()
        height, width = image.shape[:2]
        if min(height, width) < settings.filters.min_side_px:
            dropped["small_image"] += 1
            return Outcome(None, failed, dropped)
        kept, masks = _segment_image(image, stages, settings, dropped=dropped)
        if not kept:
            return Outcome(None, failed, dropped)
        texts, refused = _descriptions(image, kept, stages=stages, settings=settings)
        failed += [letter | one for one in refused]
    except _StageFailure as error:
        return Outcome(None, [letter | error.dead_letter()], dropped)
    with_words = [place for place, text in enumerate(texts) if text]
    dropped["description"] += len(kept) - len(with_words)
    if not with_words:
        return Outcome(None, failed, +dropped)
    line = {
        "key": file.key,
        "image": file.path.as_posix(),
        "upright": True,
        "objects": [_object(kept[place], *masks[place]) for place in with_words],
        "phrases": _phrases([texts[place] for place in with_words]),
        "provenance": {
            "image": {"sha256": letter["sha256"], "size": [height, width]},
            "models": _models(models),
            "filters": dataclasses.asdict(settings.filters),
            "contour": dataclasses.asdict(settings.contour),
            "question": settings.wording.question if models.describer else None,
            "dropped": dict(sorted((+dropped).items())),
            "code": code,
        },
    }
    return Outcome(line, failed, +dropped)


def findings_of(file: ImageFile, outcome: Outcome) -> Findings:
    """Returns what of an image was left out, and why."""
    met = Findings()
    key = file.key[:300]  # The reason behind it should be seen too.
    for name, count in sorted(outcome.dropped.items()):
        if name != "description":  # Each of these is among the failures.
            met.add(f"left out by filters: {filters.REASONS[name]}", key, count=count)
    for one in outcome.failed:
        what = "object" if "object" in one else "image"
        told = f"{one['object']['label']}, {one['reason']}" if "object" in one else one["reason"]
        met.add(f"{what} left out, as the {one['stage']} stage failed on it", f"{key}: {told}")
    if outcome.line is None and not outcome.failed:
        met.add("image left out, as no object is left of it", key)
    return met


class _StageFailure(Exception):
    """A failure together with the stage where it happened."""

    def __init__(self, stage: str, reason: str, transient: bool):
        super().__init__(reason)
        self.stage, self.transient = stage, transient

    def dead_letter(self) -> dict[str, Any]:
        """Returns the fields of a dead letter about it."""
        return {"stage": self.stage, "reason": str(self), "transient": self.transient}


@contextlib.contextmanager
def _stage(name: str) -> Iterator[None]:
    """Turns whatever a stage raises about an image into a failure of that stage."""
    try:
        yield
    except (Unusable, MemoryError):
        raise
    except Failed as error:
        raise _StageFailure(name, str(error), error.transient) from None
    except Exception as error:
        # Libraries fail on odd images in any way they can; the run goes on without such an image.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise _StageFailure(name, reason, False) from error


def _read(file: ImageFile) -> tuple[bytes, UInt8[np.ndarray, "H W 3"]]:
    """Returns the bytes of a file, and its pixels exactly as a build will store them."""
    try:
        file.key.encode()
    except UnicodeEncodeError:
        raise Failed("expected a file name in UTF-8, got other bytes; do: rename it") from None
    try:
        data = image_files.read_bytes(file.path)
        return data, image_files.read(data)
    except image_files.Unreadable as error:
        raise Failed(error.fault) from None


def _segment_image(
    image: UInt8[np.ndarray, "H W 3"], stages: Stages, settings: Settings, *, dropped: Dropped
) -> tuple[list[Detection], list[tuple[Segment, list[Any]]]]:
    """Returns the detections that are kept, each with its mask and the rings around it."""
    height, width = image.shape[:2]
    with _stage("detector"):
        found = stages.detector.detect(image, settings.labels)
        kept, less = filters.choose_detections(found, settings.filters, height=height, width=width)
        dropped.update(less)
    if not kept:
        return [], []
    with _stage("segmenter"):
        boxes = np.array([one.box_px for one in kept], np.float64)
        drawn = list(stages.segmenter.segment(image, boxes))
        if [one.mask.shape for one in drawn] != [(height, width)] * len(kept):
            raise Failed(
                f"expected {len(kept)} masks of {height}x{width}, got "
                f"{[one.mask.shape for one in drawn]}"
            )
    with _stage("contour"):
        outlines = [clean_outline(one.mask, settings.contour) for one in drawn]
        clean = [one._replace(mask=mask) for one, (mask, _) in zip(drawn, outlines, strict=True)]
        places, less = filters.choose_segments(kept, clean, settings.filters)
        dropped.update(less)
    masks = [(clean[place], outlines[place][1]) for place in places]
    return [kept[place] for place in places], masks


def clean_outline(
    mask: Bool[np.ndarray, "H W"], settings: Contour
) -> tuple[Bool[np.ndarray, "H W"], list[Float[np.ndarray, "_ 2"]]]:
    """Returns a mask without specks and small holes, and the rings around it in pixel corners.

    The mask is what the rings enclose by the even-odd rule, by pixel centres.

    Raises:
      ValueError: with an epsilon, the image is larger than `canvas.fill` takes.
    """
    every = contour.trace(mask)
    large = [ring for ring in every if abs(polygon.signed_area(ring)) >= settings.min_area_px]
    height, width = mask.shape
    if not settings.epsilon_px:
        return contour.fill(large, height=height, width=width), large
    rings = polygon.simplify_each(large, [settings.epsilon_px] * len(large))
    units = [ring / np.array([width, height]) for ring in rings]
    return host_raster.fill(
        units, height=height, width=width, rule="center", rings="evenodd"
    ), rings


def _descriptions(
    image: UInt8[np.ndarray, "H W 3"],
    kept: Sequence[Detection],
    *,
    stages: Stages,
    settings: Settings,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns a text for each object, empty if refused, and dead letters for the refused ones."""
    if stages.describer is None:
        return [one.label for one in kept], []
    wording = settings.wording
    with _stage("describer"):
        questions = [
            Question(
                words.draw_view(image, one.box_px, wording), words.question_text(wording, one.label)
            )
            for one in kept
        ]
        answers = list(stages.describer.describe(questions))
        if len(answers) != len(questions):
            raise Failed(f"expected {len(questions)} answers, got {len(answers)}")
    texts, refused = [], []
    for one, answer in zip(kept, answers, strict=True):
        try:
            texts.append(words.read_description(answer, wording))
        except Failed as error:
            texts.append("")
            what = {"label": one.label, "box_px": _rounded_box_px(one)}
            letter = {"stage": "describer", "reason": str(error), "transient": False}
            refused.append(letter | {"object": what})
    return texts, refused


def _object(one: Detection, drawn: Segment, rings: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns an object of the plain-folder format, with what is known about it."""
    rle = bitmask.to_rle(drawn.mask)
    return {
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "name": one.label,
        "rings_px": [ring.astype(np.int64).tolist() for ring in rings],
        "box_px": _rounded_box_px(one),
        "score": round(one.score, 6),
        "quality": round(float(drawn.quality), 6),
        "stability": round(float(drawn.stability), 6),
        "area_px": int(drawn.mask.sum()),
    }


def _rounded_box_px(one: Detection) -> list[float]:
    return [round(float(number), 3) for number in one.box_px]


def _phrases(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the expressions; one that several objects share means all of them."""
    meant: dict[str, dict[str, Any]] = {}
    for place, text in enumerate(texts):
        phrase = meant.setdefault(text.casefold(), {"text": text, "objects": []})
        phrase["objects"].append(place)
    return list(meant.values())


def _models(models: Models) -> dict[str, Any]:
    return {
        stage: None if model is None else model._asdict()
        for stage, model in models._asdict().items()
    }
