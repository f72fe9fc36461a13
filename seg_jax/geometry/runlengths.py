"""Fills polygons and merges masks as run lengths, on the host and without drawing them.

A run end is a pixel's number, column by column, at which a mask changes: zeros come first. Outlines
of data sets become masks here; `raster.fill` does the same on devices, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from seg_jax.geometry import bitmask

_FINE = 5
_NOTHING = np.zeros(0, np.int64)


def fill(
    outlines: Sequence[Sequence[float | int]],
    *,
    height: int,
    width: int,
    rings: Literal["union", "evenodd"] = "union",
) -> dict[str, Any]:
    """Returns filled polygons as compressed COCO run lengths, as the COCO API fills each.

    Args:
      outlines: x, y, x, y, .. of each ring in pixels, as in COCO's files; a ring of fewer than
        three points fills nothing (the COCO API would take two points for a box).
      height: rows of the image.
      width: columns of the image.
      rings: "union" of the rings as the COCO API merges them, or "evenodd", under which a ring
        within a ring is a hole.

    Raises:
      ValueError: the image has no pixels, a polygon has half a point or one that is not finite.

    Source: rleFrPoly and rleMerge of the COCO API, Lin et al. 2014.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"runlengths.fill: expected an image with pixels, got {height}x{width}; do: drop the "
            "polygons"
        )
    every = [_run_ends(_fine_points(ring), height, width) for ring in outlines if len(ring) >= 6]
    if rings == "evenodd":
        return _to_rle(
            _odd_places(np.concatenate([_NOTHING, *every]), height * width), height, width
        )
    return _to_rle(_union_ends(every), height, width)


def merge(rles: Sequence[Mapping[str, Any]], *, height: int, width: int) -> dict[str, Any]:
    """Returns the union of masks as compressed COCO run lengths; without any an empty mask.

    Args:
      rles: run lengths, compressed (bytes or str) or a list, all of this size.
      height: rows of the image.
      width: columns of the image.

    Raises:
      ValueError: a mask is of another size, or its runs do not fill it.
    """
    every = []
    for rle in rles:
        if [*rle.get("size", ())] != [height, width]:
            raise ValueError(
                "runlengths.merge: expected masks of the image's size, got "
                f"{rle.get('size')} beside {height}x{width}; do: give those of one image"
            )
        every.append(_odd_places(np.cumsum(bitmask.run_lengths(rle)), height * width))
    return _to_rle(_union_ends(every), height, width)


def area(rle: Mapping[str, Any]) -> int:
    """Returns the number of pixels of a mask.

    Raises:
      ValueError: size or counts are missing, or the runs do not fill the mask.
    """
    return int(bitmask.run_lengths(rle)[1::2].sum())


def _fine_points(ring: Sequence[float | int]) -> Int[np.ndarray, "P 2"]:
    """Returns the vertices of a ring on the fine grid, the first one repeated at the end."""
    if len(ring) % 2:
        raise ValueError(
            f"runlengths: expected x and y of each point, got {len(ring)} numbers; do: complete "
            "them"
        )
    points = np.asarray(ring, np.float64).reshape(-1, 2)
    # Beyond this no image lies, and int32 would overflow.
    if not (np.abs(points) < 2**24).all():
        raise ValueError(
            "runlengths: expected polygons of finite pixels, got others; do: drop them"
        )
    fine = np.trunc(_FINE * points + 0.5).astype(np.int64)
    return np.concatenate([fine, fine[:1]])


def _run_ends(points: Int[np.ndarray, "P 2"], height: int, width: int) -> Int[np.ndarray, " n"]:
    """Returns the run ends of a ring, sorted; two at one place cancel each other."""
    u, v = _walk_edges(points)
    moved = np.flatnonzero(u[1:] != u[:-1])
    before, after = moved, moved + 1
    column = (np.where(u[after] < u[before], u[after], u[after] - 1) + 0.5) / _FINE - 0.5
    inside = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    row = (np.minimum(v[after], v[before])[inside] + 0.5) / _FINE - 0.5
    row = np.ceil(np.clip(row, 0, height)).astype(np.int64)
    places = column[inside].astype(np.int64) * height + row
    return _odd_places(places, height * width)


def _odd_places(places: Int[np.ndarray, " _"], pixels: int) -> Int[np.ndarray, " n"]:
    """Returns the places of an image that come an odd number of times, sorted."""
    ends, times = np.unique(places, return_counts=True)
    return ends[(times % 2 == 1) & (ends < pixels)]


def _walk_edges(points: Int[np.ndarray, "P 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the x and y of every fine step along the edges, both ends of each included."""
    start, end = points[:-1], points[1:]
    size = np.abs(end - start)
    flat = size[:, 0] >= size[:, 1]
    major = np.where(flat, 0, 1)
    each = np.arange(len(start))
    flip = start[each, major] > end[each, major]
    low, high = np.where(flip[:, None], end, start), np.where(flip[:, None], start, end)
    steps = size[each, major]
    slope = (high - low)[each, 1 - major] / np.maximum(steps, 1)
    edge = np.repeat(each, steps + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    step = np.where(flip[edge], steps[edge] - step, step)
    along = step + low[each, major][edge]
    across = np.trunc(low[each, 1 - major][edge] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(flat[edge], along, across), np.where(flat[edge], across, along)


def _union_ends(every: Sequence[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " n"]:
    """Returns the run ends of the union of masks with these run ends."""
    if len(every) == 1:
        return every[0]
    ends = np.concatenate([_NOTHING, *every])
    turns = [1 - 2 * (np.arange(len(each)) % 2) for each in every]
    turns = np.concatenate([_NOTHING, *turns])
    places, which = np.unique(ends, return_inverse=True)
    change = np.zeros(len(places), np.int64)
    np.add.at(change, which, turns)
    covered = np.cumsum(change) > 0
    return places[covered != np.concatenate([[False], covered[:-1]])]


def _to_rle(ends: Int[np.ndarray, " n"], height: int, width: int) -> dict[str, Any]:
    counts = np.diff(np.concatenate([[0], ends, [height * width]]))
    return {"size": [height, width], "counts": bitmask.compress(counts)}
