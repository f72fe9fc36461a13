"""Drawn scenes in files, and stages that know their true masks: what models would have to find."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seg_jax.annotation import annotator, filters, jobs, words
from seg_jax.annotation.stages import Answer, Detection, Failed, Model, Models, Segment, Stages
from seg_jax.data.sources import Scenes

MODELS = Models(Model("boxes", "1"), Model("masks", "2"), None)
TALKING = MODELS._replace(describer=Model("words", "3"))


def make(root: Path, count: int = 4) -> list[Any]:
    """Writes scenes as images 000.png, ..; returns their samples."""
    root.mkdir(parents=True, exist_ok=True)
    source = Scenes(world=Scenes().world, count=count)
    for index in range(count):
        Image.fromarray(source[index].image).save(root / f"{index:03d}.png")
    return [source[index] for index in range(count)]


@functools.lru_cache(maxsize=1)
def _known(count: int) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    source = Scenes(count=count)
    samples = [source[index] for index in range(count)]
    return {_digest(one.image): (one.masks, one.names) for one in samples}


def _digest(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the tight box of a mask, slowly."""
    rows, columns = np.nonzero(mask)
    return (
        float(columns.min()),
        float(rows.min()),
        float(columns.max() + 1),
        float(rows.max() + 1),
    )


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Finds every thing of a known scene."""

    count: int
    seconds: float = 0.0

    def detect(self, image, labels):
        time.sleep(self.seconds)
        masks, names = _known(self.count)[_digest(image)]
        return [
            Detection(box(mask), name, 0.9 - 0.1 * place)
            for place, (mask, name) in enumerate(zip(masks, names, strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class Masks:
    """Draws the true mask whose box it is given."""

    count: int

    def segment(self, image, boxes_px):
        masks, _ = _known(self.count)[_digest(image)]
        boxes = {box(mask): mask for mask in masks}
        return [Segment(boxes[tuple(one)], 1.0, 1.0) for one in boxes_px.tolist()]


@dataclasses.dataclass(frozen=True)
class Words:
    """Answers with the question, which a wording makes the answer."""

    def describe(self, asks):
        return [Answer(f'"{ask.text}."\n') for ask in asks]


@dataclasses.dataclass(frozen=True)
class Load:
    """Loads these stages; in other processes too."""

    count: int
    seconds: float = 0.0
    talking: bool = False

    def __call__(self) -> Stages:
        talker = Words() if self.talking else None
        return Stages(Boxes(self.count, self.seconds), Masks(self.count), talker)


class Broken:
    """Fails as a stage, in any place."""

    def __init__(self, error: Exception | None = None):
        self.error = error or RuntimeError("CUDA out of memory\nTried to allocate")

    def detect(self, image, labels):
        raise self.error

    def segment(self, image, boxes_px):
        raise self.error

    def describe(self, asks):
        raise self.error


GONE = Failed("no answer, 5 times", transient=True)


def settings(**changes: Any) -> annotator.Settings:
    """Returns settings that keep whatever the true masks are."""
    base = annotator.Settings(
        labels=("a thing",),
        filters=filters.Filters(min_mask=0.0, min_box=0.0, max_outside=0.0),
        contour=annotator.Contour(min_area_px=0),
        wording=words.Wording(question="the very {label}"),
    )
    return dataclasses.replace(base, **changes)


def job(out: Path, count: int, *, seconds: float = 0.0, talking: bool = False, **changes: Any):
    """Returns a job on known scenes, two images a shard."""
    given = {"settings": settings(), "records": 2, "code": "seg-jax test"} | changes
    models = TALKING if talking else MODELS
    return jobs.Job(load=Load(count, seconds, talking), models=models, out=out, **given)
