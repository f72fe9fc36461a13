"""Runs of programs whose steps cost nothing: fixtures of the tests around them."""

import dataclasses
import os
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from cheap_runs import CONFIG, moved, small
from PIL import Image

from seg_jax.cli import main
from seg_jax.data import pipeline
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Rollout, Verdict
from seg_jax.runs import sampled_answers
from seg_jax.runs import start as start_of_run
from seg_jax.tasks.task import Judgement
from seg_jax.training import loop, optimizers
from seg_jax.training import steps as jitted_steps


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Returns a checkpoint folder with random weights."""
    folder = tmp_path_factory.mktemp("given")
    base = small_run.TINY.config()
    config = dataclasses.replace(
        base,
        model=small(base.model),
        feed=pipeline.Feed(batch=8),
        optimizer=optimizers.AdamW(),
        loop=loop.Loop(steps=4, log_every=1),
    )
    start = start_of_run.with_random_weights(config, folder / "tokenizer")
    bundle = dataclasses.replace(start.bundle, params=start.weights())
    bundles.save(bundle, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "ok.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


@pytest.fixture
def run(capfd, monkeypatch):
    """Returns a function that runs a program: its status, standard output, last line of errors."""
    monkeypatch.delenv("SEG_JAX_TRACEBACK", raising=False)
    # What threads and finalizers fail with is printed, as in a process of its own.
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)

    def call(*words):
        status = main.main([str(word) for word in words])
        out, errors = capfd.readouterr()
        assert "Traceback" not in errors
        return status, out, errors.strip().splitlines()[-1] if errors.strip() else ""

    return call


@pytest.fixture
def fails(run):
    """Returns a function that runs a program that must fail with one line, which it returns."""

    def call(*words, status=1):
        got, out, line = run(*words)
        assert (got, out) == (status, "")
        assert line.startswith(f"seg-jax {words[0]}: ")
        assert "SEG_JAX_TRACEBACK" not in line, "an error that is not in our own words"
        return line.removeprefix(f"seg-jax {words[0]}: ")

    return call


@pytest.fixture
def steps(monkeypatch):
    """Puts a cheap step in the place of the real one; `steps[n]` is called within step n."""
    events = {}

    def stand_in(*_, **__):
        def step(state, batch, *_):
            number = int(state.step) + 1
            events.get(number, lambda: None)()
            change = float(np.asarray(batch.ids).mean()) * 1e-4
            state = state._replace(step=state.step + 1, params=moved(state.params, change))
            return state, {"loss": jnp.asarray(change)}

        return step

    monkeypatch.setattr(jitted_steps, "supervised_step", stand_in)
    return events


@pytest.fixture
def tune(given, tmp_path):
    """Returns the words of a command that fine-tunes the given model for four steps."""
    file = tmp_path / "four.py"
    file.write_text(CONFIG)

    def words(out, *more):
        return "finetune", file, "--checkpoint", given, "--out", out, *more

    return words


@pytest.fixture
def small_disk(tmp_path):
    """Returns a folder on a disk of eight megabytes and a function that fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root to mount a small disk")

    def fill():
        try:
            with (folder / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass

    yield folder, fill
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def reinforcing(monkeypatch):
    """Puts a cheap step of reinforcement in the place of the real one, as `steps` does."""
    events = {}

    def stand_in(*_, **__):
        def step(state, prompts, rollout, reference, *_):
            number = int(state.step) + 1
            events.get(number, lambda: None)()
            change = float(np.asarray(prompts.tokens.ids).mean()) * 1e-4
            state = state._replace(step=state.step + 1, params=moved(state.params, change))
            told = dict.fromkeys(("loss", "reward", "length/mean"), jnp.asarray(change))
            return state, told

        return step

    monkeypatch.setattr(jitted_steps, "reinforcing_step", stand_in)
    nothing = Rollout(*(jnp.zeros((2, 8, 1), kind) for kind in (jnp.int32, bool, jnp.float32)))
    monkeypatch.setattr(jitted_steps, "sampler", lambda *_, **__: lambda *_: nothing)
    monkeypatch.setattr(sampled_answers, "tell_before", lambda *_, **__: None)
    monkeypatch.setattr(
        jitted_steps,
        "scorer",
        lambda *_, **__: (
            lambda _, truth: jitted_steps.Worth(
                np.zeros((len(truth.kind), 8)),
                {"iou": np.zeros((len(truth.kind), 8))},
                np.zeros(len(truth.kind), bool),
            )
        ),
    )
    return events


@pytest.fixture
def answers(monkeypatch):
    """Puts empty answers in the place of a model's; `answers[n]` is called at the n-th batch."""
    events, asked = {}, []

    def answer(self, prompts, params=None):
        asked.append(len(prompts.tokens.ids))
        events.get(len(asked), lambda: None)()
        rows = (asked[-1], 1)
        ids = np.full((*rows, 1), self.bundle.tokenizer.end_id, np.int32)
        rollout = Rollout(ids, np.ones_like(ids, bool), np.zeros(ids.shape, np.float32))
        none = np.zeros(rows, np.int32)
        scores = dict.fromkeys(("iou", "distance", "format"), np.zeros(rows, np.float32))
        measures = {"intersection": none, "union": none + 1, "centroid_error": none + np.nan}
        return rollout, Judgement(scores, measures, none + Verdict.EMPTY)

    monkeypatch.setattr(Predictor, "answer", answer)
    return events
