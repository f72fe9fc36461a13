"""Borders of masks: they fill back to the mask, and count as scipy-like labels do."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from skimage import measure

from seg_jax.geometry import bitmask, contour, polygon, raster


def parity(rings, height, width):
    """Returns the even-odd fill of rectilinear integer rings: each level edge flips all below."""
    flips = np.zeros((height + 1, width), int)
    for ring in rings:
        corners = ring.astype(int)
        assert (corners == ring).all()
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
            assert (x0 == x1) != (y0 == y1)
            if y0 == y1:
                flips[y0, min(x0, x1) : max(x0, x1)] += 1
    return np.cumsum(flips, 0)[:height] % 2 == 1


def blobs(seed, height, width):
    """Returns a random mask with parts, holes, islands and borders at the edge of the picture."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2.5) > np.float32(0.5)


masks = st.builds(
    lambda height, width, seed, density: (
        np.random.default_rng(seed).random((height, width)) < density
    ),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(0, 2**32),
    st.floats(0, 1),
)


@given(masks)
@example(np.eye(5, dtype=bool))
@example(np.eye(6, dtype=bool)[::-1].copy())
@example(np.indices((6, 7)).sum(0) % 2 == 0)
@example(np.ones((1, 1), bool))
def test_rings_fill_back_to_the_mask(mask):
    rings = contour.trace(mask)
    np.testing.assert_array_equal(parity(rings, *mask.shape), mask)
    areas = np.array([polygon.signed_area(ring) for ring in rings])
    assert areas.sum() == mask.sum()
    assert (np.diff(np.abs(areas)) <= 0).all()
    # Pixels hang together over corners, holes only over sides.
    assert (areas > 0).sum() == measure.label(mask, connectivity=2).max()
    outside = np.pad(~mask, 1, constant_values=True)
    assert (areas < 0).sum() == measure.label(outside, connectivity=1).max() - 1
    for ring, area in zip(rings, areas, strict=True):
        np.testing.assert_array_equal(ring, polygon.canonical(ring, clockwise=bool(area > 0)))
        turns = np.roll(ring, -1, 0) - ring
        assert ((turns != 0).sum(1) == 1).all()
        assert ((turns * np.roll(turns, -1, 0)).sum(1) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_rings_fill_back_by_both_rules_of_the_raster(seed):
    mask = blobs(seed, 60, 75)
    mask[10:14, 20:30] = np.indices((4, 10)).sum(0) % 2 == 0
    rings = contour.trace(mask)
    assert any(polygon.signed_area(ring) < 0 for ring in rings)
    points = np.zeros((64, 400, 2), np.float32)
    used = np.zeros((64, 400), bool)
    for row, flags, ring in zip(points, used, rings, strict=False):
        row[: len(ring)], flags[: len(ring)] = ring, True
    for rule in ("center", "coco"):
        words = raster.fill(points, used, height=60, width=75, rule=rule, rings="evenodd")
        np.testing.assert_array_equal(bitmask.unpack(words, height=60), mask)


@pytest.mark.parametrize("seed", range(3))
def test_rings_are_those_of_opencv_on_a_fine_picture(seed):
    """On each pixel blown up to 8x8 the centres of border pixels lie half a fine pixel inside."""
    mask = blobs(seed, 40, 50)
    fine = mask.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    found, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    expected = sorted((cv2.boundingRect(c) for c in found), reverse=True)
    outer = []
    for ring in contour.trace(mask):
        low, high = ring.min(0) * 8, ring.max(0) * 8
        if polygon.signed_area(ring) > 0:
            outer.append((*low.astype(int).tolist(), *(high - low).astype(int).tolist()))
    # Islands within holes are not external to OpenCV.
    assert set(expected) <= set(outer)


def test_order_nesting_and_least_area():
    mask = np.zeros((20, 20), bool)
    mask[2:18, 2:12] = True
    mask[4:16, 4:10] = False  # hole
    mask[6:9, 5:8] = True  # island
    mask[0, 15] = mask[0, 17] = True  # two specks
    rings = contour.trace(mask)
    areas = [polygon.signed_area(ring) for ring in rings]
    assert areas == [160, -72, 9, 1, 1]
    assert rings[0].tolist() == [[2, 2], [12, 2], [12, 18], [2, 18]]
    assert rings[1].tolist() == [[4, 4], [4, 16], [10, 16], [10, 4]]
    assert [ring[0].tolist() for ring in rings[3:]] == [[15, 0], [17, 0]]
    assert len(contour.trace(mask, min_area=1)) == 5
    assert len(contour.trace(mask, min_area=1.5)) == 3
    assert len(contour.trace(mask, min_area=73)) == 1


def test_pixels_that_touch_at_a_corner_share_a_ring():
    (ring,) = contour.trace(np.array([[1, 0], [0, 1]], bool))
    assert ring.tolist() == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [0, 1]]
    (ring,) = contour.trace(np.array([[0, 1], [1, 0]], bool))
    assert ring.tolist() == [[1, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2], [0, 1], [1, 1]]


@pytest.mark.parametrize("shape", [(3, 4), (0, 0), (0, 3)])
def test_nothing_to_trace(shape):
    assert contour.trace(np.zeros(shape, bool)) == []
