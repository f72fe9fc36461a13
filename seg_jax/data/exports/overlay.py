"""Draws outlines, points and boxes over an image (host)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from seg_jax.data.image_files import MAX_PIXELS, RgbImage, Rings
from seg_jax.geometry import boxes
from seg_jax.records import Ring

COLOURS = (
    (0, 190, 140),
    (255, 160, 0),
    (70, 180, 255),
    (240, 120, 190),
    (240, 228, 66),
    (230, 90, 20),
)
"""Green, orange, sky blue, pink, yellow, vermilion: the truth has the first, answers the others.

Source: Okabe and Ito 2008, "Color Universal Design", brightened.
"""

_SMALL_PX, _LARGE_PX = 512, 2048
_DARK = (16, 16, 16)
_OUTLINES, _VERTICES = 300, 5000
"""The most rings, and vertices of all together, that get lines and dots: more may take minutes."""
_EDGES = 1024
"""Edges that are filled at once: each may cross every row."""


def draw(
    image: RgbImage,
    rings_unit: Rings,
    *,
    points_unit: Shaped[np.ndarray, "n 2"] | Sequence[tuple[float, float]] = (),
    boxes_unit: Shaped[np.ndarray, "m 4"] | Sequence[tuple[float, float, float, float]] = (),
    colour: tuple[int, int, int] = COLOURS[0],
    opacity: float = 0.35,
    scale: float | int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image with a region, its outline and vertices, points and boxes drawn over it.

    The region is what the rings enclose by the even-odd rule: a pixel of the result is tinted if
    its centre lies inside. Lines have the same width whatever the scale, with a dark rim
    that keeps them visible on any ground. What lies outside the image is cut off. Of a great many
    rings, as those of noise, only the largest have an outline.

    Args:
      image: the image.
      rings_unit: vertices of each ring, (0, 0) the outer corner of the first pixel, (1, 1) that of
        the last. A ring of two vertices is a line, of one a point; vertices that are not finite
        are left out.
      points_unit: x, y of each marker.
      boxes_unit: x0, y0, x1, y1 of each frame.
      colour: red, green, blue, 0..255.
      opacity: how much of the region's own colour is replaced, 0..1.
      scale: size of the result over that of the image; whole factors repeat pixels. None takes
        the whole factor, at most 16, that brings the longer side to 512 pixels, or the fraction
        that brings it down to 2048.

    Raises:
      ValueError: if the result would have no pixels or too many.
    """
    canvas = resize(image, scale).astype(np.float32)
    height, width = canvas.shape[:2]
    unit_px = np.array([width, height], np.float64)
    rings = [finite(ring) * unit_px for ring in rings_unit]
    points = [point for ring in rings if len(ring) == 1 for point in ring]
    points += list(finite(np.reshape(points_unit, (-1, 2))) * unit_px)
    rings = [ring for ring in rings if len(ring) > 1]
    inside = _inside(rings, height, width)
    canvas[inside] += opacity * (np.array(colour, np.float32) - canvas[inside])
    corners = boxes.corners(np.reshape(np.asarray(boxes_unit, np.float64), (-1, 4)))
    frames = [finite(box) * unit_px for box in corners]
    line = max(2.0, max(height, width) / 180)
    rings = _outlined(rings)
    dots = [(ring, _dot_px(ring, line)) for ring in rings]
    dots += [(np.stack(points), 2 * line)] if points else []
    drawn = _drawing((height, width), rings + frames, dots, line=line, colour=colour)
    canvas += drawn[..., 3:] / np.float32(255) * (drawn[..., :3] - canvas)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def resize(image: RgbImage, scale: float | int | None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image at another size; whole factors repeat pixels, others are smooth."""
    height, width = image.shape[:2]
    longer = max(height, width)
    factor = scale
    if factor is None:
        factor = min(math.ceil(_SMALL_PX / max(longer, 1)), 16)
        factor = _LARGE_PX / longer if longer > _LARGE_PX else factor
    if not (0 < factor < MAX_PIXELS and 1 <= height * width * factor**2 <= MAX_PIXELS):
        raise ValueError(
            f"scale: expected 1 to {MAX_PIXELS} pixels, got {width} x {height} times {factor}; "
            "do: change scale"
        )
    if factor == int(factor):
        return image.repeat(int(factor), axis=0).repeat(int(factor), axis=1)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def finite(ring: Ring) -> Float[np.ndarray, "p 2"]:
    """Returns the finite vertices, none absurdly far outside."""
    ring = np.asarray(ring, np.float64)
    return np.clip(ring[np.isfinite(ring).all(axis=1)], -100, 100)


def _outlined(rings: Rings) -> list[Ring]:
    """Returns the rings to outline, in their order: the largest ones if there are too many."""
    extents = [float(np.ptp(ring, axis=0).sum()) for ring in rings]
    chosen, left = set(), _VERTICES
    for place in sorted(range(len(rings)), key=lambda place: -extents[place])[:_OUTLINES]:
        if len(rings[place]) <= left:
            chosen.add(place)
            left -= len(rings[place])
    return [ring for place, ring in enumerate(rings) if place in chosen]


def _dot_px(ring: Ring, line: float) -> float:
    """Returns the radius of vertex dots, smaller where vertices crowd."""
    step = np.roll(ring, -1, axis=0) - ring
    return min(line, 0.3 * float(np.median(np.hypot(step[:, 0], step[:, 1]))))


def _inside(rings: Rings, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the pixels whose centre lies inside the rings in pixels (even-odd rule).

    Every crossing of an edge with a row's centre line flips all pixels to the right of it.
    """
    flips = np.zeros((height, width + 1), np.uint8)
    ends = [np.roll(ring, -1, axis=0) for ring in rings]
    edges = np.concatenate([np.empty((0, 4)), *map(np.hstack, zip(rings, ends, strict=True))])
    for some in np.split(edges, range(_EDGES, len(edges), _EDGES)):
        x0, y0, x1, y1 = some.T
        top, bottom = np.minimum(y0, y1), np.maximum(y0, y1)
        first = np.clip(np.ceil(top - 0.5), 0, height).astype(int)
        count = np.clip(np.ceil(bottom - 0.5), 0, height).astype(int) - first
        edge = np.repeat(np.arange(len(some)), count)
        row = first[edge] + np.arange(edge.size) - (np.cumsum(count) - count)[edge]
        share = (row + 0.5 - y0[edge]) / (y1 - y0)[edge]
        x = x0[edge] + share * (x1 - x0)[edge]
        np.bitwise_xor.at(flips, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :width].astype(bool)


def _drawing(
    shape: tuple[int, int],
    rings: Rings,
    dots: Sequence[tuple[Ring, float]],
    *,
    line: float,
    colour: tuple[int, int, int],
) -> UInt8[np.ndarray, "H W 4"]:
    """Returns closed lines over a dark rim and white dots in a coloured one, transparent around.

    Args:
      shape: rows and columns.
      rings: vertices in pixels.
      dots: places in pixels with the radius of each of their dots.
      line: width of the lines in pixels.
      colour: of lines and rims.
    """
    # Only programs that draw wait for matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    height, width = shape
    # An inch has one pixel here, and a matplotlib point is a 72nd of it.
    figure = Figure(figsize=(width, height), dpi=1)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    tone = np.array(colour) / 255
    under = [(1.8 * line, np.array(_DARK) / 255, 0.6), (line, tone, 1.0)]
    for size, ink, share in under:
        style = {"linewidths": 72 * size, "joinstyle": "round", "snap": False}
        edge = [(*ink, share)]
        axes.add_collection(PolyCollection(rings, facecolors="none", edgecolors=edge, **style))
    for places, radius in dots:
        # matplotlib centres a mark's edge on its outline.
        (mark,) = axes.plot(*places.T, "o", color="white", markeredgecolor=tone, snap=False)
        mark.set(markersize=72 * 2.8 * radius, markeredgewidth=72 * 0.8 * radius)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
