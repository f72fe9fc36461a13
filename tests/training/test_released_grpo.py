"""Holds Seg-R1's GRPO, as it was released, to its formulas in torch, by whole updates.

The formulas are those of `sister_systems.md`, section A4: advantages by the deviation of a sample
plus 1e-4; at each token -(exp(p - constant p) A - 0.04 k3), a mean over the tokens of an answer,
then over answers; one update of AdamW a batch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seg_jax.models.vlm.likelihood import Likelihood
from seg_jax.records import Prompts, Rollout
from seg_jax.training import optimizers, policy, state
from seg_jax.training.policy import Correction, Policy

RELEASED = Policy(
    ratio="token",
    average="answers",
    spread="sample",
    spread_eps=1e-4,
    kl=0.04,
    minibatches=1,
    accumulate=3,
    anchor="self",
)
RATE = optimizers.AdamW(
    lr=1e-2, b2=0.999, clip=0.02, schedule=optimizers.Schedule(warmup=0.0, final=1.0)
)
ROWS, ANSWERS, LENGTH, VOCABULARY = 6, 4, 5, 9
STEPS = 4


def start():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (ROWS, VOCABULARY), "bias": (LENGTH, VOCABULARY)}
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}


def rollouts():
    """Returns what is sampled in each step, with rewards; one group's are equal.

    The sampler's own log-probabilities are far from the model's: they must not count.
    """
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        ids = rng.integers(0, VOCABULARY, (ROWS, ANSWERS, LENGTH))
        used = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (ROWS, ANSWERS, 1))
        rewards = rng.random((ROWS, ANSWERS), dtype=np.float32)
        rewards[1] = 0.5
        yield Rollout(ids, used, rng.normal(-3, 1, ids.shape).astype(np.float32)), rewards


def score(params, prompts, rollout):
    logits = params["kernel"][prompts.tokens][:, None, None] + params["bias"]
    logp = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(jnp.broadcast_to(logp, (*rollout.ids.shape, VOCABULARY)),
                                 rollout.ids[..., None], -1)[..., 0]  # fmt: skip
    return Likelihood(chosen, jnp.zeros_like(chosen))


def trained(config):
    """Returns the weights after every update."""
    transform = optimizers.build(RATE)
    current, after = state.fresh(start(), transform, horizon=STEPS), []
    prompts = Prompts(*[np.arange(ROWS, dtype=np.int32)] * 3)

    @jax.jit
    def step(current, rollout, rewards):
        given = policy.experience(config, prompts, rollout, rewards=rewards)
        update = functools.partial(policy.update, score=score, optimizer=RATE, transform=transform)
        return update(config, current, given, reference=start())

    for rollout, rewards in rollouts():
        current, metrics = step(current, rollout, rewards)
        assert metrics["learning_rate"] == np.float32(RATE.lr)
        after.append(jax.tree.map(np.asarray, current.params))
    return after


def released_loss(logits, reference, rollout, rewards):
    """Returns the released loss, one answer after the other."""
    means = []
    for row, group in enumerate(rewards):
        group = torch.tensor(group)
        gains = (group - group.mean()) / (group.std() + 1e-4)
        for ids, used, gain in zip(rollout.ids[row], rollout.used[row], gains, strict=True):
            places = torch.arange(int(used.sum()))
            logp = torch.log_softmax(logits[row], -1)[places, ids[used]]
            apart = torch.log_softmax(reference[row], -1)[places, ids[used]] - logp
            k3 = torch.exp(apart) - apart - 1
            means.append(-(torch.exp(logp - logp.detach()) * gain - 0.04 * k3).mean())
    return torch.stack(means).mean()


def test_updates_are_those_of_the_release():
    weights = {n: torch.tensor(np.asarray(v), requires_grad=True) for n, v in start().items()}
    frozen = {name: torch.tensor(np.asarray(value)) for name, value in start().items()}
    rate = torch.optim.AdamW(weights.values(), lr=RATE.lr, betas=(0.9, 0.999), weight_decay=0.0)
    whole = trained(RELEASED)
    for (rollout, rewards), got in zip(rollouts(), whole, strict=True):
        logits, reference = (
            one["kernel"][:, None] + one["bias"][None] for one in (weights, frozen)
        )
        rate.zero_grad()
        released_loss(logits, reference, rollout, rewards).backward()
        norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), RATE.clip)
        assert norm > RATE.clip
        rate.step()
        for name, value in weights.items():
            np.testing.assert_allclose(got[name], value.detach().numpy(), rtol=0, atol=2e-5)
    moved = np.abs(whole[-1]["kernel"] - start()["kernel"])
    assert moved.max() > 0.5 * STEPS * RATE.lr


def test_the_true_answer_needs_no_scoring_before_the_update():
    """Its ratio begins at itself as all do: what nobody has drawn counts for nothing."""
    config = Policy(ratio="token", minibatches=1, anchor="self", truth="judged")
    rollout, rewards = next(rollouts())
    prompts = Prompts(*[np.arange(ROWS, dtype=np.int32)] * 3)
    transform = optimizers.build(RATE)

    def after(logp):
        given = policy.experience(config, prompts, rollout._replace(logp=logp), rewards=rewards)
        begin = state.fresh(start(), transform, horizon=STEPS)
        update = functools.partial(policy.update, score=score, optimizer=RATE, transform=transform)
        return update(config, begin, given)[0].params

    one, other = after(rollout.logp), after(np.zeros_like(rollout.logp))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert np.abs(one[name] - start()[name]).max() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio", "sequence"),
        ("ratio", "sequence_token"),
        ("minibatches", 2),
        ("clip_low", 0.2),
        ("clip_high", 0.2),
        ("correction", Correction(level="token")),
    ],
)
def test_what_cannot_act_where_all_ratios_are_1_is_refused(name, value):
    given = {"anchor": "self", "ratio": "token", "minibatches": 1} | {name: value}
    with pytest.raises(ValueError, match=rf"^policy\.{name}: expected .* beside policy.anchor"):
        Policy(**given)


@pytest.mark.parametrize(("value", "reason"), [(-1e-4, "at least 0"), (1e-4, "nothing is divided")])
def test_what_is_added_to_the_deviation_is_checked(value, reason):
    with pytest.raises(ValueError, match=rf"^policy\.spread_eps: expected .*{reason}"):
        Policy(spread="none", spread_eps=value)
