"""Traces a mask as the data script of SimpleSeg does, to the bit and without OpenCV (host)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from seg_jax.geometry import contour
from seg_jax.records import Ring

_Points = Int[np.ndarray, "_ 2"]


def trace(
    mask: Bool[np.ndarray, "H W"],
    *,
    epsilon_ratio: float | int = 0.001,
    decimals: int = 3,
    distance: Literal["line", "segment"] = "line",
) -> list[Ring]:
    """Returns the outer borders of a mask as the released script writes them, flaws included.

    `findContours(RETR_EXTERNAL, CHAIN_APPROX_SIMPLE)`, then `approxPolyDP`, then fractions of the
    image rounded to decimals. To compare with the paper's setting; `contour.trace` keeps more of
    the mask. What it loses: holes, and islands in them, are dropped; vertices are the indices of
    pixels, hence half a pixel is missing on the right and at the bottom, and no coordinate reaches
    1; specks and strokes one pixel wide become one or two points, which no decoder can fill.

    Args:
      mask: True inside.
      epsilon_ratio: epsilon of `approxPolyDP` as a part of each border's length. The script's
        default is 0.001; the paper finds 0.005 best.
      decimals: of the coordinates.
      distance: what `approxPolyDP` measures to: the line through two kept points (OpenCV up to
        4.12) or the segment between them (from 4.13, of January 2026). Results rarely differ; the
        script names no version, and an older copy of it predates 4.13.

    Returns:
      Rings in unit coordinates (x by the width, y by the height), counter-clockwise as seen on the
      screen, the lowest first, with one or more points.

    Raises:
      ValueError: the mask is not a boolean array [H, W] with pixels, epsilon_ratio is
        negative, or the distance is unknown.

    Source: `find_polygons` of the SimpleSeg repository (arXiv 2601.19228) with OpenCV: Suzuki
      and Abe 1985, Douglas and Peucker 1973.
    """
    if not epsilon_ratio >= 0:
        raise ValueError(
            f"simpleseg_tracing.trace: expected epsilon_ratio >= 0, got {epsilon_ratio}; do: give "
            "0.001, as the script has it"
        )
    if distance not in ("line", "segment"):
        raise ValueError(
            f"simpleseg_tracing.trace: expected distance line or segment, got {distance}; do: pick "
            "one of them"
        )
    segments = distance == "segment"
    size = np.array(contour.require_mask(mask).shape[::-1])
    borders = (_approx_poly(ring, epsilon_ratio, segments) for ring in _outer_borders(mask))
    return [np.round(border / size, decimals) for border in borders]


def _outer_borders(mask: Bool[np.ndarray, "H W"]) -> list[_Points]:
    """Returns the pixels where outer borders turn, the last in reading order first."""
    outer = [ring.astype(np.intp) for ring in contour.trace(contour.fill_holes(mask))]
    outer.sort(key=lambda ring: (ring[0, 1], ring[0, 0]), reverse=True)
    return [_chain_pixels(ring) for ring in outer]


def _chain_pixels(ring: _Points) -> _Points:
    """Returns the pixels inside a ring of corners at which their 8-connected chain turns."""
    after = np.roll(ring, -1, axis=0)
    along = np.sign(after - ring)
    inward = np.stack([-along[:, 1], along[:, 0]], axis=1)
    ends = ring + (inward + along - 1) // 2, after + (inward - along - 1) // 2
    chain = np.stack(ends, axis=1).reshape(-1, 2)
    chain = chain[np.append(True, (chain[1:] != chain[:-1]).any(1))]
    if len(chain) == 1:
        return chain
    if (chain[0] == chain[-1]).all():
        chain = chain[:-1]
    step = np.sign(np.roll(chain, -1, axis=0) - chain)
    chain = chain[(step != np.roll(step, 1, axis=0)).any(1)]
    return np.roll(chain[::-1], 1, axis=0)  # counter-clockwise from the same pixel


def _arc_length(points: _Points) -> float:
    """Returns the length of a closed chain as `arcLength` rounds it: float32 steps, then a sum."""
    step = (points - np.roll(points, 1, axis=0)).astype(np.float32)
    return float(np.cumsum(np.sqrt(step[:, 0] ** 2 + step[:, 1] ** 2), dtype=np.float64)[-1])


def _approx_poly(points: _Points, ratio: float | int, segments: bool) -> _Points:
    """Returns the points that `approxPolyDP` keeps of a closed chain."""
    square = (ratio * _arc_length(points)) ** 2
    count, start, far = len(points), 0, 0
    for _ in range(3):  # finds two points far apart
        start = (start + far) % count
        reach = np.roll(((points - points[start]) ** 2).sum(1), -start)
        far = int(np.argmax(reach))
    if reach[far] <= square:
        return points[start : start + 1]
    rolled = np.roll(points, -start, axis=0)
    rolled = np.concatenate([rolled, rolled[:1]])
    kept, pieces = [], [(far, count), (0, far)]
    while pieces:
        first, last = pieces.pop()
        split = _farthest(rolled[first : last + 1], square, segments)
        if split:
            pieces += [(first + split, last), (first, first + split)]
        else:
            kept.append(rolled[first].tolist())
    return np.array(_drop_straight(kept, square), np.intp)


def _farthest(piece: _Points, square: float, segments: bool) -> int:
    """Returns the index of the point farthest from the chord; 0 where none exceeds epsilon."""
    if len(piece) < 3:
        return 0
    chord, offset = piece[-1] - piece[0], piece[1:-1] - piece[0]
    length = chord @ chord
    distance = (offset[:, 1] * chord[0] - offset[:, 0] * chord[1]) ** 2
    if segments:
        share = offset @ chord
        distance = np.where(share < 0, (offset**2).sum(1) * length, distance)
        beyond = ((piece[1:-1] - piece[-1]) ** 2).sum(1) * length
        distance = np.where(share > length, beyond, distance)
    most = int(np.argmax(distance))
    return most + 1 if distance[most] > square * float(length) else 0


def _drop_straight(points: list[list[int]], square: float) -> list[list[int]]:
    """Returns the points less those near the line between their neighbours.

    As in OpenCV the list is rewritten while it is read, so its last step sees what its first wrote.
    """
    count = left = len(points)
    points = list(points)
    start, middle = points[-1], points[0]
    read, write, step = 1 % count, 0, 0
    while step < count and left > 2:
        end, read = points[read], (read + 1) % count
        dx, dy = end[0] - start[0], end[1] - start[1]
        ax, ay = middle[0] - start[0], middle[1] - start[1]
        onward = ax * (end[0] - middle[0]) + ay * (end[1] - middle[1]) >= 0
        near = float(ax * dy - ay * dx) ** 2 <= 0.5 * square * (dx * dx + dy * dy)
        if near and onward and dx and dy:
            left -= 1
            points[write] = start = end
            middle, read = points[read], (read + 1) % count
            step += 1
        else:
            points[write] = start = middle
            middle = end
        write = (write + 1) % count
        step += 1
    return points[:left]
