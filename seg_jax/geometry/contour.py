"""Traces the borders of a mask as rings of pixel corners (host)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from seg_jax.geometry import polygon
from seg_jax.records import Ring

# A lattice vertex sees four pixels; their bits in the vertex code:
_TL, _TR, _BL, _BR = 1, 2, 4, 8
_FALLING = _TL | _BR
# How many corners of rings lie at a vertex, by its code: none where the border runs straight
# or is absent, two where pixels touch only diagonally.
_CORNERS = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0], np.uint8)


def trace(
    mask: Bool[np.ndarray, "H W"], *, min_area: float | int = 0, clockwise: bool = True
) -> list[Ring]:
    """Returns the borders of a mask as closed rings of pixel corners.

    The even-odd fill of all rings by pixel centres gives the mask back, whatever the mask. Rings
    are rectilinear, name only the vertices where they turn, start at their topmost (then leftmost)
    vertex and have integer coordinates in 0..W and 0..H. Outer rings run clockwise as seen on the
    screen (`polygon.signed_area` is positive), holes counter-clockwise (negative), or the other
    way round.

    Pixels that touch only at a corner are connected (8-connectivity; holes are 4-connected): a thin
    diagonal stroke is one ring, which then passes twice through the shared corner.

    Args:
      mask: True inside.
      min_area: rings that enclose fewer square pixels are left out, specks and holes alike;
        `0.001 * mask.size` is a thousandth of the image.
      clockwise: whether outer rings run clockwise as seen on the screen; holes run against them.

    Returns:
      Rings by falling area (of equal ones: the higher, then the more leftward first). A hole comes
      after the ring around it, an island after its hole, so every prefix of the list is a sound
      shape of its own. `polygon.simplify(ring, epsilon)` thins them out; at 0 it changes nothing.

    Raises:
      ValueError: the mask is not a boolean array [H, W] with pixels, or min_area is negative.

    Differs: OpenCV's findContours gives pixel centres, which lose half a pixel on every side.
    """
    if not min_area >= 0:
        raise ValueError(
            f"contour.trace: expected min_area >= 0, got {min_area}; do: give 0 to keep all rings"
        )
    left, top, right, bottom = box_px(require_mask(mask))
    if left == right:
        return []
    x, y, follow = _corners(mask[top:bottom, left:right])
    x, y = x + left, y + top
    order, starts = _cycles(follow)
    x, y = x[order], y[order]
    ends = np.append(starts[1:], x.size)
    nx, ny = np.empty_like(x), np.empty_like(y)
    nx[:-1], ny[:-1] = x[1:], y[1:]
    nx[ends - 1], ny[ends - 1] = x[starts], y[starts]
    area = np.abs(np.add.reduceat(x * ny - nx * y, starts)) / 2
    points = np.stack([x, y], axis=1).astype(np.float64)
    ranked = np.argsort(-area, kind="stable")  # cycles are numbered by their first vertex
    rings = [points[starts[i] : ends[i]] for i in ranked if area[i] >= min_area]
    return rings if clockwise else [np.roll(ring[::-1], 1, axis=0) for ring in rings]


def fill_holes(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Returns the mask with its holes, and whatever lies in them, filled.

    Raises:
      ValueError: the mask is not a boolean array [H, W] with pixels.
    """
    rings = trace(mask)
    outer = [ring.astype(np.intp) for ring in rings if polygon.is_clockwise(ring)]
    if len(outer) == len(rings):
        return mask
    # Corners of alternating sign sum up to how often a pixel lies inside.
    corners = np.concatenate(outer)
    signs = np.concatenate([np.tile([1, -1], len(ring) // 2) for ring in outer])
    inside = np.zeros(np.add(mask.shape, 1), np.intp)
    np.add.at(inside, (corners[:, 1], corners[:, 0]), signs)
    return inside.cumsum(0).cumsum(1)[:-1, :-1] > 0


def box_px(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, " 4"]:
    """Returns the tight half-open box x0 y0 x1 y1 of a mask in pixels; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return np.zeros(4, np.intp)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def fill(
    rings: Sequence[Float[np.ndarray, "_ 2"]], *, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """Returns the mask whose borders are rings of pixel corners, as `trace` gives them.

    It is the even-odd fill by pixel centres, without a device: ones at the vertices, added up
    modulo 2 down the columns and along the rows.

    Args:
      rings: rectilinear, of integer coordinates in 0..W and 0..H: all that `trace` has found, or
        some of them.
      height: rows of the mask.
      width: columns of the mask.

    Raises:
      ValueError: a ring leaves the mask.
    """
    odd = np.zeros((height + 1, width + 1), bool)
    for ring in rings:
        x, y = ring.T
        if len(ring) and not (
            min(x.min(), y.min()) >= 0 and x.max() <= width and y.max() <= height
        ):
            raise ValueError(
                f"contour.fill: expected corners of pixels of {height}x{width}, got "
                f"{ring.min(0).tolist()} to {ring.max(0).tolist()}; do: give rings of contour.trace"
            )
        np.logical_xor.at(odd, (y.astype(np.intp), x.astype(np.intp)), True)
    np.logical_xor.accumulate(odd, axis=0, out=odd)
    return np.logical_xor.accumulate(odd, axis=1)[:height, :width]


def require_mask(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Returns the mask itself after a check of its type and shape.

    Raises:
      ValueError: it is not a boolean array [H, W] with pixels.
    """
    given = np.asarray(mask)
    if given is not mask or given.ndim != 2 or not given.size or given.dtype != bool:
        raise ValueError(
            f"contour: expected a bool mask [H, W] with pixels, got {given.dtype} "
            f"{list(given.shape)}; do: compare a map with a threshold, give one numpy array at a "
            "time"
        )
    return mask


def _corners(
    mask: Bool[np.ndarray, "H W"],
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns x and y of every turn of the border, row by row, with the turn that follows each.

    Along a row of the lattice the turns alternate between the left and the right end of a straight
    piece of border, along a column between top and bottom: so pairing neighbours in either order
    gives the horizontal and the vertical mate of every turn.
    """
    height, width = mask.shape
    pixels = np.zeros((height + 2, width + 2), np.uint8)
    pixels[1:-1, 1:-1] = mask
    pairs = pixels[:, :-1] + _TR * pixels[:, 1:]
    code = pairs[:-1] + _BL * pairs[1:]
    flat = np.flatnonzero(_CORNERS.take(code))
    kind = code.ravel()[flat]
    second = None
    if np.any(saddle := _CORNERS[kind] == 2):
        spot = np.repeat(np.arange(flat.size), 1 + saddle)
        second = np.append(False, spot[1:] == spot[:-1])
        flat, kind = flat[spot], kind[spot]
    y, x = np.divmod(flat, width + 1)
    # At a saddle the first copy ends the piece on the left, the second begins the one on the right.
    # To keep diagonal pixels together a ring turns around the empty ones: where the pixels fall to
    # the right, the left piece meets the lower one; where they rise, the upper one.
    key = (x * (height + 1) + y) * 2
    if second is not None:
        key += second ^ (kind == _FALLING)
    column = np.argsort(key, kind="stable")
    index = np.arange(flat.size)
    vertical = np.empty_like(index)
    vertical[column] = column[index ^ 1]
    # Where a piece has the mask below it, travel goes right.
    rightward = np.repeat((kind[::2] & _BR) != 0, 2)
    leaves_sideways = rightward == (index % 2 == 0)
    return x, y, np.where(leaves_sideways, index ^ 1, vertical)


def _cycles(follow: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " c"]]:
    """Returns the nodes of a permutation cycle by cycle, and where each cycle starts.

    Cycles come by their smallest node and start with it.
    """
    successors = follow.tolist()
    visited = bytearray(len(successors))
    order, starts = [], []
    for first in range(len(successors)):
        if visited[first]:
            continue
        starts.append(len(order))
        node = first
        while not visited[node]:
            visited[node] = 1
            order.append(node)
            node = successors[node]
    return np.array(order, np.intp), np.array(starts, np.intp)
