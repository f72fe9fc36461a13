"""Groups gathered of several batches: DAPO's loop in numpy, devices, a run that goes on."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from few_steps_gspo import LOW, blind_judge

from seg_jax.data import priority, sources
from seg_jax.models.parallel import sharding
from seg_jax.records import Prompts, Rollout, WrittenAnswer
from seg_jax.runs import reinforcement, stage
from seg_jax.runs import start as start_of_run
from seg_jax.runs.drawing import Drawing
from seg_jax.training import clock, loop, policy, rounds, steps
from seg_jax.training.log import Log
from seg_jax.training.state import State

ROWS = small_run.BATCH
DROPPING = policy.Policy(minibatches=2, drop_equal=True)


def groups(number, differ):
    """Returns a batch of groups that are known by their numbers."""
    names = 100 * number + np.arange(len(differ), dtype=np.int32)
    answers = np.repeat(names[:, None, None], 2, 1)
    prompts = Prompts(names, names[:, None], {"truth": names})
    rollout = Rollout(answers, answers >= 0, answers.astype(np.float32))
    return rounds.Groups(prompts, rollout, np.asarray(differ))


def dapo(batches):
    """Returns DAPO's buffer: groups that differ, batch by batch, until one batch is full."""
    buffer, size = [], len(batches[0])
    for number, differ in enumerate(batches):
        buffer += [100 * number + place for place, one in enumerate(differ) if one]
        if len(buffer) >= size:
            break
    return buffer[:size]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_what_is_gathered_is_dapos_buffer(share):
    rng = np.random.default_rng(round(10 * share))
    gather = jax.jit(rounds.fill)
    for _ in range(5):
        flags, found = rng.random((4, 6)) < share, None
        for number, differ in enumerate(flags):
            found = gather(found, groups(number, differ))
            if np.asarray(found.differ).all():
                break
        buffer = dapo(list(flags))
        assert int(found.differ.sum()) == len(buffer)
        names = np.asarray(found.prompts.tokens)
        np.testing.assert_array_equal(names[np.asarray(found.differ)], buffer)
        assert len(set(names.tolist())) == 6  # What fills the places are other groups,
        assert sorted(names.tolist()) == names.tolist()  # and all are in the order they came.
        for leaf in jax.tree.leaves((found.prompts, found.rollout.ids)):
            np.testing.assert_array_equal(np.asarray(leaf).reshape(6, -1)[:, 0], names)


def sampled(prompts, step, first):
    """Returns random answers that hang on the step and the prompts before; half of groups equal."""
    rng = np.random.default_rng([int(step), int(first)])
    ids = rng.integers(0, 2 * LOW, (ROWS, small_run.ANSWERS, 10), np.int32)
    equal = (np.asarray(prompts.tokens.ids).sum(-1) + ids[:, 0, 0]) % 2 == 0
    ids[equal] = ids[equal, :1]
    return Rollout(ids, np.ones(ids.shape, bool), np.zeros(ids.shape, np.float32))


def gathering(monkeypatch, config, weights):
    monkeypatch.setattr(steps, "judge", blind_judge)
    return steps.gathering_step(
        small_run.actor(), small_run.task("prompts"), policy=config, weights=weights
    )


def test_answers_are_judged_and_told(monkeypatch):
    weights = {"iou": 1.0, "distance": 0.5, "format": -0.5}  # From -0.5 to 1.5.
    gather = gathering(monkeypatch, DROPPING, weights)
    prompts = small_run.batch("prompts")
    rollout = sampled(prompts, 0, 0)
    low = (rollout.ids < LOW).mean(-1)
    found, told = gather(None, prompts, rollout)
    assert (low.std(1) > 0).any()
    np.testing.assert_array_equal(found.differ, low.std(1) > 1e-6)
    np.testing.assert_array_equal(found.rollout.ids, rollout.ids)
    assert int(told.gathered) == (low.std(1) > 1e-6).sum()
    np.testing.assert_allclose(told.differ, (low.std(1) > 1e-6).mean())
    np.testing.assert_allclose(told.reward, low.mean(), rtol=1e-6)
    np.testing.assert_allclose(told.solved, (low.mean(1) + 0.5) / 2.0, rtol=1e-6)


def test_a_true_answer_makes_groups_differ_and_counts_for_no_share(monkeypatch):
    truth = dataclasses.replace(DROPPING, truth="judged")
    gather = gathering(monkeypatch, truth, {"iou": 1.0})
    prompts, rollout = small_run.batch("prompts"), sampled(small_run.batch("prompts"), 0, 0)
    ids = np.zeros((ROWS, 10), np.int32)  # As good as can be.
    with_truth = prompts._replace(answer=WrittenAnswer(ids, ids == 0))
    found, told = gather(None, with_truth, rollout)
    low = (rollout.ids < LOW).mean(-1)
    np.testing.assert_array_equal(np.asarray(found.differ).sum(), (low.mean(1) < 1).sum())
    np.testing.assert_allclose(told.solved, low.mean(1), rtol=1e-6)
    assert found.rollout.ids.shape == rollout.ids.shape


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_eight_devices_gather_as_one(monkeypatch):
    gather = gathering(monkeypatch, DROPPING, {"iou": 1.0})
    prompts = small_run.batch("prompts")
    batches = [(prompts, sampled(prompts, 0, first)) for first in (0, ROWS)]
    on = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    alone = many = None
    for batch in batches:
        alone, told = gather(alone, *batch)
        with jax.set_mesh(on):
            many, found = gather(many, *jax.device_put(batch, sharding.batch(on, ROWS)))
        for one, other in zip(found, told, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        small_run.assert_same(many, alone)
    for leaf in jax.tree.leaves(many):
        assert leaf.sharding.is_equivalent_to(sharding.batch(on, ROWS), leaf.ndim)
    assert all(leaf.sharding.is_fully_replicated for leaf in found)


class Endless:
    """Batches of a number each."""

    def __init__(self):
        self.drawn = 0

    def __next__(self):
        self.drawn += 1
        return self.drawn


@pytest.mark.parametrize(("most", "wanted"), [(1, 1), (2, 2), (5, 3)])
def test_a_step_draws_until_it_is_full_or_may_not_go_on(most, wanted):
    """Of every batch of 6 two groups differ."""
    batches, firsts = Endless(), []

    def sample(params, prompts, step, first):
        firsts.append(int(first))
        return prompts

    def gather(before, prompts, rollout):
        count = (0 if before is None else before.count) + 2
        told = rounds.Told(np.int32(count), np.float32(1 / 3), np.float32(prompts), np.zeros(6))
        return types.SimpleNamespace(count=count, prompts=prompts, rollout=rollout), told

    draw = Drawing(
        batches, lambda batch: batch, sample, clock.Clock(1), gather, rounds=most, prompts=6
    )
    drawn = draw(State(jnp.int32(4), jnp.int32(9), {}, ()))
    assert batches.drawn == wanted
    assert firsts == [6 * number for number in range(wanted)]
    assert drawn.shown == (wanted, wanted)
    gathered = 2 * wanted
    expected = {
        "rounds": wanted,
        "rounds/differ": 1 / 3,
        "rounds/kept": gathered / (6 * wanted),
        "rounds/full": gathered / 6,
        "rounds/reward": (1 + wanted) / 2,
    }
    assert drawn.metrics == (pytest.approx(expected) if most > 1 else {})


# Runs, with cheap stand-ins for the sampler and for what learns.


CHOSEN = small_run.gspo_config(
    source=sources.Scenes(world=small_run.gspo_config().source.world, seed=5, count=24),
    policy=DROPPING,
    rounds=3,
    priority=priority.Priority(by="learnability", floor=0.2),
    loop=loop.Loop(steps=6, log_every=1, save_minutes=0.0),
)


@pytest.fixture
def run(monkeypatch):
    """Returns a function (folder, step to stop after) -> (prompts of each step, records)."""
    small_run.on_one_device(monkeypatch)
    monkeypatch.setattr(steps, "judge", blind_judge)

    def sampler(*_, **__):
        return lambda params, prompts, step, first: sampled(prompts, step, first)

    monkeypatch.setattr(steps, "sampler", sampler)
    given = small_run.bundle()
    given = dataclasses.replace(given, task=small_run.task("prompts"))

    def go(folder, stop=0):
        seen = []

        def stand_in(*_, **__):
            def step(current, prompts, rollout, reference):
                seen.append((np.asarray(prompts.tokens.ids), np.asarray(rollout.ids)))
                if len(seen) == stop:
                    raise KeyboardInterrupt  # After the step before was saved.
                told = dict.fromkeys(("loss", "reward", "length/mean"), np.ones((), np.float32))
                return current._replace(step=current.step + 1), told

            return step

        monkeypatch.setattr(steps, "reinforcing_step", stand_in)
        begin = start_of_run.Start(given, lambda: small_run.laid(given.params, small_run.alone()))
        with Log(folder) as log:
            place = stage.Place(folder, "gspo", log)
            reinforcement.train(CHOSEN, begin, place)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return seen, [json.loads(line) for line in lines]

    return go


def test_a_run_that_was_stopped_draws_the_very_same_groups(run, tmp_path):
    wanted, records = run(tmp_path / "whole")
    assert [record["rounds"] for record in records] != [3] * 6  # Not all are exhausted.
    assert max(record["rounds"] for record in records) > 1
    assert 0 < min(record["priority/taken"] for record in records) < 1
    assert records[-1]["priority/known"] == 1.0
    # Passes over the 24 prompts: of all whose turn came, in every batch of a step.
    passes = [record["epoch"] for record in records]
    drawn = np.cumsum([record["rounds"] for record in records]) * ROWS / 24
    assert all(one >= other for one, other in zip(passes, drawn, strict=True))
    assert passes[-1] > drawn[-1] > 6 * ROWS / 24
    for record in records:
        assert record["rounds/kept"] * record["rounds"] == pytest.approx(record["rounds/full"])
    for _, ids in wanted:
        low = (ids < LOW).mean(-1)
        full = (low.std(1) > 1e-6).mean()
        assert full == 1.0 or full in [record["rounds/full"] for record in records]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=4)
    again, rest = run(tmp_path / "stopped")
    assert len(again) == 3
    for one, other in zip(again, wanted[3:], strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    names = ("epoch", "rounds", "rounds/kept", "rounds/reward", "priority/solved", "priority/taken")
    for one, other in zip(rest[-3:], records[-3:], strict=True):
        assert [one[name] for name in names] == [other[name] for name in names]


@pytest.mark.slow
def test_further_batches_of_a_step_have_draws_of_their_own():
    draw, prompts = small_run.sampler(), small_run.batch("prompts")
    params, step = small_run.bundle().params, jnp.int32(3)
    plain = draw(params, prompts, step)
    first, second = (draw(params, prompts, step, np.int32(n)) for n in (0, ROWS))
    np.testing.assert_array_equal(first.ids, plain.ids)
    assert (np.asarray(first.ids) != np.asarray(second.ids)).mean() > 0.5


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: expected at least 1 batch, got 0"),
        ({"rounds": 2, "policy": policy.Policy(minibatches=2)}, "rounds: expected policy.drop"),
        (
            {"layout": dataclasses.replace(small_run.gspo_config().layout, buckets=2)},
            "rounds: expected prompts of one length",
        ),
        ({"loop": loop.Loop(epochs=2)}, "loop.epochs: expected loop.steps beside 3 rounds, .* 2 "),
        (
            {"loop": loop.Loop(epochs=2), "rounds": 1},
            "loop.epochs: expected loop.steps beside priority.by learnability",
        ),
        ({"feed": dataclasses.replace(CHOSEN.feed, workers=1)}, "feed.workers: expected 0 beside"),
        ({"feed": dataclasses.replace(CHOSEN.feed, prefetch=1)}, "feed.prefetch: expected 8"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CHOSEN, **changes)


def test_endless_prompts_have_no_past():
    CHOSEN.check_finite()
    endless = sources.Scenes()
    mixed = sources.Mixed(parts=(CHOSEN.source, endless), weights=(1.0, 1.0))
    for source in (endless, mixed):
        with pytest.raises(ValueError, match=r"priority\.by: expected a finite source"):
            dataclasses.replace(CHOSEN, source=source).check_finite()
        dataclasses.replace(CHOSEN, source=source, priority=priority.Priority()).check_finite()
