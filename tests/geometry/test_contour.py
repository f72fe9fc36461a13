"""Borders of masks: they fill back to the mask, and count as scipy-like labels do."""

import inspect

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import example, given, settings
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
    """Returns a random mask with parts, holes, islands and borders at the edge of the image."""
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
    height, width = mask.shape
    np.testing.assert_array_equal(parity(rings, height, width), mask)
    for count in range(len(rings) + 1):
        some = contour.fill(rings[:count], height=height, width=width)
        np.testing.assert_array_equal(some, parity(rings[:count], height, width))
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
def test_rings_are_those_of_opencv_on_a_fine_image(seed):
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


def filled(rings, height, width):
    """Returns the even-odd fill by pixel centres."""
    points = np.zeros((112, 400, 2), np.float32)
    used = np.zeros(points.shape[:2], bool)
    for row, flags, ring in zip(points, used, rings, strict=False):
        row[: len(ring)], flags[: len(ring)] = ring, True
    assert len(rings) <= 112
    words = raster.fill(points, used, height=height, width=width, rule="center", rings="evenodd")
    return bitmask.unpack(words, height=height)


@settings(max_examples=150, deadline=None)
@given(masks, st.booleans())
@example(np.ones((14, 14), bool), True)
@example(np.zeros((14, 14), bool), True)
@example(np.eye(14, dtype=bool), False)
@example(np.indices((14, 14)).sum(0) % 2 == 0, True)
@example(np.indices((14, 14)).sum(0) % 2 == 1, False)
@example(np.ones((1, 9), bool), True)
@example(np.ones((9, 1), bool), True)
@example(np.arange(9)[None] % 2 == 0, True)
@example(np.pad(np.ones((1, 1), bool), 3), False)
def test_simplified_by_nothing_the_raster_gives_the_mask_back(mask, clockwise):
    """Also written from the canonical vertex, in either direction."""
    canvas = np.zeros((14, 14), bool)
    canvas[: mask.shape[0], : mask.shape[1]] = mask
    rings = [
        polygon.canonical(polygon.simplify(ring, 0), clockwise=clockwise)
        for ring in contour.trace(mask)
    ]
    np.testing.assert_array_equal(filled(rings, 14, 14), canvas)


@given(masks)
@example(np.zeros((3, 4), bool))
@example(np.pad(np.pad(np.eye(3, dtype=bool), 1, constant_values=True), 2))
def test_holes_are_filled_as_scipy_fills_them(mask):
    whole = contour.fill_holes(mask)
    np.testing.assert_array_equal(whole, scipy.ndimage.binary_fill_holes(mask))
    assert (whole is mask) == (whole == mask).all()  # Without holes nothing is made.


@given(masks)
@example(np.zeros((3, 4), bool))
def test_the_box_is_tight_and_half_open(mask):
    x0, y0, x1, y1 = contour.box_px(mask)
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    if mask.any():
        assert all(side.any() for side in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))
    else:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)


@pytest.mark.parametrize("moved", [(-1, 0), (0, -1), (1, 0), (0, 1)])
def test_rings_that_leave_the_mask_are_refused(moved):
    ring = np.array([[0, 0], [4, 0], [4, 3], [0, 3]], np.float64)
    assert contour.fill([ring, ring[:0]], height=3, width=4).all()  # At all sides; an empty one.
    low, high = (ring + moved).min(0).tolist(), (ring + moved).max(0).tolist()
    with pytest.raises(ValueError, match="expected corners of pixels of 3x4, got ") as caught:
        contour.fill([ring + moved], height=3, width=4)
    assert f"got {low} to {high}; do: give rings of contour.trace" in str(caught.value)


@given(masks)
def test_other_direction_is_the_same_ring_from_the_same_vertex(mask):
    ours, others = contour.trace(mask), contour.trace(mask, clockwise=False)
    for ring, other in zip(ours, others, strict=True):
        assert polygon.signed_area(ring) == -polygon.signed_area(other) != 0
        np.testing.assert_array_equal(other[0], ring[0])
        np.testing.assert_array_equal(other[1:], ring[:0:-1])


def test_nothing_to_trace():
    assert contour.trace(np.zeros((3, 4), bool)) == []


@pytest.mark.parametrize(
    ("mask", "given"),
    [
        (np.full((3, 4), np.nan), r"got float64 \[3, 4\]"),
        (np.zeros((3, 4), np.uint8), r"got uint8 \[3, 4\]"),
        (np.zeros((2, 3, 4), bool), r"got bool \[2, 3, 4\]"),
        (np.zeros(3, bool), r"got bool \[3\]"),
        (np.zeros((0, 3), bool), r"got bool \[0, 3\]"),
        ([[True]], r"got bool \[1, 1\]"),
    ],
)
def test_what_is_no_mask_is_refused(mask, given):
    bare = inspect.unwrap(contour.require_mask)  # without the type checker, as users call it
    with pytest.raises(ValueError, match=f"^contour: expected a bool mask .* {given}; do: compare"):
        bare(mask)


@pytest.mark.parametrize("least", [-1, np.nan])
def test_least_area_is_a_number(least):
    with pytest.raises(ValueError, match=f"expected min_area >= 0, got {least}"):
        contour.trace(np.ones((2, 2), bool), min_area=least)
