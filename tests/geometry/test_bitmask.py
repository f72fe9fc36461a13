"""Packed masks against plain numpy and OpenCV, run lengths against pycocotools."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.morphology
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from seg_jax.geometry import bitmask, dilation

SHAPES = [(1, 1), (31, 5), (32, 7), (33, 64), (100, 41)]


def some_masks(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    density = np.array([0, 1, 0.5, 0.9, 0.02, 0.02])[:, None, None]
    return rng.random((6, height, width)) < density


@pytest.mark.parametrize("shape", SHAPES)
def test_pack_and_unpack(shape):
    masks = some_masks(*shape)

    @jax.jit
    def there_and_back(masks):
        words = bitmask.pack(masks)
        heights = shape[0], 32 * words.shape[1]
        return words, *[bitmask.unpack(words, height=height) for height in heights]

    words, back, whole = map(np.asarray, there_and_back(masks))
    assert words.shape == (6, -(-shape[0] // 32), shape[1])
    for row in range(shape[0]):
        bit = words[:, row // 32] >> np.uint32(row % 32) & 1
        np.testing.assert_array_equal(bit, masks[:, row])
    np.testing.assert_array_equal(back, masks)
    assert not np.any(whole[:, shape[0] :])


@pytest.mark.parametrize("shape", SHAPES[::2])
def test_measures(shape):
    masks = some_masks(*shape)

    @jax.jit
    def measured(masks):
        words = bitmask.pack(masks)
        return bitmask.area(words), bitmask.centroid_px(words), bitmask.box(words)

    area, centroids, boxes = map(np.asarray, measured(masks))
    np.testing.assert_array_equal(area, masks.sum((1, 2)))
    for mask, centroid, box in zip(masks, centroids, boxes, strict=True):
        rows, columns = np.nonzero(mask)
        if not rows.size:
            assert centroid.tolist() == [0, 0]
            assert box.tolist() == [0, 0, 0, 0]
            continue
        np.testing.assert_allclose(centroid, [columns.mean() + 0.5, rows.mean() + 0.5], rtol=1e-6)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_set_operations():
    a, b = some_masks(33, 20), some_masks(33, 20)[::-1].copy()

    @jax.jit
    def joined(a, b):
        words = bitmask.pack(a), bitmask.pack(b)
        operations = bitmask.intersection, bitmask.union, bitmask.xor
        return [bitmask.unpack(operation(*words), height=33) for operation in operations]

    for got, expected in zip(joined(a, b), (a & b, a | b, a ^ b), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_sums_hold_on_the_largest_canvas():
    words = np.full((128, 4096), 0xFFFFFFFF, np.uint32)
    measured = jax.jit(lambda words: (bitmask.area(words), bitmask.centroid_px(words)))
    area, centroid = measured(words)
    assert int(area) == 4096**2
    np.testing.assert_allclose(centroid, [2048, 2048], rtol=1e-6)
    words[:, :4000] = 0
    words[:120] = 0
    np.testing.assert_allclose(measured(words)[1], [4048, 3968], rtol=1e-6)


def test_frame():
    size = np.array([[33, 50], [1, 1], [64, 7], [0, 9], [99, 99], [32, 0]], np.int32)
    expected = np.zeros((6, 70, 50), bool)
    for mask, (height, width) in zip(expected, size, strict=True):
        mask[:height, :width] = True
    framed = jax.jit(lambda size: bitmask.frame(size, height=70, width=50))
    words, packed = framed(size), jax.jit(bitmask.pack)(expected)
    np.testing.assert_array_equal(words, packed)


def test_any_batch_shape_inside_jit():
    masks = some_masks(33, 20).reshape(2, 3, 33, 20)

    @jax.jit
    def measured(masks):
        words = bitmask.pack(masks)
        several = bitmask.area(words), bitmask.centroid_px(words), bitmask.box(words)
        return *several, bitmask.area(words[0, 0])

    assert [found.shape for found in measured(masks)] == [(2, 3), (2, 3, 2), (2, 3, 4), ()]


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_packed_rle_is_pycocotools(seed, compressed):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, [71, 41], (4, 2))
    size[0] = 70, 40
    masks = [rng.random(hw) < density for hw, density in zip(size, [0.5, 0.02, 0, 1], strict=True)]
    masks[1][0, 0] = True  # begins with no zeros
    rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    rles = [{"size": rle["size"], "counts": rle["counts"]} for rle in rles]
    words = bitmask.pack_rle(rles, height=70, width=40)
    assert words.shape == (4, 3, 40)
    full = np.zeros((4, 70, 40), bool)
    for canvas, mask in zip(full, masks, strict=True):
        canvas[: mask.shape[0], : mask.shape[1]] = mask
    np.testing.assert_array_equal(words, bitmask.pack(full))
    got = bitmask.unpack_rle(jnp.asarray(words), size, compressed=compressed)
    assert got == (rles if compressed else [bitmask.to_rle(m, compressed=False) for m in masks])
    listed = [bitmask.to_rle(mask, compressed=False) for mask in masks]
    np.testing.assert_array_equal(bitmask.pack_rle(listed, height=70, width=40), words)


def test_packed_rle_of_none_and_of_the_largest_canvas():
    assert bitmask.pack_rle([], height=33, width=5).shape == (0, 2, 5)
    assert bitmask.unpack_rle(np.zeros((0, 2, 5), np.uint32), np.zeros((0, 2), int)) == []
    rles = [{"size": [4096, 4096], "counts": [2**24 - 1, 1]}]
    words = bitmask.pack_rle(rles, height=4096, width=4096)
    assert np.flatnonzero(words).tolist() == [words.size - 1]
    assert words[0, -1, -1] == 2**31
    assert bitmask.unpack_rle(words, np.array([[4096, 4096]]), compressed=False) == rles


def grown(mask, kernel, change, *, value):
    """Returns what OpenCV makes of a mask with the pixels beyond it all set or all not."""
    side = kernel.shape[0] // 2
    padded = cv2.copyMakeBorder(
        mask.astype(np.uint8), side, side, side, side, cv2.BORDER_CONSTANT, value=value
    )
    height, width = mask.shape
    return change(padded, kernel)[side : side + height, side : side + width] > 0


@pytest.mark.parametrize("shape", ["square", "disk"])
@pytest.mark.parametrize("most", [0, 1, 7, 16, 33, 70])
def test_dilation_and_erosion_are_those_of_opencv(most, shape):
    rng = np.random.default_rng(most)
    size = np.array([[70, 53], [70, 53], [33, 20], [1, 1], [64, 53], [7, 50]])
    density = np.array([0.001, 0.9, 0.1, 1, 0.99, 0.999])[:, None, None]
    masks = rng.random((6, 70, 53)) < density
    radius = rng.integers(0, most + 1, 6)
    radius[1:4:2] = most
    frame = bitmask.frame(size, height=70, width=53)

    @jax.jit
    def changed(words, frame, radius):
        options = {"shape": shape, "max_radius": most}
        eroded = functools.partial(bitmask.erosion, words, frame, radius, **options)
        return bitmask.dilation(words, frame, radius, **options), eroded(), eroded(outside=True)

    got = changed(bitmask.pack(masks), frame, radius)
    ways = [(cv2.dilate, 0), (cv2.erode, 0), (cv2.erode, 1)]
    for words, (change, value) in zip(got, ways, strict=True):
        expected = np.zeros_like(masks)
        for full, mask, (h, w), r in zip(expected, masks, size, radius, strict=True):
            square = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
            kernel = square if shape == "square" else skimage.morphology.disk(r)
            full[:h, :w] = grown(mask[:h, :w], kernel, change, value=value)
        np.testing.assert_array_equal(bitmask.unpack(words, height=96)[:, :70], expected)
        assert not np.any(np.asarray(words)[:, 2] >> np.uint32(6))


@pytest.mark.parametrize("shape", ["square", "disk"])
def test_other_devices_widen_all_masks_at_once_to_the_same(shape):
    words, radius = bitmask.pack(some_masks(40, 30)), jnp.array([0, 1, 2, 3, 4, 5])
    options = {"shape": shape, "max_radius": 5}
    expected = dilation.dilate(words, radius, **options, beyond=True)
    elsewhere = jax.vmap(functools.partial(dilation._dilate_mask, **options, fill=dilation.FULL))
    np.testing.assert_array_equal(jax.jit(elsewhere)(words, radius), expected)
    widened = jax.jit(functools.partial(dilation.dilate, **options, beyond=True))
    assert widened.trace(words, radius).lower(lowering_platforms=("cuda",)).out_info


def test_one_radius_for_all_and_vmap():
    masks = some_masks(40, 30)
    radius = np.array([0, 1, 2, 3, 4, 5], np.int32)

    @jax.jit
    def changed(masks):
        words, frame = bitmask.pack(masks), bitmask.frame(np.array([40, 30]), height=40, width=30)
        frame = jnp.broadcast_to(frame, words.shape)
        wide = bitmask.unpack(bitmask.dilation(words, frame, 1, shape="disk"), height=40)
        mapped = jax.vmap(functools.partial(bitmask.erosion, max_radius=5))(words, frame, radius)
        return words, frame, wide, mapped

    words, frame, got, mapped = map(np.asarray, changed(masks))
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
    for mask, wide in zip(masks, got, strict=True):
        np.testing.assert_array_equal(wide, cv2.dilate(mask.astype(np.uint8), cross) > 0)
    eroded = bitmask.erosion(words, frame, radius)  # its own bound, outside jit
    np.testing.assert_array_equal(eroded, mapped)
    with pytest.raises(ValueError, match="expected max_radius beside a traced radius"):
        jax.jit(bitmask.erosion)(words, frame, radius)
    with pytest.raises(ValueError, match=r"expected a radius of 0 or more, got -1"):
        bitmask.erosion(words, frame, -1)


def test_wrong_input_is_refused(untyped):
    words, masks = np.zeros((2, 2, 20), np.uint32), np.zeros((2, 40, 20), bool)
    for one in (bitmask.area, bitmask.box, bitmask.centroid_px):
        for wrong in (masks, words.astype(np.int32), words[0, 0], words[:, :0], words[..., :0]):
            with pytest.raises(ValueError, match=f"expected packed masks, .* {wrong.dtype}"):
                one(wrong)
    for two in (bitmask.intersection, bitmask.union, bitmask.xor):
        with pytest.raises(ValueError, match=r"got uint32 \[2, 2, 19\]; do: pack"):
            two(words, words[..., 1:])
    for wrong in (masks.astype(np.uint8), masks[0, 0], masks[:, :0], np.full((3, 3), np.nan)):
        for pack in (bitmask.pack, bitmask.to_rle):
            with pytest.raises(ValueError, match=f"expected bool masks .* got {wrong.dtype}"):
                pack(wrong)
    with pytest.raises(ValueError, match=r"expected one mask .* bool \[2, 40, 20\]"):
        bitmask.to_rle(masks)
    with pytest.raises(ValueError, match="expected a height of 1 to 64, got 65"):
        bitmask.unpack(words, height=65)
    with pytest.raises(ValueError, match="expected a canvas with pixels, got 0x3"):
        bitmask.frame(np.ones((2, 2), int), height=0, width=3)


def test_wrong_rle_is_refused():
    rle = {"size": [3, 2], "counts": [6]}
    with pytest.raises(ValueError, match=r"at most 2x9, got size \[3, 2\]"):
        bitmask.pack_rle([rle], height=2, width=9)
    with pytest.raises(ValueError, match="expected a canvas with pixels, got 5x0"):
        bitmask.pack_rle([rle], height=5, width=0)
    with pytest.raises(ValueError, match=r"with size and counts, got \['size'\]"):
        bitmask.from_rle({"size": [3, 2]})
    words = np.zeros((1, 1, 4), np.uint32)
    for size in ([33, 4], [3, 5], [0, 4]):
        with pytest.raises(ValueError, match=r"expected images of 1x1 to 32x4, got \[\["):
            bitmask.unpack_rle(words, np.array([size]))
