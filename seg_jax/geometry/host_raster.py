"""Fills rings at an image's own resolution as pycocotools does in double precision (host)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from seg_jax.geometry import bitmask, raster, runlengths

Outlines = Sequence[Float[np.ndarray, "_ 2"]]
"""Vertices of each ring; `Ring` itself would tie the lengths of all rings together."""

# Arrays come in few shapes, or every answer would compile a program of its own.
_STEP_PX, _FEWEST_RINGS, _FEWEST_POINTS = 256, 4, 32
_MOST_CELLS = 2**22
"""Vertices that are filled at once, padding counted."""


def fill(
    rings_unit: Outlines,
    *,
    height: int,
    width: int,
    rule: Literal["coco", "center"],
    rings: Literal["union", "evenodd"] = "evenodd",
) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the mask of rings in unit coordinates.

    Under the COCO rule it is that of pycocotools, given the products of fractions and sides in
    double precision, to the pixel.

    Args:
      rings_unit: x then y as fractions of width and height.
      height: of the image in pixels.
      width: of the image in pixels.
      rule: as in `raster.fill`.
      rings: "evenodd", so that a ring within a ring is a hole, or "union".

    Raises:
      ValueError: the image has no pixels; or more than `raster.MAX_SIDE` in a side, where the rule
        is another than COCO's or a vertex is far from the image.
    """
    if rule == "coco" and min(height, width) >= 1:
        sides = [width, height]
        outlines = [ring for ring in rings_unit if len(ring) >= 3]
        with np.errstate(over="ignore"):
            pixels = [np.ravel(np.asarray(ring, np.float64) * sides) for ring in outlines]
        low, high = raster.REACH_PX
        high = max(high, max(height, width) - low)  # No canvas bounds run lengths.
        if all(((ring > low) & (ring < high)).all() for ring in pixels):
            return _of_run_lengths(pixels, height=height, width=width, rings=rings)
    if not 1 <= min(height, width) <= max(height, width) <= raster.MAX_SIDE:
        raise ValueError(
            f"host_raster.fill: expected an image of 1x1 to {raster.MAX_SIDE}x{raster.MAX_SIDE}, "
            f"got {height}x{width}; do: scale it and its masks down"
        )
    mask = np.zeros((height, width), bool)
    for some in _batches(rings_unit):
        part = _fill(some, height=height, width=width, rule=rule, rings=rings)
        mask = mask ^ part if rings == "evenodd" else mask | part
    return mask


def _of_run_lengths(
    rings_px: Sequence[Float[np.ndarray, " _"]],
    *,
    height: int,
    width: int,
    rings: Literal["union", "evenodd"],
) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the same without a program, which would be compiled for every size of images."""
    outlines = [ring.tolist() for ring in rings_px]
    return bitmask.from_rle(runlengths.fill(outlines, height=height, width=width, rings=rings))


def _batches(rings_unit: Outlines) -> Iterator[Outlines]:
    """Yields rings some at a time: in one array each would be as long as the longest."""
    rings = sorted((ring for ring in rings_unit if len(ring)), key=len)
    begin = 0
    for end in range(1, len(rings) + 1):
        if end == len(rings) or np.prod(_shape(rings[begin : end + 1])) > _MOST_CELLS:
            yield rings[begin:end]
            begin = end


def _shape(rings: Outlines) -> tuple[int, int]:
    """Returns the shape of the array for rings of rising length."""
    count, most = len(rings), len(rings[-1])
    return _round_up_to_power(count, _FEWEST_RINGS), _round_up_to_power(most, _FEWEST_POINTS)


def _fill(
    rings_unit: Outlines,
    *,
    height: int,
    width: int,
    rule: Literal["coco", "center"],
    rings: Literal["union", "evenodd"],
) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the mask of rings of rising length, of which there is at least one."""
    shape = _shape(rings_unit)
    points, used = np.zeros((*shape, 2), np.float64), np.zeros(shape, bool)
    for index, ring in enumerate(rings_unit):
        with np.errstate(over="ignore"):  # What becomes infinite counts as unused.
            points[index, : len(ring)] = np.asarray(ring, np.float64) * [width, height]
        used[index, : len(ring)] = True
    canvas = [min(raster.MAX_SIDE, -(-side // _STEP_PX) * _STEP_PX) for side in (height, width)]
    words = raster.fill(points, used, height=canvas[0], width=canvas[1], rule=rule, rings=rings)
    # Bits of a column follow each other once its words do; cheaper here than on a device.
    columns = np.asarray(words).astype("<u4").T.copy().view(np.uint8)
    bits = np.unpackbits(columns[:width], axis=1, count=height, bitorder="little")
    return bits.T.astype(bool)


def _round_up_to_power(count: int, least: int) -> int:
    """Returns the least number from `count` on that is `least` times a power of four."""
    while least < count:
        least *= 4
    return least
