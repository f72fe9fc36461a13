"""Work is bounded by the picture and the vertices, whatever the coordinates and sizes claim."""

import time
import tracemalloc
import warnings

import numpy as np
import pytest
from pycocotools import mask as coco

from seg_jax.geometry import bitmask, contour, host_raster, polygon, raster, runlengths
from seg_jax.grammar import outline
from seg_jax.records import Kind, Verdict


def peak_bytes(function):
    """Returns the most memory that a call held at once."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def seconds(function):
    """Returns the least processor time of three calls."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


FAR = {
    "wide": [-1e7, -1e7, 1e7, 3, 20, 1e7],
    "steep": [10.3, -1e7, 11.9, 1e7, 60, 3],
    "around": [-9e6, -8e6, 7e6, -8e6, 7e6, 9e6, -9e6, 9e6],
    "beside": [1e7, 0, 1e7 + 5, 9e6, 1e7, 9e6],
    "a needle": [-1e7, 20, 1e7, 20.4, 1e7, 20.9],
}


@pytest.mark.parametrize("name", FAR)
def test_a_polygon_of_far_vertices_costs_what_a_near_one_does(name):
    """Each fifth of a pixel of an edge was walked: 10**7 pixels took gigabytes."""

    def fill():
        return runlengths.fill([FAR[name]], height=48, width=64)

    fill()
    assert peak_bytes(fill) < 2**20
    near = np.clip(np.array(FAR[name]), -5, 70).tolist()
    plain = seconds(lambda: [runlengths.fill([near], height=48, width=64) for _ in range(30)])
    assert seconds(lambda: [fill() for _ in range(30)]) < 20 * plain


@pytest.mark.parametrize("scale", [1.0, 3.0, 40.0, 2000.0, 50_000.0])
def test_far_edges_cross_where_the_coco_api_walks_them(scale):
    rng = np.random.default_rng(int(scale))
    for trial in range(150 if scale < 1000 else 12):
        height, width = (int(n) for n in rng.integers(1, 80, 2))
        middle = [width / 2, height / 2]
        points = (rng.uniform(-0.5, 1.5, (rng.integers(3, 9), 2)) * 64 - middle) * scale + middle
        points = np.round(points, [3, 0, 1][trial % 3])
        rings = [points.ravel().tolist()]
        ours = runlengths.fill(rings, height=height, width=width)
        assert ours == coco.merge(coco.frPyObjects(rings, height, width))


def test_many_crossings_are_worked_out_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    every = [(rng.uniform(-9, 60, (200, 2))).ravel().tolist() for _ in range(5)]
    whole = [runlengths.fill([ring], height=40, width=50) for ring in every]
    monkeypatch.setattr(runlengths, "_AT_ONCE", 64)
    assert [runlengths.fill([ring], height=40, width=50) for ring in every] == whole


def test_dust_of_small_rings_costs_what_its_vertices_do():
    """Each ring was filled by itself, in half a millisecond: a file of 3 MB took a minute."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (50_000, 1, 2)) + rng.uniform(0, 6, (50_000, 3, 2))
    rings = corners.reshape(50_000, 6).round(2).tolist()
    begin = time.process_time()
    found = runlengths.fill(rings, height=48, width=64)
    assert time.process_time() - begin < 8
    some = runlengths.fill(rings[:300], height=48, width=64)
    one_by_one = [runlengths.fill([ring], height=48, width=64) for ring in rings[:300]]
    assert some == runlengths.merge(one_by_one, height=48, width=64)
    assert runlengths.area(found) >= runlengths.area(some) > 0


def test_polygons_that_cross_the_image_beyond_all_measure_are_refused():
    """A million vertices to and fro took 22 s; the limit is of all polygons of a mask together."""
    ring = np.tile([0.0, 3.0, 4000.0, 7.0], 27_000).tolist()
    told = r"expected polygons that cross columns at most 200000000 times, got 2\d{8}; do: "
    with pytest.raises(ValueError, match=told):
        runlengths.fill([ring], height=16, width=4000)
    with pytest.raises(ValueError, match=told):
        runlengths.fill([ring[: len(ring) // 2]] * 2, height=16, width=4000)
    near = [min(number, 20.0) for number in ring]
    assert runlengths.fill([near], height=16, width=4000)["size"] == [16, 4000]


def test_simplifying_grows_with_the_vertices_whatever_they_do():
    """Each split of a zigzag takes one vertex off: the work was the square."""
    step = np.arange(20_000.0)
    ring = np.stack([step, (-1.0) ** step * (len(step) - step)], 1)
    begin = time.process_time()
    assert len(polygon.simplify(ring, 0.3)) > 19_000
    low = polygon.simplify(ring, 40_000.0)
    assert time.process_time() - begin < 6
    assert 3 <= len(low) < 10


def test_thousands_of_rings_are_simplified_as_one_by_one():
    noise = np.random.default_rng(0).random((120, 120)) < 0.6
    rings = [*contour.trace(noise), np.zeros((0, 2)), np.ones((7, 2))]
    for epsilon in (0.0, 0.75, 3.0):
        each = [polygon.simplify(ring, epsilon) for ring in rings[:300]]
        together = polygon.simplify_each(rings, [epsilon] * len(rings))
        assert all(np.array_equal(*pair) for pair in zip(each, together[:300], strict=True))
        assert len(together[-2]) == 0
        assert len(together[-1]) == 3
    begin = time.process_time()
    polygon.simplify_each(rings * 10, [0.75] * 10 * len(rings))
    assert time.process_time() - begin < 1.0 * len(rings) / 300


def test_memory_of_many_vertices_does_not_grow_with_what_they_cross():
    zigzag = np.stack([np.arange(40_000) % 2 * 4000.0, np.linspace(0, 900, 40_000)], 1)
    whole = zigzag.ravel().tolist()
    held = peak_bytes(lambda: runlengths.fill([whole], height=1000, width=4000))
    # 40,000 edges across 4,000 columns each would be 1.3 GB for every number of theirs.
    assert held < 400 * 2**20


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [2**40, 2**40], "counts": [2**80]},
        {"size": [2, 2], "counts": [2**62, 2**62, 2**62, 2**62 + 4]},
        {"size": [2, 2], "counts": [-4, 8]},
        {"size": [2, 2], "counts": [1.5, 2.5]},
        {"size": [2, 2], "counts": [float("nan"), 4]},
        {"size": [2, 2], "counts": [1e999]},
        {"size": [2, 2], "counts": [10**400]},
        {"size": [2, 2], "counts": [[1, 3]]},
        {"size": [2, 2], "counts": [[1], 3]},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": {"a": 1}},
        {"size": [2, 2], "counts": ["x" * 10**6, 4]},
        {"size": [2, 2], "counts": 4},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": "o" * 100_000 + "0"},
        {"size": [2, 2], "counts": "ooooooooooooooooooo0"},
        {"size": [2, 2], "counts": b"\x00"},
        {"size": [2, 2], "counts": ""},
        {"size": [2], "counts": [4]},
        {"size": [2, 2, 1], "counts": [4]},
        {"size": [2.0, 2.0], "counts": [4]},
        {"size": ["2", "2"], "counts": [4]},
        {"size": None, "counts": [4]},
        {"size": 4, "counts": [4]},
        {"size": [0, 5], "counts": []},
        {"size": [-2, -2], "counts": [4]},
        {"counts": [4]},
        {},
    ],
)
@pytest.mark.parametrize("read", [bitmask.from_rle, runlengths.area])
def test_run_lengths_that_claim_too_much_are_one_line(read, rle):
    """top-1: MemoryError, TypeError and OverflowError came through."""
    tried = []

    def try_it():
        with pytest.raises(
            ValueError, match=r"^bitmask[\w.]*: expected .*, got .*; do: "
        ) as caught:
            read(rle)
        tried.append(str(caught.value))

    assert peak_bytes(try_it) < 16 * 2**20
    assert "\n" not in tried[0]
    assert len(tried[0]) < 400


def test_run_lengths_as_large_as_they_may_be():
    side = 2**14
    rle = {"size": [side, side], "counts": [side * side - 1, 1]}
    assert runlengths.area(rle) == 1
    assert runlengths.merge([rle], height=side, width=side)["size"] == [side, side]
    with pytest.raises(ValueError, match="expected an image of 1 to"):
        runlengths.fill([[0, 0, 1, 0, 1, 1]], height=side + 1, width=side)


@pytest.mark.parametrize("rings", ["union", "evenodd"])
def test_rings_of_all_lengths_are_filled_some_at_a_time(monkeypatch, rings):
    rng = np.random.default_rng(1)
    every = [rng.random((n, 2)) for n in (3, 400, 5, 0, 60, 3, 200, 7)]
    options = {"height": 40, "width": 50, "rule": "center", "rings": rings}
    whole = host_raster.fill(every, **options)
    monkeypatch.setattr(host_raster, "_MOST_CELLS", 300)
    assert len(list(host_raster._batches(every))) > 3
    np.testing.assert_array_equal(host_raster.fill(every, **options), whole)


def test_one_long_ring_among_many_does_not_make_all_as_long():
    """A million vertices beside 10,000 small rings were an array of 2**41 bytes."""
    every = [np.zeros((3, 2))] * 10_000 + [np.zeros((1_000_000, 2))]
    cells = [np.prod(host_raster._shape(some)) for some in host_raster._batches(every)]
    assert sum(map(len, host_raster._batches(every))) == len(every)
    assert sum(cells) < 16 * sum(map(len, every))


HUGE = [1e15, 1e30, 3e38, 1e200, 1.7e308, float("inf"), float("nan")]


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("rule", ["coco", "center"])
def test_huge_vertices_fill_or_count_as_unused(value, rule):
    ring = np.array([[0.2, 0.2], [value, 0.2], [0.7, 0.9], [0.2, 0.8]])
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore", over="warn"):
        warnings.simplefilter("error")
        mask = host_raster.fill([ring], height=30, width=40, rule=rule)
        words = raster.fill(
            ring[None] * [40.0, 30.0] if abs(value) < 1e300 else ring[None],
            np.ones((1, 4), bool), height=30, width=40, rule=rule,
        )  # fmt: skip
    assert mask.shape == (30, 40)
    if not np.isfinite(value):  # The triangle of the others.
        rest = host_raster.fill([ring[[0, 2, 3]]], height=30, width=40, rule=rule)
        np.testing.assert_array_equal(mask, rest)
    assert int(bitmask.area(words).sum()) >= 0


@pytest.mark.parametrize("value", [*HUGE[1:], -1e200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measures_of_huge_rings_are_one_line(value, dtype):
    with np.errstate(over="ignore"):
        ring = np.array([[0, 0], [value, 0], [5, 9], [0, 7], [1, 1]]).astype(dtype)
    for measure in (
        polygon.signed_area,
        polygon.arc_length,
        polygon.canonical,
        polygon.clip,
        lambda ring: polygon.simplify(ring, 0.1),
        lambda ring: polygon.simplify_to(ring, 3),
    ):
        with pytest.raises(ValueError, match=r"expected finite vertices up to 1e\+15, got .*; do:"):
            measure(ring)
    for good in (1e15, -1e15):
        ring[1, 0] = good
        assert np.isfinite(polygon.signed_area(ring))
        assert len(polygon.simplify(ring, 0.1)) >= 3
        assert np.isfinite(polygon.clip(ring)).all()


def test_corners_off_the_mask_are_told():
    for bad in ([1e6, 0], [-1, 0], [0, 99], [float("nan"), 0]):
        ring = np.array([[0.0, 0.0], bad, [5.0, 5.0], [0.0, 5.0]])
        with pytest.raises(ValueError, match="expected corners of pixels of 48x64"):
            contour.fill([ring], height=48, width=64)


def test_reading_is_linear_in_the_text():
    """Ten megabytes of a model that does not stop are read once, character by character."""
    rng = np.random.default_rng(0)
    point = ", ".join(f"[{x:.3f}, {y:.3f}]" for x, y in rng.random((5000, 2)))
    for one in (
        point,
        "[" * 80_000,
        "0" * 80_000,
        "a" * 80_000,
        "[[0.1, 0.1], " * 6000,
        "-" * 80_000,
    ):
        short = seconds(lambda one=one: outline.read("[[" + one, Kind.MASK))
        long = seconds(lambda one=one: outline.read("[[" + ", ".join([one] * 10), Kind.MASK))
        assert long < 40 * max(short, 0.002)
    whole = outline.read(f"[[{', '.join([point] * 20)}]]", Kind.MASK)
    assert whole.verdict == Verdict.OK
    assert len(whole.rings[0]) == 100_000


@pytest.mark.parametrize("kind", ["noise", "comb", "checks"])
def test_any_mask_is_traced_in_time_that_grows_with_its_pixels(kind):
    def mask(side):
        rows, columns = np.indices((side, side))
        if kind == "noise":
            return np.random.default_rng(0).random((side, side)) < 0.5
        if kind == "checks":
            return (rows + columns) % 2 == 0
        return (columns % 2 == 0) & (rows < side - columns) | (rows == 0)

    small, large = mask(64), mask(256)
    work = [seconds(lambda m=m: contour.fill_holes(m)) for m in (small, large)]
    assert work[1] < 16 * 10 * max(work[0], 0.001)
    rings = contour.trace(large)
    np.testing.assert_array_equal(contour.fill(rings, height=256, width=256), large)
