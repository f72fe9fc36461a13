"""Scores of a user's own in a run of reinforcement: tried before, weighed, kept, resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from seg_jax.runs import console, own_rewards
from seg_jax.tasks import own_scores
from seg_jax.training import steps

TEXT = '''
import jax.numpy as jnp
import jax.numpy as jnp
import numpy as np
from seg_jax.tasks.own_scores import on_host


def few(answer, truth, height, width):
    """How few vertices are drawn, and how high the picture is."""
    count = answer.used.sum((-1, -2))
    return {"few": 1.0 / (1.0 + count), "never": jnp.full(height.shape, jnp.nan)}


@on_host
def drawn(answer, truth, height, width):
    assert height.shape == width.shape == answer.used.shape[:1]
    assert (height == truth.size[:, 0]).all()
    return {"drawn": answer.used.any((-1, -2)).astype(np.float32)}


def fails(answer, truth, height, width):
    return {"fails": answer.rings.sum()}
'''


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Returns a function (names, changes) -> what a run has of its functions, and what is said."""
    file, said = tmp_path / "mine.py", []
    file.write_text(TEXT)
    monkeypatch.setattr(console, "say", said.append)

    def of(*names, **changes):
        titles = tuple(f"{file}:{name}" for name in names)
        run = small_run.gspo_config(reward=titles, **changes)
        return own_rewards.of_run(run, small_run.bundle()), said

    return of


def test_scores_are_tried_and_weigh_one_unless_said(tried):
    (run, own, functions), said = tried("few", "drawn", weights={"iou": 1.0, "never": 0.5})
    assert own.names == ("few", "never", "drawn")
    assert run.weights == {"iou": 1.0, "never": 0.5, "few": 1.0, "drawn": 1.0}
    assert [one.name for one in functions] == ["few", "drawn"]
    text = "\n".join(said)
    assert "drawn is 1.000 for the true answers of 8 prompts, 0.000 for an answer that says" in text
    assert "1.000 for an answer that says nothing; it weighs 1" in text
    assert "warning: reward" in text
    assert "never is no number in 0..1 for 9 of 9 answers: what is no number counts as 0" in text
    assert "ms an answer: about 0." in said[-1]
    assert not said[-1].startswith("warning")


def test_a_slow_function_on_the_host_is_warned_of(tried, monkeypatch):
    clock = iter(np.arange(0.0, 900.0, 90.0))
    monkeypatch.setattr(own_rewards.time, "perf_counter", lambda: float(next(clock)))
    _, said = tried("drawn")
    assert said[-1].startswith("warning: reward ")
    # 10 seconds an answer, 8 prompts of 4.
    assert "10000.00 ms an answer: about 320.00 s of each step, in which devices wait" in said[-1]


def test_the_example_of_the_readme_is_a_score(tried, tmp_path):
    text = Path(own_scores.__file__).with_name("README.md").read_text()
    (tmp_path / "mine.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    (run, own, _), said = tried("single")
    assert own.names == ("single",)
    assert run.weights["single"] == 1.0
    assert "single is 0.500 for the true answers of 8 prompts, 1.000 for an answer that" in said[0]


def test_mistakes_are_one_line(tried):
    with pytest.raises(
        ValueError, match=r"reward: expected .*mine.py, line 22: AttributeError: .*; do: mend fails"
    ):
        tried("fails")
    with pytest.raises(ValueError, match="got few, a score of reward .*mine.py:few; do: rename it"):
        tried("few", "few")
    with pytest.raises(ValueError, match="which are iou, distance, format, drawn, got dran; do"):
        tried("drawn", weights={"iou": 1.0, "dran": 1.0})
    with pytest.raises(ValueError, match="weights: expected scores of the task .* got drawn; do"):
        small_run.gspo_config(weights={"drawn": 1.0})


def test_options_name_weights_of_scores_that_are_not_known_yet():
    run = small_run.gspo_config()
    assert run.with_weights_named(["--loop.steps", "4"]) == run
    assert run.with_weights_named(["--weights.few", "4"]) == run
    named = run.with_weights_named(["--reward", "mine.py:few", "--weights.few-er=4"])
    assert named.weights == {**run.weights, "few_er": 1.0}
    given = dataclasses.replace(run, reward=("mine.py:few",), weights={"few": 2.0})
    assert given.with_weights_named(["--weights.few", "4"]) == given


@pytest.mark.slow
def test_a_step_is_rewarded_by_them_and_tells_what_was_invalid(tried):
    weights = {"iou": 1.0, "few": 2.0, "drawn": 0.5, "never": 1.0}
    (run, own, _), _ = tried("few", "drawn", weights=weights)
    actor, task = small_run.actor(), small_run.task("prompts")
    prompts, state = small_run.batch("prompts"), small_run.fresh(run)
    rollout = small_run.sampler()(state.params, prompts, jnp.int32(0))
    worth = steps.scorer(actor, task, weights=run.weights, own=own)(rollout, prompts.truth)
    scores = {name: np.asarray(values) for name, values in worth.scores.items()}
    assert scores["few"].any()
    assert not scores["never"].any()
    wanted = scores["iou"] + 2.0 * scores["few"] + 0.5 * scores["drawn"]
    np.testing.assert_allclose(worth.reward, wanted, rtol=1e-5)
    learn = steps.reinforcing_step(
        actor,
        task,
        policy=run.policy,
        weights=run.weights,
        optimizer=run.optimizer,
        sampling=run.sampling,
        own=own,
    )
    _, told = learn(state, prompts, rollout, None)
    np.testing.assert_allclose(told["scores/few"], scores["few"].mean(), rtol=1e-5)
    np.testing.assert_allclose(told["scores/drawn"], scores["drawn"].mean(), rtol=1e-5)
    np.testing.assert_allclose(told["reward"], wanted.mean(), rtol=1e-5)
    assert told["invalid/never"] == 1.0
    assert told["invalid/few"] == told["invalid/drawn"] == 0.0
