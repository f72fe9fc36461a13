"""Holds the measured cost and worth of outlines to known shapes and to pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco

from seg_jax.data.build import token_budget
from seg_jax.records import Sample
from seg_jax.tasks.referring import Referring


class Masks:
    """Images with these masks."""

    def __init__(self, *masks):
        self.masks = masks

    def __len__(self):
        return len(self.masks)

    def __getitem__(self, index):
        masks = np.array(self.masks[index])
        image = np.zeros((*masks.shape[1:], 3), np.uint8)
        return Sample(str(index), image, masks, tuple(("it",) for _ in masks))


def disc(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_a_vertex_takes_the_tokens_of_the_spec():
    # SimpleSeg's answers: 14 tokens a vertex where digits stand alone, 10 in groups of three.
    ten, twenty = ("[[[" + "], [".join(["0.123, 0.456"] * n) + "]]]" for n in (10, 20))
    assert token_budget.count_tokens(twenty, "qwen") - token_budget.count_tokens(ten, "qwen") == 140
    assert token_budget.count_tokens(twenty, "kimi") - token_budget.count_tokens(ten, "kimi") == 100


def test_a_rectangle_costs_four_points_and_keeps_all():
    mask = np.zeros((100, 200), bool)
    mask[20:60, 40:160] = True
    (row,) = token_budget.measure(Masks([mask]), Referring(), objects=5, epsilons=(0.005,))
    assert (row["objects"], row["points"], row["iou"]) == (1, 4.0, 1.0)
    assert row["tokens_qwen"] == token_budget.count_tokens(
        "[[[0.200, 0.200], [0.800, 0.200], [0.800, 0.600], [0.200, 0.600]]]", "qwen"
    )
    assert sum(row["histogram"]) == 1


def test_holes_are_kept_and_less_is_kept_for_less():
    ring = disc(120, 160, 60, 80, 45) & ~disc(120, 160, 60, 80, 20)
    task = Referring(max_points=10_000, max_rings=100, digits=5)
    rows = token_budget.measure(Masks([ring], [ring]), task, objects=2, epsilons=(0.0, 0.005, 0.02))
    assert rows[0]["iou"] == 1.0
    ious, tokens = [row["iou"] for row in rows], [row["tokens_qwen"] for row in rows]
    assert ious == sorted(ious, reverse=True)
    assert tokens == sorted(tokens, reverse=True)
    assert 0.7 < ious[-1] < ious[0]


def test_the_iou_is_that_of_pycocotools():
    mask = disc(90, 110, 40, 50, 33)
    task = Referring(epsilon=0.01)
    from seg_jax.grammar import outline
    from seg_jax.records import Kind
    from seg_jax.tasks.referring import outline_text

    (ring,) = outline.read(outline_text(mask, Kind.MASK, task), Kind.MASK).rings
    flat = (np.float32(ring) * np.array([110, 90], np.float32)).ravel().astype(float).tolist()
    rle = coco.merge(coco.frPyObjects([flat], 90, 110))
    true = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    (row,) = token_budget.measure(Masks([mask]), task, objects=1, epsilons=(0.01,))
    assert row["iou"] == pytest.approx(coco.iou([rle], [true], [False])[0, 0], abs=1e-12)


def test_no_object_is_told():
    with pytest.raises(ValueError, match="expected objects with masks, got none"):
        token_budget.measure(Masks([np.zeros((9, 9), bool)]), Referring(), objects=3)
