"""Reads the text of one answer to referring at its image's own resolution (host)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from seg_jax.geometry import bitmask, boxes, contour, snapping
from seg_jax.geometry.host_raster import Outlines, fill
from seg_jax.grammar import outline
from seg_jax.records import Kind, Ring, Verdict
from seg_jax.tasks.task import Prediction


class DrawnAnswer(NamedTuple):
    """An answer as pixels."""

    mask: Bool[np.ndarray, "H W"]
    """The outlined pixels; empty unless the answer is an outline."""
    box_px: Shaped[np.ndarray, " 4"]
    """The box that was answered, or the one around the mask; zeros for nothing."""
    rings_unit: Outlines
    """What was read: rings, the two corners of a box, or a point as a ring of one vertex."""
    verdict: Verdict
    says_nothing: bool
    """Whether the answer is that there is no such object."""


def draw(
    text: str, kind: Kind, size: tuple[int, int], *, rule: Literal["coco", "center"] = "coco"
) -> DrawnAnswer:
    """Returns an answer as pixels of its image, whatever it says; all its rings and points count.

    Args:
      text: the answer.
      kind: what was asked for.
      size: height and width of the image.
      rule: how an outline is filled.
    """
    reading = outline.read(text, kind)
    height, width = size
    rings = _vertices(reading)
    if kind == Kind.MASK and rings:
        mask = fill(rings, height=height, width=width, rule=rule)
    else:
        mask = np.zeros(size, bool)
    box_px = contour.box_px(mask)
    if reading.box is not None:
        box_px = reading.box * np.tile([width, height], 2)
    return DrawnAnswer(mask, box_px, rings, reading.verdict, reading.says_nothing)


def agreement(drawn: DrawnAnswer, kind: Kind, mask: Bool[np.ndarray, "H W"]) -> float:
    """Returns how well an answer agrees with a mask of its size, 0..1.

    Of outlines it is the IoU, of boxes that with the mask's box, of a point whether it lies in the
    mask. Where the mask is empty it is 1 for the answer that there is nothing.
    """
    if not mask.any():
        return float(drawn.says_nothing)
    if kind == Kind.MASK:
        return iou(drawn.mask, mask)
    if not drawn.rings_unit:
        return 0.0
    if kind == Kind.BOX:
        return boxes.iou(drawn.box_px, contour.box_px(mask))
    x, y = (drawn.rings_unit[0][0] * mask.shape[::-1]).astype(int)
    inside = 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0]
    return float(inside and mask[y, x])


def iou(one: Bool[np.ndarray, "H W"], other: Bool[np.ndarray, "H W"]) -> float:
    """Returns the IoU of two masks, 1 where both are empty."""
    union = int(np.sum(one | other))
    return float(np.sum(one & other) / union) if union else 1.0


def _vertices(reading: outline.Reading) -> tuple[Ring, ...]:
    """Returns what was read as rings: a point is one vertex, a box two corners."""
    if reading.rings:
        return tuple(np.asarray(ring, np.float64) for ring in reading.rings)
    if reading.point is not None:
        return (np.asarray(reading.point, np.float64).reshape(1, 2),)
    if reading.box is not None:
        return (np.asarray(reading.box, np.float64).reshape(2, 2),)
    return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionPrediction(Prediction):
    """A point, box or outline that a user asked for (host).

    A point is a ring of one vertex, a box a ring of its two corners.
    """

    kind: Kind
    size: tuple[int, int]
    """Height and width of the image in pixels."""
    mask: Bool[np.ndarray, "H W"]
    """The outlined pixels; empty unless the answer is an outline."""
    says_nothing: bool = False
    """Whether the answer is that there is no such object."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain values: text, verdict, polygons, box and COCO RLE."""
        height, width = self.size
        scale = np.array([width, height])
        rle = bitmask.to_rle(self.mask)
        rle["counts"] = rle["counts"].decode("ascii")
        corners = np.concatenate(self.rings_unit) if self.rings_unit else np.zeros((0, 2))
        box = [*corners.min(0), *corners.max(0)] if len(corners) else None
        return {
            "question": self.question,
            "text": self.text,
            "kind": self.kind.name.lower(),
            "verdict": self.verdict.name,
            "says_nothing": self.says_nothing,
            "polygons_unit": [_round_to_list(ring, 6) for ring in self.rings_unit],
            "polygons_px": [_pixels(ring * scale).tolist() for ring in self.rings_unit],
            "box_unit": None if box is None else _round_to_list(np.array(box), 6),
            "box_px": None if box is None else _round_to_list(np.array(box) * np.tile(scale, 2), 3),
            "area_px": int(self.mask.sum()),
            "size": {"height": height, "width": width},
            "rle": rle,
        }


def _pixels(ring_px: Ring) -> Ring:
    """Returns vertices without the noise of float64, but for those that it moves on the grid."""
    short = np.round(ring_px, outline.DECIMALS)
    exact, steps = (
        np.asarray(snapping.from_float(ring[None], "coco").steps[0]) for ring in (ring_px, short)
    )
    return np.where(exact == steps, short, ring_px)


def _round_to_list(values: np.ndarray, digits: int) -> list:
    """Returns the values as JSON has them, with so many decimals."""
    return np.round(values, digits).tolist()
