"""Advantages and losses against hand-computed values and the formulas written out in torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seg_jax.training import policy


def test_reward_is_the_weighted_sum_of_named_scores():
    scores = {"iou": jnp.array([0.5, 1.0]), "format": jnp.array([1.0, 0.0])}
    np.testing.assert_allclose(policy.reward(scores, {"iou": 1.0, "format": 0.1}), [0.6, 1.0])
    with pytest.raises(ValueError, match="expected weights for"):
        policy.reward(scores, {"iuo": 1.0})


def test_advantages_by_hand():
    rewards = jnp.array([[0.0, 1.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3], [0.50, 0.51, 0.49, 0.50]])
    out = np.asarray(policy.advantages(rewards))
    np.testing.assert_allclose(out[0], [-1, 1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(out[1], 0.0)
    np.testing.assert_allclose(out[2], np.array([0, 1, -1, 0]) * np.sqrt(2), atol=1e-4)
    floored = np.asarray(policy.advantages(rewards, spread_floor=0.1))
    np.testing.assert_allclose(floored[0], out[0], atol=1e-6)
    np.testing.assert_allclose(floored[2], [0, 0.1, -0.1, 0], atol=1e-5)


def batch(seed=0, n=6, length=5, spread=3e-4):
    rng = np.random.default_rng(seed)
    old = rng.normal(-1.0, 0.3, (n, length)).astype(np.float32)
    new = (old + rng.normal(0, spread, old.shape)).astype(np.float32)
    used = np.arange(length) < rng.integers(1, length + 1, (n, 1))
    return new, old, used, rng.normal(size=n).astype(np.float32)


def torch_loss(new, old, used, advantage, low, high, sequence):
    """GSPO equation 5 and GRPO's surrogate, written out one answer at a time."""
    total = 0.0
    for n, o, u, a in zip(new, old, used, advantage, strict=True):
        n, o = n[u], o[u]
        ratio = torch.exp((n - o).mean()) if sequence else torch.exp(n - o)
        total = total - torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a).mean()
    return total / len(advantage)


@pytest.mark.parametrize(
    ("ratio", "low", "high", "spread"),
    [("sequence", 3e-4, 4e-4, 2e-3), ("token", 0.2, 0.2, 0.3), ("token", 0.2, 0.28, 0.5)],
)
def test_loss_and_gradient_equal_the_formula(ratio, low, high, spread):
    new, old, used, advantage = batch(spread=spread)
    config = policy.Policy(ratio=ratio, clip_low=low, clip_high=high)

    def ours(logp):
        return policy.loss(config, logp, old, used, advantage).value

    value, grad = jax.value_and_grad(ours)(jnp.asarray(new))
    leaf = torch.tensor(new, requires_grad=True)
    expected = torch_loss(
        leaf, torch.tensor(old), torch.tensor(used), advantage, low, high, ratio == "sequence"
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    metrics = policy.loss(config, new, old, used, advantage).metrics
    assert 0.0 < metrics["clip_fraction"] < 1.0


def test_on_policy_gradients_of_both_ratios_agree():
    new, _, used, advantage = batch()

    def gradient(config):
        def value(logp):
            return policy.loss(config, logp, new, used, advantage).value

        return jax.grad(value)(jnp.asarray(new))

    sequence = gradient(policy.Policy(ratio="sequence"))
    np.testing.assert_allclose(sequence, gradient(policy.Policy(ratio="token")), atol=1e-6)


def test_padding_changes_nothing():
    new, old, used, advantage = batch()
    config = policy.Policy()
    noisy = np.where(used, new, 99.0)
    one = policy.loss(config, new, old, used, advantage).value
    two = policy.loss(config, noisy, old, used, advantage).value
    np.testing.assert_allclose(one, two)


def test_kl_is_zero_at_the_reference_and_positive_away():
    new, old, used, advantage = batch(spread=0.2)
    config = policy.Policy(kl=0.5)
    same = policy.loss(config, new, old, used, advantage, reference_logp=new).metrics
    away = policy.loss(config, new, old, used, advantage, reference_logp=old).metrics
    assert abs(float(same["reference_kl"])) < 1e-7
    assert float(away["reference_kl"]) > 1e-4
