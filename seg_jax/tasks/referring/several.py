"""Counts which of the things that a question means an answer outlines, and how often (host)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from seg_jax.geometry import contour, polygon
from seg_jax.geometry.host_raster import Outlines, fill
from seg_jax.records import Sample

_HIT = 0.5
"""A ring outlines what it shares an IoU above this with; disjoint rings cannot both do so."""


class Counted(NamedTuple):
    """What of the meant things is in an answer."""

    found: int
    """Things whose largest border an outline of the answer stands for."""
    duplicates: int
    """Outlines beyond the first one for the same border, be it that of a thing or of its hole."""


def things_of(sample: Sample, which: int) -> tuple[Bool[np.ndarray, "H W"], ...] | None:
    """Returns the masks of the things that a mask of a sample is made of.

    A mask of nothing is made of none. None where a mask of several things is not the union of
    masks of one thing in the sample, as data sets may not have each of them.
    """
    mask = sample.masks[which]
    if not mask.any():
        return ()
    if not (sample.together and sample.together[which]):
        return (mask,)
    parts = [
        part
        for part, several in zip(sample.masks, sample.together, strict=True)
        if not several and part.any() and not (part & ~mask).any()
    ]
    return tuple(parts) if parts and (np.any(parts, 0) == mask).all() else None


def count(
    rings_unit: Outlines,
    things: Sequence[Bool[np.ndarray, "H W"]],
    *,
    rule: Literal["coco", "center"] = "coco",
) -> Counted:
    """Returns how many of the meant things an answer outlines, and how many outlines it repeats.

    Each ring is filled by itself and stands for the border, filled likewise, that it shares the
    largest IoU with, if that is above 0.5. So a ring that outlines a hole repeats nothing.

    Args:
      rings_unit: of the answer, x then y as fractions of width and height.
      things: masks of the things that are meant.
      rule: how an outline is filled.
    """
    borders, largest = [], []
    for thing in things:
        largest.append(len(borders))  # Rings come by falling area.
        borders += contour.trace(thing)
    if not borders or not len(rings_unit):
        return Counted(0, 0)
    height, width = things[0].shape
    boxes = np.array([[ring.min(0), ring.max(0)] for ring in borders], int)
    areas = np.array([abs(polygon.signed_area(ring)) for ring in borders])
    hits = np.zeros(len(borders), int)
    for ring in rings_unit:
        drawn = fill([ring], height=height, width=width, rule=rule)
        area, best = int(drawn.sum()), _HIT
        x0, y0, x1, y1 = contour.box_px(drawn)
        # Of a mask of dust each border is filled within its box alone, and few of them are at all.
        alike = (2 * areas > area) & (2 * area > areas)
        meet = (boxes[:, 0] < (x1, y1)).all(1) & (boxes[:, 1] > (x0, y0)).all(1)
        hit = None
        for place in np.flatnonzero(alike & meet):
            low, high = boxes[place]
            columns, rows = high - low
            border = contour.fill([borders[place] - low], height=int(rows), width=int(columns))
            shared = int((border & drawn[low[1] : high[1], low[0] : high[0]]).sum())
            if (iou := shared / (areas[place] + area - shared)) > best:
                hit, best = place, iou
        if hit is not None:
            hits[hit] += 1
    return Counted(int((hits[largest] > 0).sum()), int(np.maximum(hits - 1, 0).sum()))
