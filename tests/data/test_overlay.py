"""Overlays whose pixels are known."""

import time

import numpy as np
import pytest

from seg_jax.data.exports import overlay

SQUARE = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])
HOLE = np.array([[0.4, 0.4], [0.4, 0.6], [0.5, 0.6], [0.6, 0.6], [0.6, 0.4]])


def scene(height=6, width=8):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return values.astype(np.uint8)


def test_a_known_square_lands_on_its_pixels():
    image = np.full((8, 8, 3), 200, np.uint8)
    got = overlay.draw(image, [SQUARE], colour=(0, 0, 0), opacity=0.5, scale=20)
    assert got.shape == (160, 160, 3)
    assert (got[50:110, 50:110] == 100).all()  # well inside
    assert (got[:30] == 200).all()
    assert (got[:, 130:] == 200).all()
    assert (got[[40, 119, 80, 80], [80, 80, 40, 119]] < 60).all()  # on the outline


def test_the_region_is_exact_by_pixel_centres():
    image = np.full((10, 10, 3), 200, np.uint8)
    inside = overlay._inside([SQUARE * 10], 10, 10)
    want = np.zeros((10, 10), bool)
    want[2:7, 2:7] = True  # centres 2.5 .. 6.5: borders are half open
    np.testing.assert_array_equal(inside, want)
    ring = overlay._inside([SQUARE * 100, HOLE * 100], 100, 100)
    assert ring.sum() == 50 * 50 - 20 * 20
    beyond = overlay._inside([SQUARE * 40 - 15], 10, 10)
    assert beyond.sum() == 100
    assert overlay.draw(image, [], colour=(0, 0, 0), scale=1).tolist() == image.tolist()


def test_holes_stay_unfilled():
    image = np.full((50, 50, 3), 200, np.uint8)
    got = overlay.draw(image, [SQUARE, HOLE], colour=(0, 0, 0), opacity=0.5, scale=4)
    assert (got[95:105, 95:105] == 200).all()
    assert (got[62:70, 62:140] == 100).all()


def test_outlines_are_smooth():
    image = np.full((64, 64, 3), 255, np.uint8)
    line = np.array([[0.1, 0.2], [0.9, 0.5]])
    got = overlay.draw(image, [line], colour=(0, 0, 0), scale=4)
    assert len(np.unique(got[..., 0])) > 30


def test_points_and_boxes():
    image = np.full((100, 100, 3), 200, np.uint8)
    got = overlay.draw(
        image,
        [np.array([[0.2, 0.8]])],
        points_unit=[(0.7, 0.3)],
        boxes_unit=[(0.1, 0.1, 0.5, 0.5)],
        colour=(0, 0, 255),
        scale=5,
    )
    assert (got[150, 350] == 255).all()
    assert (got[400, 100] == 255).all()
    assert got[50, 150].tolist() == [0, 0, 255]
    assert (got[150, 150] == 200).all()  # frames are not filled


def test_absurd_rings_do_no_harm():
    image = scene(20, 30)
    nan = np.array([[np.nan, 0.5], [0.2, np.inf], [0.1, 0.1], [0.6, 0.1], [0.6, 0.6]])
    far = np.array([[-1e300, 0.0], [1e300, 0.5], [0.0, 1e300]])
    rings = [nan, far, np.zeros((0, 2)), np.zeros((5, 2)), SQUARE[:2]]
    before = image.copy()
    assert overlay.draw(image, rings).shape == (320, 480, 3)
    np.testing.assert_array_equal(image, before)


def test_scale():
    assert overlay.draw(scene(64, 64), []).shape == (512, 512, 3)
    assert overlay.draw(scene(600, 700), []).shape == (600, 700, 3)
    assert overlay.draw(scene(100, 4096), []).shape == (50, 2048, 3)
    assert overlay.draw(scene(64, 64), [], scale=0.5).shape == (32, 32, 3)
    for scale in (0, -1, 1e9, float("nan")):
        with pytest.raises(ValueError, match="change scale"):
            overlay.draw(scene(), [], scale=float(scale))


def test_very_many_rings_take_seconds():
    """Of an answer's 25,000 rings, and of a ring of very many long edges, not all is outlined."""
    image = np.full((500, 500, 3), 200, np.uint8)
    corners = np.stack(np.meshgrid(np.arange(160), np.arange(160)), -1).reshape(-1, 1, 2) / 160
    rings = [*(corners + np.array([(0, 0), (0.003, 0), (0.003, 0.003), (0, 0.003)]))]
    zigzag = np.random.default_rng(0).random((50_000, 2))
    begin = time.process_time()
    got = overlay.draw(image, [*rings, SQUARE], colour=(0, 0, 0), scale=2)
    crossed = overlay.draw(image, [zigzag], colour=(0, 0, 0), scale=2)
    assert time.process_time() - begin < 30
    assert (got[[250, 749, 500, 500], [500, 500, 250, 749]] < 60).all()  # the largest has a line
    assert (got[1, 1] < 200).all()  # a small one is filled at least
    assert 0.3 < (crossed < 200).mean() < 0.7
