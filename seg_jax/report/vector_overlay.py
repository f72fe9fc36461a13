"""Draws outlines, points and boxes as shapes of SVG, which lie over an image in a page (host)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from seg_jax.data.exports import overlay
from seg_jax.data.image_files import Rings
from seg_jax.geometry import boxes

_SIDE = 1000.0
"""Longer side of the coordinates that shapes are written in; a tenth of one is kept."""
_MOST_DOTS = 100
"""Vertices that have dots; of more the outline alone is seen."""


def shapes(
    size: tuple[int, int],
    rings_unit: Rings,
    *,
    points_unit: Shaped[np.ndarray, "n 2"] | Sequence[tuple[float, float]] = (),
    boxes_unit: Shaped[np.ndarray, "m 4"] | Sequence[tuple[float, float, float, float]] = (),
    colour: tuple[int, int, int],
) -> str:
    """Returns an element `svg` of a region, its outline and vertices, points and boxes.

    The region is what the rings enclose by the even-odd rule. Lines have the same width however
    large the page shows them, with a dark rim that keeps them visible on any ground.

    Args:
      size: height and width of the image, of which only the ratio counts.
      rings_unit: vertices of each ring, (0, 0) the outer corner of the first pixel, (1, 1) that of
        the last. A ring of two vertices is a line, of one a point; vertices that are not finite
        are left out.
      points_unit: x, y of each marker.
      boxes_unit: x0, y0, x1, y1 of each frame.
      colour: red, green, blue, 0..255.
    """
    sides = np.array(size[::-1]) * (_SIDE / max(size))
    rings = [overlay.finite(ring) * sides for ring in rings_unit]
    spots = [ring for ring in rings if len(ring) == 1]
    spots += list(overlay.finite(np.reshape(points_unit, (-1, 2)))[:, None] * sides)
    rings = [ring for ring in rings if len(ring) > 1]
    frames = boxes.corners(np.reshape(np.asarray(boxes_unit, np.float64), (-1, 4)))
    outline = "".join(map(_path, [*rings, *(overlay.finite(one) * sides for one in frames)]))
    tone = "rgb({},{},{})".format(*colour)
    line = 'vector-effect="non-scaling-stroke" stroke-linejoin="round" fill="none"'
    parts = [
        f'<path d="{"".join(map(_path, rings))}" fill="{tone}" fill-opacity=".3" '
        'fill-rule="evenodd"/>',
        f'<path d="{outline}" {line} stroke="#101010" stroke-opacity=".6" stroke-width="3.6"/>',
        f'<path d="{outline}" {line} stroke="{tone}" stroke-width="2"/>',
    ]
    vertices = np.concatenate([np.empty((0, 2)), *rings])
    if len(vertices) <= _MOST_DOTS:
        parts += _dots(vertices, tone, 5)
    parts += _dots(np.concatenate([np.empty((0, 2)), *spots]), tone, 10)
    box = f"0 0 {sides[0]:.1f} {sides[1]:.1f}"
    return (
        f'<svg viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'
    )


def _path(ring: np.ndarray) -> str:
    """Returns a closed ring as the data of a path."""
    return f"M{' '.join(f'{x:.1f},{y:.1f}' for x, y in ring.tolist())}z"


def _dots(places: np.ndarray, tone: str, width: int) -> list[str]:
    """Returns places as white dots with a rim: lines without length and with round ends."""
    if not len(places):
        return []
    data = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in places.tolist())
    line = 'vector-effect="non-scaling-stroke" stroke-linecap="round"'
    return [
        f'<path d="{data}" {line} stroke="{tone}" stroke-width="{width}"/>',
        f'<path d="{data}" {line} stroke="#fff" stroke-width="{width / 2}"/>',
    ]
