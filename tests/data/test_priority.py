"""Prompts by past rewards: chances by formula, shares that follow, the same after a resume."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run
from batches import assert_same

from seg_jax.data import pipeline, sources
from seg_jax.data.priority import Memory, Priority

LEARNABLE = Priority(by="learnability", floor=0.2)


def test_chances_by_hand():
    solved = np.array([0.0, 0.25, 0.5, 1.0, np.nan])
    np.testing.assert_allclose(LEARNABLE.chance(solved), [0.2, 0.8, 1.0, 0.2, 1.0])
    failing = Priority(by="failure", floor=0.5)
    np.testing.assert_allclose(failing.chance(solved), [1.0, 0.875, 0.75, 0.5, 1.0])
    np.testing.assert_allclose(Priority().chance(solved), 1.0)
    # Of rewards that are 0 or 1 it is their variance.
    rewards = np.array([0, 0, 1, 0, 0, 0, 1, 0])
    expected = 0.2 + 0.8 * 4 * rewards.var()
    np.testing.assert_allclose(LEARNABLE.chance(rewards.mean()), expected)


def memory(prompts=10, **changes):
    given = {"prompt_of": lambda turn: turn % prompts, "prompts": prompts, "seed": 3}
    return Memory(LEARNABLE, **given | changes)


def test_prompts_come_up_as_their_chances_have_it():
    """Of a set whose rewards stay, each prompt comes up in proportion to its chance."""
    solved = np.linspace(0.0, 1.0, 10)
    remembered, counts = memory(), np.zeros(10)
    for _ in range(400):
        turns = remembered.next_turns(5)
        taken = np.array(turns) % 10
        remembered.note(solved[taken])
        counts += np.bincount(taken, minlength=10)
    chance = 0.2 + 0.8 * 4 * solved * (1 - solved)
    expected = counts.sum() * chance / chance.sum()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    assert remembered.metrics()["priority/known"] == 1.0
    np.testing.assert_allclose(remembered.metrics()["priority/solved"], 0.5)


def test_every_prompt_is_asked_once_before_any_is_passed_by():
    remembered = memory()
    assert remembered.next_turns(5) + remembered.next_turns(5) == list(range(10))
    assert remembered.metrics() == {
        "priority/known": 0.0, "priority/solved": 0.0, "priority/taken": 1.0
    }  # fmt: skip


def test_what_is_new_counts_half():
    remembered = memory(2)
    for solved in ([1.0, 0.0], [0.0, 0.0], [0.5, np.nan]):
        remembered._taken = np.array([0, 1])
        remembered.note(np.array(solved))
    np.testing.assert_allclose(remembered._solved, [0.5, 0.0])


def test_a_memory_goes_on_as_it_would_have():
    one, other = memory(), memory()
    rng = np.random.default_rng(0)
    for _ in range(7):
        one.next_turns(4)
        one.note(rng.random(4))
    other.set_state(json.loads(json.dumps(one.get_state())))
    for _ in range(9):
        solved = rng.random(4)
        assert one.next_turns(4) == other.next_turns(4)
        one.note(solved)
        other.note(solved)
    assert one.get_state() == other.get_state()


@pytest.mark.parametrize(
    "wrong",
    [{"prompts": 9}, {"known": [10]}, {"known": [0, 1]}, {"solved": [1.5]}, {"turn": -1},
     {"known": None}, {"solved": ["x"]}],
    ids=str,
)  # fmt: skip
def test_another_memory_is_refused(wrong):
    stored = {"turn": 4, "prompts": 10, "known": [3], "solved": [0.5]}
    memory().set_state(stored)
    with pytest.raises(ValueError, match=r"priority.*expected .*; do: resume with the same data"):
        memory().set_state(stored | wrong)


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.1, np.nan])
def test_a_floor_that_is_no_chance_is_refused(floor):
    with pytest.raises(ValueError, match=r"priority\.floor: expected a chance above 0"):
        Priority(by="failure", floor=floor)
    with pytest.raises(ValueError, match=r"priority\.floor: expected a priority\.by beside it"):
        Priority(floor=0.3)


# Batches of prompts.


def feed(source, *, held=None, first=LEARNABLE, **changes):
    config = small_run.gspo_config()
    return pipeline.batches(
        source,
        small_run.task("prompts"),
        small_run.bundle().encoder,
        feed=dataclasses.replace(config.feed, batch=4, seed=1, **changes),
        rows="prompts",
        local_rows=held,
        first=first,
    )


def scenes(count=8, seed=5):
    return sources.Scenes(world=small_run.gspo_config().source.world, seed=seed, count=count)


def noted(batch):
    """Returns rewards that hang on what is asked."""
    return np.asarray(batch.tokens.ids).sum(-1) % 7 / 6


def test_first_rounds_are_those_without_a_priority():
    plain, chosen = feed(scenes(), first=None), feed(scenes())
    for _ in range(2):
        assert_same(next(plain), next(chosen))


def test_processes_put_together_choose_as_one_and_go_on_exactly():
    whole, parts = feed(scenes()), [feed(scenes(), held=held) for held in ([0, 1], [2], [3])]
    every = [whole, *parts]
    for step in range(8):
        batch, *pieces = map(next, every)
        assert_same(batch, jax.tree.map(lambda *x: np.concatenate(x), *pieces))
        for one in every:
            one.memory.note(noted(batch))
        if step == 4:
            stored = json.loads(json.dumps(whole.get_state()))
            every[0] = feed(scenes(), threads=0)
            every[0].set_state(stored)
    assert stored["turn"] > 5 * 4  # Some were passed by.


def test_what_is_remembered_is_of_the_sample_that_was_asked_about():
    source = sources.Mixed(parts=(scenes(3), scenes(5, seed=6)), weights=(1.0, 1.0))
    batches, encoder = feed(source), small_run.bundle().encoder
    known = [encoder.image(source[index].image)[0].patches for index in range(8)]
    for _ in range(6):
        batch = next(batches)
        for prompt, patches in zip(batches.memory._taken, batch.images.patches, strict=True):
            np.testing.assert_array_equal(patches, known[prompt])
        batches.memory.note(noted(batch))
