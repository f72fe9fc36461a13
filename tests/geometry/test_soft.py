"""The soft IoU against the hard one, against finite differences, and as a loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from jax.test_util import check_grads

from seg_jax.geometry import bitmask, overlap, raster

SIZE = {"height": 40, "width": 50}


def polygons(seed, count=6, rings=2, points=7):
    """Returns star-shaped rings on 1/256 px off the middle of pixels, padded with NaN."""
    rng = np.random.default_rng(seed)
    used = np.arange(points) < rng.integers(3, points + 1, (count, rings, 1))
    angle = np.sort(rng.random((count, rings, points)) * 2 * np.pi, -1)
    radius = rng.uniform(5, 17, (count, rings, points))
    centre = rng.uniform(15, 30, (count, rings, 1, 2))
    ring = centre + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    ring = np.round(ring * 128) / 128 + 1 / 256
    return np.where(used[..., None], ring, np.nan), used


filled = jax.jit(functools.partial(raster.fill, **SIZE, rule="center"))


def masks(seed, count=6):
    """Returns packed masks; all are filled in one shape, lest each compiles."""
    points, used = polygons(seed, count)
    padded = np.zeros((6, *points.shape[1:]), np.float32), np.zeros((6, *used.shape[1:]), bool)
    padded[0][:count], padded[1][:count] = points, used
    return np.asarray(filled(*padded))[:count]


def unpacked(words):
    """Returns bool masks of packed ones."""
    bits = words[..., np.arange(40) // 32, :] >> np.arange(40, dtype=np.uint32)[:, None] % 32
    return (bits & 1).astype(bool)


@pytest.mark.parametrize("rings", ["union", "evenodd"])
def test_cold_it_is_the_iou_of_the_centre_rule(rings):
    points, used = polygons(0)
    points = np.float32(points)
    truth = masks(1)
    temperatures = np.array([3.0, 0.3, 0.03, 1e-5], np.float32)

    @jax.jit
    def both(points, used, truth, masks):
        words = raster.fill(points, used, **SIZE, rule="center", rings=rings)
        soft = functools.partial(overlap.soft_iou, points, used, **SIZE, rings=rings)
        cooled = jax.lax.map(lambda t: soft(truth, temperature_px=t), temperatures)
        return overlap.iou(words, truth), cooled, soft(masks, temperature_px=0.3)

    hard, soft, plain = map(np.asarray, both(points, used, truth, unpacked(truth)))
    errors = np.abs(soft - hard).max(1).tolist()
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05
    assert errors[-1] < 1e-6
    np.testing.assert_array_equal(plain, soft[1])


def test_share_is_the_logistic_of_the_distance_to_the_outline():
    points, used = polygons(2, count=4, rings=1)
    y, x = np.mgrid[:40, :50] + 0.5
    truth = unpacked(masks(3, 4))
    soft = jax.jit(functools.partial(overlap.soft_iou, **SIZE, temperature_px=2.0))
    found = soft(np.float32(points), used, truth)
    for ring, flags, mask, got in zip(points[:, 0], used[:, 0], truth, found, strict=True):
        shape = shapely.Polygon(ring[flags])
        depth = shapely.distance(shape.exterior, shapely.points(x, y))
        depth = np.where(shapely.contains_xy(shape, x, y), depth, -depth)
        share = 1 / (1 + np.exp(-depth / 2))
        expected = (share * mask).sum() / (share + mask - share * mask).sum()
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("rings", ["union", "evenodd"])
def test_gradients_are_those_of_finite_differences(rings):
    points, used = polygons(4, count=2)
    truth = masks(5, 2)
    with jax.enable_x64(True):
        points = np.where(used[..., None], points, 0)
        soft = functools.partial(overlap.soft_iou, **SIZE, rings=rings)

        @jax.jit
        def of(points, temperature):
            return soft(points, used, truth, temperature_px=temperature)

        given = points, np.float64(1.5)
        check_grads(of, given, order=1, modes=["rev", "fwd"], eps=1e-6)
        slope = np.asarray(jax.vjp(of, *given)[1](np.ones(2))[0])
        assert np.abs(slope).max((1, 2, 3)).min() > 1e-3
        # Padding has none, and the area that a step adds or takes shows in the sign.
        assert not np.any(slope[~used])


def test_a_polygon_climbs_to_its_mask():
    y, x = np.mgrid[:40, :50] + 0.5
    ellipse = ((x - 29) / 14) ** 2 + ((y - 19) / 9) ** 2 < 1
    angle = np.arange(12) * 2 * np.pi / 12
    ring = np.stack([15 + 5 * np.cos(angle), 26 + 5 * np.sin(angle)], -1)
    used = np.ones((1, 12), bool)

    @jax.jit
    def climbed(points, ellipse):
        mask = bitmask.pack(ellipse)

        def step(state, temperature):
            points, speed = state
            loss = functools.partial(
                overlap.soft_iou, used=used, mask=mask, **SIZE, temperature_px=temperature
            )
            slope = jax.grad(loss)(points)
            speed = 0.8 * speed + slope / (jnp.linalg.norm(slope) + 1e-6)
            return (points + 0.3 * speed, speed), None

        temperatures = np.float32(4.0 * 0.985 ** np.arange(200))
        (after, _), _ = jax.lax.scan(step, (points, 0 * points), temperatures)
        rings, flags = jnp.stack([points, after]), np.ones((2, 1, 12), bool)
        words = raster.fill(rings, flags, **SIZE, rule="center")
        return overlap.iou(words, jnp.stack([mask, mask]))

    before, after = climbed(np.float32(ring[None]), ellipse)
    assert before < 0.05
    assert after > 0.9


def test_broken_and_degenerate_rings_leave_finite_gradients():
    good, flags = polygons(6, count=1, rings=1, points=7)
    points = np.repeat(np.where(flags[..., None], good, 0), 9, 0).astype(np.float32)
    used = np.repeat(flags, 9, 0)
    points[1] = 10.5  # one point, on a pixel's centre
    used[1] = True
    points[2, 0, :, 1] = 10.5  # on a line
    used[3] = False
    used[4, 0, 2:] = False
    points[5, 0, 1] = points[5, 0, 0]  # repeated
    points[6, 0, 1] = np.nan
    points[7, 0, :, 0] = np.inf
    points[8] = 3e4  # far away
    truth = masks(7, 1)[0]

    @jax.jit
    def of(points, used, mask):
        return overlap.soft_iou(points, used, mask, **SIZE)

    one = jax.jit(jax.value_and_grad(of))
    mapped = jax.jit(jax.vmap(jax.value_and_grad(of), (0, 0, None)))
    value, slope = jax.tree.map(np.asarray, mapped(points, used, truth))
    alone, alone_slope = one(points[0], used[0], truth)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(value[0], alone, rtol=1e-6)
    np.testing.assert_allclose(slope[0], alone_slope, rtol=1e-4, atol=1e-8)
    np.testing.assert_array_equal(value[[3, 4, 7]], 0)
    assert not np.any(slope[[3, 4, 7]])
    # A vertex that is not finite counts as unused.
    fewer = used[6].copy()
    fewer[0, 1] = False
    clean = np.nan_to_num(points[6])
    np.testing.assert_allclose(value[6], one(clean, fewer, truth)[0], rtol=1e-6)
    nothing = np.zeros_like(truth)
    assert one(points[3], used[3], nothing)[0] == 1
    assert one(points[0], used[0], nothing)[0] == 0
    empty = np.zeros((3, 0, 7, 2), np.float32), np.zeros((3, 0, 7), bool)
    assert of(*empty, truth).tolist() == [0, 0, 0]


def test_batches_and_padding_change_nothing():
    points, used = polygons(8)
    points = np.float32(np.where(used[..., None], points, 7))
    truth = masks(9)
    soft = jax.jit(functools.partial(overlap.soft_iou, **SIZE))
    expected = np.asarray(soft(points, used, truth))
    two = soft(points.reshape(2, 3, 2, 7, 2), used.reshape(2, 3, 2, 7), truth.reshape(2, 3, 2, 50))
    np.testing.assert_allclose(np.ravel(two), expected, rtol=1e-6)
    wide = np.pad(points, ((0, 0), (0, 1), (0, 3), (0, 0))), np.pad(used, ((0, 0), (0, 1), (0, 3)))
    np.testing.assert_allclose(jax.jit(jax.vmap(soft))(*wide, truth), expected, rtol=1e-6)
    one = np.asarray(soft(points, used, truth[0]))
    np.testing.assert_allclose(one[0], expected[0], rtol=1e-6)


def test_wrong_input_is_refused(untyped):
    points, used = np.zeros((1, 3, 2), np.float32), np.ones((1, 3), bool)
    soft = functools.partial(overlap.soft_iou, **SIZE)
    for mask in (np.zeros((1, 50), np.uint32), np.zeros((40, 50), np.float32), used):
        with pytest.raises(ValueError, match=f"masks of 40x50, got {mask.dtype}"):
            soft(points, used, mask)
    mask = np.zeros((40, 50), bool)
    for wrong in (points.astype(int), points[0], points[:, :2]):
        with pytest.raises(ValueError, match=f"expected float points .* got {wrong.dtype}"):
            soft(wrong, used, mask)
    for cold in (0.0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"expected a temperature above 0, got {cold}"):
            soft(points, used, mask, temperature_px=cold)
    with pytest.raises(ValueError, match="expected a canvas with pixels, got 0x50"):
        overlap.soft_iou(points, used, mask[:0], height=0, width=50)
