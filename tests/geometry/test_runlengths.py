"""Holds filled polygons and merged masks to pycocotools, to the byte."""

import numpy as np
import pytest
from pycocotools import mask as coco

from seg_jax.geometry import bitmask, contour, raster, runlengths


def ring(rng, height, width, kind):
    points = rng.uniform(-0.3, 1.3, (rng.integers(3, 12), 2)) * [width, height]
    if kind == "inside":
        points = points.clip(0, [width, height])
    if kind == "whole":
        points = np.round(points)
    if kind == "tenths":
        points = np.round(points, 1)
    if kind == "repeated":
        points = np.repeat(points, 2, axis=0)
    return points.ravel().tolist()


@pytest.mark.parametrize("kind", ["any", "inside", "whole", "tenths", "repeated"])
def test_polygons_fill_as_the_coco_api_fills_them(kind):
    rng = np.random.default_rng(3)
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        rings = [ring(rng, height, width, kind) for _ in range(rng.integers(1, 4))]
        ours = runlengths.fill(rings, height=height, width=width)
        theirs = coco.merge(coco.frPyObjects(rings, height, width))
        assert ours == theirs
        assert runlengths.area(ours) == coco.area(theirs)


def test_it_is_the_fill_of_the_devices():
    rng = np.random.default_rng(4)
    points = rng.uniform(0, 40, (5, 7, 2)).astype(np.float32)
    words = raster.fill(points[:, None], np.ones((5, 1, 7), bool), height=40, width=40)
    for each, mask in zip(points, np.asarray(bitmask.unpack(words, height=40)), strict=True):
        ours = runlengths.fill([each.ravel().tolist()], height=40, width=40)
        np.testing.assert_array_equal(bitmask.from_rle(ours), mask)


def test_rings_holes_of_each_other_as_on_devices():
    rng = np.random.default_rng(6)
    points = rng.uniform(0, 50, (6, 3, 8, 2)).astype(np.float32)
    used = np.ones(points.shape[:-1], bool)
    words = raster.fill(points, used, height=50, width=50, rings="evenodd")
    for each, mask in zip(points, np.asarray(bitmask.unpack(words, height=50)), strict=True):
        rings = [ring.ravel().tolist() for ring in each]
        ours = runlengths.fill(rings, height=50, width=50, rings="evenodd")
        np.testing.assert_array_equal(bitmask.from_rle(ours), mask)


def test_masks_merge_as_the_coco_api_merges_them():
    rng = np.random.default_rng(5)
    for _ in range(100):
        shape = tuple(int(n) for n in rng.integers(1, 30, 2))
        masks = rng.random((int(rng.integers(1, 5)), *shape)) < rng.choice([0.0, 0.1, 0.6, 1.0])
        rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        assert runlengths.merge(rles, height=shape[0], width=shape[1]) == coco.merge(rles)


def test_runs_of_nothing_are_left_out():
    rle = {"size": [2, 3], "counts": [1, 2, 0, 1, 2, 0]}
    merged = runlengths.merge([rle], height=2, width=3)
    assert bitmask.run_lengths(merged).tolist() == [1, 3, 2]


def test_what_encloses_nothing_fills_nothing():
    assert runlengths.area(runlengths.fill([], height=3, width=4)) == 0
    assert runlengths.area(runlengths.fill([[0, 0, 3, 3]], height=3, width=4)) == 0
    assert runlengths.area(runlengths.merge([], height=3, width=4)) == 0


@pytest.mark.parametrize("wrong", [[1.0] * 7, [0, 0, 1, float("nan"), 2, 2], [0, 0, 1e30, 0, 2, 2]])
def test_a_wrong_polygon_is_told(wrong):
    with pytest.raises(ValueError, match="expected .*, got"):
        runlengths.fill([wrong], height=3, width=4)


def test_masks_of_other_images_are_told():
    with pytest.raises(ValueError, match="the image's size, got .* beside 3x4"):
        runlengths.merge([{"size": [4, 3], "counts": [12]}], height=3, width=4)


@pytest.mark.parametrize("size", [None, 5, [-2, -2], "22", {}, [2**40, 2**40]])
@pytest.mark.parametrize("counts", [[4], None, "é"])
def test_run_lengths_of_anything_are_one_line(size, counts):
    """top-1: sizes that are no pair of integers, and counts of another kind."""
    for read in (runlengths.area, lambda rle: runlengths.merge([rle], height=2, width=2)):
        with pytest.raises(ValueError, match="expected .*, got .*; do: "):
            read({"size": size, "counts": counts})


def test_the_box_of_run_lengths_is_that_of_the_mask():
    rng = np.random.default_rng(5)
    for density in (0, 0.001, 0.02, 0.3, 1):
        for _ in range(100):
            mask = rng.random(rng.integers(1, 40, 2)) < density
            box = runlengths.box_px(bitmask.to_rle(mask))
            np.testing.assert_array_equal(box, contour.box_px(mask))
    zeros = {"size": [3, 4], "counts": [2, 0, 3, 1, 6]}
    assert runlengths.box_px(zeros) == (1, 2, 2, 3)
