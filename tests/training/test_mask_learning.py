"""What a segmenter learns by: losses against torch, corrections where the mask is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seg_jax.models.sam2.decoder import Candidates
from seg_jax.training import mask_learning
from seg_jax.training.mask_learning import Objective

B, N, SIDE = 2, 3, 16


@pytest.fixture(scope="module")
def masks():
    """Returns rectangles, one of them a single pixel."""
    masks = np.zeros((B, N, SIDE, SIDE), bool)
    rng = np.random.default_rng(0)
    for one in masks.reshape(-1, SIDE, SIDE):
        (y0, x0), (rows, columns) = rng.integers(0, 9, 2), rng.integers(2, 8, 2)
        one[y0 : y0 + rows, x0 : x0 + columns] = True
    masks[0, 0] = False
    masks[0, 0, 5, 11] = True
    return masks


def test_losses_are_those_of_torch():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (N, 8, 8)).astype(np.float32)
    true = rng.random(logits.shape) < 0.3
    x, y = torch.tensor(logits), torch.tensor(true, dtype=torch.float32)
    p = torch.sigmoid(x)
    chance = p * y + (1 - p) * (1 - y)
    weight = 0.25 * y + 0.75 * (1 - y)
    expected = -(weight * (1 - chance) ** 2 * torch.log(chance)).mean((-2, -1))
    got = mask_learning.focal(logits, true.astype(np.float32))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4)
    flat = [one.flatten(1) for one in (p, y)]
    expected = 1 - (2 * (flat[0] * flat[1]).sum(1) + 1) / (flat[0].sum(1) + flat[1].sum(1) + 1)
    got = mask_learning.dice(logits, true.astype(np.float32))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5)


def test_the_share_of_a_place_is_what_the_losses_want():
    share = np.float32(0.3)
    logits = jnp.linspace(-3, 3, 241)[:, None, None]
    least = logits[jnp.argmin(mask_learning.focal(logits, jnp.full_like(logits, share)))]
    np.testing.assert_allclose(jax.nn.sigmoid(least), share, atol=0.01)
    masks = np.zeros((1, 1, 4, 4), bool)
    masks[..., :2, :3] = True
    found = mask_learning.shares(masks, 2)
    np.testing.assert_array_equal(found[0, 0], [[1, 0.5], [0, 0]])


def test_the_single_mask_and_the_best_reading_learn():
    rng = np.random.default_rng(1)
    share = (rng.random((B, N, 8, 8)) < 0.3).astype(np.float32)
    found = Candidates(
        rng.normal(size=(B, N, 4, 8, 8)).astype(np.float32),
        rng.random((B, N, 4)).astype(np.float32),
        np.full((B, N), 2.0, np.float32),
    )
    objective = Objective(focal=20.0, dice=1.0, quality=3.0, presence=2.0)
    value, told = mask_learning.loss(objective, found, share)
    true = np.repeat(share[:, :, None], 4, 2)
    each = 20 * mask_learning.focal(found.logits, true)
    each = np.asarray(each + mask_learning.dice(found.logits, true))
    there = np.asarray(mask_learning.iou(found.logits, true))
    both, either = (f(found.logits > 0, true > 0) for f in (np.logical_and, np.logical_or))
    np.testing.assert_allclose(there, both.sum((-2, -1)) / either.sum((-2, -1)), rtol=1e-6)
    apart = np.abs(found.quality - there).mean()
    expected = (each[..., 0] + each[..., 1:].min(-1)).mean() + 3 * apart + 2 * np.log1p(np.exp(-2))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(told["iou"], there[..., 0].mean(), rtol=1e-6)


def test_first_prompts_are_boxes_around_and_clicks_within(masks):
    objective = Objective(boxes=0.5, jitter=0.0, corrections=2)
    draw = jax.jit(lambda key: mask_learning.first_prompts(objective, key, masks))
    boxed = clicked = 0
    for seed in range(20):
        prompts = jax.tree.map(np.asarray, draw(jax.random.key(seed)))
        assert prompts.labels.shape == (B, N, 5)
        assert not prompts.used[..., 3:].any()
        for at in np.ndindex(B, N):
            points, used = prompts.points_px[at], prompts.used[at]
            assert list(prompts.labels[at][:3]) == [2, 3, 1]
            assert used[0] == used[1] != used[2]
            rows, columns = np.nonzero(masks[at])
            ends = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
            np.testing.assert_array_equal(points[:2], ends)
            x, y = np.floor(points[2]).astype(int)
            assert masks[at][y, x]
            boxed, clicked = boxed + used[0], clicked + used[2]
    assert min(boxed, clicked) > 40


def test_corrections_lie_where_the_mask_is_wrong(masks):
    objective = Objective(corrections=2)
    prompts = mask_learning.first_prompts(objective, jax.random.key(0), masks)
    drawn = np.roll(masks, 1, -1)
    drawn[1, 2] = masks[1, 2]
    options = {"masks": masks, "drawn": drawn, "turn": 1}
    add = jax.jit(lambda key: mask_learning.corrected(prompts, key, **options))
    seen = set()
    for seed in range(20):
        after = jax.tree.map(np.asarray, add(jax.random.key(seed)))
        np.testing.assert_array_equal(after.used[..., :4], prompts.used[..., :4])
        np.testing.assert_array_equal(after.points_px[..., :4, :], prompts.points_px[..., :4, :])
        assert not after.used[1, 2, 4], "nothing is wrong there"
        for at in np.ndindex(B, N):
            if at == (1, 2):
                continue
            x, y = np.floor(after.points_px[at][4]).astype(int)
            assert after.used[at][4]
            assert masks[at][y, x] != drawn[at][y, x]
            assert after.labels[at][4] == masks[at][y, x]
            seen.add((at, after.labels[at][4]))
    assert len(seen) == 2 * (B * N - 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes": 1.5}, "objective.boxes: expected a share"),
        ({"focal": 0.0, "dice": 0.0}, "objective: expected a weight of focal or dice"),
        ({"corrections": -1}, "objective.corrections: expected at least 0"),
    ],
)
def test_wrong_objectives_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Objective(**changes)
