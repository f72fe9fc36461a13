"""Advantages of groups of rewards and of their ranks, against values by hand, torch and scipy."""

import numpy as np
import pytest
import scipy.stats
import torch

from seg_jax.training import advantages

REWARDS = np.array(
    [[0.0, 1.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3], [0.50, 0.51, 0.49, 0.50]], np.float32
)


def test_advantages_by_hand():
    out = np.asarray(advantages.within_groups(REWARDS))
    np.testing.assert_allclose(out[0], [-1, 1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(out[1], 0.0)
    np.testing.assert_allclose(out[2], np.array([0, 1, -1, 0]) * np.sqrt(2), atol=1e-4)
    floored = np.asarray(advantages.within_groups(REWARDS, spread_floor=0.1))
    np.testing.assert_allclose(floored[0], out[0], atol=1e-6)
    np.testing.assert_allclose(floored[2], [0, 0.1, -0.1, 0], atol=1e-5)


def test_spreads_by_hand():
    sample = np.asarray(advantages.within_groups(REWARDS, spread="sample"))
    np.testing.assert_allclose(sample[0], np.array([-1, 1, -1, 1]) * np.sqrt(3 / 4), atol=1e-6)
    centred = REWARDS[0] - REWARDS[0].mean()
    deviation = torch.tensor(REWARDS[0].tolist()).std().item()
    np.testing.assert_allclose(sample[0], centred / deviation, rtol=1e-6)
    none = np.asarray(advantages.within_groups(REWARDS, spread="none"))
    np.testing.assert_allclose(none[0], [-0.5, 0.5, -0.5, 0.5])
    np.testing.assert_allclose(none[2], [0, 0.01, -0.01, 0], atol=1e-6)
    np.testing.assert_array_equal(none[1], 0.0)
    for one in (advantages.within_groups(REWARDS[:, :1], spread=s) for s in ("sample", "none")):
        np.testing.assert_array_equal(one, 0.0)
    np.testing.assert_array_equal(advantages.differ(REWARDS), [True, False, True])


def gopo(rewards):
    """Returns the advantages 2 - (rank - 1) 4 / (G - 1) of a group, ties by their mean rank."""
    places = scipy.stats.rankdata(-np.asarray(rewards, np.float64), method="average")
    return 2 - (places - 1) * 4 / (len(rewards) - 1)


def test_ranks_are_those_of_scipy_and_their_advantages_gopos():
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 5, (50, 8)).astype(np.float32) / 5  # Many of them equal.
    rewards = np.concatenate([rewards, rng.random((50, 8), dtype=np.float32)])
    expected = np.array([gopo(group) for group in rewards])
    np.testing.assert_allclose(advantages.ranks(rewards), expected, atol=1e-6)
    np.testing.assert_allclose(
        advantages.within_groups(rewards, spread="none", ranked=True), expected, atol=1e-6
    )
    scaled = advantages.within_groups(rewards, ranked=True)
    np.testing.assert_allclose(scaled, scipy.stats.zscore(expected, axis=1), atol=1e-5)
    floored = advantages.within_groups(rewards, ranked=True, spread_floor=3.0)
    np.testing.assert_allclose(floored, expected / 3, atol=1e-6)
    np.testing.assert_array_equal(advantages.ranks(REWARDS[:, :1]), 0.0)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_ranks_by_hand_do_not_depend_on_the_scale_nor_on_roundings(scale):
    rewards = np.float32(np.array([[-0.1, 0.7, 0.7, 0.2], [0.4, 0.4, 0.4, 0.4]]) * scale)
    rewards[:, 2] = np.nextafter(rewards[:, 2], np.float32(np.inf))
    expected = [[-2, 4 / 3, 4 / 3, -2 / 3], [0, 0, 0, 0]]
    np.testing.assert_allclose(advantages.ranks(rewards), expected, atol=1e-6)
    given = advantages.within_groups(rewards, spread="none", ranked=True)
    np.testing.assert_allclose(given, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e25])
def test_advantages_do_not_depend_on_the_scale_of_rewards(scale):
    rewards = np.float32(REWARDS.astype(np.float64) * scale)
    for spread in ("population", "sample"):
        plain, scaled = (advantages.within_groups(r, spread=spread) for r in (REWARDS, rewards))
        np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=2e-5)
        floored = advantages.within_groups(rewards, spread=spread, spread_floor=0.1 * scale)
        wanted = advantages.within_groups(REWARDS, spread=spread, spread_floor=0.1)
        np.testing.assert_allclose(floored, wanted, rtol=1e-5, atol=2e-5)
    none = np.asarray(advantages.within_groups(rewards, spread="none"), np.float64) / scale
    np.testing.assert_allclose(none, advantages.within_groups(REWARDS, spread="none"), atol=1e-6)
    np.testing.assert_array_equal(advantages.differ(rewards), [True, False, True])


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_roundings_of_equal_rewards_are_no_difference(scale):
    """Sums of the same scores in another order differ in the last bits, whatever their size."""
    scores = np.float32(np.array([[0.1, 0.7, 0.2], [0.7, 0.2, 0.1], [0.2, 0.1, 0.7]]) * scale)
    rewards = np.float32([[a + b + c for a, b, c in scores]])
    rewards = np.concatenate([rewards, np.nextafter(rewards, np.float32(np.inf))], 1)
    assert len(np.unique(rewards)) > 1
    np.testing.assert_array_equal(advantages.within_groups(rewards), 0.0)
    assert not advantages.differ(rewards).any()


def test_shares_of_what_rewards_can_be_by_hand():
    rewards = np.float32([-1.0, 0.0, 0.5, 1.0, 3.0, 9.0])
    for weights, penalty, least, largest in (
        ({"iou": 2.0, "format": 1.0}, 0.0, 0.0, 3.0),
        ({"iou": 0.5, "format": 0.25}, 0.0, 0.0, 0.75),
        ({"iou": 2.0, "tokens": -1.0}, 0.0, -1.0, 2.0),
        ({"iou": 1.0}, 0.5, -0.5, 1.0),
    ):
        shares = advantages.share_of_attainable(rewards, weights, length_penalty=penalty)
        wanted = np.clip((rewards - least) / (largest - least), 0, 1)
        np.testing.assert_allclose(shares, wanted, rtol=1e-6)
        if not penalty:
            np.testing.assert_array_equal(advantages.share_of_attainable(rewards, weights), shares)
    for weights in ({}, {"iou": 0.0}):
        with pytest.raises(
            ValueError, match=r"^weights: expected a score that counts, got .*; do:"
        ):
            advantages.share_of_attainable(rewards, weights)
