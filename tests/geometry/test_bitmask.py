"""Packed masks against plain numpy, run lengths against pycocotools."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from seg_jax.geometry import bitmask

SHAPES = [(1, 1), (31, 5), (32, 7), (33, 64), (100, 41)]


def some_masks(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    density = np.array([0, 1, 0.5, 0.9, 0.02, 0.02])[:, None, None]
    return rng.random((6, height, width)) < density


@pytest.mark.parametrize("shape", SHAPES)
def test_pack_and_unpack(shape):
    masks = some_masks(*shape)
    words = np.asarray(bitmask.pack(masks))
    assert words.shape == (6, -(-shape[0] // 32), shape[1])
    for row in range(shape[0]):
        bit = words[:, row // 32] >> np.uint32(row % 32) & 1
        np.testing.assert_array_equal(bit, masks[:, row])
    np.testing.assert_array_equal(bitmask.unpack(words, height=shape[0]), masks)
    assert not np.any(np.asarray(bitmask.unpack(words, height=32 * words.shape[1]))[:, shape[0] :])


@pytest.mark.parametrize("shape", SHAPES[::2])
def test_measures(shape):
    masks = some_masks(*shape)
    words = bitmask.pack(masks)
    np.testing.assert_array_equal(bitmask.area(words), masks.sum((1, 2)))
    for mask, centroid, box in zip(
        masks, bitmask.centroid_px(words), bitmask.box(words), strict=True
    ):
        rows, columns = np.nonzero(mask)
        if not rows.size:
            assert centroid.tolist() == [0, 0]
            assert box.tolist() == [0, 0, 0, 0]
            continue
        np.testing.assert_allclose(centroid, [columns.mean() + 0.5, rows.mean() + 0.5], rtol=1e-6)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_set_operations():
    a, b = some_masks(33, 20), some_masks(33, 20)[::-1].copy()
    words = bitmask.pack(a), bitmask.pack(b)
    for got, expected in [
        (bitmask.intersection(*words), a & b),
        (bitmask.union(*words), a | b),
        (bitmask.xor(*words), a ^ b),
    ]:
        np.testing.assert_array_equal(bitmask.unpack(got, height=33), expected)


def test_sums_hold_on_the_largest_canvas():
    words = np.full((128, 4096), 0xFFFFFFFF, np.uint32)
    assert int(bitmask.area(words)) == 4096**2
    np.testing.assert_allclose(bitmask.centroid_px(words), [2048, 2048], rtol=1e-6)
    words[:, :4000] = 0
    words[:120] = 0
    np.testing.assert_allclose(bitmask.centroid_px(words), [4048, 3968], rtol=1e-6)


def test_frame():
    size = np.array([[33, 50], [1, 1], [64, 7], [0, 9], [99, 99], [32, 0]], np.int32)
    expected = np.zeros((6, 70, 50), bool)
    for mask, (height, width) in zip(expected, size, strict=True):
        mask[:height, :width] = True
    got = bitmask.frame(size, height=70, width=50)
    np.testing.assert_array_equal(got, bitmask.pack(expected))


def test_any_batch_shape_inside_jit():
    masks = some_masks(33, 20).reshape(2, 3, 33, 20)
    words = jax.jit(bitmask.pack)(masks)
    assert bitmask.area(words).shape == (2, 3)
    assert jax.jit(bitmask.centroid_px)(words).shape == (2, 3, 2)
    assert jax.jit(bitmask.box)(words).shape == (2, 3, 4)
    assert bitmask.area(words[0, 0]).shape == ()


def check_rle(mask):
    compressed = bitmask.to_rle(mask)
    reference = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert compressed == {"size": list(mask.shape), "counts": reference["counts"]}
    listed = bitmask.to_rle(mask, compressed=False)
    again = coco.frPyObjects({"size": listed["size"], "counts": listed["counts"]}, *mask.shape)
    assert again["counts"] == reference["counts"]
    for rle in (compressed, listed, {**compressed, "counts": compressed["counts"].decode()}):
        np.testing.assert_array_equal(bitmask.from_rle(rle), mask)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
def test_rle_is_pycocotools(height, width, seed, density):
    check_rle(np.random.default_rng(seed).random((height, width)) < density)


def test_rle_of_long_runs():
    mask = np.zeros((1500, 2000), bool)
    check_rle(mask)
    check_rle(~mask)
    mask[700:, 3:] = True
    mask[5, 1800] = True
    mask[:, 1999] = False
    check_rle(mask)


def test_rle_of_runs_of_length_zero():
    rle = {"size": [2, 3], "counts": [0, 2, 0, 1, 3]}
    np.testing.assert_array_equal(bitmask.from_rle(rle), coco.decode(coco.frPyObjects(rle, 2, 3)))


@pytest.mark.parametrize("counts", [[3, 2], [7], [-1, 7], b"", b"5", b"6o", "5!", []])
def test_broken_rle_is_refused(counts):
    with pytest.raises(ValueError, match="expected"):
        bitmask.from_rle({"size": [2, 3], "counts": counts})
