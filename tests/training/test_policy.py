"""Rewards, losses and updates against values by hand and the papers' formulas in torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seg_jax.models.vlm.likelihood import Likelihood
from seg_jax.records import Prompts, Rollout
from seg_jax.training import advantages, optimizers, policy, state
from seg_jax.training.policy import Correction, Policy


def test_reward_is_the_weighted_sum_of_named_scores():
    scores = {"iou": jnp.array([0.5, 1.0]), "format": jnp.array([1.0, 0.0])}
    np.testing.assert_allclose(advantages.reward(scores, {"iou": 1.0, "format": 0.1}), [0.6, 1.0])
    with pytest.raises(ValueError, match="expected weights for"):
        advantages.reward(scores, {"iuo": 1.0})


# Two answers, of two and of one token; the padding holds what must not count.
OLD = np.array([[-1.0, -2.0], [-1.5, -7.0]], np.float32)
NEW = OLD + np.array([[0.1, 0.3], [-0.1, 5.0]], np.float32)
USED = np.array([[True, True], [True, False]])
GAIN = np.array([1.0, -1.0], np.float32)
E = np.exp


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # s = e^0.2 and e^-0.1, clipped to 1.12 and 0.92: the min takes 1.12 and -0.92.
        ({}, -(1.12 - 0.92) / 2),
        ({"ratio": "sequence_token"}, -(1.12 - 0.92) / 2),
        ({"ratio": "token"}, -((E(0.1) + 1.12) / 2 - 0.92) / 2),
        ({"ratio": "token", "average": "tokens"}, -(E(0.1) + 1.12 - 0.92) / 3),
        ({"ratio": "token", "average": "constant"}, -(E(0.1) + 1.12 - 0.92) / 4),
        ({"average": "tokens"}, -(2 * 1.12 - 0.92) / 3),
        ({"average": "constant"}, -(2 * 1.12 - 0.92) / 4),
        ({"clip_high": 0.3}, -(E(0.2) - 0.92) / 2),
        ({"clip_low": 0.1}, -(1.12 - E(-0.1)) / 2),
    ],
)
def test_losses_by_hand(changes, expected):
    config = Policy(**({"clip_low": 0.08, "clip_high": 0.12} | changes))
    value = policy.loss(config, NEW, old_logp=OLD, used=USED, advantage=GAIN).value
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_what_is_told_by_hand():
    config = Policy(clip_low=0.08, clip_high=0.3)
    told = policy.loss(config, NEW, old_logp=OLD, used=USED, advantage=GAIN).metrics
    assert float(told["clip_fraction"]) == 0.5  # The second answer only.
    np.testing.assert_allclose(told["ratio/mean"], (E(0.2) + E(-0.1)) / 2, rtol=1e-6)
    np.testing.assert_allclose(told["ratio/max"], E(0.2), rtol=1e-6)
    np.testing.assert_allclose(told["policy_kl"], -(0.1 + 0.3 - 0.1) / 3, rtol=1e-5)
    config = dataclasses.replace(config, ratio="token", clip_high=0.2)
    told = policy.loss(config, NEW, old_logp=OLD, used=USED, advantage=GAIN).metrics
    assert float(told["clip_fraction"]) == 0.75  # Of the first answer half its tokens.
    np.testing.assert_allclose(told["ratio/mean"], ((E(0.1) + E(0.3)) / 2 + E(-0.1)) / 2, rtol=1e-6)


def test_the_default_is_gspo():
    """Its numbers: arXiv 2507.18071, section 5.1; nothing else is added."""
    config = Policy()
    assert (config.ratio, config.average, config.spread) == ("sequence", "answers", "population")
    assert (config.clip_low, config.clip_high) == (3e-4, 4e-4)
    assert (config.kl, config.spread_floor, config.drop_equal) == (0, 0, False)
    assert not config.ranked
    assert (config.correction.level, config.correction.cap) == ("off", 2)


@pytest.mark.parametrize("ratio", ["sequence", "sequence_token", "token"])
def test_ratios_of_a_broken_run_stay_finite_and_are_told(ratio):
    config = Policy(ratio=ratio, clip_low=0.08, clip_high=0.12, kl=0.1)
    for gap, told in ((300.0, E(20.0)), (-300.0, E(-20.0))):
        new = OLD + np.float32(gap)
        found = policy.loss(
            config, new, old_logp=OLD, used=USED, advantage=GAIN, reference_logp=OLD
        )
        np.testing.assert_allclose(found.metrics["ratio/max"], told, rtol=1e-5)
        # k3 of a drift of -gap, its exponential bounded as the ratio is.
        drift = -gap
        k3 = E(np.clip(drift, -20.0, 20.0)) - drift - 1
        np.testing.assert_allclose(found.metrics["reference_kl"], k3, rtol=1e-5)
        low, high = (1.12, told) if gap > 0 else (told, 0.92)
        np.testing.assert_allclose(found.value, -(low - high) / 2 + 0.1 * k3, rtol=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
def test_a_quantile_is_of_the_known_values(share):
    values = np.random.default_rng(0).normal(size=(7, 31)).astype(np.float32)
    known = np.random.default_rng(1).random(values.shape) < 0.4
    expected = np.quantile(values[known], share, method="inverted_cdf")
    np.testing.assert_array_equal(policy.quantile(values, known, share), expected)


def batch(seed=0, n=6, length=5, spread=3e-4):
    rng = np.random.default_rng(seed)
    old = rng.normal(-1.0, 0.3, (n, length)).astype(np.float32)
    new = (old + rng.normal(0, spread, old.shape)).astype(np.float32)
    used = np.arange(length) < rng.integers(1, length + 1, (n, 1))
    return new, old, used, rng.normal(size=n).astype(np.float32)


def torch_loss(config, new, old, used, advantage):
    """GSPO equations 5, 13 and 14, GRPO's, DAPO's and Dr. GRPO's, one answer at a time."""
    sums, means = [], []
    for n, o, u, a in zip(new, old, used, torch.tensor(advantage), strict=True):
        n, o = n[u], o[u]
        a = a[u] if a.ndim else a
        if config.ratio == "sequence":
            ratio = torch.exp((n - o).mean()).expand(len(n))
        elif config.ratio == "token":
            ratio = torch.exp(n - o)
        else:
            ratio = torch.exp((n - o).mean()).detach() * torch.exp(n) / torch.exp(n).detach()
        bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        terms = torch.minimum(ratio * a, bounded * a)
        sums.append(terms.sum())
        means.append(terms.mean())
    if config.average == "answers":
        return -torch.stack(means).mean()
    places = used.sum() if config.average == "tokens" else used.numel()
    return -torch.stack(sums).sum() / places


def assert_as_torch(config, new, old, used, advantage):
    def ours(logp):
        return policy.loss(config, logp, old_logp=old, used=used, advantage=advantage).value

    value, grad = jax.value_and_grad(ours)(jnp.asarray(new))
    leaf = torch.tensor(new, requires_grad=True)
    expected = torch_loss(config, leaf, torch.tensor(old), torch.tensor(used), advantage)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-4, atol=1e-6)
    metrics = policy.loss(config, new, old_logp=old, used=used, advantage=advantage).metrics
    assert 0.0 < metrics["clip_fraction"] < 1.0


@pytest.mark.parametrize("average", ["answers", "tokens", "constant"])
@pytest.mark.parametrize(
    ("ratio", "low", "high", "spread"),
    [
        ("sequence", 3e-4, 4e-4, 2e-3),
        ("sequence_token", 3e-4, 4e-4, 2e-3),
        ("token", 0.2, 0.2, 0.3),
        ("token", 0.2, 0.28, 0.5),
    ],
)
def test_loss_and_gradient_equal_the_formula(ratio, low, high, spread, average):
    config = Policy(ratio=ratio, average=average, clip_low=low, clip_high=high)
    assert_as_torch(config, *batch(spread=spread))


@pytest.mark.parametrize("ratio", ["sequence_token", "token"])
def test_advantages_of_tokens_have_their_formula(ratio):
    new, old, used, _ = batch(spread=0.1)
    advantage = np.random.default_rng(7).normal(size=used.shape).astype(np.float32)
    assert_as_torch(Policy(ratio=ratio, clip_low=0.05, clip_high=0.05), new, old, used, advantage)


def test_advantages_of_tokens_need_a_ratio_with_tokens():
    new, old, used, _ = batch()
    with pytest.raises(ValueError, match="choose sequence_token"):
        policy.loss(Policy(), new, old_logp=old, used=used, advantage=new)


def test_gspo_token_is_gspo_where_an_answer_has_one_advantage():
    new, old, used, advantage = batch(spread=2e-3)

    def graded(ratio):
        def value(logp):
            return policy.loss(
                Policy(ratio=ratio), logp, old_logp=old, used=used, advantage=advantage
            ).value

        return jax.value_and_grad(value)(jnp.asarray(new))

    for one, other in zip(graded("sequence"), graded("sequence_token"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_on_policy_gradients_of_all_ratios_agree():
    new, _, used, advantage = batch()

    def gradient(ratio):
        def value(logp):
            return policy.loss(
                Policy(ratio=ratio), logp, old_logp=new, used=used, advantage=advantage
            ).value

        return jax.grad(value)(jnp.asarray(new))

    for ratio in ("sequence_token", "token"):
        np.testing.assert_allclose(gradient("sequence"), gradient(ratio), atol=1e-6)


@pytest.mark.parametrize("ratio", ["sequence", "sequence_token", "token"])
def test_padding_changes_nothing(ratio):
    new, old, used, advantage = batch()
    for noise in (99.0, -np.inf):
        noisy = np.where(used, new, noise)

        def graded(logp):
            return jax.value_and_grad(
                lambda logp: (
                    policy.loss(
                        Policy(ratio=ratio), logp, old_logp=old, used=used, advantage=advantage
                    ).value
                )
            )(jnp.asarray(logp))

        for one, other in zip(graded(new), graded(noisy), strict=True):
            np.testing.assert_allclose(one, other)


def test_kl_is_zero_at_the_reference_and_positive_away():
    new, old, used, advantage = batch(spread=0.2)
    config = Policy(kl=0.5)
    same = policy.loss(
        config, new, old_logp=old, used=used, advantage=advantage, reference_logp=new
    ).metrics
    away = policy.loss(
        config, new, old_logp=old, used=used, advantage=advantage, reference_logp=old
    ).metrics
    assert abs(float(same["reference_kl"])) < 1e-7
    assert float(away["reference_kl"]) > 1e-4


@pytest.mark.parametrize("kl", [1e-3, 5e-3])
@pytest.mark.parametrize("average", ["answers", "tokens", "constant"])
def test_the_kl_penalty_is_k3(average, kl):
    """Schulman's estimator q/p - log(q/p) - 1 of KL(p, q), p the policy, as GRPO equation 4."""
    new, old, used, advantage = batch(spread=0.3)
    config = Policy(average=average, kl=kl, clip_low=0.2, clip_high=0.2)

    def ours(logp, config):
        return policy.loss(
            config, logp, old_logp=old, used=used, advantage=advantage, reference_logp=old
        ).value

    configs = config, dataclasses.replace(config, kl=0.0)
    both = jax.jit(lambda x: [jax.value_and_grad(ours)(x, one) for one in configs])
    (value, grad), (without, grad_without) = both(jnp.asarray(new))
    leaf = torch.tensor(new, requires_grad=True)
    k3 = torch.exp(torch.tensor(old) - leaf) - (torch.tensor(old) - leaf) - 1
    k3 = torch.where(torch.tensor(used), k3, 0.0)
    shares = {"answers": used.sum(1)[:, None] * len(used), "tokens": used.sum()}
    penalty = kl * (k3 / torch.tensor(shares.get(average, used.size))).sum()
    penalty.backward()
    np.testing.assert_allclose(value - without, penalty.item(), rtol=2e-3)
    np.testing.assert_allclose(grad - grad_without, leaf.grad.numpy(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("average", ["answers", "tokens", "constant"])
@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_dropped_answers_are_as_if_they_had_not_been_sampled(ratio, average):
    new, old, used, advantage = batch(n=8, spread=0.1)
    kept = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
    config = Policy(ratio=ratio, average=average, clip_low=0.05, clip_high=0.05, kl=0.1)

    def graded(rows, kept):
        def value(logp):
            return policy.loss(
                config,
                logp,
                old_logp=old[rows],
                used=used[rows],
                advantage=advantage[rows],
                reference_logp=old[rows],
                kept=kept,
            ).value

        return jax.value_and_grad(value)(new[rows])

    both = jax.jit(lambda: (graded(np.arange(8), kept), graded(np.flatnonzero(kept), None)))
    (value, grad), (wanted, of_kept) = jax.tree.map(np.asarray, both())
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(grad[kept], of_kept, rtol=1e-6)
    np.testing.assert_array_equal(grad[~kept], 0.0)


def test_importance_weights_by_hand():
    trainer = np.array([[-1.0, -1.0, -1.0], [-2.0, -2.0, 0.0]], np.float32)
    gap = np.array([[0.1, -0.2, 2.0], [0.3, 0.4, 9.0]], np.float32)
    used = np.array([[True, True, True], [True, True, False]])

    def weights(level, cap):
        correction = Correction(level=level, cap=cap)
        made = policy.importance_weights(correction, trainer, trainer - gap, used=used)
        return np.asarray(made)

    np.testing.assert_allclose(weights("token", 2.0)[0], [E(0.1), E(-0.2), 2.0], rtol=1e-6)
    np.testing.assert_allclose(weights("token", 2.0)[1, :2], [E(0.3), E(0.4)], rtol=1e-6)
    np.testing.assert_allclose(weights("sequence", 10.0)[0], E(1.9), rtol=1e-6)
    np.testing.assert_allclose(weights("sequence", 10.0)[1], E(0.7), rtol=1e-6)
    np.testing.assert_allclose(weights("sequence", 1.5), 1.5, rtol=1e-6)


@pytest.mark.parametrize("average", ["answers", "tokens"])
@pytest.mark.parametrize("ratio", ["sequence", "sequence_token", "token"])
def test_importance_multiplies_each_tokens_part(ratio, average):
    new, old, used, advantage = batch(spread=0.0)  # Ratios are one: the surrogate is A.
    weight = np.random.default_rng(3).random(used.shape).astype(np.float32)
    config = Policy(ratio=ratio, average=average)
    value = policy.loss(
        config, new, old_logp=old, used=used, advantage=advantage, importance=weight
    ).value
    parts = np.where(used, weight, 0) * advantage[:, None]
    by_answer = (parts.sum(1) / used.sum(1)).mean()
    expected = by_answer if average == "answers" else parts.sum() / used.sum()
    np.testing.assert_allclose(value, -expected, rtol=1e-5)


# Updates of a model of a few weights: a softmax over the vocabulary for each prompt and column.

ROWS, ANSWERS, LENGTH, VOCABULARY = 8, 4, 6, 5
ADAM = optimizers.AdamW(lr=0.1, schedule=optimizers.Schedule(warmup=0.0, final=1.0), eps=1e-4)


def score(params, prompts, rollout):
    logits = params["kernel"][prompts.tokens][:, None] + params["bias"]
    logp = jax.nn.log_softmax(logits, -1)[:, None]
    chosen = jnp.take_along_axis(logp, rollout.ids[..., None], -1)[..., 0]
    return Likelihood(chosen, jnp.broadcast_to(-jnp.sum(jnp.exp(logp) * logp, -1), chosen.shape))


scored = jax.jit(score)


def case(config, noise=0.0):
    """Returns weights, and answers of unequal length from a sampler that thinks nearly so."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {"kernel": draw(ROWS, VOCABULARY), "bias": draw(LENGTH, VOCABULARY)}
    shape = (ROWS, ANSWERS, LENGTH)
    prompts = Prompts(*[np.arange(ROWS, dtype=np.int32)] * 3)
    ids = rng.integers(0, VOCABULARY, shape, dtype=np.int32)
    used = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (ROWS, ANSWERS, 1))
    rollout = Rollout(ids, used, np.zeros(shape, np.float32))
    own = np.asarray(scored(params, prompts, rollout).logp)
    rollout = rollout._replace(logp=np.float32(own + noise * draw(*shape)))
    rewards = rng.random((ROWS, ANSWERS), dtype=np.float32)
    rewards[::4] = 0.5  # Groups that failed or succeeded alike.
    return params, policy.experience(config, prompts, rollout, rewards=rewards)


def updated(config, params, experience, *, score=score):
    transform = optimizers.build(ADAM)

    def step(params):
        begin = state.fresh(params, transform, horizon=10)
        reference = jax.tree.map(lambda leaf: leaf + 0.1, params)
        return policy.update(
            config,
            begin,
            experience,
            score=score,
            optimizer=ADAM,
            transform=transform,
            reference=reference,
        )

    return jax.jit(step)(params)


def assert_close(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


CHOICES = [
    {},
    {"drop_equal": True, "kl": 0.1},
    {"ratio": "token", "average": "tokens", "drop_equal": True, "kl": 0.1},
    {"ratio": "token", "average": "constant", "spread": "none"},
    {"ratio": "sequence_token", "average": "tokens", "correction": Correction(level="token")},
]


@pytest.mark.parametrize(
    ("changes", "minibatches"), zip(CHOICES, (1, 2, 2, 1, 2), strict=True), ids=str
)
def test_pieces_add_up_to_the_whole(changes, minibatches):
    whole = Policy(minibatches=minibatches, **{"clip_low": 0.2, "clip_high": 0.2} | changes)
    params, experience = case(whole, noise=0.1)
    wanted, told = updated(whole, params, experience)
    after, metrics = updated(dataclasses.replace(whole, accumulate=4), params, experience)
    assert_close(after, wanted, rtol=1e-5, atol=1e-6)
    assert set(metrics) == set(told)
    for name in told:
        np.testing.assert_allclose(metrics[name], told[name], rtol=2e-5, atol=2e-6)


def test_a_mean_of_pieces_would_not_be_the_whole():
    config = Policy(ratio="token", average="tokens", clip_low=0.2, clip_high=0.2)
    _, experience = case(config)
    rollout = experience.rollout
    answers = {
        "logp": rollout.logp - 0.05,
        "old_logp": rollout.logp,
        "used": rollout.used,
        "advantage": experience.advantage,
    }
    parts = [
        {name: leaf[part] for name, leaf in answers.items()}
        for part in (np.s_[:], np.s_[:4], np.s_[4:])
    ]
    losses = jax.jit(lambda parts: [policy.loss(config, **part).value for part in parts])
    whole, *halves = map(float, losses(parts))
    assert abs(whole - sum(halves) / 2) > 1e-3


def test_one_update_is_the_gradient_of_the_loss():
    config = Policy(minibatches=1, ratio="token", average="tokens", clip_low=0.2, clip_high=0.2)
    params, experience = case(config)

    def value(params):
        logp = score(params, experience.prompts, experience.rollout).logp
        rollout = experience.rollout
        return policy.loss(
            config,
            logp,
            old_logp=rollout.logp,
            used=rollout.used,
            advantage=experience.advantage,
        ).value

    transform = optimizers.build(ADAM)

    @jax.jit
    def once(params):
        loss, grads = jax.value_and_grad(value)(params)
        begin = state.fresh(params, transform, horizon=10)
        return loss, grads, state.advance(begin, grads, optimizer=ADAM, transform=transform)[0]

    loss, grads, wanted = once(params)
    after, metrics = updated(config, params, experience)
    assert_close(after, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)


def test_minibatches_follow_each_other_and_their_ratios_move():
    config = Policy(minibatches=4, clip_low=0.2, clip_high=0.2)
    params, experience = case(config)
    after, metrics = updated(config, params, experience)
    assert int(after.step) == 1
    assert float(metrics["sampler_gap/max"]) < 1e-6  # Of the first minibatch, before any update.
    assert abs(float(metrics["ratio/max"]) - 1) > 1e-3  # Of all: later ones see moved weights.
    used = experience.rollout.used
    entropy = np.asarray(scored(params, experience.prompts, experience.rollout).entropy)
    alone, told = updated(Policy(minibatches=1), params, experience)
    np.testing.assert_allclose(told["entropy"], entropy[used].mean(), rtol=1e-5)
    np.testing.assert_allclose(told["ratio/max"], 1.0, atol=1e-6)
    assert_close(told["policy_kl"], 0.0, atol=1e-6)
    kernels = [np.asarray(one.params["kernel"]) for one in (alone, after)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_the_gap_between_sampler_and_trainer_is_told():
    config = Policy(minibatches=2)
    params, experience = case(config, noise=0.1)
    _, metrics = updated(config, params, experience)
    own = np.asarray(scored(params, experience.prompts, experience.rollout).logp)
    gap = np.abs(own - experience.rollout.logp)[:4][experience.rollout.used[:4]]
    np.testing.assert_allclose(metrics["sampler_gap/max"], gap.max(), rtol=1e-4)
    expected = np.quantile(gap, 0.99, method="inverted_cdf")
    np.testing.assert_allclose(metrics["sampler_gap/p99"], expected, rtol=1e-4)


def test_the_correction_scores_again_and_weighs_by_the_samplers_error():
    plain = Policy(minibatches=1, ratio="token", clip_low=0.01, clip_high=0.01)
    corrected = dataclasses.replace(plain, correction=Correction(level="token", cap=1.1))
    params, experience = case(plain, noise=0.2)
    _, told = updated(plain, params, experience)
    after, metrics = updated(corrected, params, experience)
    # Without it the sampler's error looks like a policy that has moved, and is clipped.
    assert float(told["clip_fraction"]) > 0.3
    assert float(metrics["clip_fraction"]) == 0.0
    np.testing.assert_allclose(metrics["ratio/max"], 1.0, atol=1e-6)
    np.testing.assert_allclose(metrics["sampler_gap/max"], told["sampler_gap/max"], rtol=1e-4)

    # On-policy the surrogate's gradient is that of logp times advantage and weight.
    own = np.asarray(scored(params, experience.prompts, experience.rollout).logp)
    used = experience.rollout.used
    weight = np.minimum(np.exp(own - experience.rollout.logp), np.float32(1.1))
    np.testing.assert_allclose(metrics["importance"], weight[used].mean(), rtol=1e-5)

    def value(params):
        logp = score(params, experience.prompts, experience.rollout).logp
        parts = jnp.where(used, weight * logp, 0.0).sum(-1) / used.sum(-1)
        return -jnp.mean(parts * experience.advantage)

    transform = optimizers.build(ADAM)

    @jax.jit
    def once(params):
        begin = state.fresh(params, transform, horizon=10)
        return state.advance(begin, jax.grad(value)(params), optimizer=ADAM, transform=transform)[0]

    assert_close(after.params, once(params).params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("broken", ["value", "gradient"])
def test_a_broken_minibatch_changes_nothing(broken):
    config = Policy(minibatches=1)
    params, experience = case(config)

    def worse(params, prompts, rollout):
        logp, entropy = score(params, prompts, rollout)
        if broken == "value":
            return Likelihood(logp * jnp.nan, entropy)
        zero = jnp.sum(params["bias"]) * 0.0
        return Likelihood(logp + jnp.sqrt(zero), entropy)  # 0, with an infinite slope.

    after, metrics = updated(config, params, experience, score=worse)
    assert np.isfinite(metrics["loss"]) == (broken == "gradient")
    assert not np.isfinite(metrics["grad_norm"])
    transform = optimizers.build(ADAM)
    begin = state.fresh(params, transform, horizon=10)
    assert int(after.step) == 1
    assert_close((after.params, after.moments), (begin.params, begin.moments), rtol=0, atol=0)


def test_prompts_that_do_not_divide_are_refused():
    config = Policy(minibatches=2, accumulate=3)
    with pytest.raises(ValueError, match="expected a divisor of 8 prompts, got 2 times 3"):
        updated(config, *case(config))


@pytest.mark.parametrize(
    "wrong",
    [
        {"minibatches": 0},
        {"accumulate": 0},
        {"clip_low": 1.5},
        {"clip_high": -0.1},
        {"kl": -1e-6},
        {"kl": np.inf},
        {"kl": np.nan},
        {"spread": "none", "spread_floor": 0.1},
    ],
    ids=str,
)
def test_wrong_choices_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Policy(**wrong)
    with pytest.raises(ValueError, match="cap: expected > 0"):
        Correction(cap=0.0)
