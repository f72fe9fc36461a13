"""Fills polygons and merges masks as run lengths, on the host and without drawing them.

A run end is a pixel's number, column by column, at which a mask changes: zeros come first. Outlines
of data sets become masks here; `raster.fill` does the same on devices, to the bit. Time and memory
grow with the vertices and the columns that they cross, not with the coordinates.

Axes here: `E` edges of rings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from seg_jax.geometry import bitmask

_FINE = 5
MOST_CROSSINGS = 2 * 10**8
"""Crossings of edges and columns of all polygons of a mask, some seconds of work: a hundred times
what the most intricate outlines of large images have."""
_AT_ONCE = 2**20
"""Crossings of edges and columns that are worked out at once."""
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
      ValueError: the image has no pixels, a polygon has half a point or one that is not finite, or
        the polygons cross more columns than any outline does.

    Source: rleFrPoly and rleMerge of the COCO API, Lin et al. 2014.
    """
    if height < 1 or width < 1 or height * width > bitmask.MOST_PIXELS:
        raise ValueError(
            f"runlengths.fill: expected an image of 1 to {bitmask.MOST_PIXELS} pixels, got "
            f"{height}x{width}; do: drop the polygons"
        )
    edges = _edges_on_canvas(*_fine_edges([ring for ring in outlines if len(ring) >= 6]), width)
    if (crossings := int(edges.count.sum())) > MOST_CROSSINGS:
        raise ValueError(
            f"runlengths.fill: expected polygons that cross columns at most {MOST_CROSSINGS} "
            f"times, got {crossings}; do: outline the object with fewer vertices"
        )
    every = [_run_ends(some, height, width) for some in _in_groups(edges)]
    if rings == "evenodd":
        places = np.concatenate([_NOTHING, *(some.places for some in every)])
        return _to_rle(_odd_places(places, height * width), height, width)
    return _to_rle(_union(every), height, width)


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
        runs = bitmask.run_lengths(rle)
        if [*rle["size"]] != [height, width]:
            raise ValueError(
                "runlengths.merge: expected masks of the image's size, got "
                f"{rle.get('size')} beside {height}x{width}; do: give those of one image"
            )
        every.append(_alternating(_odd_places(np.cumsum(runs), height * width)))
    return _to_rle(_union(every), height, width)


def area(rle: Mapping[str, Any]) -> int:
    """Returns the number of pixels of a mask.

    Raises:
      ValueError: size or counts are missing, or the runs do not fill the mask.
    """
    return int(bitmask.run_lengths(rle)[1::2].sum())


def box_px(rle: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Returns the tight half-open box x0 y0 x1 y1 of a mask in pixels; zeros for an empty one.

    Raises:
      ValueError: size or counts are missing, or the runs do not fill the mask.
    """
    ends = np.cumsum(bitmask.run_lengths(rle), dtype=np.int64)
    first, last = ends[:-1:2], ends[1::2] - 1
    first, last = first[first <= last], last[first <= last]
    if not first.size:
        return 0, 0, 0, 0
    height = rle["size"][0]
    left, right = int(first[0]) // height, int(last[-1]) // height + 1
    if (first // height != last // height).any():  # A run that goes on in the next column.
        return left, 0, right, height
    return left, int((first % height).min()), right, int((last % height).max()) + 1


def _fine_edges(
    outlines: Sequence[Sequence[float | int]],
) -> tuple[Int[np.ndarray, "E 2"], Int[np.ndarray, "E 2"], Int[np.ndarray, " E"]]:
    """Returns both ends of every edge on the fine grid, and the numbers of their rings."""
    lengths = np.fromiter(map(len, outlines), np.int64, len(outlines))
    if (odd := lengths[lengths % 2 == 1]).size:
        raise ValueError(
            f"runlengths: expected x and y of each point, got {odd[0]} numbers; do: complete them"
        )
    numbers = itertools.chain.from_iterable(outlines)
    points = np.fromiter(numbers, np.float64, lengths.sum()).reshape(-1, 2)
    # Beyond this no image lies, and int32 would overflow.
    if not (np.abs(points) < 2**24).all():
        raise ValueError(
            "runlengths: expected polygons of finite pixels, got others; do: drop them"
        )
    fine = np.trunc(_FINE * points + 0.5).astype(np.int64)
    following, last = np.arange(1, len(fine) + 1), np.cumsum(lengths // 2) - 1
    following[last] -= lengths // 2
    return fine, fine[following], np.repeat(np.arange(len(lengths)), lengths // 2)


class _RunEnds(NamedTuple):
    """Where masks change, of one mask after the other, each sorted."""

    places: Int[np.ndarray, " n"]
    turns: Int[np.ndarray, " n"]
    """1 where a mask begins, -1 where it ends."""


def _alternating(places: Int[np.ndarray, " n"]) -> _RunEnds:
    """Returns the sorted run ends of one mask."""
    return _RunEnds(places, 1 - 2 * (np.arange(len(places)) % 2))


def _in_groups(edges: _Edges) -> list[_Edges]:
    """Returns edges in groups of whole rings that can be worked out at once, long ones alone."""
    firsts = np.flatnonzero(np.diff(edges.ring, prepend=-1))
    sizes = np.add.reduceat(edges.count, firsts) if firsts.size else _NOTHING
    at, crossings, cuts = 0, 0, [0]
    for at, size in zip(firsts.tolist(), sizes.tolist(), strict=True):
        if at and crossings + size > _AT_ONCE:
            cuts.append(at)
            crossings = 0
        crossings += size
    bounds = zip(cuts, [*cuts[1:], len(edges.ring)], strict=True)
    return [_Edges(*(field[begin:end] for field in edges)) for begin, end in bounds]


def _run_ends(edges: _Edges, height: int, width: int) -> _RunEnds:
    """Returns the run ends of each ring of a group; two at one place cancel each other."""
    pixels, total = height * width, np.cumsum(edges.count)
    if not total.size or total[-1] <= _AT_ONCE:
        ring = np.repeat(edges.ring, edges.count)
        # Beyond the last pixel a column may end, so a ring has a place more than pixels.
        ends, times = np.unique(_toggles(edges, height) + ring * (pixels + 1), return_counts=True)
        ends = ends[times % 2 == 1]
        ring, places = np.divmod(ends, pixels + 1)
        ring, places = ring[places < pixels], places[places < pixels]
        rank = np.arange(len(ring)) - np.searchsorted(ring, ring)
        return _RunEnds(places, 1 - 2 * (rank % 2))
    # Many edges across many columns: a bit for each pixel is less than a number for each of those.
    odd = np.zeros(pixels, bool)
    for some in np.split(np.arange(total.size), np.flatnonzero(np.diff(total // _AT_ONCE)) + 1):
        part = _Edges(*(field[some] for field in edges))
        odd[_odd_places(_toggles(part, height), pixels)] ^= True
    return _alternating(np.flatnonzero(odd))


class _Edges(NamedTuple):
    """Edges that cross columns of the image, from their lower end along their longer axis."""

    ring: Int[np.ndarray, " E"]
    """The number of the ring that each is of."""
    low: Int[np.ndarray, "E 2"]
    steps: Int[np.ndarray, " E"]
    """Fine steps along the longer axis."""
    slope: Float[np.ndarray, " E"]
    """Fine steps along the other axis at each."""
    flat: Bool[np.ndarray, " E"]
    """Whether the longer axis is x."""
    first: Int[np.ndarray, " E"]
    """The first column that is crossed."""
    count: Int[np.ndarray, " E"]
    """Columns that are crossed, of those of the image."""


def _edges_on_canvas(
    start: Int[np.ndarray, "E 2"],
    end: Int[np.ndarray, "E 2"],
    ring: Int[np.ndarray, " E"],
    width: int,
) -> _Edges:
    """Returns the edges that cross the middle of a column of the image."""
    # A column is crossed between the fine steps 5 n + 2 and 5 n + 3.
    left, right = np.minimum(start, end)[:, 0], np.maximum(start, end)[:, 0]
    first, last = (np.clip(-((2 - u) // _FINE), 0, width) for u in (left, right))
    crosses = first < last
    start, end, first, last = start[crosses], end[crosses], first[crosses], last[crosses]
    ring = ring[crosses]
    size = np.abs(end - start)
    flat = size[:, 0] >= size[:, 1]
    each, major = np.arange(len(start)), np.where(flat, 0, 1)
    flip = start[each, major] > end[each, major]
    low, high = np.where(flip[:, None], end, start), np.where(flip[:, None], start, end)
    steps = size[each, major]
    slope = (high - low)[each, 1 - major] / steps
    return _Edges(ring, low, steps, slope, flat, first, last - first)


def _toggles(edges: _Edges, height: int) -> Int[np.ndarray, " n"]:
    """Returns the pixel's number at which each edge toggles each column that it crosses."""
    edge = np.repeat(np.arange(len(edges.count)), edges.count)
    begin = np.cumsum(edges.count) - edges.count
    column = edges.first[edge] + np.arange(len(edge)) - begin[edge]
    low_x, low_y = edges.low[edge].T
    slope, flat = edges.slope[edge], edges.flat[edge]
    u = _FINE * column + 2
    v = np.empty(len(edge), np.int64)
    y, tilt, step = low_y[flat], slope[flat], (u - low_x)[flat]
    v[flat] = np.minimum(_across(y, tilt, step), _across(y, tilt, step + 1))
    steep = ~flat
    step = _first_step(low_x[steep], slope[steep], u[steep], edges.steps[edge][steep])
    v[steep] = low_y[steep] + step - 1
    row = np.ceil(np.clip((v + 0.5) / _FINE - 0.5, 0, height)).astype(np.int64)
    return column * height + row


def _across(low: np.ndarray, slope: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Returns the coordinate across the longer axis after some steps, as the COCO API rounds it."""
    return np.trunc(low + slope * step + 0.5).astype(np.int64)


def _first_step(low: np.ndarray, slope: np.ndarray, u: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns the first step at which edges are on the far side of u and u + 1.

    The quotient finds it but for the last bits of the sums that decide: they are looked at.
    """
    grows = slope > 0

    def is_past(step: np.ndarray) -> np.ndarray:
        x = _across(low, slope, step)
        return np.where(grows, x > u, x <= u)

    step = np.clip(np.ceil((u + 0.5 - low) / slope), 1, steps).astype(np.int64)
    while (early := (step > 1) & is_past(step - 1)).any():
        step -= early
    while (late := (step < steps) & ~is_past(step)).any():
        step += late
    return step


def _odd_places(places: Int[np.ndarray, " _"], pixels: int) -> Int[np.ndarray, " n"]:
    """Returns the places of an image that come an odd number of times, sorted."""
    ends, times = np.unique(places, return_counts=True)
    return ends[(times % 2 == 1) & (ends < pixels)]


def _union(every: Sequence[_RunEnds]) -> Int[np.ndarray, " n"]:
    """Returns the run ends of the union of masks."""
    ends = np.concatenate([_NOTHING, *(some.places for some in every)])
    turns = np.concatenate([_NOTHING, *(some.turns for some in every)])
    places, which = np.unique(ends, return_inverse=True)
    change = np.zeros(len(places), np.int64)
    np.add.at(change, which, turns)
    covered = np.cumsum(change) > 0
    return places[covered != np.concatenate([[False], covered[:-1]])]


def _to_rle(ends: Int[np.ndarray, " n"], height: int, width: int) -> dict[str, Any]:
    counts = np.diff(np.concatenate([[0], ends, [height * width]]))
    return {"size": [height, width], "counts": bitmask.compress(counts)}
