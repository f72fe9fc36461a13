"""Reads, fills and scores as the released evaluators do, their defects included (host).

Answers are decoded by the snippet in SimpleSeg's README, masks and boxes compared by Text4Seg's
scripts, whose metrics the paper's tables follow:

- a polygon is what one regular expression finds: an outline that breaks off, or that holds a
  negative number, is lost whole;
- one polygon of fewer than three points, or a number that JSON does not know (00.5), loses the
  whole answer (an exception there, caught as an empty mask here, as Text4Seg catches its own);
- the mask is the union of the polygons: there are no holes;
- numbers above 1 are scaled all the same and drawn off the image;
- where polygons of the annotation overlap the true mask has a hole: their sum, 2, times 255 is 254
  in uint8, which whole division by 255 brings to 0;
- IoU is I / (U + 1e-5), 1 where U is 0; cIoU is I / (U + 1e-10);
- boxes end at the last pixel's index, not beyond it: masks one pixel wide have none.

Not repeated: Text4Seg draws its answers at temperature 0.2 and its question forms at random.

Source: SimpleSeg README, section 5; Text4Seg `llava/eval` refer_seg_dataset, model_refer_seg,
  eval_refer_seg, eval_refer_comprehen and utils.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Bool, Float

from seg_jax import files
from seg_jax.geometry import boxes, contour
from seg_jax.geometry.host_raster import Outlines, fill
from seg_jax.records import Sample

_NUMBER = r"(?:[1-9]\d*\.\d+|0\.\d+|\d+)"
_POINT = rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]"
_POLYGON = re.compile(rf"\[\s*{_POINT}(?:\s*,\s*{_POINT})*\s*\]")


def polygons(text: str) -> list[Float[np.ndarray, "_ 2"]]:
    """Returns the polygons of an answer in unit coordinates; none where the snippet would fail."""
    try:
        found = [
            np.array(files.parse_json(hit.group(), where="answer"), float)
            for hit in _POLYGON.finditer(text)
        ]
    except (ValueError, OverflowError):  # A number that JSON or a float does not hold.
        return []
    sound = all(len(polygon) >= 3 and np.isfinite(polygon).all() for polygon in found)
    return found if sound else []


def answer(rings_unit: Outlines, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the union of polygons. Beyond `edge_rules.REACH_PX` vertices are pulled to it."""
    return fill(rings_unit, height=height, width=width, rule="coco", rings="union")


def truth(sample: Sample, which: int) -> Bool[np.ndarray, "H W"]:
    """Returns the true mask as the release has it.

    Pixels that several polygons of an object cover become holes, if the source counted covers.
    """
    if sample.covers is None:
        return sample.masks[which]
    return sample.covers[which] * np.uint8(255) // 255 == 1


def iou(intersection: int, union: int) -> float:
    """Returns the IoU of one sample."""
    return intersection / (union + 1e-5) if union else 1.0


def box_iou(one: Bool[np.ndarray, "H W"], other: Bool[np.ndarray, "H W"]) -> float:
    """Returns the IoU of the masks' boxes; 0 where the release divides zero by zero."""
    return boxes.iou(_box(one), _box(other))


def _box(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, " 4"]:
    """Returns the first and last column and row; of an empty mask 1e8 and 0."""
    if not mask.any():
        return np.array([1e8, 1e8, 0.0, 0.0])
    return (contour.box_px(mask) - [0, 0, 1, 1]).astype(np.float64)
