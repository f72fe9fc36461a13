"""Chooses among detections and masks: by score, size and stability, without duplicates."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from seg_jax.annotation.stages import Detection, Segment
from seg_jax.geometry import boxes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filters:
    """What is kept; areas are shares of the image."""

    min_side_px: int = 64
    """Least side of an image; smaller ones are icons."""
    min_score: float = 0.35
    """Least score of a detection."""
    min_box: float = 0.0005
    """Least area of a detection's box."""
    max_box: float = 0.95
    """Largest area of a detection's box; larger ones mean the whole image."""
    max_box_iou: float = 0.8
    """Largest IoU of two boxes; of two that overlap more the better one stays, whatever their
    labels."""
    max_objects: int = 64
    """Most objects of an image; the best ones are kept."""
    min_quality: float = 0.8
    """Least IoU that the segmenter itself expects of a mask."""
    min_stability: float = 0.9
    """Least stability of a mask. Source: Segment Anything, Kirillov et al. 2023."""
    min_mask: float = 0.0002
    """Least area of a mask."""
    max_outside: float = 0.1
    """Largest share of a mask that may lie outside the box it was drawn for."""
    max_mask_iou: float = 0.85
    """Largest IoU of two masks; of two that overlap more the one of the better detection stays."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                if value < 1:
                    raise ValueError(
                        f"filters.{field.name}: expected at least 1, got {value}; do: give 1 or "
                        "more"
                    )
            elif not 0 <= value <= 1:
                raise ValueError(
                    f"filters.{field.name}: expected 0 to 1, got {value}; do: give a share in "
                    "this range"
                )
        if self.min_box > self.max_box:
            raise ValueError(
                f"filters.min_box: expected at most max_box, {self.max_box}, got {self.min_box}"
                "; do: give a min_box below max_box"
            )


Dropped = collections.Counter[str]
"""Number of objects that each filter has dropped, by the name of the filter."""

REASONS = {
    "small_image": "image with a side below filters.min_side_px",
    "not_finite": "object whose box or score is no number",
    "score": "object with a score below filters.min_score",
    "box_area": "object whose box is smaller than filters.min_box or larger than filters.max_box",
    "same_box": "object with the box of a better one (filters.max_box_iou)",
    "too_many": "object beyond the best filters.max_objects",
    "mask_area": "object with a mask below filters.min_mask or contour.min_area_px",
    "quality": "object with a mask whose quality is below filters.min_quality",
    "stability": "object with a mask whose stability is below filters.min_stability",
    "outside_box": "object with more of its mask outside its box than filters.max_outside",
    "same_mask": "object with the mask of a better one (filters.max_mask_iou)",
}
"""What each filter drops, by its name, in words."""


def choose_detections(
    found: Sequence[Detection], filters: Filters, *, height: int, width: int
) -> tuple[list[Detection], Dropped]:
    """Returns the detections to segment, the best first, their boxes cut to the image.

    Of equal scores the upper, then the more leftward box comes first: the order of the detector
    does not matter.

    Args:
      found: what a detector has found.
      filters: what is kept.
      height: height of the image in pixels.
      width: width of the image in pixels.
    """
    dropped: Dropped = collections.Counter()
    sound: list[Detection] = []
    for one in found:
        if not all(map(math.isfinite, (*one.box_px, one.score))):
            dropped["not_finite"] += 1
            continue
        x0, y0, x1, y1 = np.clip(one.box_px, 0.0, [width, height, width, height]).tolist()
        share = max(0.0, x1 - x0) * max(0.0, y1 - y0) / (height * width)
        if one.score < filters.min_score:
            dropped["score"] += 1
        elif not filters.min_box <= share <= filters.max_box or not share:
            dropped["box_area"] += 1
        else:
            sound.append(Detection((x0, y0, x1, y1), one.label, float(one.score)))
    sound.sort(key=lambda one: (-one.score, one.box_px[1], one.box_px[0], one.box_px, one.label))
    kept: list[Detection] = []
    boxes_px = np.array([one.box_px for one in sound], np.float64).reshape(-1, 4)
    places: list[int] = []
    for place, one in enumerate(sound):
        if (
            places
            and boxes.iou_with_each(boxes_px[place], boxes_px[places]).max() > filters.max_box_iou
        ):
            dropped["same_box"] += 1
        elif len(kept) == filters.max_objects:
            dropped["too_many"] += 1
        else:
            kept.append(one)
            places.append(place)
    return kept, dropped


def choose_segments(
    kept: Sequence[Detection], drawn: Sequence[Segment], filters: Filters
) -> tuple[list[int], Dropped]:
    """Returns the places of the masks to keep.

    Args:
      kept: detections, the best first.
      drawn: a mask for each.
      filters: what is kept.
    """
    dropped: Dropped = collections.Counter()
    places: list[int] = []
    areas: list[int] = []
    for place, (one, segment) in enumerate(zip(kept, drawn, strict=True)):
        area = int(segment.mask.sum())
        reason = _drop_reason(one, segment, area=area, filters=filters)
        if reason:
            dropped[reason] += 1
            continue
        common = _shared_pixels(segment.mask, [drawn[other].mask for other in places])
        union = area + np.array(areas, np.int64) - common
        if places and (common / union).max() > filters.max_mask_iou:
            dropped["same_mask"] += 1
            continue
        places.append(place)
        areas.append(area)
    return places, dropped


def _drop_reason(one: Detection, segment: Segment, *, area: int, filters: Filters) -> str:
    """Returns why a mask is dropped by itself; an empty text if it is not."""
    if not area or area < filters.min_mask * segment.mask.size:
        return "mask_area"
    # `not <=` drops nan too.
    if not filters.min_quality <= segment.quality < math.inf:
        return "quality"
    if not filters.min_stability <= segment.stability < math.inf:
        return "stability"
    x0, y0, x1, y1 = one.box_px
    inside = segment.mask[math.floor(y0) : math.ceil(y1), math.floor(x0) : math.ceil(x1)]
    return "outside_box" if 1 - inside.sum() / area > filters.max_outside else ""


def _shared_pixels(
    mask: Bool[np.ndarray, "H W"], others: Sequence[Bool[np.ndarray, "H W"]]
) -> Int[np.ndarray, " M"]:
    """Returns the number of pixels that a mask shares with each of some others."""
    return np.array([np.count_nonzero(mask & other) for other in others], np.int64)
