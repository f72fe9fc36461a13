"""Vertices as they were written, float64 and decimals, against pycocotools bit for bit (fill-1)."""

import functools
from decimal import ROUND_FLOOR, Decimal

import compilation
import jax
import numpy as np
import pytest
from pycocotools import mask as coco

from seg_jax.geometry import host_raster, overlap, polygon, raster, runlengths, snapping
from seg_jax.kernels import fill as tiles

CANVAS = {"height": 107, "width": 160}
FILL_1 = [(0.0, 0.0), (357.9, 0.0), (0.0, 50.0)]
POINTS = 9


def coco_mask(ring, height, width):
    """Returns what pycocotools draws of a ring in pixels, given its doubles."""
    flat = [np.asarray(ring, np.float64).ravel().tolist()]
    return coco.decode(coco.merge(coco.frPyObjects(flat, height, width))).astype(bool)


def unpack(words, height):
    columns = np.ascontiguousarray(np.asarray(words, "<u4").swapaxes(-1, -2))
    bits = np.unpackbits(columns.view(np.uint8), axis=-1, count=height, bitorder="little")
    return bits.swapaxes(-1, -2).astype(bool)


def drawn(digits, seed, count=1500):
    """Returns rings of so many decimals around a canvas, float64; many on borders of the grid."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.2, 1.2, (count, POINTS, 2)) * [CANVAS["width"], CANVAS["height"]]
    points = np.round(points, digits)
    ties = np.round(np.floor(points) + rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], points.shape), 1)
    return np.where(rng.random(points.shape) < 0.4, ties, points)


def neighbours(points, seed):
    """Returns points moved by up to three of the last bits of float64."""
    rng = np.random.default_rng(seed)
    bits = np.abs(points).view(np.int64) + rng.integers(-3, 4, points.shape)
    return np.copysign(np.maximum(bits, 0).view(np.float64), points)


def cases():
    for digits in (1, 2, 3):
        yield f"{digits} decimals", drawn(digits, digits)
    yield "last bits", neighbours(drawn(1, 4), 5)
    yield "any", drawn(17, 6)


CASES = dict(cases())


def test_the_triangle_of_fill_1_has_as_many_pixels_as_by_pycocotools():
    size = {"height": 427, "width": 640}
    points, used = polygon.pad([[FILL_1]])
    assert unpack(raster.fill(points, used, **size), 427).sum() == 8945
    flat = [x for point in FILL_1 for x in point]
    assert runlengths.area(runlengths.fill([flat], **size)) == 8945
    shrunk = np.array(FILL_1) / [640, 427]
    assert host_raster.fill([shrunk], **size, rule="coco").sum() == 8945


@pytest.mark.parametrize("kind", CASES)
def test_float64_and_what_is_snapped_of_it_fill_as_pycocotools(kind):
    rings = CASES[kind]
    used = np.ones((len(rings), 1, POINTS), bool)
    snapped = snapping.from_float(rings[:, None], "coco")
    plain = unpack(raster.fill(rings[:, None], used, **CANVAS), CANVAS["height"])
    inside = jax.jit(functools.partial(raster.fill, **CANVAS))(snapped, used)
    np.testing.assert_array_equal(unpack(inside, CANVAS["height"]), plain)
    for ring, mask in zip(rings, plain, strict=True):
        assert np.array_equal(mask, coco_mask(ring, **CANVAS)), ring.tolist()


def test_counts_host_and_run_lengths_keep_float64_too():
    rings = CASES["2 decimals"][:300]
    used = np.ones((300, 1, POINTS), bool)
    whole = np.full((1, 4, 160), 2**32 - 1, np.uint32)
    whole[:, 3] = 2**11 - 1  # Rows 96 to 106.
    counts = overlap.polygon_counts(rings[:, None], used, whole, **CANVAS)
    masks = [coco_mask(ring, **CANVAS) for ring in rings]
    np.testing.assert_array_equal(counts.intersection, [mask.sum() for mask in masks])
    for ring, mask in zip(rings[:60], masks, strict=False):
        filled = runlengths.fill([ring.ravel().tolist()], **CANVAS)
        np.testing.assert_array_equal(coco.decode(filled), mask)
        unit = np.clip(ring / [160, 107], 0, 1)
        host = host_raster.fill([unit], **CANVAS, rule="coco")
        np.testing.assert_array_equal(host, coco_mask(unit * [160, 107], **CANVAS))


@pytest.mark.parametrize("rings", ["union", "evenodd"])
@pytest.mark.parametrize("rule", ["coco", "center"])
def test_fills_and_counts_under_x64_are_those_without_and_of_pycocotools(rule, rings):
    single = np.float32(CASES["2 decimals"][:24].reshape(12, 2, POINTS, 2))
    double = CASES["1 decimals"][:24].reshape(12, 2, POINTS, 2)
    used = np.ones((12, 2, POINTS), bool)
    options = {**CANVAS, "rule": rule, "rings": rings}
    expected = [unpack(raster.fill(p, used, **options), 107) for p in (single, double)]
    full = np.full((4, 160), 2**32 - 1, np.uint32)

    def both(points, used):
        counts = overlap.polygon_counts(points, used, full, **options)
        return raster.fill(points, used, **options), counts.intersection

    with jax.enable_x64(True):
        plain = [raster.fill(p, used, **options) for p in (single, double)]
        inside = jax.jit(
            lambda *points: [(both(p, used), jax.vmap(both)(p, used)) for p in points],
            compiler_options=compilation.as_users(),
        )(single, double)
    for mask, alone, pairs in zip(expected, plain, inside, strict=True):
        np.testing.assert_array_equal(unpack(alone, 107), mask)
        for words, area in pairs:
            assert (words.dtype, area.dtype) == (np.uint32, np.int32)
            np.testing.assert_array_equal(unpack(words, 107), mask)
            np.testing.assert_array_equal(area, mask.sum((1, 2)))
    if rule == "coco" and rings == "union":
        for points, masks in zip((single, double), expected, strict=True):
            for pair, mask in zip(points, masks, strict=True):
                each = [coco_mask(ring, **CANVAS) for ring in pair]
                np.testing.assert_array_equal(mask, each[0] | each[1])


def test_the_kernel_for_tpus_fills_float64_as_pycocotools():
    rings = CASES["2 decimals"][:40, None]
    used = np.ones(rings.shape[:-1], bool)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def on_tpu(snapped, used):
        shapes = raster._shapes(raster._steps(snapped, "coco"), used, "union")
        edges, rows = raster._edges(shapes, raster._RULES["coco"], **CANVAS)
        return tiles.fill(edges, *rows, **CANVAS, interpret=True)

    words = on_tpu(snapping.from_float(rings, "coco"), used)
    for ring, mask in zip(rings[:, 0], unpack(words, CANVAS["height"]), strict=True):
        assert np.array_equal(mask, coco_mask(ring, **CANVAS)), ring.tolist()


def test_float64_is_snapped_alike_on_the_host_and_on_devices():
    given = np.stack(list(CASES.values()))
    with jax.enable_x64(True):
        traced = jax.jit(
            lambda points: [snapping.from_float(points, rule).steps for rule in ("coco", "center")],
            compiler_options=compilation.as_users(),
        )(given)
    doubles = np.clip(given, *raster.REACH_PX)
    wanted = np.trunc(5 * doubles + 0.5), np.floor(256 * doubles + 0.5)
    for steps, rule, each in zip(traced, ("coco", "center"), wanted, strict=True):
        np.testing.assert_array_equal(steps, each)
        np.testing.assert_array_equal(snapping.from_float(given, rule).steps, each)


def test_float32_is_snapped_as_its_doubles():
    rng = np.random.default_rng(10)
    near = np.round(rng.uniform(*raster.REACH_PX, (2000, 5, 2)) * 10) / 10
    given = np.concatenate([near, near / 16, near * 2.0**-20, rng.normal(size=near.shape)])
    given = np.float32(given)
    given = np.concatenate([given, np.nextafter(given, np.float32(0)), given * 0, given * 1e6])
    doubles = np.clip(given.astype(np.float64), *raster.REACH_PX)
    steps = [np.asarray(snapping.from_float(given, rule).steps) for rule in ("coco", "center")]
    np.testing.assert_array_equal(steps[0], np.trunc(5 * doubles + 0.5))
    np.testing.assert_array_equal(steps[1], np.floor(256 * doubles + 0.5))


def test_vertices_that_are_not_finite_are_unknown_in_every_precision():
    points = np.array([[[1.4, 2.0], [np.nan, 2.0], [3.0, np.inf], [-np.inf, 1e30]]])
    steps = [snapping.from_float(p, "coco").steps for p in (points, np.float32(points))]
    for each in steps:
        assert np.asarray(each).tolist() == [[[7, 10], *[[snapping.UNKNOWN] * 2] * 3]]


def every_tie(side):
    """Returns the millionths whose products with a side lie halfway between two fifths."""
    step = 100_000 // np.gcd(100_000, side)
    whole = np.arange(step, 10**6 + 1, step, dtype=np.int64)
    return whole[whole * side // 100_000 % 2 == 1]


def doubles(whole, side):
    """Returns what float64 makes of decimals, as C does."""
    return np.trunc(5 * (whole / 10**6 * side) + 0.5).astype(np.int64)


decimal_steps = jax.jit(snapping.from_decimals, static_argnums=2)


def steps_of_decimals(whole, side, rule="coco"):
    """Returns the grid steps of fractions of sides, many at once."""
    unit = np.float32(whole) / np.float32(10**6)
    points = np.stack([unit, unit], -1)[:, None, None]
    width = np.broadcast_to(np.asarray(side, np.int32), whole.shape)
    size = np.stack([np.full_like(width, 7), width], -1)
    return np.asarray(decimal_steps(points, size, rule).steps)[:, 0, 0, 0]


def test_every_tie_of_six_decimals_and_any_side_falls_as_in_float64():
    ties = [(every_tie(side), side) for side in range(1, raster.MAX_SIDE + 1)]
    whole = np.concatenate([each for each, _ in ties])
    side = np.concatenate([np.full(len(each), side) for each, side in ties])
    wanted = doubles(whole, side)
    exact = (whole * side + 100_000) // 200_000
    assert len(whole) == 256_800
    assert 20_000 < (exact - wanted).sum() < 22_000  # They do not all round up.
    np.testing.assert_array_equal(steps_of_decimals(whole, side), wanted)


def test_decimals_are_snapped_as_in_float64():
    rng = np.random.default_rng(8)
    whole = rng.integers(0, 10**6 + 1, 400_000)
    whole[::2] = whole[::2] // 1000 * 1000
    side = rng.integers(1, raster.MAX_SIDE + 1, len(whole))
    np.testing.assert_array_equal(steps_of_decimals(whole, side), doubles(whole, side))
    subpixels = np.floor(256 * (whole / 10**6 * side) + 0.5)
    np.testing.assert_array_equal(steps_of_decimals(whole, side, "center"), subpixels)
    for k, w, got in zip(whole[:200].tolist(), side[:200].tolist(), subpixels, strict=False):
        exact = Decimal(k) * w * 256 / 10**6 + Decimal("0.5")
        assert exact.to_integral_value(ROUND_FLOOR) == got


def test_the_pixel_of_a_decimal_is_exact():
    side = np.repeat(np.arange(1, raster.MAX_SIDE + 1), 50)
    column = np.random.default_rng(9).integers(0, side + 1)
    # Where a product is whole, the least error would name its neighbour.
    whole = np.where(10**6 % side == 0, column * (10**6 // side), column * 10**6 // side)
    unit = np.float32(whole) / np.float32(10**6)
    points = np.stack([unit, unit], -1)[:, None, None]
    size = np.stack([side, side], -1).astype(np.int32)
    got = np.asarray(snapping.pixels_of_decimals(points, size))[:, 0, 0]
    np.testing.assert_array_equal(got[:, 0], whole * side // 10**6)
    np.testing.assert_array_equal(got[:, 1], whole * side // 10**6)


@pytest.mark.parametrize("digits", [1, 2, 3, 6])
def test_decimals_on_the_device_fill_as_pycocotools(digits):
    rng = np.random.default_rng(digits)
    whole = rng.integers(0, 10**digits + 1, (600, 1, POINTS, 2))
    size = rng.choice([40, 50, 64, 100, 125, 127, 160], (600, 2))
    used = np.ones(whole.shape[:-1], bool)

    @functools.partial(jax.jit, compiler_options=compilation.as_users())
    def route(unit, size, used):
        return raster.fill(snapping.from_decimals(unit, size, "coco"), used, height=160, width=160)

    unit = np.float32(whole) / np.float32(10**digits)
    masks = unpack(route(unit, size, used), 160)
    for ring, (height, width), mask in zip(whole[:, 0], size.tolist(), masks, strict=True):
        points = ring / 10**digits * [width, height]
        assert np.array_equal(mask[:height, :width], coco_mask(points, height, width)), ring
