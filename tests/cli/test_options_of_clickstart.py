"""Every option of clickstart changes what its stages receive, or is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import fingerprints
import numpy as np
import pytest
import run_stand_ins
import small_run
import stand_in_segmenter

from seg_jax import files
from seg_jax.cli import clickstart, clickstart_results
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.runs import (
    chapters,
    pointing,
    reinforcement,
    run_folder,
    stage,
    supervised,
)


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of a clickstart receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)
    _stand_for_stages(monkeypatch, note)
    _stand_for_evaluations(monkeypatch, note)
    _stand_for_files(monkeypatch, note)
    return note.of


def _stand_for_stages(patch, note):
    """Notes how the stages' runs are configured, and what they begin with."""
    given = small_run.bundle()

    def train(run, begin, place):
        note("stage", run, begin.bundle.task, begin.bundle.layout, place.folder, place.stage)
        begin.weights()
        return stage.Trained(types.SimpleNamespace(params=given.params, step=run.loop.steps), 60.0)

    def load(folder, *, compute=None, on=None):
        note("load", folder, compute, on is not None)
        return given

    def load_frozen(task, folder, *, on=None):
        note("segmenter", task, folder)
        return stand_in_segmenter.FROZEN

    patch.setattr(supervised, "train", train)
    patch.setattr(reinforcement, "train", train)
    patch.setattr(bundles, "load", load)
    patch.setattr(bundles, "save", lambda bundle, folder: note("save", folder))
    patch.setattr(frozen_segmenter, "check", lambda task, folder: note("check", task, folder))
    patch.setattr(frozen_segmenter, "load", load_frozen)
    run_stand_ins.put_mesh(patch, note)


def _stand_for_evaluations(patch, note):
    """Notes on what the models are asked."""
    (scene,) = chapters.held_out(1)
    nothing = pointing.Answered([], {"reward": np.zeros(1)}, np.zeros((0, 3, 96), np.uint32))

    def ask(self, bundle, samples, *, frozen, mesh):
        note("questions", bundle.task, [sample.key for sample in samples])
        self.examples = []

    def answered(self, params, *, title, shuffled=False):
        note("answered", title, shuffled)
        return nothing

    def best_blind(questions, *, grid, boxed=False):
        note("blind", grid, boxed)
        return pointing.Blind(pointing.Prompt(), 0.0)

    def held_out(count, like):
        note("held out", count, like)
        return [scene] * count

    patch.setattr(pointing.Questions, "__init__", ask)
    patch.setattr(pointing.Questions, "answered", answered)
    patch.setattr(pointing.Questions, "worth_of_own", lambda self, prompts: nothing)
    patch.setattr(pointing, "best_blind", best_blind)
    patch.setattr(chapters, "held_out", held_out)


def _stand_for_files(patch, note):
    """Notes where results go and what is shown; no echo of options."""

    @contextlib.contextmanager
    def hold(folder, config, *, resume, anew, models):
        note("hold", folder, resume, anew, models)
        folder.mkdir(parents=True)
        yield

    def write_report(story, summary, folder, *, gallery, configs, command):
        note("report", folder, gallery)

    patch.setattr(run_folder, "hold", hold)
    patch.setattr(clickstart_results, "summary", lambda *_: {"seconds": 60.0})
    patch.setattr(clickstart_results, "write_report", write_report)
    patch.setattr(clickstart_results, "say", lambda *_: None)
    patch.setattr(files, "write_json", lambda path, value: note("write", path))


BASE = clickstart.Config(scenes=4, blind_scenes=3, gallery=2)


def test_every_option_of_clickstart(prints):
    fingerprints.walk(prints, clickstart, BASE)


def test_an_option_of_clickstart_that_nothing_reads_is_found(prints):
    def dropping(config):
        clickstart.main(dataclasses.replace(config, rl_steps=BASE.rl_steps))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="rl_steps: read and dropped"):
        fingerprints.walk(prints, program, BASE, parts=("rl_steps",))
