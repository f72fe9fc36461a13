"""Measures, simplifies, clips, normalises and pads closed rings (host).

Coordinates are x then y with y pointing down, in any one unit (pixels or fractions), up to 1e15.

Axes here: `Q` vertices that remain of a ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from seg_jax.records import Ring

_Part = Float[np.ndarray, "Q 2"]
_DEEP, _DEEP_WORK = 64, 4_000_000
"""Levels of splits that any ring has, and vertices looked at in further ones: outlines have fewer,
and rings of some thousand vertices may have as many as they will."""
_FARTHEST = 1e15
"""Largest coordinate: squares and areas stay finite, in float32 as well."""


def signed_area(ring: Ring) -> float:
    """Returns the enclosed area, positive where the ring runs clockwise as seen on the screen.

    Raises:
      ValueError: a vertex is not finite.

    Source: shoelace formula; y points down, which turns its usual sign around.
    """
    _check(ring)
    if len(ring) < 3:
        return 0.0
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def is_clockwise(ring: Ring) -> bool:
    """Returns whether the ring runs clockwise as seen on the screen (y down)."""
    return signed_area(ring) > 0


def arc_length(ring: Ring) -> float:
    """Returns the length of the closed ring.

    Raises:
      ValueError: a vertex is not finite.
    """
    _check(ring)
    if not len(ring):
        return 0.0
    step = np.roll(ring, -1, axis=0) - ring
    return float(np.hypot(step[:, 0], step[:, 1]).sum())


def canonical(ring: Ring, *, clockwise: bool = True) -> Ring:
    """Returns the same ring from its topmost vertex, in one direction.

    It starts at the smallest y, of those at the smallest x, and runs clockwise as seen on the
    screen (y down), or counter-clockwise. A ring without area keeps its direction. So a shape has
    one way to be written, however its ring was found.

    Raises:
      ValueError: a vertex is not finite.
    """
    _check(ring)
    if not len(ring):
        return ring
    area = signed_area(ring)
    if area and (area > 0) != clockwise:
        ring = ring[::-1]
    return np.roll(ring, -_topmost(ring), axis=0)


def clip(ring: Ring, box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> _Part:
    """Returns the part of a ring inside a box x0 y0 x1 y1; no vertex where nothing is left.

    Where the box cuts a ring into several parts they stay connected along the border of the box,
    which changes no fill.

    Raises:
      ValueError: a vertex is not finite.

    Source: Sutherland and Hodgman 1974, "Reentrant polygon clipping".
    """
    _check(ring)
    for axis, sign, bound in ((0, 1, box[0]), (1, 1, box[1]), (0, -1, box[2]), (1, -1, box[3])):
        ring = _clip_half(ring, axis, sign, bound)
    return ring


def _clip_half(ring: Ring, axis: int, sign: int, bound: float) -> _Part:
    """Returns the part of a ring where `sign * (coordinate - bound) >= 0`."""
    depth = sign * (ring[:, axis] - bound)
    inside = depth >= 0
    if inside.all():
        return ring
    after = np.roll(np.arange(len(ring)), -1)
    crosses = inside != inside[after]
    share = depth / np.where(crosses, depth - depth[after], 1.0)
    cut = ring + share[:, None] * (ring[after] - ring)
    cut[:, axis] = bound
    both = np.stack([ring, cut], axis=1).reshape(-1, 2)
    return both[np.stack([inside, crosses], axis=1).ravel()]


def simplify(ring: Ring, epsilon: float | int) -> _Part:
    """Returns fewer vertices such that every dropped one lies within epsilon of the new ring.

    A subset of the vertices in their order. At least three stay (if there were as many), even where
    epsilon is larger than the shape. The two anchors are the vertex farthest from the middle of the
    bounding box and the one farthest from that (of equals the topmost, then the leftmost), so the
    result does not depend on where the ring starts.

    Args:
      ring: vertices of a closed ring.
      epsilon: largest distance of a dropped vertex from the segment that replaces it, in the unit
        of the ring; 0 drops only vertices on straight lines.

    Raises:
      ValueError: epsilon is negative, or a vertex is not finite.

    Source: Douglas and Peucker 1973; distances to segments rather than lines.
    Differs: where splits of a ring go far deeper than any outline's do, pieces are halved, which
      keeps the promise with a few vertices more: the work is n log n, not the square.
    """
    return simplify_each([ring], [epsilon])[0]


def simplify_each(rings: Sequence[Ring], epsilons: Sequence[float | int]) -> list[_Part]:
    """Returns rings as `simplify` thins out each; of thousands in the time of a long one.

    Args:
      rings: closed rings.
      epsilons: one of each ring.

    Raises:
      ValueError: an epsilon is negative, or a vertex is not finite.
    """
    for epsilon in epsilons:
        if not epsilon >= 0:
            raise ValueError(
                f"polygon.simplify: expected epsilon >= 0, got {epsilon}; do: give 0 to keep the "
                "shape"
            )
    for ring in rings:
        _check(ring)
    found = [*rings]
    long = [place for place, ring in enumerate(rings) if len(ring) > 3]
    weights = _significances([rings[i] for i in long], [epsilons[i] for i in long])
    kept = {place: weight > epsilons[place] for place, weight in zip(long, weights, strict=True)}
    few = [place for place in long if np.count_nonzero(kept[place]) < 3]
    exact = _significances([rings[i] for i in few], [0.0] * len(few))
    for place in long:
        found[place] = rings[place][kept[place]]
    for place, weight in zip(few, exact, strict=True):
        found[place] = _heaviest(rings[place], weight, 3)
    return found


def simplify_to(ring: Ring, max_points: int) -> _Part:
    """Returns the simplification with the smallest epsilon that keeps at most `max_points`.

    Of vertices that matter equally the topmost (then leftmost) stay, as many as fit; vertices on
    straight lines always go (`simplify` with epsilon 0).

    Raises:
      ValueError: max_points is less than three, or a vertex is not finite.
    """
    if max_points < 3:
        raise ValueError(
            f"polygon.simplify_to: expected max_points >= 3, got {max_points}; do: give 3 or more"
        )
    _check(ring)
    if len(ring) <= 3:
        return ring
    return _heaviest(ring, _significances([ring], [0.0])[0], max_points)


def _heaviest(ring: Ring, weight: Float[np.ndarray, " P"], most: int) -> _Part:
    """Returns at most so many vertices that matter most, three at least."""
    wanted = min(most, max(3, np.count_nonzero(weight)))
    ranked = np.lexsort((ring[:, 0], ring[:, 1], -weight))
    return ring[np.sort(ranked[:wanted])]


def pad(
    shapes: Sequence[Sequence[Any]], *, rings: int | None = None, points: int | None = None
) -> tuple[Float64[np.ndarray, "N R P 2"], Bool[np.ndarray, "N R P"]]:
    """Returns shapes as arrays of one size, and which vertices are no padding: see `raster.fill`.

    It takes them as they are; before they go into a jit of yours, `snapping.from_float` keeps
    what float32 would lose.

    Args:
      shapes: for each its rings, [P, 2] or flat as in COCO's files (x0, y0, x1, y1, ..).
      rings: R; by default the most that any shape has, at least 1.
      points: P; by default the most that any ring has, at least 1.

    Raises:
      ValueError: a ring is no list of finite numbers x and y, or there are more rings or vertices
        than room.
    """
    flat = [[_vertices(ring) for ring in shape] for shape in shapes]
    most = max([1, *(len(shape) for shape in flat)])
    longest = max([1, *(len(ring) for shape in flat for ring in shape)])
    room = most if rings is None else rings, longest if points is None else points
    if room[0] < most or room[1] < longest:
        raise ValueError(
            f"polygon.pad: expected at most {room[0]} rings of {room[1]} points, got {most} of "
            f"{longest}; do: raise rings and points, or thin out with simplify_to"
        )
    out = np.zeros((len(flat), *room, 2), np.float64)
    used = np.zeros(out.shape[:-1], bool)
    for row, flags, shape in zip(out, used, flat, strict=True):
        for number, ring in enumerate(shape):
            row[number, : len(ring)], flags[number, : len(ring)] = ring, True
    return out, used


def _vertices(ring: Any) -> Float64[np.ndarray, "_ 2"]:
    """Returns a ring as float64 vertices."""
    given = np.asarray(ring)
    if given.ndim == 1 and given.size % 2 == 0:
        given = given.reshape(-1, 2)
    if given.ndim != 2 or given.shape[1] != 2 or given.dtype.kind not in "fiu":
        raise ValueError(
            f"polygon: expected a ring of numbers [P, 2], got {given.dtype} {list(given.shape)}; "
            "do: give a list of rings for every shape"
        )
    given = given.astype(np.float64)
    _check(given)
    return given


def _check(ring: Ring) -> None:
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError(
            f"polygon: expected a ring [P, 2], got {list(ring.shape)}; do: give one ring at a time"
        )
    near = np.abs(ring) <= _FARTHEST
    if not near.all():
        bad = int(np.argmin(near.all(1)))
        raise ValueError(
            f"polygon: expected finite vertices up to {_FARTHEST:g}, got {ring[bad].tolist()} at "
            f"{bad}; do: drop the ring first"
        )


def _topmost(ring: Ring) -> int:
    """Returns the index of the vertex with the smallest y, then the smallest x."""
    highest = np.flatnonzero(ring[:, 1] == ring[:, 1].min())
    return int(highest[np.argmin(ring[highest, 0])])


def _significances(
    rings: Sequence[Ring], floors: Sequence[float | int]
) -> list[Float[np.ndarray, " P"]]:
    """Returns for every vertex of rings the epsilon below which Douglas-Peucker keeps it.

    Both anchors of a ring are infinite. All open pieces of all rings are split at once, level by
    level, at their vertex farthest from the chord; it matters no more than the split that it came
    out of. Pieces whose vertices all lie within the floor of their ring are not opened: their
    vertices are 0.
    """
    if not rings:
        return []
    points = np.concatenate(rings)
    count = np.array([len(ring) for ring in rings])
    begin = np.cumsum(count) - count
    lows, highs = np.minimum.reduceat(points, begin), np.maximum.reduceat(points, begin)
    start = _farthest(points, (lows + highs) / 2, count)
    far = _farthest(points, points[start], count)
    weight = np.zeros(len(points))
    weight[start] = weight[far] = np.inf
    # Each ring from its first anchor on, which comes once more at its end.
    ring = np.repeat(np.arange(len(count)), count + 1)
    head = np.cumsum(count + 1) - count - 1
    step = np.arange(len(ring)) - head[ring]
    source = begin[ring] + ((start - begin)[ring] + step) % count[ring]
    middle = head + (far - start) % count
    two = start != far
    first = np.stack([head, middle], 1)[two].ravel()
    last = np.stack([middle, head + count], 1)[two].ravel()
    pieces = _Pieces(first, last, np.full(first.size, np.inf))
    rolled, floor = points[source], np.asarray(floors, np.float64)[ring]
    deepest = (_DEEP + _DEEP_WORK // count)[ring]
    level = 0
    while pieces.first.size:
        pieces, split, value = _split_pieces(rolled, pieces, floor, deepest <= level)
        weight[source[split]] = value
        level += 1
    return np.split(weight, begin[1:])


def _farthest(
    points: Float[np.ndarray, "points 2"],
    origins: Float[np.ndarray, "rings 2"],
    count: Int[np.ndarray, " rings"],
) -> Int[np.ndarray, " rings"]:
    """Returns the index of each ring's vertex farthest from a point, of equals the topmost."""
    ring = np.repeat(np.arange(len(count)), count)
    offset = points - origins[ring]
    square = offset[:, 0] ** 2 + offset[:, 1] ** 2
    most = np.maximum.reduceat(square, np.cumsum(count) - count)
    equal = np.flatnonzero(square == most[ring])
    x, y = points[equal].T
    ranked = equal[np.lexsort((x, y, ring[equal]))]
    return ranked[np.searchsorted(ring[ranked], np.arange(len(count)))]


class _Pieces(NamedTuple):
    """Pieces of rings, by their first and last vertex."""

    first: Int[np.ndarray, " pieces"]
    last: Int[np.ndarray, " pieces"]
    limit: Float[np.ndarray, " pieces"]
    """The most that a vertex within may matter."""


def _split_pieces(rolled, pieces, floor, halved):
    """Returns the halves of all pieces that open, with the split vertices and their weights.

    Args:
      rolled: vertices of all rings.
      pieces: of them.
      floor: of the ring of each vertex.
      halved: whether the ring of each vertex has been split so often that what is split off has to
        be a quarter of the piece at least.
    """
    open_ = pieces.last - pieces.first > 1
    first, last, limit = (field[open_] for field in pieces)
    if not first.size:
        return _Pieces(first, last, limit), first, limit
    size = last - first - 1
    starts = np.cumsum(size) - size
    piece = np.repeat(np.arange(first.size), size)
    index = np.arange(piece.size) + (first + 1 - starts)[piece]
    chord = rolled[last] - rolled[first]
    square = np.maximum(chord[:, 0] ** 2 + chord[:, 1] ** 2, np.finfo(np.float64).tiny)
    dx, dy = (rolled[index] - rolled[first][piece]).T
    cx, cy = chord[piece].T
    share = np.clip((dx * cx + dy * cy) / square[piece], 0.0, 1.0)
    distance = np.hypot(dx - share * cx, dy - share * cy)
    most = np.maximum.reduceat(distance, starts)
    hits = np.flatnonzero(distance == most[piece])
    winner = index[hits[np.searchsorted(hits, starts)]]
    quarter = np.where(halved[first], np.maximum((last - first) // 4, 1), 1)
    winner = np.clip(winner, first + quarter, last - quarter)
    value = np.minimum(most, limit)
    goes = value > floor[first]
    first, last, winner, value = first[goes], last[goes], winner[goes], value[goes]
    halves = np.concatenate([first, winner]), np.concatenate([winner, last])
    return _Pieces(*halves, np.concatenate([value, value])), winner, value
