"""Overlaps against plain numpy, pycocotools and shapely, boundary measures against OpenCV."""

import functools
import math

import cv2
import jax
import numpy as np
import pytest
import shapely
import skimage.morphology
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

    @jax.jit
    def compared(a, b):
        words = bitmask.pack(a), bitmask.pack(b)
        return overlap.counts(*words), overlap.iou(*words), overlap.dice(*words)

    shared, covered = (a & b).sum((1, 2)), (a | b).sum((1, 2))
    got, iou, dice = jax.tree.map(np.asarray, compared(a, b))
    np.testing.assert_array_equal(got.intersection, shared)
    np.testing.assert_array_equal(got.union, covered)
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
    box_iou = jax.jit(overlap.box_iou)
    np.testing.assert_allclose(box_iou(a, b), [4 / 28, 1, 0, 0, 0], rtol=1e-6)
    rng = np.random.default_rng(1)
    low, high = rng.random((2, 50, 2)) * 10, 10 + rng.random((2, 50, 2)) * 10
    sides = np.concatenate([low, high - low], -1)  # x y w h
    expected = np.array(
        [coco.iou(sides[0][i : i + 1], sides[1][i : i + 1], [0]) for i in range(50)]
    )
    got = box_iou(*np.float32(np.concatenate([low, high], -1)))
    np.testing.assert_allclose(got, expected[:, 0, 0], rtol=1e-5)


def test_centroid_distance():
    a, b = np.zeros((2, 5, 40, 40), bool)
    size = np.array([[20, 40]] * 5, np.int32)
    a[0, 0, 0] = b[0, 0, 0] = True  # same place
    a[1, 5, 4] = b[1, 11, 20] = True  # 16 of 40 right, 6 of 20 down
    a[2, 3, 3] = True  # only one
    a[4, 0, 0] = b[4, 19, 39] = True  # from corner to corner
    distance = jax.jit(
        lambda a, b: overlap.centroid_distance(bitmask.pack(a), bitmask.pack(b), size)
    )
    got = distance(a, b)
    corner = np.hypot(39 / 40, 19 / 20) / np.sqrt(2)
    expected = [0, np.hypot(0.4, 0.3) / np.sqrt(2), 1, 0, corner]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_totals_go_beyond_32_bits():
    rng = np.random.default_rng(3)
    step = jax.jit(overlap.totals)
    total, expected = None, [0, 0]
    for _ in range(40):
        union = rng.integers(2**23, 2**24 + 1, (64, 50))
        shared = rng.integers(0, union + 1)
        total = step(overlap.Counts(np.int32(shared), np.int32(union)), total)
        expected = [expected[0] + int(shared.sum()), expected[1] + int(union.sum())]
    assert expected[1] > 2**40
    assert [int(high) * 2**24 + int(low) for high, low in total] == expected
    cumulative = jax.jit(overlap.cumulative_iou)
    np.testing.assert_allclose(cumulative(total), expected[0] / expected[1], rtol=3e-7)
    most = np.full(2**19, 2**24, np.int32)  # every pair at its largest
    total = step(overlap.Counts(most, most), None)
    assert [int(high) * 2**24 + int(low) for high, low in total] == [2**43, 2**43]
    twice = jax.tree.map(lambda a: np.asarray(a) * 2, total)
    assert cumulative(twice) == 1.0
    assert cumulative(step(overlap.Counts(most * 0, most * 0), None)) == 1.0


def giou(a, b):
    """Returns the generalised IoU of two boxes by shapely's areas."""
    a, b = shapely.box(*a), shapely.box(*b)
    covered, around = a.union(b).area, shapely.union_all([a, b]).envelope.area
    return a.intersection(b).area / covered - (around - covered) / around


def test_generalised_iou_of_boxes():
    rng = np.random.default_rng(2)
    low = rng.random((2, 60, 2)) * 10
    boxes = np.float32(np.concatenate([low, low + 0.1 + rng.random((2, 60, 2)) * 6], -1))
    expected = [giou(*pair) for pair in boxes.swapaxes(0, 1).astype(float)]
    assert min(expected) < -0.5
    assert max(expected) > 0.2
    box_giou = jax.jit(overlap.box_giou)
    got = box_giou(*boxes.reshape(2, 3, 20, 4))
    np.testing.assert_allclose(np.ravel(got), expected, atol=1e-5)
    point = np.float32([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
    other = np.float32([[1, 1, 1, 1], [2, 1, 2, 3], [0, 0, 2, 2]])
    np.testing.assert_allclose(box_giou(point, other), [0, -1, 1])


# --- Boundaries: the published definitions with OpenCV, image by image ------------------------

SIZES = np.array([[100, 90], [64, 90], [15, 20], [1, 1], [33, 7], [99, 89], [60, 80], [2, 90]])


def shapes(seed, height=100, width=90):
    """Returns masks of images on one canvas: blobs, noise, full and empty ones."""
    rng = np.random.default_rng(seed)
    noise = rng.random((len(SIZES), height, width)).astype(np.float32)
    masks = np.stack([cv2.GaussianBlur(x, (0, 0), 6) > np.float32(0.5) for x in noise])
    masks[1] = noise[1] < 0.97
    masks[4] = masks[6] = True
    if seed % 2:
        masks[4] = False
    return masks


def band(mask, ratio):
    height, width = mask.shape
    steps = max(1, round(ratio * np.sqrt(height**2 + width**2)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    worn = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)[1:-1, 1:-1]
    return mask & (worn == 0)


def line(mask):
    """Returns where a pixel differs from its neighbour right, below or right below."""
    grown = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    others = grown[:-1, 1:], grown[1:, :-1], grown[1:, 1:]
    return np.logical_or.reduce([mask != other for other in others])


def f_measure(a, b, ratio):
    a, b = line(a), line(b)
    reach = skimage.morphology.disk(int(np.ceil(ratio * np.linalg.norm(a.shape))))
    wide = [cv2.dilate(x.astype(np.uint8), reach) > 0 for x in (a, b)]
    if not (a.any() and b.any()):
        return float(a.any() == b.any())
    precision, recall = (a & wide[1]).sum() / a.sum(), (b & wide[0]).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@functools.cache
def measure(name, ratio):
    """Returns a measure, compiled once for all tests."""
    return jax.jit(functools.partial(getattr(overlap, name), ratio=ratio))


pack, outline = jax.jit(bitmask.pack), jax.jit(overlap.outline)


@pytest.mark.parametrize("ratio", [0.001, 0.02, 0.3])
def test_boundary_iou_is_the_published_one(ratio):
    a, b = shapes(0), shapes(1)
    words = pack(a), pack(b)
    got = measure("boundary", ratio)(words[0], SIZES)
    expected, ious = np.zeros_like(a), []
    for mask, other, full, (h, w) in zip(a, b, expected, SIZES, strict=True):
        full[:h, :w] = band(mask[:h, :w], ratio)
        second = band(other[:h, :w], ratio)
        union = (full[:h, :w] | second).sum()
        ious.append((full[:h, :w] & second).sum() / union if union else 1.0)
    np.testing.assert_array_equal(got, pack(expected))
    iou = measure("boundary_iou", ratio)(*words, SIZES)
    np.testing.assert_allclose(iou, ious, rtol=1e-6)


def test_boundaries_under_vmap():
    """The ratios are those that the measures have by themselves."""
    flat = [np.asarray(pack(x)) for x in (shapes(0), shapes(1))]
    a, b = (words.reshape(2, 4, 4, 90) for words in flat)
    size = SIZES.reshape(2, 4, 2)
    two = jax.jit(jax.vmap(jax.vmap(overlap.boundary_iou)))(a, b, size)
    np.testing.assert_array_equal(np.ravel(two), measure("boundary_iou", 0.02)(*flat, SIZES))
    one = jax.jit(jax.vmap(overlap.boundary_f, in_axes=(0, None, 0)))(a, b[0], size)
    expected = measure("boundary_f", 0.008)(flat[0], np.concatenate([b[0], b[0]]), SIZES)
    np.testing.assert_array_equal(np.ravel(one), expected)


@pytest.mark.parametrize("ratio", [0.008, 0.1])
def test_boundary_f_is_the_published_one(ratio):
    a, b = shapes(2), shapes(3)
    b[0] = np.roll(a[0], (2, 1), (0, 1))
    words = pack(a), pack(b)
    lines, expected = np.zeros_like(a), []
    for mask, other, full, (h, w) in zip(a, b, lines, SIZES, strict=True):
        full[:h, :w] = line(mask[:h, :w])
        expected.append(f_measure(mask[:h, :w], other[:h, :w], ratio))
    np.testing.assert_array_equal(outline(words[0], SIZES), pack(lines))
    assert min(expected[:2]) > 0
    got = measure("boundary_f", ratio)(*words, SIZES)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "rounded"),
    [(0.02, lambda x: max(1, round(x))), (0.008, math.ceil), (0.3, math.ceil), (0.007, round)],
)
def test_reach_is_rounded_as_float64_is(ratio, rounded):
    """Among them diagonals where ratio times the root is half a number, or a whole one."""
    words = np.zeros((64, 2000), np.uint32)
    rng = np.random.default_rng(0)
    triples = [[15 * k, 20 * k] for k in range(1, 90)] + [[2000 - k, k] for k in range(0, 900, 7)]
    sizes = np.array([*triples, *rng.integers(1, 2001, (300, 2)).tolist()])
    reach = jax.jit(lambda sizes: overlap._radius_of_ratio(words, sizes, ratio, rounded)[1:])
    radius, most = reach(sizes)
    expected = [rounded(ratio * np.sqrt(h * h + w * w)) for h, w in sizes.tolist()]
    np.testing.assert_array_equal(radius, expected)
    assert most >= max(expected)


def test_boundaries_on_an_image_of_common_size():
    rng = np.random.default_rng(5)
    noise = rng.random((2, 480, 640)).astype(np.float32)
    a, b = (cv2.GaussianBlur(x, (0, 0), 20) > np.float32(0.5) for x in noise)
    size = np.array([480, 640])
    bands = band(a, 0.02), band(b, 0.02)
    iou = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()

    @jax.jit
    def measured(a, b):
        words = bitmask.pack(a), bitmask.pack(b)
        return overlap.boundary_iou(*words, size), overlap.boundary_f(*words, size)

    expected = iou, f_measure(a, b, 0.008)
    np.testing.assert_allclose(measured(a, b), expected, rtol=1e-6)


def test_wrong_input_is_refused(untyped):
    words, size = np.zeros((2, 2, 20), np.uint32), np.array([[40, 20]] * 2)
    masks = np.zeros((2, 40, 20), bool)
    for name in ("counts", "iou", "dice", "boundary_iou", "boundary_f", "centroid_distance"):
        wrong = getattr(overlap, name)
        more = () if name in ("counts", "iou", "dice") else (size,)
        with pytest.raises(ValueError, match=r"expected packed masks, .* got bool \[2, 40, 20\]"):
            wrong(masks, masks, *more)
        with pytest.raises(ValueError, match=r"words of \[2, 20\] .* \[2, 1, 20\]; do: pack"):
            wrong(words, words[:, :1], *more)
    for ratio in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"expected a ratio above 0, got {ratio}"):
            overlap.boundary(words, size, ratio=ratio)
