"""Both routes on questions about what is not there: what is learnt, drawn, judged and rewarded."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import small_run

from seg_jax.data import pipeline
from seg_jax.grammar import outline
from seg_jax.records import Kind, Rollout
from seg_jax.scenes import phrases
from seg_jax.tasks.referring import Mixture
from seg_jax.training import advantages, optimizers, policy, steps

ADAM = optimizers.AdamW(lr=3e-3, schedule=optimizers.Schedule(warmup=0.0, final=1.0))
MIXTURE = Mixture(text_mask=0.6, text_box=0.2, text_point=0.2, absent=1.0)
TASK = dataclasses.replace(small_run.TINY.TASK, mixture=MIXTURE)
SOURCE = dataclasses.replace(
    small_run.sft_config().source, style=phrases.Style(full=True, absent=2)
)
WEIGHTS = {"iou": 1.0, "distance": 0.2, "format": 0.1}
FULL = sum(WEIGHTS.values())
SAMPLING = steps.Sampling(answers=small_run.ANSWERS, temperature=1.3, max_tokens=14, grammar=True)


def rows(kind, **changes):
    feed = pipeline.Feed(**({"batch": small_run.BATCH, "questions": 4} | changes))
    return next(pipeline.batches(SOURCE, TASK, small_run.bundle().encoder, feed=feed, rows=kind))


def texts(ids, keep):
    decode = small_run.bundle().tokenizer.decode
    return decode(np.asarray(ids)[np.asarray(keep)].tolist())


def test_rows_of_training_hold_denials_in_full():
    batch = rows("sft")
    told = [
        texts(target, weight > 0)
        for some in zip(batch.targets, batch.weights, strict=True)
        for target, weight in zip(*some, strict=True)
    ]
    denied = [text for text in told if text == "[]."]
    assert 0.3 < len(denied) / len(told) < 0.7
    assert all(outline.read(text, Kind.MASK).says_nothing == (text == "[].") for text in told)
    ends = batch.targets[(batch.weights > 0) & (batch.ids == encoded("].")[0])]
    assert small_run.bundle().tokenizer.end_id in ends


def encoded(text):
    return small_run.bundle().tokenizer.encode(text)


def test_prompts_of_absent_things_have_an_empty_truth():
    prompts = rows("prompts", batch=32)
    area = np.bitwise_count(prompts.truth.words).sum((1, 2))
    assert 8 < (area == 0).sum() < 24
    assert {*prompts.truth.kind[area == 0].tolist()} >= {Kind.MASK}


@pytest.mark.slow
def test_the_loss_of_denials_falls():
    config = small_run.sft_config(optimizer=ADAM)
    objective = dataclasses.replace(config.objective, soften_bins=0.0)
    step = steps.supervised_step(small_run.actor(), objective, ADAM)
    batch, state, losses = rows("sft"), small_run.fresh(config), []
    # Only what is denied counts.
    held = np.array(
        [
            [texts(t, w > 0) == "[]." for t, w in zip(*some, strict=True)]
            for some in zip(batch.targets, batch.weights, strict=True)
        ]
    )
    batch = batch._replace(weights=np.where(held[..., None], batch.weights, 0).astype(np.float32))
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.75 * losses[0]


def rollout_of(answers, prompts):
    """Returns the texts as sampled answers [B G] of a model that found all tokens alike."""
    tokenizer = small_run.bundle().tokenizer
    ids = np.full((len(answers), len(answers[0]), SAMPLING.max_tokens), tokenizer.pad_id, np.int32)
    used = np.zeros(ids.shape, bool)
    for b, group in enumerate(answers):
        for g, text in enumerate(group):
            row = [*tokenizer.encode(text), tokenizer.end_id]
            ids[b, g, : len(row)], used[b, g, : len(row)] = row, True
    return Rollout(ids, used, np.zeros(ids.shape, np.float32))


SHOWN = {
    Kind.POINT: "[0.50, 0.50].",
    Kind.BOX: "[0.10, 0.10, 0.90, 0.90].",
    Kind.MASK: "[[[0.10, 0.10], [0.90, 0.10], [0.90, 0.90]]].",
}


def test_to_deny_is_worth_all_where_nothing_is_and_nothing_where_something_is():
    prompts = rows("prompts")
    absent = np.bitwise_count(prompts.truth.words).sum((1, 2)) == 0
    assert 0 < absent.sum() < len(absent)
    answers = [["[].", SHOWN[Kind(kind)], "no", "[["] for kind in prompts.truth.kind.tolist()]
    judge = jax.jit(steps._judge(small_run.actor(), TASK))
    judged = judge(rollout_of(answers, prompts), prompts.truth)
    reward = np.asarray(advantages.reward(judged.scores, WEIGHTS))
    np.testing.assert_allclose(reward[absent, 0], FULL)
    np.testing.assert_allclose(reward[absent, 1], WEIGHTS["format"])
    np.testing.assert_allclose(reward[~absent, 0], WEIGHTS["format"])
    assert (reward[~absent, 1] > WEIGHTS["format"] + 0.05).all()
    assert (reward[:, 2:] == 0).all()
    assert np.asarray(judged.verdict)[:, 0].max() == 0


QUICK = dataclasses.replace(ADAM, lr=1e-2)


@functools.cache
def learner():
    """Returns the compiled step of GSPO."""
    config = policy.Policy(minibatches=1, clip_low=0.2, clip_high=0.2)
    return steps.reinforcing_step(
        small_run.actor(), TASK, policy=config, weights=WEIGHTS, optimizer=QUICK, sampling=SAMPLING
    )


@pytest.mark.slow
def test_a_step_of_gspo_learns_to_deny():
    learn = learner()
    draw = steps.sampler(small_run.actor(), SAMPLING, seed=0, task=TASK)
    many = rows("prompts", batch=32)
    empty = np.bitwise_count(many.truth.words).sum((1, 2)) == 0
    # Where a polygon opens with the bracket that a denial has, too: random weights find it.
    masks = empty & (many.truth.kind == Kind.MASK)
    chosen = [*np.flatnonzero(masks)[:6], *np.flatnonzero(~empty)[:2]]
    prompts = jax.tree.map(lambda leaf: leaf[chosen], many)
    state = small_run.fresh(small_run.gspo_config(optimizer=QUICK))
    absent, shares = empty[chosen], []
    for _ in range(16):
        rollout = draw(state.params, prompts, state.step)
        kinds = prompts.truth.kind.tolist()
        said = np.array(
            [
                [
                    outline.read(texts(*one), Kind(kind)).says_nothing
                    for one in zip(*some, strict=True)
                ]
                for kind, *some in zip(kinds, rollout.ids, rollout.used, strict=True)
            ]
        )
        shares.append(said[absent].mean())
        state, metrics = learn(state, prompts, rollout, None)
        told = {name: float(value) for name, value in metrics.items()}
        assert all(np.isfinite(value) for value in told.values()), told
        assert told["verdicts/OK"] == 1.0
        assert told["sampler_gap/max"] < 1e-4
        assert told["scores/iou"] >= said[absent].sum() / said.size - 1e-6
    assert np.mean(shares[-5:]) > np.mean(shares[:5]) + 0.2


@pytest.mark.slow
def test_a_group_that_agrees_on_nothing_moves_nothing():
    prompts = rows("prompts")
    answers = [["[]."] * small_run.ANSWERS for _ in prompts.truth.kind]
    rollout = rollout_of(answers, prompts)
    state = small_run.fresh(small_run.gspo_config(optimizer=QUICK))
    # Counted and placed as by the sampler: the step is compiled once.
    rollout = rollout._replace(computed=rollout.used.sum(-1, dtype=np.int32))
    rollout = jax.device_put(rollout, state.step.sharding)
    before = small_run.host(state.params)
    state, metrics = learner()(state, prompts, rollout, None)
    assert float(metrics["grad_norm"]) == 0.0
    for one, other in zip(before, small_run.host(state.params), strict=True):
        np.testing.assert_array_equal(one, other)
