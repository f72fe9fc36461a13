"""Overlaps against plain numpy and pycocotools."""

import jax
import numpy as np
from pycocotools import mask as coco

from seg_jax.geometry import bitmask, overlap


def pairs():
    rng = np.random.default_rng(0)
    a = rng.random((40, 45, 37)) < rng.random((40, 1, 1))
    b = rng.random((40, 45, 37)) < rng.random((40, 1, 1))
    a[:2] = b[1:3] = False
    return a, b


def test_masks():
    a, b = pairs()
    words = bitmask.pack(a), bitmask.pack(b)
    shared, covered = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    got = overlap.counts(*words)
    np.testing.assert_array_equal(got.intersection, shared)
    np.testing.assert_array_equal(got.union, covered)
    iou, dice = overlap.iou(*words), overlap.dice(*words)
    assert iou[1] == dice[1] == 1.0  # both empty
    assert iou[0] == iou[2] == dice[0] == 0.0  # one empty
    np.testing.assert_allclose(iou[2:], shared[2:] / covered[2:], rtol=1e-6)
    total = a.sum((1, 2)) + b.sum((1, 2))
    np.testing.assert_allclose(dice[2:], 2 * shared[2:] / total[2:], rtol=1e-6)
    encode = [coco.encode(np.asfortranarray(m.astype(np.uint8))) for m in (a[5], b[5])]
    np.testing.assert_allclose(iou[5], coco.iou(encode[:1], encode[1:], [0])[0, 0], rtol=1e-6)


def test_boxes():
    a = np.float32([[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 1, 3], [3, 3, 1, 1]])
    b = np.float32([[2, 2, 6, 6], [0, 0, 4, 4], [2, 0, 4, 2], [1, 1, 1, 3], [0, 0, 4, 4]])
    np.testing.assert_allclose(overlap.box_iou(a, b), [4 / 28, 1, 0, 0, 0], rtol=1e-6)
    rng = np.random.default_rng(1)
    low, high = rng.random((2, 50, 2)) * 10, 10 + rng.random((2, 50, 2)) * 10
    sides = np.concatenate([low, high - low], -1)  # x y w h
    expected = np.array(
        [coco.iou(sides[0][i : i + 1], sides[1][i : i + 1], [0]) for i in range(50)]
    )
    got = overlap.box_iou(*np.float32(np.concatenate([low, high], -1)))
    np.testing.assert_allclose(got, expected[:, 0, 0], rtol=1e-5)


def test_centroid_distance():
    a, b = np.zeros((2, 5, 40, 40), bool)
    size = np.array([[20, 40]] * 5, np.int32)
    a[0, 0, 0] = b[0, 0, 0] = True  # same place
    a[1, 5, 4] = b[1, 11, 20] = True  # 16 of 40 right, 6 of 20 down
    a[2, 3, 3] = True  # only one
    a[4, 0, 0] = b[4, 19, 39] = True  # from corner to corner
    got = jax.jit(overlap.centroid_distance)(bitmask.pack(a), bitmask.pack(b), size)
    corner = np.hypot(39 / 40, 19 / 20) / np.sqrt(2)
    expected = [0, np.hypot(0.4, 0.3) / np.sqrt(2), 1, 0, corner]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
