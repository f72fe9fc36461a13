"""Joins the rings of a shape to one ring, for formats that hold one ring an object (host)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from seg_jax.records import Ring

_AT_ONCE = 2**22
"""Pairs of vertices that are compared at once."""


def join_rings(rings: Sequence[Float[np.ndarray, "_ 2"]]) -> Ring:
    """Returns one ring that fills, by the even-odd rule, what all of them fill.

    Each further ring is entered from the vertex nearest to it and left to the same: the two edges
    of such a bridge lie on each other and cancel, so that no pixel changes, whether a ring is
    another part or a hole. The COCO API and OpenCV fill it so.

    Args:
      rings: x, y of each, at least one.

    Raises:
      ValueError: there is no ring.
    """
    if not rings:
        raise ValueError("keyholes.join_rings: expected rings, got none; do: leave the shape out")
    whole = np.asarray(rings[0], np.float64)
    for ring in rings[1:]:
        ring = np.asarray(ring, np.float64)
        here, there = _nearest(whole, ring)
        around = np.concatenate([ring[there:], ring[: there + 1]])
        whole = np.concatenate([whole[: here + 1], around, whole[here:]])
    return whole


def _nearest(one: Float[np.ndarray, "n 2"], other: Float[np.ndarray, "m 2"]) -> tuple[int, int]:
    """Returns the vertices of two rings that are nearest to each other."""
    best, found = np.inf, (0, 0)
    rows = max(1, _AT_ONCE // len(other))
    for begin in range(0, len(one), rows):
        some = one[begin : begin + rows]
        apart = np.square(some[:, None] - other).sum(-1)
        here, there = np.unravel_index(apart.argmin(), apart.shape)
        if apart[here, there] < best:
            best, found = apart[here, there], (begin + int(here), int(there))
    return found
