"""The dialect of Label Studio's ML backends: outlines of a project's labels as `polygonlabels`.

Source: label-studio-ml-backend, `label_studio_ml/api.py`, and `label_studio/ml/api_connector.py` of
Label Studio, which is the client.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from msgspec import Meta

from seg_jax import schemas
from seg_jax.data.image_files import RgbImage
from seg_jax.serving import faults, native, pictures
from seg_jax.serving.answering import Answered, Answering, Manner

ADVICE = "see the README of seg_jax/serving"
MOST_CONFIG = 100_000
"""Characters of a labelling interface."""
_DECLARES = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)

Percent = Annotated[float, Meta(ge=-1000, le=1000)]


class _Value(schemas.Record, frozen=True):
    x: Percent
    y: Percent
    width: Percent = 0.0
    height: Percent = 0.0
    keypointlabels: tuple[schemas.Text, ...] = ()
    rectanglelabels: tuple[schemas.Text, ...] = ()


class _Region(schemas.Record, frozen=True):
    type: schemas.Text
    value: dict[str, Any]
    is_positive: bool = True


class _Context(schemas.Record, frozen=True):
    result: tuple[_Region, ...] = ()


class _Params(schemas.Record, frozen=True):
    context: _Context | None = None


class _Task(schemas.Record, frozen=True):
    data: dict[str, Any]


class Request(schemas.Record, frozen=True):
    """The body of `/predict`."""

    tasks: Annotated[list[_Task], Meta(min_length=1)]
    label_config: Annotated[str, Meta(max_length=MOST_CONFIG)]
    params: _Params | None = None


class Interface(NamedTuple):
    """What of a labelling interface concerns outlines."""

    control: str
    """Name of the `PolygonLabels`, which results come from."""
    image: str
    """Name of the `Image` that it labels."""
    field: str
    """Where a task's data has the picture."""
    labels: tuple[str, ...]


class LabelStudio:
    """Answers `/setup` and `/predict`."""

    def __init__(self, answering: Answering, *, images: Path | None):
        """Takes a model.

        Args:
          answering: the model.
          images: folder of pictures that tasks may name; None: they have to be in the request.
        """
        self._answering, self._images = answering, images

    def setup(self, value: Any) -> dict[str, Any]:
        """Returns the model's version once its answers fit the project's interface.

        Raises:
          Fault: they do not.
        """
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema:
            interface(schemas.check(schema, str, where="schema", advice=ADVICE))
        return {"model_version": self._answering.name}

    async def predict(self, value: Any) -> dict[str, Any]:
        """Returns the predictions for the tasks of a request.

        Raises:
          Fault: it is refused.
        """
        request = schemas.check(value, Request, where="request", advice=ADVICE)
        found = interface(request.label_config)
        context = request.params.context if request.params else None
        regions = context.result if context else ()
        asked = len(request.tasks) * (1 if regions else len(found.labels))
        if asked > self._answering.limits.questions:
            raise faults.TooLarge(
                f"tasks: expected at most {self._answering.limits.questions} questions, got "
                f"{asked}; do: ask for fewer tasks at once, or start the server with a larger "
                "--limits.questions"
            )
        tasks = (self._task(task, found, regions) for task in request.tasks)
        return {"results": await asyncio.gather(*tasks)}

    async def _task(
        self, task: _Task, found: Interface, regions: tuple[_Region, ...]
    ) -> dict[str, Any]:
        name = schemas.check(
            task.data.get(found.field), str, where=f"task, {found.field}", advice=ADVICE
        )
        data = pictures.bytes_in(self._images, name, where=f"task, {found.field}")
        image = await self._answering.picture(data, where=f"task, {found.field}")
        if regions:
            answers = [await self._ask_for_clicks(image, regions, found)]
        else:
            asked = (self._ask_for_label(image, label) for label in found.labels)
            answers = await asyncio.gather(*asked)
        results = [
            region
            for label, answered in answers
            for region in _regions(answered, label, found, image.shape[:2])
        ]
        scores = [region["score"] for region in results]
        return {
            "model_version": self._answering.name,
            "score": float(np.mean(scores)) if scores else 0.0,
            "result": results,
        }

    async def _ask_for_label(self, image: RgbImage, label: str) -> tuple[str, Answered]:
        kind = native.kind_of(self._answering, "mask")
        clue = native.clean(label)
        (answered,) = await self._answering.ask(image, clue, kind=kind, manner=Manner())
        return label, answered

    async def _ask_for_clicks(
        self, image: RgbImage, regions: tuple[_Region, ...], found: Interface
    ) -> tuple[str, Answered]:
        """Returns the outline of what a person has clicked or boxed, and its label."""
        values = [
            (schemas.check(one.value, _Value, where="context", advice=ADVICE), one.is_positive)
            for one in regions
            if one.type in ("keypointlabels", "rectanglelabels")
        ]
        corners = [np.array([v.x, v.y, v.x + v.width, v.y + v.height]) / 100 for v, _ in values]
        corners = [np.clip(corner, 0, 1) for corner in corners]
        is_box = [v.width > 0 and v.height > 0 for v, _ in values]
        boxes = [corner for corner, wide in zip(corners, is_box, strict=True) if wide]
        clicks = [corner[:2] for corner, wide in zip(corners, is_box, strict=True) if not wide]
        inside = [yes for (_, yes), wide in zip(values, is_box, strict=True) if not wide]
        one = native.object_of_clicks(
            np.array(clicks).reshape(-1, 2),
            np.array(inside, bool),
            box_unit=boxes[-1] if boxes else None,
            text=None,
        )
        names = [name for v, _ in values for name in (*v.keypointlabels, *v.rectanglelabels)]
        label = next((name for name in names if name in found.labels), found.labels[0])
        segment = native.Segment(self._answering)
        kind = native.kind_of(self._answering, "mask")
        return label, await segment.best(image, one, kind=kind, manner=Manner())


def interface(config: str) -> Interface:
    """Returns what of a labelling interface concerns outlines.

    Raises:
      Refused: it is no XML, or has no `PolygonLabels` for an `Image`.
    """
    if len(config) > MOST_CONFIG or _DECLARES.search(config):
        raise faults.Refused(
            "label_config: expected a labelling interface, got one that is too long or declares "
            "entities; do: send that of the project"
        )
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise faults.Refused(
            f"label_config: expected XML, got {error}; do: send that of the project"
        ) from None
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for control in root.iter("PolygonLabels"):
        name, image = control.get("name"), control.get("toName")
        labels = tuple(filter(None, (tag.get("value") for tag in control.iter("Label"))))
        if name and image in images and labels:
            return Interface(name, str(image), images[image].lstrip("$"), labels)
    raise faults.Refused(
        "label_config: expected <PolygonLabels> with a <Label> for an <Image>, got none; do: add "
        "them to the project's labelling interface"
    )


def _regions(
    answered: Answered, label: str, found: Interface, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Returns the rings of an answer as regions; they have no holes."""
    height, width = size
    return [
        {
            "from_name": found.control,
            "to_name": found.image,
            "type": "polygonlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": answered.written.score,
            "value": {
                "points": (100 * np.asarray(ring)).round(4).tolist(),
                "closed": True,
                "polygonlabels": [label],
            },
        }
        for ring in answered.prediction.rings_unit
        if len(ring) >= 3
    ]
