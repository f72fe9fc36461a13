"""Drawn answers beside the greedy one, by a small model; a run that is told of them is the same."""

import dataclasses

import numpy as np
import pytest
import small_run

from seg_jax.cli import evaluate
from seg_jax.data import pipeline
from seg_jax.inference.predictor import Predictor
from seg_jax.runs import console, evaluation, reinforcement, sampled_answers
from seg_jax.runs.stage import Place
from seg_jax.runs.start import Start
from seg_jax.tasks.referring import Mixture
from seg_jax.training import advantages, loop, steps
from seg_jax.training.log import SilentLog

SOURCE = dataclasses.replace(small_run.sft_config().source, count=10, seed=5)
TASK = dataclasses.replace(small_run.bundle().task, mixture=Mixture(text_box=1.0, text_point=1.0))
SAMPLING = steps.Sampling(answers=3, max_tokens=12, grammar=True)
BATCH = 4


@pytest.fixture
def said(monkeypatch):
    """Returns the lines and tables that are printed."""
    lines = []
    monkeypatch.setattr(console, "say", lines.append)
    monkeypatch.setattr(console, "table", lambda *table: lines.append(table))
    return lines


@pytest.mark.slow
def test_answers_beside_the_greedy_ones_are_those_of_training(said):
    bundle, mesh = small_run.bundle(), small_run.alone()
    bundle = dataclasses.replace(bundle, task=TASK)
    predictor = Predictor(bundle, grammar=True)
    outcome = evaluation.answer_greedily(
        predictor, SOURCE, title="", task=TASK, batch=BATCH, mesh=mesh
    )
    found = sampled_answers.beside_greedy(
        predictor, SOURCE, outcome, task=TASK, sampling=SAMPLING, batch=BATCH, mesh=mesh
    )
    # One batch after the other by hand, as a step of training draws and judges.
    draw = steps.sampler(small_run.actor(), SAMPLING, seed=0, task=TASK)
    reader = TASK.reader(bundle.tokenizer.pieces)
    iou, rewards = [], []
    prompts = pipeline.batches_in_order(SOURCE, TASK, bundle.encoder, batch=BATCH)
    for number, (examples, rows) in enumerate(prompts):
        rollout = draw(bundle.params, rows, np.int32(number))
        judged = steps.judge(TASK, rollout, rows.truth, reader=reader)
        reward = advantages.reward(judged.scores, TASK.reward_weights)
        iou += np.asarray(judged.scores["iou"])[: len(examples)].tolist()
        rewards += np.asarray(reward)[: len(examples)].tolist()
    assert np.shape(iou) == (10, 3)
    means = {way: ways["mean"] for way, ways in found["scores"]["iou"].items()}
    wanted = {
        "greedy": outcome.scores["iou"].mean(),
        "mean": np.mean(iou),
        "best": np.max(iou, 1).mean(),
    }
    assert means == pytest.approx(wanted, abs=1e-6)
    best = found["scores"]["reward"]["best"]["mean"]
    assert best == pytest.approx(np.max(rewards, 1).mean(), abs=1e-6)
    differ = np.std(rewards, 1) > 1e-6
    assert found["groups_that_differ"]["mean"] == pytest.approx(differ.mean(), abs=1e-6)
    kinds = [example.category for example in outcome.examples]
    assert sum(ways["questions"] for ways in found["by_kind"].values()) == len(kinds) == 10
    assert found["by_kind"].keys() == set(kinds)
    assert all(ways["taught"]["mean"] > 0.7 for ways in found["by_kind"].values())
    sampled_answers.tell(found, main="iou")
    scores, differ, by_kind, sentence = said
    assert [row[0] for row in scores[2]] == [*found["scores"]]
    assert differ.startswith("groups that differ: ")
    assert by_kind[1][1:3] == ("questions", "as taught")
    assert "no bound" in sentence


@pytest.mark.slow
def test_a_run_that_is_told_of_before_it_begins_is_the_same(said, tmp_path):
    ends = []
    for probe in (0, 2):
        config = small_run.gspo_config(loop=loop.Loop(steps=2, log_every=1), probe=probe)
        bundle = dataclasses.replace(small_run.bundle(), task=config.task)
        start = Start(bundle, lambda: small_run.laid(small_run.bundle().params, small_run.alone()))
        with pytest.MonkeyPatch.context() as patch:
            small_run.on_one_device(patch)
            place = Place(tmp_path / str(probe), "gspo", SilentLog())
            ends.append(reinforcement.train(config, start, place).state)
            told = [line for line in said if isinstance(line, str) and "before the first" in line]
            assert len(told) == (probe > 0)
            if probe:  # One that goes on is not told again.
                reinforcement.train(config, start, place)
                assert sum("before the first" in str(line) for line in said) == 1
    small_run.assert_same(*ends)
    (line,) = told
    assert f"{2 * small_run.BATCH} prompts to learn from, {small_run.ANSWERS} answers each" in line
    assert "reward " in line
    assert "groups that differ" in line


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"samples": 1}, "samples: expected 0 or at least 2, got 1"),
        ({"samples": -8}, "samples: expected 0 or at least 2, got -8"),
        ({"samples": 8, "temperature": 0.0}, "temperature: expected > 0, got 0.0"),
        ({"samples": 8, "temperature": float("nan")}, "temperature: expected > 0, got nan"),
        ({"temperature": 0.5}, "--temperature: expected --samples beside it, got none"),
        ({"samples": 8, "protocol": "res"}, "--samples: expected no --protocol beside it, got res"),
    ],
)
def test_drawn_answers_that_make_no_sense_are_refused(options, wanted):
    with pytest.raises(ValueError, match=wanted.replace("(", r"\(")) as error:
        evaluate.Config(**options)
    assert "; do: " in str(error.value)
