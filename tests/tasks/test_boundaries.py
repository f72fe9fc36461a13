"""Boundary IoU of answers, against OpenCV's erosion by hand."""

import cv2
import numpy as np
import pytest

from seg_jax.data.sources import Scenes
from seg_jax.geometry import host_raster
from seg_jax.grammar import outline
from seg_jax.records import Kind
from seg_jax.tasks.referring import Referring, boundaries, outline_text

SCENES = Scenes(seed=11, count=6)


def band(mask):
    """Returns the pixels of a mask that a square of 2 % of the diagonal carries out of it."""
    height, width = mask.shape
    reach = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
    return mask & ~eroded.astype(bool)


def wanted(text, truth):
    rings = outline.read(text, Kind.MASK).rings
    drawn = np.zeros(truth.shape, bool)
    if rings:
        height, width = truth.shape
        drawn = host_raster.fill(tuple(rings), height=height, width=width, rule="coco")
    one, other = band(drawn), band(truth)
    return (one & other).sum() / (one | other).sum()


def test_boundaries_of_images_of_any_size_are_those_of_opencv():
    coarse, rng = Referring(max_points=4), np.random.default_rng(0)
    texts, truths = [], []
    for index in range(len(SCENES)):
        for mask in SCENES[index].masks:
            side = rng.integers(0, 40, 2)
            # Up to the border of an image of its own size.
            truth = np.pad(mask, ((0, side[0]), (side[1], 0))).repeat(1 + index % 2, 0)
            texts.append(outline_text(truth, Kind.MASK, coarse))
            truths.append(truth)
    texts[0], texts[1] = "no outline", "[]"
    found = boundaries.ious(texts, truths, rule="coco")
    expected = [wanted(text, truth) for text, truth in zip(texts, truths, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[:2].tolist() == [0, 0]
    assert len(set(np.round(found, 3))) > 6


@pytest.mark.parametrize(("text", "value"), [("[]", 1.0), ("prose", 0.0), ("[[[0.1, 0.1],", 0.0)])
def test_of_what_is_not_there_it_is_said_or_not(text, value):
    nothing = np.zeros((40, 64), bool)
    assert boundaries.ious([text], [nothing], rule="coco").tolist() == [value]
