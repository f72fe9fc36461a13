"""Every option of study changes what its stages receive, or is refused."""

import contextlib
import dataclasses
import types

import fingerprints
import numpy as np
import pytest
import run_stand_ins
import small_run

from seg_jax import files
from seg_jax.cli import study
from seg_jax.cli.arguments import UsageError
from seg_jax.evaluation import task_metrics
from seg_jax.inference import bundle as bundles
from seg_jax.runs import (
    chapters,
    console,
    experiments,
    reinforcement,
    run_folder,
    stage,
    supervised,
)

NOTHING = task_metrics.Outcome(
    examples=[],
    texts=[],
    scores={},
    measures={},
    verdicts=np.zeros(0, int),
    tokens=np.zeros(0, int),
)


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of a study receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)
    given, (scene,) = small_run.bundle(), chapters.held_out(1)

    def train(run, begin, place):
        note("stage", run, place.folder, place.stage)
        begin.weights()
        return stage.Trained(types.SimpleNamespace(params=given.params), 60.0)

    def load(folder, **_):
        note("load", folder)
        return given

    @contextlib.contextmanager
    def hold(folder, config, *, resume, anew, models):
        note("hold", folder, resume, anew, models)
        folder.mkdir(parents=True)
        yield

    def chapter(caption, predictor, trained, *, samples, mesh):
        note("chapter", caption, len(samples))
        return chapters.Chapter(caption, given, NOTHING, {}, trained)

    monkeypatch.setattr(supervised, "train", train)
    monkeypatch.setattr(reinforcement, "train", train)
    monkeypatch.setattr(bundles, "load", load)
    monkeypatch.setattr(run_folder, "hold", hold)
    monkeypatch.setattr(chapters, "chapter", chapter)
    monkeypatch.setattr(chapters, "teacher", lambda one: NOTHING)
    monkeypatch.setattr(chapters, "held_out", lambda count, like: [scene] * count)
    monkeypatch.setattr(study, "_table", lambda rows: [{"variant": row.name} for row in rows])
    monkeypatch.setattr(console, "table", lambda *_: None)
    monkeypatch.setattr(files, "write_json", lambda path, value: note("write", path))
    monkeypatch.setattr(files, "write_text", lambda path, value: note("write", path))
    run_stand_ins.put_mesh(monkeypatch, note)
    return note.of


def test_every_option_of_study(prints):
    stages = experiments.load("simpleseg/study_stages.py").config()
    base = study.Config(study=stages, only=("SFT, then GSPO",))
    names = [
        field.name for field in dataclasses.fields(base) if field.name not in ("study", "only")
    ]
    fingerprints.walk(prints, study, base, parts=tuple(names))
    assert prints(study, base) != prints(study, dataclasses.replace(base, only=()))
    with pytest.raises(UsageError):
        study.main(study.Config())
