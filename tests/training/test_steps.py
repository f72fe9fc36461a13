"""The steps of both routes on a small model: what they learn, ignore and leave alone."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from few_steps_gspo import LOW, blind_judge

from seg_jax.records import Rollout
from seg_jax.training import optimizers, policy, steps


def first(config, on=None):
    return small_run.fresh(config, on)


def number(state, step):
    """Returns the number of a step placed as in the state: another place is another program."""
    return jax.device_put(np.int32(step), state.step.sharding)


ADAM = optimizers.AdamW(lr=3e-3, schedule=optimizers.Schedule(warmup=0.0, final=1.0))


@pytest.fixture(scope="module")
def learner():
    """One compiled supervised step with AdamW and hard targets, and a batch on the host."""
    config = small_run.sft_config(optimizer=ADAM)
    objective = dataclasses.replace(config.objective, soften_bins=0.0)
    step = steps.supervised_step(small_run.actor(), objective, ADAM)
    return config, step, next(small_run.batches("sft", questions=4))


@pytest.mark.slow
def test_the_loss_falls_on_one_batch_and_the_state_is_donated(learner):
    config, step, batch = learner
    losses, begin = [], first(config)
    state = begin
    for _ in range(15):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == 15
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begin.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(small_run.bundle().params))


@pytest.mark.slow
def test_only_answers_count(learner):
    config, step, batch = learner
    noise = np.random.default_rng(0).integers(0, 500, batch.targets.shape, np.int32)
    other = batch._replace(targets=np.where(batch.weights > 0, batch.targets, noise))
    one, other = step(first(config), batch), step(first(config), other)
    small_run.assert_same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["in pieces", "nearly hard"])
def test_ways_to_the_same_loss_and_gradient(learner, way):
    config, plain, batch = learner
    counts = batch.weights.sum((1, 2))
    assert len(set(counts)) > 1  # Unequal answers, so that pieces weigh unequally.
    pieces = way == "in pieces"  # Of the batch and of each row.
    changes = {"accumulate": 2, "soften_bins": 0.0} if pieces else {"soften_bins": 0.05}
    objective = dataclasses.replace(config.objective, **changes)
    actor = small_run.actor(5 if pieces else None)
    state, metrics = steps.supervised_step(actor, objective, ADAM)(first(config), batch)
    wanted, told = plain(first(config), batch)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], told[name], rtol=1e-5)
    for a, b in zip(small_run.host(state.moments), small_run.host(wanted.moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_packed_rows_give_the_loss_and_gradient_of_plain_ones(learner):
    config, step, plain = learner
    packed = next(small_run.batches("sft", questions=4, packed_rows=2, packed_tokens=80))
    assert packed.weights.sum() == plain.weights.sum()
    assert packed.packing.segments.max() > 1
    wanted, told = step(first(config), plain)
    state, metrics = step(first(config), packed)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], told[name], rtol=1e-5)
    for a, b in zip(small_run.host(state.moments), small_run.host(wanted.moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def actor():
    """The compiled sampler and step of GSPO with a reward that random weights can learn."""
    config = small_run.gspo_config(
        optimizer=ADAM, policy=policy.Policy(minibatches=2, clip_low=0.2, clip_high=0.2)
    )
    compiled = steps.reinforcing_step(
        small_run.actor(),
        small_run.task("prompts"),
        policy=config.policy,
        weights={"iou": 1.0},
        optimizer=config.optimizer,
        sampling=config.sampling,
    )

    def learn(*given):
        with mock.patch.object(steps, "judge", blind_judge):
            return compiled(*given)

    return config, small_run.sampler(), learn


@pytest.mark.slow
def test_the_sampled_reward_rises(actor):
    config, draw, learn = actor
    prompts, state, told = small_run.batch("prompts"), first(config), []
    for _ in range(12):
        rollout = draw(state.params, prompts, state.step)
        state, metrics = learn(state, prompts, rollout, None)
        told.append({name: float(value) for name, value in metrics.items()})
    rewards = [metrics["reward"] for metrics in told]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.05
    assert int(state.step) == 12  # However many minibatches a step has.
    for metrics in told:
        assert metrics["sampler_gap/p99"] <= metrics["sampler_gap/max"] < 1e-4
        assert 0.0 < metrics["entropy"] <= np.log(small_run.bundle().tokenizer.vocab_size) + 0.1
        assert metrics["ratio/mean"] <= metrics["ratio/p99"] <= metrics["ratio/max"]


@pytest.mark.slow
def test_what_the_sampler_draws_is_scored(actor):
    config, draw, _ = actor
    prompts, state = small_run.batch("prompts"), first(config)
    rollout = draw(state.params, prompts, number(state, 3))
    # The answers of the first prompt are made equal.
    rollout = jax.tree.map(lambda leaf: leaf.at[0].set(leaf[0, :1]), rollout)
    score = steps.scorer(small_run.actor(), small_run.task("prompts"), weights={"iou": 2.0})
    with mock.patch.object(steps, "judge", blind_judge):
        worth = score(rollout, prompts.truth)
    ids, used, *_ = map(np.asarray, rollout)
    low = ((ids < LOW) & used).sum(-1) / used.sum(-1)
    assert worth.reward.shape == (small_run.BATCH, small_run.ANSWERS)
    assert len(np.unique(worth.reward)) > 3
    np.testing.assert_allclose(worth.reward, 2.0 * low, rtol=1e-6)
    np.testing.assert_allclose(worth.scores["iou"], low, rtol=1e-6)
    differ = low.max(1) > low.min(1)
    assert worth.differ.tolist() == differ.tolist()
    assert not differ[0]
    assert differ[1:].any()


@pytest.mark.slow
def test_every_step_has_its_key_and_repeats_it(actor):
    config, draw, _ = actor
    prompts, state = small_run.batch("prompts"), first(config)
    params, three, four = state.params, number(state, 3), number(state, 4)
    one, again, other = (draw(params, prompts, step) for step in (three, three, four))
    small_run.assert_same(one, again)
    assert (np.asarray(one.ids) != np.asarray(other.ids)).mean() > 0.5
    # Answers of a group differ, and those of equal prompts.
    ids, logp = np.asarray(one.ids), np.asarray(one.logp)
    assert (ids[:, 0] != ids[:, 1]).mean() > 0.5
    # Another neighbour in the batch changes nothing.
    changed = jax.tree.map(lambda leaf: np.concatenate([leaf[:4], leaf[:4]]), prompts)
    beside = draw(params, changed, three)
    np.testing.assert_array_equal(ids[:4], np.asarray(beside.ids)[:4])
    np.testing.assert_allclose(logp[:4], np.asarray(beside.logp)[:4], atol=1e-5)


@jax.jit
def same_answers(rollout):
    """Returns the first answer of each group in the place of all; one program for all leaves."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, :1], leaf.shape[1], 1), rollout)


@pytest.mark.slow
def test_the_step_finds_the_samplers_likelihoods_and_leaves_equal_groups(actor):
    config, draw, learn = actor
    prompts, state = small_run.batch("prompts"), first(config)
    rollout = draw(state.params, prompts, state.step)
    # All answers alike: no advantage, so nothing moves, and every ratio stays one.
    alike = same_answers(rollout)
    before = small_run.host(state.params)
    after, metrics = learn(state, prompts, alike, None)
    assert float(metrics["grad_norm"]) == 0.0
    for a, b in zip(before, small_run.host(after.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert abs(float(metrics["policy_kl"])) < 1e-4
    assert abs(float(metrics["ratio/max"]) - 1) < 1e-4


def test_lengths_by_hand():
    ends = (9, 8)
    ids = np.array([[[1, 8, 0, 0], [1, 2, 3, 9]], [[1, 2, 3, 4], [9, 0, 0, 0]]], np.int32)
    used = np.array([[[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 1, 1, 1], [1, 0, 0, 0]]], bool)
    lengths = jax.jit(lambda rollout: steps._lengths(rollout, ends))
    logp = np.zeros(ids.shape, np.float32)
    told = lengths(Rollout(ids, used, logp))
    assert float(told["length/mean"]) == 11 / 4
    assert int(told["length/max"]) == 4
    assert float(told["truncated"]) == 1 / 4  # The one that no end token closes.
    assert float(told["useful_tokens"]) == float(told["useful_tokens_unfilled"]) == 11 / 16
    computed = np.array([[8, 5], [8, 1]], np.int32)
    told = lengths(Rollout(ids, used, logp, computed))
    assert float(told["useful_tokens"]) == 1 / 2
    assert float(told["useful_tokens_unfilled"]) == 11 / 16


@pytest.mark.slow
def test_refilled_rows_change_no_answer_and_a_resumed_step_repeats_them(actor):
    config, draw, _ = actor
    prompts, state = small_run.batch("prompts"), first(config)
    sampling = dataclasses.replace(config.sampling, rows=5, chunk=3)
    refilled = steps.sampler(small_run.actor(), sampling, seed=0)
    plain = []
    for step in (number(state, 0), number(state, 3)):
        plain.append(draw(state.params, prompts, step))
        got = refilled(state.params, prompts, step)
        np.testing.assert_array_equal(got.ids, plain[-1].ids)
        np.testing.assert_allclose(got.logp, plain[-1].logp, atol=1e-5)
    # Steps before are never asked again: a run that goes on has the step's number alone.
    again = steps.sampler(small_run.actor(), sampling, seed=0)
    for a, b in zip(again(state.params, prompts, step), got, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(plain[0].ids) != np.asarray(plain[1].ids)).any()


@pytest.mark.slow
def test_the_kl_penalty_pulls_towards_the_reference(monkeypatch):
    monkeypatch.setattr(steps, "judge", blind_judge)
    config = small_run.gspo_config(
        optimizer=ADAM, policy=policy.Policy(minibatches=1, kl=1.0, clip_low=0.2, clip_high=0.2)
    )
    learn = steps.reinforcing_step(
        small_run.actor(),
        small_run.task("prompts"),
        policy=config.policy,
        weights={"iou": 1.0},
        optimizer=config.optimizer,
        sampling=config.sampling,
    )
    prompts, state = small_run.batch("prompts"), first(config)
    rollout = small_run.sampler()(state.params, prompts, state.step)
    # All answers alike: no advantage, so that nothing but the penalty moves the weights.
    alike = same_answers(rollout)
    same = small_run.laid(state.params, small_run.alone())
    _, metrics = learn(first(config), prompts, alike, same)
    assert float(metrics["reference_kl"]) < 1e-6  # Measured before the step, with equal weights.
    rng = np.random.default_rng(0)
    other = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), same
    )
    far = []
    for _ in range(6):
        state, metrics = learn(state, prompts, alike, other)
        far.append(float(metrics["reference_kl"]))
    assert far[0] > 1e-3
    assert far[-1] < 0.8 * far[0]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(other))


@pytest.mark.parametrize(
    ("name", "value"), [("answers", 0), ("max_tokens", 0), ("chunk", 0), ("temperature", 0.0)]
)
def test_sampling_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^sampling.{name}: expected .*, got {value}"):
        steps.Sampling(**{name: value})
