"""A penalty on the length of answers as a term of the reward, against its formula in numpy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from few_steps_gspo import LOW, blind_judge

from seg_jax.records import Rollout, WrittenAnswer
from seg_jax.training import policy, state, steps

WEIGHTS = {"iou": 1.0, "distance": 0.5}
PENALTY = 0.3
ROOM = 10
SHAPE = (small_run.BATCH, small_run.ANSWERS, ROOM)


@pytest.fixture
def answers(monkeypatch):
    """Returns random answers of random length, their lengths and the rewards of their scores."""
    monkeypatch.setattr(steps, "judge", blind_judge)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2 * LOW, SHAPE, np.int32)
    length = rng.integers(1, ROOM + 1, SHAPE[:2])
    used = np.arange(ROOM) < length[..., None]
    score = ((ids < LOW) & used).sum(-1) / length
    return Rollout(ids, used, np.zeros(SHAPE, np.float32)), length, 1.5 * score


def learnt(config, prompts, rollout, monkeypatch):
    """Returns the advantages and the mean reward of a step whose update is left out."""

    def update(config, current, experience, **_):
        return current, {"advantage": experience.advantage}

    monkeypatch.setattr(policy, "update", update)
    base = small_run.gspo_config()
    step = steps.reinforcing_step(
        small_run.actor(),
        small_run.task("prompts"),
        policy=config,
        weights=WEIGHTS,
        optimizer=base.optimizer,
        sampling=dataclasses.replace(base.sampling, max_tokens=ROOM),
    )
    first = state.State(jnp.int32(0), jnp.int32(1), {}, ())
    told = step(first, prompts, rollout, None)[1]
    return np.asarray(told["advantage"]), float(told["reward"])


def test_a_step_learns_from_rewards_less_the_share_of_the_room(answers, monkeypatch):
    rollout, length, plain = answers
    prompts = small_run.batch("prompts")
    for penalty in (0.0, PENALTY):
        config = policy.Policy(minibatches=2, spread_floor=0.1, length_penalty=penalty)
        reward = plain - penalty * length / ROOM
        centred = reward - reward.mean(1, keepdims=True)
        wanted = centred / np.maximum(reward.std(1, keepdims=True), 0.1)
        advantage, mean = learnt(config, prompts, rollout, monkeypatch)
        np.testing.assert_allclose(advantage, wanted, atol=1e-5)
        assert mean == pytest.approx(reward.mean(), abs=1e-6)


def test_a_true_answer_pays_for_its_length_too(answers, monkeypatch):
    rollout, length, plain = answers
    ids = np.zeros((SHAPE[0], ROOM), np.int32)  # As good as can be.
    truth = WrittenAnswer(ids, np.arange(ROOM) < np.full((SHAPE[0], 1), 4))
    prompts = small_run.batch("prompts")._replace(answer=truth)
    config = policy.Policy(minibatches=2, spread="none", truth="judged", length_penalty=PENALTY)
    reward = np.column_stack([plain - PENALTY * length / ROOM, np.full(len(ids), 1.5 - 0.12)])
    advantage, mean = learnt(config, prompts, rollout, monkeypatch)
    np.testing.assert_allclose(advantage, reward - reward.mean(1, keepdims=True), atol=1e-5)
    assert mean == pytest.approx(reward[:, :-1].mean(), abs=1e-6)  # Of what was sampled.


def test_groups_are_gathered_and_remembered_by_such_rewards(answers):
    rollout, length, plain = answers
    # The answers of the first group are the same but for their lengths; of the second wholly.
    ids, used = np.array(rollout.ids), np.array(rollout.used)
    ids[:2], used[1] = 0, used[1, :1]
    rollout, length = rollout._replace(ids=ids, used=used), used.sum(-1)
    plain = np.where(np.arange(len(ids))[:, None] < 2, 1.5, plain)
    prompts, differ = small_run.batch("prompts"), []
    for penalty in (0.0, PENALTY):
        gather = steps.gathering_step(
            small_run.actor(),
            small_run.task("prompts"),
            policy=policy.Policy(drop_equal=True, length_penalty=penalty),
            weights=WEIGHTS,
        )
        found, told = gather(None, prompts, rollout)
        reward = plain - penalty * length / ROOM
        differ.append(np.asarray(found.differ)[:2].tolist())
        np.testing.assert_allclose(told.reward, reward.mean(), rtol=1e-5)
        # From -penalty to the sum of the weights.
        solved = (reward.mean(1) + penalty) / (1.5 + penalty)
        np.testing.assert_allclose(told.solved, solved, rtol=1e-5)
    assert differ == [[False, False], [True, False]]


def test_what_is_said_before_a_run_has_the_same_rewards(answers):
    rollout, length, plain = answers
    score = steps.scorer(
        small_run.actor(),
        small_run.task("prompts"),
        weights=WEIGHTS,
        token_penalty=PENALTY / ROOM,
    )
    worth = score(rollout, small_run.batch("prompts").truth)
    np.testing.assert_allclose(worth.reward, plain - PENALTY * length / ROOM, rtol=1e-5)


@pytest.mark.parametrize("penalty", [-0.1, float("nan"), float("inf")])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match=r"^policy\.length_penalty: expected a finite .*; do: "):
        policy.Policy(length_penalty=penalty)
