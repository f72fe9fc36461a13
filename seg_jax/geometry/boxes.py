"""Compares boxes x0 y0 x1 y1 and lists their corners (host)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped


def iou(one: Shaped[np.ndarray, " 4"], other: Shaped[np.ndarray, " 4"]) -> float:
    """Returns the IoU of two boxes; 0 where neither has an area."""
    return float(iou_with_each(one, other[None])[0])


def iou_with_each(
    box: Shaped[np.ndarray, " 4"], others: Shaped[np.ndarray, "M 4"]
) -> Float[np.ndarray, " M"]:
    """Returns the IoU of a box with each of some others; 0 where neither has an area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0.0).prod(1)
    areas = [np.maximum(some[..., 2:] - some[..., :2], 0.0).prod(-1) for some in (box, others)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros(len(others)), where=union > 0)


def corners(boxes: Shaped[np.ndarray, "*n 4"]) -> Shaped[np.ndarray, "*n 4 2"]:
    """Returns the corners of boxes, clockwise on the screen from the one at x0 y0."""
    return boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].reshape(*boxes.shape[:-1], 4, 2)
