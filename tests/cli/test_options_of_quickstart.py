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
from seg_jax.cli import quickstart
from seg_jax.data import image_files, pipeline
from seg_jax.evaluation import task_metrics
from seg_jax.inference import bundle as bundles
from seg_jax.report import html_page, metrics_log, panels
from seg_jax.runs import (
    console,
    evaluation,
    reinforcement,
    run_folder,
    sampled_answers,
    start,
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
        return types.SimpleNamespace(params=given.params), 60.0

    def with_random_weights(run, folder):
        note("random", run, folder)
        return start.Start(given, lambda: given.params)

    def load(folder, *, compute=None, on=None):
        note("load", folder, compute, on is not None)
        return given

    def describe(folder):
        note("describe", folder)
        return given.layout, given.task

    patch.setattr(supervised, "train", train)
    patch.setattr(reinforcement, "train", train)
    patch.setattr(start, "with_random_weights", with_random_weights)
    patch.setattr(bundles, "load", load)
    patch.setattr(bundles, "describe", describe)
    patch.setattr(bundles, "save", lambda bundle, folder: note("save", folder))
    run_stand_ins.put_mesh(patch, note)


def _stand_for_evaluations(patch, note):
    """Notes on what the models are compared."""

    def answer_greedily(predictor, source, *, title, task, batch, **_):
        note("evaluate", len(source), title, task, batch)

    def worths(bundle, prompts, *, task, sampling, weights, seed, rows, mesh, models):
        note("rewards", list(prompts), task, sampling, weights, seed, rows, len(models))
        return [types.SimpleNamespace(reward=np.ones((2, 2)))] * len(models)

    def batches_in_order(source, task, encoder, *, batch):
        note("sampled", len(source), batch)
        return [len(source)]

    patch.setattr(evaluation, "answer_greedily", answer_greedily)
    patch.setattr(sampled_answers, "worths", worths)
    patch.setattr(pipeline, "batches_in_order", batches_in_order)
    patch.setattr(task_metrics, "summarise", lambda task, outcome: {})
    patch.setattr(quickstart, "Chapter", lambda caption, bundle, *_: _Chapter(caption, bundle))


@dataclasses.dataclass
class _Chapter:
    """A trained model without answers."""

    caption: str
    bundle: object


def _stand_for_files(patch, note):
    """Notes where results go and what is shown; no echo of options."""
    interval = {"mean": 0.0, "low": 0.0, "high": 0.0}
    reward = {"start_reward": 0.0, "reward": 0.0}
    summary = {
        "seconds": 60.0,
        "config": {},
        "versions": {},
        "gspo": reward | {"reward_gain": interval, "gain_over_control": interval},
    }

    @contextlib.contextmanager
    def hold(folder, config, *, resume, anew, reads):
        note("hold", folder, resume, anew, reads)
        folder.mkdir(parents=True)
        yield

    patch.setattr(run_folder, "hold", hold)
    patch.setattr(quickstart, "_summary", lambda *_: summary)
    patch.setattr(quickstart, "_rows", lambda *_: [])
    patch.setattr(quickstart, "_exhibit", lambda chapters, index: note("shown", index))
    patch.setattr(panels, "sheet", len)
    patch.setattr(image_files, "write", lambda path, image: note("write", path, image))
    patch.setattr(metrics_log, "read", lambda path: note("metrics", path))
    patch.setattr(html_page, "Report", lambda **_: None)
    patch.setattr(html_page, "write", lambda path, page: note("page", path))
    patch.setattr(files, "write_json", lambda path, value: note("write", path))
    patch.setattr(console, "table", lambda *_: None)


BASE = quickstart.Config(scenes=4, sampled_scenes=3, gallery=2)


def test_every_option_of_quickstart(prints):
    fingerprints.walk(prints, quickstart, BASE)


def test_an_option_of_quickstart_that_nothing_reads_is_found(prints):
    def dropping(config):
        quickstart.main(dataclasses.replace(config, gspo_steps=BASE.gspo_steps))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="gspo_steps: read and dropped"):
        fingerprints.walk(prints, program, BASE, parts=("gspo_steps",))
