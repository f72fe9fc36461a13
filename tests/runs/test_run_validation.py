"""Validation of a run: what is asked, what is refused before it begins, and whose weights stay."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import small_run

from seg_jax.cli import main
from seg_jax.data import held_out
from seg_jax.data.packing import Pack
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Mixed, Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.models.parallel import sharding
from seg_jax.runs import evaluation, experiments, validation
from seg_jax.tasks.referring import Mixture
from seg_jax.training import loop
from seg_jax.training.validation import Validation


def refused(told, **changes):
    with pytest.raises(ValueError, match=f"^{told}.*; do: "):
        validation.check(small_run.sft_config(**changes))


def test_what_cannot_be_is_told_before_a_run_begins():
    passes = loop.Loop(epochs=2)
    refused("loop.epochs: expected a finite source, got 2 passes", loop=passes)
    mixed = Mixed(parts=(Scenes(count=9),), weights=(1.0,))
    refused("loop.epochs: expected a finite source, got 2 passes", loop=passes, source=mixed)
    refused(
        "loop.epochs: expected a batch of feed.batch images, got 2 passes beside feed.pack",
        loop=passes,
        feed=Feed(batch=2, pack=Pack(tokens=280, patches=40)),
    )
    refused(
        "validate.score: expected one of iou, distance, format, .* got 'giou'",
        validate=Validation(samples=4, score="giou"),
    )
    refused(
        "validate.mixture.absent: expected a run that asks about absent things",
        validate=Validation(samples=4, mixture=Mixture(absent=0.5)),
    )
    refused("validate.split: expected data sets", validate=Validation(samples=4, split="val"))
    validation.check(small_run.sft_config(source=Scenes(count=9), loop=passes))


def test_nothing_that_is_not_judged_is_asked():
    run = small_run.sft_config(validate=Validation(samples=4))
    assert run.task.mixture.point_name > 0
    score, task = validation._score_and_task(run, run.task)
    assert score == "iou"
    task.mixture.check_judged()
    chosen = dataclasses.replace(run.validate, mixture=Mixture(text_box=1.0), score="format")
    other = dataclasses.replace(run, validate=chosen)
    assert validation._score_and_task(other, run.task)[0] == "format"
    assert validation._score_and_task(other, run.task)[1].mixture == Mixture(text_box=1.0)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_means_are_those_of_an_evaluation_on_any_mesh():
    """The start of the quickstart answers twelve questions, in batches of eight."""
    model = bundles.load(experiments.QUICKSTART_START)
    run = dataclasses.replace(
        small_run.TINY.config(), validate=Validation(samples=12, batch=8, mixture=Mixture())
    )
    asked = held_out.hold_out(run.source, 12).asked
    task = evaluation.with_mixture(model.task, Mixture())
    outcome = evaluation.answer_greedily(Predictor(model), asked, title="alone", task=task, batch=8)
    mesh = sharding.mesh({"data": 4, "fsdp": 2})
    params = small_run.laid(model.params, mesh)
    validator = validation.validator(run, model, asked, mesh=mesh, stage="sft")
    numbers = validator.measure(0, params)
    assert 0.1 < numbers["validation/iou"] < 1.0
    for name in ("iou", "distance", "format"):
        wanted = float(np.mean(outcome.scores[name]))
        np.testing.assert_allclose(numbers[f"validation/{name}"], wanted, atol=1e-4)


@pytest.mark.slow
def test_the_best_weights_are_the_model_of_a_run(tmp_path, capfd, monkeypatch):
    """Answers of random weights are worth nothing, so that the first validation stays the best."""
    small_run.on_one_device(monkeypatch)
    config = Path(__file__).parents[1] / "training" / "few_steps_sft.py"
    monkeypatch.syspath_prepend(config.parent)
    words = ["finetune", config, "--source.count", 32, "--loop.steps", "None", "--loop.epochs", 1]
    words += ["--validate.samples", 6, "--validate.every", 2]

    def run(*more):
        assert main.main([str(word) for word in (*words, "--out", tmp_path / "out", *more)]) == 0
        told = capfd.readouterr().err
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        model = tmp_path / "out" / "checkpoint" / "model.safetensors"
        return told, summary, safetensors.numpy.load_file(model)

    told, summary, weights = run("--validate.patience", 9)
    assert "sft: validation after step 2: iou 0.000, best 0.000 at 0" in told
    assert "sft: best validation: 0.0000 after step 0." in told
    assert [entry["step"] for entry in summary["validation"]["history"]] == [0, 2, 4]
    assert summary["model_of_step"] == 0
    records = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records if "epoch" in r] == [0.25, 0.5, 0.75, 1.0]
    # The finished run gives its last weights instead.
    _, summary, last = run("--validate.patience", 9, "--resume", "--validate.kept", "last")
    assert summary["model_of_step"] == 4
    assert any((weights[name] != last[name]).any() for name in weights)
    # Without patience it ends early.
    told, summary, _ = run("--validate.patience", 1, "--anew")
    assert [entry["step"] for entry in summary["validation"]["history"]] == [0, 2]
