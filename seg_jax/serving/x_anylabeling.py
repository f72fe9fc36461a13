"""The dialect of X-AnyLabeling's remote server: text, points and boxes to shapes.

Source: X-AnyLabeling-Server, `docs/router.md`; the client is `remote_server.py` of X-AnyLabeling.
It asks below the address that its settings name, `http://HOST:PORT/x-anylabeling` here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from seg_jax import schemas
from seg_jax.serving import faults, native, pictures
from seg_jax.serving.answering import Answering, Manner

ADVICE = "see the README of seg_jax/serving"
Pixels = Annotated[list[schemas.Coordinate], Meta(min_length=2, max_length=4)]


class _Mark(schemas.Record, frozen=True):
    type: Literal["point", "rectangle"]
    data: Pixels
    label: int = 1


class _Params(schemas.Record, frozen=True):
    text_prompt: Annotated[str, Meta(max_length=10_000)] = ""
    marks: tuple[_Mark, ...] = ()


class Request(schemas.Record, frozen=True):
    """The body of `/v1/predict`."""

    image: Annotated[str, Meta(min_length=1)]
    model: Annotated[str, Meta(max_length=200)]
    params: _Params = _Params()


class XAnyLabeling:
    """Answers `/x-anylabeling/v1/models` and `/x-anylabeling/v1/predict`."""

    def __init__(self, answering: Answering):
        self._answering = answering

    def models(self) -> dict[str, Any]:
        """Returns what the client shows of the model, and the tools that it offers for it."""
        tools = (
            "edit_text",
            "button_send",
            "button_add_point",
            "button_remove_point",
            "button_add_rect",
            "button_clear",
            "button_finish_object",
            "toggle_preserve_existing_annotations",
        )
        about = {
            "display_name": f"seg-jax {self._answering.name}",
            "widgets": [{"name": name, "value": None} for name in tools],
            "params": {},
            "batch_processing_mode": "text_prompt",
        }
        return {"success": True, "data": {self._answering.name: about}}

    async def predict(self, value: Any) -> dict[str, Any]:
        """Returns the shapes that a request asks for: names parted by commas or points, or marks.

        Raises:
          Fault: it is refused.
        """
        request = schemas.check(value, Request, where="request", advice=ADVICE)
        if request.model != self._answering.name:
            raise faults.Refused(
                f"model: expected {self._answering.name!r}, got {request.model[:60]!r}; do: choose "
                "it again in the client"
            )
        data = pictures.bytes_of(request.image, where="image")
        image = await self._answering.picture(data, where="image")
        segment = native.Segment(self._answering)
        kind = native.kind_of(self._answering, "mask")
        named = [
            (name, native.one_object(native.clean(name)))
            for name in request.params.text_prompt.replace(".", ",").split(",")
            if name.strip()
        ]
        if request.params.marks:
            height, width = image.shape[:2]
            named.append(("object", _object_of_marks(request.params.marks, height, width)))
        if not 1 <= len(named) <= self._answering.limits.questions:
            raise faults.Refused(
                f"params: expected 1 to {self._answering.limits.questions} names or marks, got "
                f"{len(named)}; do: write names, or set points and boxes"
            )
        shapes = []
        for name, one in named:
            answered = await segment.best(image, one, kind=kind, manner=Manner())
            size = np.array([image.shape[1], image.shape[0]])
            shapes += [
                _shape(name.strip(), np.asarray(ring) * size, answered.written.score)
                for ring in answered.prediction.rings_unit
                if len(ring) >= 3
            ]
        return {"success": True, "data": {"shapes": shapes, "description": ""}}


def _object_of_marks(marks: Sequence[_Mark], height: int, width: int) -> Any:
    """Returns what points and boxes in pixels say about their one object."""
    size = np.array([width, height], np.float64)
    points = [np.array(mark.data[:2]) / size for mark in marks if mark.type == "point"]
    inside = [mark.label > 0 for mark in marks if mark.type == "point"]
    boxes = [
        np.array(mark.data) / np.tile(size, 2)
        for mark in marks
        if mark.type == "rectangle" and len(mark.data) == 4
    ]
    box = None
    if boxes:
        corners = np.clip(boxes[-1].reshape(2, 2), 0, 1)
        box = np.r_[corners.min(0), corners.max(0)]
    clicks = np.clip(np.array(points).reshape(-1, 2), 0, 1)
    return native.object_of_clicks(clicks, np.array(inside, bool), box_unit=box, text=None)


def _shape(label: str, points_px: np.ndarray, score: float) -> dict[str, Any]:
    return {
        "label": label,
        "shape_type": "polygon",
        # The client closes a polygon by its first vertex again.
        "points": [*points_px.tolist(), points_px[0].tolist()],
        "score": score,
        "attributes": {},
        "description": None,
        "difficult": False,
        "direction": 0,
        "flags": None,
        "group_id": None,
        "kie_linking": [],
    }
