"""Losses and gradients against TRL's own loss code, on the same logits."""

import os
import types
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seg_jax.training import advantages, policy
from seg_jax.training.policy import Correction, Policy

N, LENGTH, VOCABULARY = 6, 7, 11


@pytest.fixture(scope="module")
def trl():
    """TRL's module of GRPO; its import takes about five seconds, so only what runs pays it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from trl.trainer import grpo_trainer

    return grpo_trainer


@pytest.fixture
def case():
    """Logits, answers of unequal length and what others thought of them; advantages."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(N, LENGTH, VOCABULARY)).astype(np.float32)
    ids = rng.integers(0, VOCABULARY, (N, LENGTH))
    used = np.arange(LENGTH) < np.array([[7], [3], [1], [5], [2], [6]])
    now = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits, -1)), ids[..., None], -1)[..., 0]
    apart = [(now + rng.normal(0, 0.2, now.shape)).astype(np.float32) for _ in range(3)]
    return logits, ids, used, *apart, rng.normal(size=N).astype(np.float32)


class Trainer:
    """As much of a GRPOTrainer as its loss reads; log-probabilities are of the given logits."""

    aux_loss_enabled = _entropy_bonus_enabled = False
    top_entropy_quantile, off_policy_mask_threshold = 1.0, None
    vllm_importance_sampling_correction = True
    current_gradient_accumulation_steps = 1
    max_completion_length = LENGTH
    model = types.SimpleNamespace(training=True)
    args = types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    accelerator = types.SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
    )

    def __init__(self, logits, ids, **changes):
        self.logits, self.ids = logits, ids
        self.use_vllm = False
        self._metrics = {"train": defaultdict(list)}
        for name, value in changes.items():
            setattr(self, name, value)

    def _get_per_token_logps_and_entropies(self, *_, **__):
        logp = torch.log_softmax(self.logits, -1)
        chosen = torch.take_along_dim(logp, self.ids[..., None], -1)[..., 0]
        return chosen, -(logp.exp() * logp).sum(-1), None


AVERAGES = {"answers": "grpo", "tokens": "dapo", "constant": "dr_grpo"}


@pytest.mark.parametrize("correction", ["off", "token", "sequence"])
@pytest.mark.parametrize("kl", [0.0, 0.07])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_loss_gradient_and_clip_fraction_are_those_of_trl(
    trl, case, level, loss_type, kl, correction
):
    logits, ids, used, old, reference, sampler, advantage = case
    average = {"bnpo": "tokens"} | {name: ours for ours, name in AVERAGES.items()}
    config = Policy(
        ratio=level,
        average=average[loss_type],
        clip_low=0.02,
        clip_high=0.03,
        kl=kl,
        correction=Correction() if correction == "off" else Correction(level=correction, cap=1.1),
    )
    weights = None
    if correction != "off":
        weights = policy.importance_weights(config.correction, old, sampler, used=used)

    def ours(logits):
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), ids[..., None], -1)[..., 0]
        told = policy.loss(
            config,
            logp,
            old_logp=old,
            used=used,
            advantage=advantage,
            reference_logp=reference,
            importance=weights,
        )
        return told.value, told.metrics

    (value, metrics), grad = jax.value_and_grad(ours, has_aux=True)(jnp.asarray(logits))

    leaf = torch.tensor(logits, requires_grad=True)
    trainer = Trainer(
        leaf,
        torch.tensor(ids),
        importance_sampling_level=level,
        loss_type=loss_type,
        beta=kl,
        epsilon_low=0.02,
        epsilon_high=0.03,
        use_vllm=correction != "off",
    )
    mask = torch.tensor(used, dtype=torch.long)
    given = {
        "prompt_ids": torch.zeros((N, 1), dtype=torch.long),
        "prompt_mask": torch.ones((N, 1), dtype=torch.long),
        "completion_ids": torch.tensor(ids),
        "completion_mask": mask,
        "advantages": torch.tensor(advantage),
        "old_per_token_logps": torch.tensor(old),
        "ref_per_token_logps": torch.tensor(reference),
        "num_items_in_batch": mask.sum(),
    }
    if correction != "off":
        # TRL holds one column for an answer's weight; it is made where answers are sampled.
        gap = (torch.tensor(old) - torch.tensor(sampler)) * mask
        gap = gap.sum(-1, keepdim=True) if correction == "sequence" else gap
        given["importance_sampling_ratio"] = gap.exp().clamp(max=1.1)
    expected = trl.GRPOTrainer._compute_loss(trainer, trainer.model, given)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert np.abs(leaf.grad.numpy()).max() > 1e-3
    if level == "sequence":  # TRL counts clipped tokens, we answers: here they are the same.
        clipped = trainer._metrics["train"]["clip_ratio/region_mean"][0]
        np.testing.assert_allclose(metrics["clip_fraction"], clipped, rtol=1e-6)
        assert 0 < clipped < 1


@pytest.mark.parametrize(("loss_type", "average"), [("grpo", "answers"), ("bnpo", "tokens")])
def test_ratios_that_begin_at_themselves_are_trls_where_it_has_no_old_ones(
    trl, case, loss_type, average
):
    logits, ids, used, old, reference, _, advantage = case
    config = Policy(ratio="token", average=average, kl=0.04, minibatches=1, anchor="self")

    def ours(logits):
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), ids[..., None], -1)[..., 0]
        given = {"used": used, "advantage": advantage, "reference_logp": reference}
        return policy.loss(config, logp, old_logp=old, **given).value

    value, grad = jax.value_and_grad(ours)(jnp.asarray(logits))
    leaf = torch.tensor(logits, requires_grad=True)
    trainer = Trainer(
        leaf,
        torch.tensor(ids),
        importance_sampling_level="token",
        loss_type=loss_type,
        beta=0.04,
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    given = {
        "prompt_ids": torch.zeros((N, 1), dtype=torch.long),
        "prompt_mask": torch.ones((N, 1), dtype=torch.long),
        "completion_ids": torch.tensor(ids),
        "completion_mask": torch.tensor(used, dtype=torch.long),
        "advantages": torch.tensor(advantage),
        "ref_per_token_logps": torch.tensor(reference),
    }
    expected = trl.GRPOTrainer._compute_loss(trainer, trainer.model, given)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    assert np.abs(leaf.grad.numpy()).max() > 1e-3


def test_the_deviation_of_a_sample_is_trls(trl):
    rewards = np.random.default_rng(0).random((5, 8)).astype(np.float32)
    given = torch.tensor(rewards)
    expected = (given - given.mean(1, keepdim=True)) / (trl.nanstd(given, dim=1)[:, None] + 1e-4)
    ours = advantages.within_groups(rewards, spread="sample", spread_eps=1e-4)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5)
    without = advantages.within_groups(rewards, spread="sample")
    assert np.abs(without / expected.numpy() - 1).min() > 1e-4
