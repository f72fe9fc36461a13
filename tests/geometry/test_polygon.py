"""Rings against shapely, and against Douglas-Peucker written out recursively."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from seg_jax.geometry import contour, polygon

SQUARE = np.array([[1.0, 1], [3, 1], [3, 3], [1, 3]])  # clockwise on the screen


def rings(seed, count=60):
    rng = np.random.default_rng(seed)
    for kind in range(count):
        size = int(rng.integers(3, 80))
        angle = np.sort(rng.random(size)) * 2 * np.pi
        ring = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(5, 20, (size, 1))
        ring = np.round(ring) if kind % 3 == 0 else ring
        yield ring[::-1].copy() if kind % 2 else ring


def distances(points, begin, end):
    """Returns how far points lie from a segment."""
    line = shapely.linestrings([begin, end]) if (begin != end).any() else shapely.points(begin)
    return shapely.distance(shapely.points(points), line)


def peucker(points, epsilon):
    """Returns an open line simplified, without its last point (slow and obvious)."""
    if len(points) > 2:
        away = distances(points[1:-1], points[0], points[-1])
        split = 1 + int(np.argmax(away))
        if away[split - 1] > epsilon:
            return peucker(points[: split + 1], epsilon) + peucker(points[split:], epsilon)
    return [points[0].tolist()]


def test_area_direction_and_length():
    assert polygon.signed_area(SQUARE) == 4
    assert polygon.signed_area(SQUARE[::-1]) == -4
    assert polygon.is_clockwise(SQUARE)
    assert not polygon.is_clockwise(SQUARE[::-1])
    assert polygon.arc_length(SQUARE) == 8
    assert polygon.signed_area(SQUARE[:2]) == polygon.signed_area(SQUARE[:0]) == 0
    assert polygon.arc_length(SQUARE[:0]) == polygon.arc_length(SQUARE[:1]) == 0
    assert polygon.arc_length(SQUARE[:2]) == 4
    for ring in rings(0):
        shape = shapely.LinearRing(ring)
        np.testing.assert_allclose(polygon.arc_length(ring), shape.length)
        # With y up the same numbers run the other way round.
        assert not shape.is_simple or polygon.is_clockwise(ring) == shape.is_ccw
        if shape.is_simple:
            area = shapely.Polygon(ring).area
            np.testing.assert_allclose(abs(polygon.signed_area(ring)), area)


@given(st.integers(0, 1000), st.integers(0, 100), st.booleans(), st.booleans())
def test_canonical_forgets_start_and_direction(seed, turn, mirrored, clockwise):
    ring = next(rings(seed, 1))
    other = np.roll(ring[::-1] if mirrored else ring, turn, axis=0)
    got = polygon.canonical(ring, clockwise=clockwise)
    np.testing.assert_array_equal(got, polygon.canonical(other, clockwise=clockwise))
    assert got[0].tolist() == min(ring.tolist(), key=lambda p: (p[1], p[0]))
    assert sorted(got.tolist()) == sorted(ring.tolist())
    if polygon.signed_area(ring):
        assert polygon.is_clockwise(got) == clockwise


def test_canonical_square():
    assert polygon.canonical(SQUARE[[2, 1, 0, 3]]).tolist() == SQUARE.tolist()
    assert polygon.canonical(SQUARE, clockwise=False).tolist() == SQUARE[[0, 3, 2, 1]].tolist()
    assert polygon.canonical(SQUARE[:0]).shape == (0, 2)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 6.0])
def test_simplify_is_douglas_peucker_between_far_vertices(epsilon):
    for index, ring in enumerate(rings(1)):
        first = np.argmax(np.hypot(*(ring - (ring.min(0) + ring.max(0)) / 2).T))
        rolled = np.roll(ring, -first, 0)
        far = int(np.argmax(np.hypot(*(rolled - rolled[0]).T)))
        closed = np.concatenate([rolled, rolled[:1]])
        expected = peucker(closed[: far + 1], epsilon) + peucker(closed[far:], epsilon)
        got = polygon.simplify(ring, epsilon)
        if len(expected) < 3:
            assert len(got) == 3
            continue
        start = got.tolist().index(expected[0])
        if index % 3:  # whole numbers tie
            assert np.roll(got, -start, 0).tolist() == expected
        clear = shapely.distance(shapely.points(ring), shapely.LinearRing(got))
        assert clear.max() <= epsilon + 1e-9


def test_simplify_keeps_three_and_drops_straight_lines():
    assert len(polygon.simplify(SQUARE, 100.0)) == 3
    dense = np.array([[0.0, 0], [1, 0], [2, 0], [2, 2], [0, 2], [0, 1]])
    assert polygon.simplify(dense, 0.0).tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert polygon.simplify_to(dense, 6).tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    for few in (SQUARE[:3], SQUARE[:1], SQUARE[:0]):
        assert polygon.simplify(few, 1.0).tolist() == few.tolist()
        assert polygon.simplify_to(few, 3).tolist() == few.tolist()
    spot = np.ones((7, 2))
    assert polygon.simplify(spot, 1.0).tolist() == spot[:3].tolist()
    assert polygon.simplify_to(spot, 5).tolist() == spot[:3].tolist()
    line = np.stack([np.arange(9.0), np.zeros(9)], 1)
    assert len(polygon.simplify_to(line, 5)) == 3
    with pytest.raises(ValueError, match="expected max_points >= 3, got 2"):
        polygon.simplify_to(SQUARE, 2)


@pytest.mark.parametrize("budget", [3, 8, 16])
def test_simplify_to_takes_the_smallest_epsilon_that_fits(budget):
    for index, ring in enumerate(rings(2)):
        got = polygon.simplify_to(ring, budget)
        assert len(got) <= budget
        assert {*map(tuple, got.tolist())} <= {*map(tuple, ring.tolist())}
        if index % 3 == 0 or len(ring) <= budget:  # whole numbers tie
            continue
        assert len(got) == budget
        low, high = 0.0, 100.0  # too fine, coarse enough
        for _ in range(30):
            middle = (low + high) / 2
            fits = len(polygon.simplify(ring, middle)) <= budget
            low, high = (low, middle) if fits else (middle, high)
        coarse = {*map(tuple, polygon.simplify(ring, high).tolist())}
        assert coarse <= {*map(tuple, got.tolist())}


def test_simplified_ring_does_not_depend_on_its_start():
    rows, columns = np.indices((64, 64))
    (ring,) = contour.trace((columns - 30) ** 2 + 2 * (rows - 33) ** 2 < 24**2)
    for turn in (1, 17, 40):
        other = np.roll(ring, turn, 0)
        for cut in (lambda r: polygon.simplify(r, 1), lambda r: polygon.simplify_to(r, 9)):
            np.testing.assert_array_equal(
                polygon.canonical(cut(ring)), polygon.canonical(cut(other))
            )


def test_clip_is_the_intersection():
    box = shapely.box(-6, -4, 8, 7)
    for ring in rings(3):
        got = polygon.clip(ring, (-6.0, -4.0, 8.0, 7.0))
        shape = shapely.Polygon(ring)
        if not shape.is_valid:
            continue
        expected = shape.intersection(box).area
        np.testing.assert_allclose(abs(polygon.signed_area(got)), expected, atol=1e-9)
        assert got[:, 0].min() >= -6
        assert got[:, 1].max() <= 7


def test_clip_to_unit():
    inside = np.array([[0.1, 0.1], [0.9, 0.2], [0.5, 0.8]])
    assert polygon.clip(inside).tolist() == inside.tolist()
    assert polygon.clip(inside + 5).shape == (0, 2)
    assert polygon.clip(inside[:0]).shape == (0, 2)
    corner = polygon.clip(np.array([[-1.0, -1], [0.5, -1], [0.5, 0.5], [-1, 0.5]]))
    assert polygon.canonical(corner).tolist() == [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vertices_and_epsilon_are_numbers(bad):
    ring = SQUARE.copy()
    ring[2, 1] = bad
    for call in (
        polygon.signed_area,
        polygon.arc_length,
        polygon.canonical,
        polygon.clip,
        lambda ring: polygon.simplify(ring, 1.0),
        lambda ring: polygon.simplify_to(ring, 3),
    ):
        with pytest.raises(
            ValueError, match=rf"finite vertices up to 1e.15, got \[3.0, {bad}\] at 2; do:"
        ):
            call(ring)
    for epsilon in (-1, np.nan):
        with pytest.raises(ValueError, match=f"expected epsilon >= 0, got {epsilon}"):
            polygon.simplify(SQUARE, epsilon)


def test_padded_is_ragged_shapes_in_one_array():
    shapes = [[SQUARE, [0.1, 2, 3, 4, 5, 6]], [], [SQUARE[:3].astype(int)], [[]]]
    points, used = polygon.pad(shapes)
    assert points.shape == (4, 2, 4, 2)
    assert points.dtype == np.float64
    assert used.sum(-1).tolist() == [[4, 3], [0, 0], [3, 0], [0, 0]]
    np.testing.assert_array_equal(points[0, 0], SQUARE)
    np.testing.assert_array_equal(points[0, 1, :3], [[0.1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(points[2, 0, :3], SQUARE[:3])
    assert not points[~used].any()
    wide, flags = polygon.pad(shapes, rings=5, points=9)
    assert wide.shape == (4, 5, 9, 2)
    np.testing.assert_array_equal(wide[flags], points[used])
    assert polygon.pad([])[0].shape == (0, 1, 1, 2)


@pytest.mark.parametrize(
    ("ring", "message"),
    [
        (SQUARE[:, :1], r"numbers \[P, 2\], got float64 \[4, 1\]"),
        ([1.0, 2.0, 3.0], r"numbers \[P, 2\], got float64 \[3\]"),
        (np.array([["a", "b"]]), r"numbers \[P, 2\], got <U1 \[1, 2\]"),
        (SQUARE > 2, r"numbers \[P, 2\], got bool"),
        ([[0, 0], [np.nan, 1]], r"finite vertices up to 1e.15, got \[nan, 1.0\] at 1"),
        ([[0, 0], [1, np.inf]], r"finite vertices up to 1e.15, got \[1.0, inf\] at 1"),
    ],
)
def test_broken_rings_are_not_padded(ring, message):
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        polygon.pad([[SQUARE], [ring]])


@pytest.mark.parametrize("room", [{"points": 3}, {"rings": 1}])
def test_padding_has_room_for_all(room):
    with pytest.raises(
        ValueError, match=r"expected at most . rings of . points, got 2 of 4; do: raise"
    ):
        polygon.pad([[SQUARE, SQUARE]], **room)


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**-20, 2.0**20, 2.0**40])
def test_rings_of_any_scale_are_simplified_and_cut_alike(scale):
    rng = np.random.default_rng(3)
    for _ in range(10):
        ring = rng.random((30, 2)) * 50
        large = ring * scale
        for made, wanted in (
            (polygon.simplify(large, 4 * scale), polygon.simplify(ring, 4)),
            (polygon.simplify_to(large, 9), polygon.simplify_to(ring, 9)),
            (polygon.canonical(large), polygon.canonical(ring)),
            (
                polygon.clip(large, (0.0, 0.0, 25 * scale, 30 * scale)),
                polygon.clip(ring, (0.0, 0.0, 25.0, 30.0)),
            ),
        ):
            np.testing.assert_array_equal(made, wanted * scale)
        assert polygon.signed_area(large) == polygon.signed_area(ring) * scale**2
        assert polygon.arc_length(large) == polygon.arc_length(ring) * scale


def test_one_ring_at_a_time(untyped):
    with pytest.raises(ValueError, match=r"expected a ring \[P, 2\], got \[1, 4, 2\]"):
        polygon.signed_area(SQUARE[None])
