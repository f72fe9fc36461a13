"""Every option of quickstart changes what its stages receive, or is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import fingerprints
import numpy as np
import pytest
import run_stand_ins
import small_run

from seg_jax import files
from seg_jax.cli import quickstart, quickstart_results
from seg_jax.data import pipeline
from seg_jax.evaluation import best_of, task_metrics
from seg_jax.inference import bundle as bundles
from seg_jax.runs import (
    chapters,
    evaluation,
    reinforcement,
    run_folder,
    sampled_answers,
    stage,
    supervised,
)


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of a quickstart receive."""
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
        return stage.Trained(types.SimpleNamespace(params=given.params), 60.0)

    def load(folder, *, compute=None, on=None):
        note("load", folder, compute, on is not None)
        return given

    patch.setattr(supervised, "train", train)
    patch.setattr(reinforcement, "train", train)
    patch.setattr(bundles, "load", load)
    patch.setattr(bundles, "save", lambda bundle, folder: note("save", folder))
    run_stand_ins.put_mesh(patch, note)


def _stand_for_evaluations(patch, note):
    """Notes on what the models are compared."""
    (scene,) = chapters.held_out(1)
    nothing = task_metrics.Outcome(
        examples=[],
        texts=[],
        scores={},
        measures={},
        verdicts=np.zeros(0, int),
        tokens=np.zeros(0, int),
    )

    def answer_greedily(predictor, source, *, title, task, batch, **_):
        note("evaluate", len(source), title, task, batch)
        return nothing

    def worths(bundle, prompts, *, seed, models, mesh, **drawn):
        note("worths", drawn, seed, len(models))
        return [best_of.Groups(np.zeros((0, 8)), {}, np.zeros(0, bool))] * len(models)

    def batches_in_order(source, task, encoder, *, batch):
        note("sampled", len(source), batch)

    patch.setattr(evaluation, "answer_greedily", answer_greedily)
    patch.setattr(sampled_answers, "worths", worths)
    patch.setattr(pipeline, "batches_in_order", batches_in_order)
    patch.setattr(task_metrics, "summarise", lambda task, outcome: {})
    patch.setattr(chapters, "teacher", lambda one: nothing)
    patch.setattr(chapters, "held_out", lambda count: [scene] * count)


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
    patch.setattr(quickstart_results, "summary", lambda *_: {"seconds": 60.0})
    patch.setattr(quickstart_results, "write_report", write_report)
    patch.setattr(quickstart_results, "say", lambda *_: None)
    patch.setattr(files, "write_json", lambda path, value: note("write", path))


BASE = quickstart.Config(scenes=4, sampled_scenes=3, gallery=2, labelled=20, validation=5)


def test_every_option_of_quickstart(prints):
    fingerprints.walk(prints, quickstart, BASE)


def test_an_option_of_quickstart_that_nothing_reads_is_found(prints):
    def dropping(config):
        quickstart.main(dataclasses.replace(config, gspo_steps=BASE.gspo_steps))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="gspo_steps: read and dropped"):
        fingerprints.walk(prints, program, BASE, parts=("gspo_steps",))
