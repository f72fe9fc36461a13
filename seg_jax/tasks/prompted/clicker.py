"""Writes the box and the clicks that mark a mask, as an annotator would set them (host)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from seg_jax.geometry import contour

NEAR_PEAK = 0.75
"""A click that is drawn lies at least at this share of the largest depth."""


class Clicked(NamedTuple):
    """A box and clicks on and beside what is in it (host)."""

    box_unit: Float[np.ndarray, " 4"]
    """x0 y0 x1 y1, half open."""
    points_unit: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    """1 for a click on the mask, 0 for one beside it; the first is on it."""


def trace(
    mask: Bool[np.ndarray, "H W"],
    *,
    clicks: int,
    rng: np.random.Generator | None = None,
    meant: Bool[np.ndarray, "H W"] | None = None,
) -> Clicked:
    """Returns the tight box of a mask and clicks within it.

    A click lies where the mask is deepest, at the maximum of its distance to what is not the mask;
    the disk around it that lies within the mask is then taken out, and the next click lies where
    the rest is deepest. Of what the box holds beside the mask the deepest places get clicks beside
    it, every third one, as long as there are pixels.

    Args:
      mask: with pixels.
      clicks: at most so many, at least one.
      rng: draws every click from all places that are nearly as deep; None: the deepest.
      meant: mask of all that is meant together, beside which clicks beside lie; None: the mask.

    Raises:
      ValueError: the mask is empty, or no click is asked for.

    Source: the first click is the one of interactive segmentation benchmarks, the maximum of the
      distance transform (Sofiiuk et al. 2021, arXiv 2102.06583).
    """
    if clicks < 1 or not mask.any():
        raise ValueError(
            f"clicker.trace: expected a mask with pixels and a click or more, got "
            f"{int(mask.sum())} pixels and {clicks}; do: leave empty masks out"
        )
    x0, y0, x1, y1 = contour.box_px(mask)
    inside = mask[y0:y1, x0:x1]
    outside = ~inside if meant is None else ~(inside | meant[y0:y1, x0:x1])
    beside = _peaks(outside, clicks // 3, rng)
    on = _peaks(inside, clicks - len(beside), rng)
    spots = np.array(on + beside, np.float64) + np.array([x0 + 0.5, y0 + 0.5])
    size = np.array([mask.shape[1], mask.shape[0]], np.float64)
    return Clicked(
        np.array([x0, y0, x1, y1]) / np.tile(size, 2),
        spots / size,
        np.array([1] * len(on) + [0] * len(beside), np.int64),
    )


def _peaks(
    mask: Bool[np.ndarray, "h w"], count: int, rng: np.random.Generator | None
) -> list[tuple[int, int]]:
    """Returns at most so many pixels x, y where a mask is deepest, each in a part of its own."""
    from scipy import ndimage  # Takes a quarter of a second, which only true answers need to wait.

    if not count or not mask.any():
        return []
    # What lies beyond the box counts as not the mask.
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    found: list[tuple[int, int]] = []
    while len(found) < count and (deepest := depth.max()) > 0:
        near = np.flatnonzero(depth >= (deepest if rng is None else NEAR_PEAK * deepest))
        spot = int(near[0] if rng is None else rng.choice(near))
        row, column = divmod(spot, mask.shape[1])
        found.append((column, row))
        apart = (rows - row) ** 2 + (columns - column) ** 2
        depth[apart <= deepest**2] = 0
    return found
