"""Every option of teach acts, or is refused."""

from __future__ import annotations

import contextlib
import dataclasses

import fingerprints
import numpy as np
import pytest
import run_stand_ins
import test_teach
from flax import nnx

from seg_jax.cli import teach
from seg_jax.models.io import model_folder, weights
from seg_jax.runs import console, stage, teaching
from seg_jax.training import mask_learning, optimizers, state


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of the program receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)
    patch = monkeypatch.setattr
    end = state.State(np.zeros((), int), np.zeros((), int), {}, ())

    class Nothing(nnx.Module):
        """A model without weights."""

    def blank(sizes, compute):
        note("sizes", sizes, compute)
        return Nothing()

    def run_stage(run, body, start, *, batches, place, mesh):
        note("stage", run.loop, run.offload, place.folder, place.stage)
        start.weights()
        return stage.Trained(end, 1.0)

    def load(folder, *, compute, on):
        note("load", folder, compute)
        return Nothing()

    def scenes(run, side):
        note("scenes", run.world, run.feed, side)
        return iter(())

    @contextlib.contextmanager
    def hold(run):
        note("hold", run.out, run.resume, run.anew, stage.models_read(run))
        run.out.mkdir(parents=True)
        yield

    run_stand_ins.put_mesh(monkeypatch, note)
    patch(weights, "blank", blank)
    patch(weights, "load", load)
    patch(stage, "run_stage", run_stage)
    patch(stage, "hold_folder", hold)
    patch(stage, "open_log", lambda folder: run_stand_ins.Log())
    patch(mask_learning, "step", lambda graph, *options, seed: note("step", options, seed))
    patch(
        teaching, "Scenes", lambda run, side: note("scenes", run.world, run.feed, side) or iter(())
    )
    patch(teaching, "tried", lambda run, model: note("tried", run.held_out) or {})
    patch(teaching.Plan, "draw_weights", lambda plan: note("random", plan.run.seed))
    patch(model_folder, "save", lambda model, folder, source: note("save", folder, source))
    patch(console, "say", lambda text: None)
    patch(console, "tell", lambda path: note("tell", path))
    return note.of


def test_every_option_of_teach(prints):
    fingerprints.walk(prints, teach, test_teach.SMALL)
    muon = dataclasses.replace(test_teach.SMALL, optimizer=optimizers.Muon())
    fingerprints.walk(prints, teach, muon, parts=("optimizer",))
