"""Every option of align acts, or is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import fingerprints
import numpy as np
import pytest
import run_stand_ins
import test_align
from flax import nnx

from seg_jax.cli import align
from seg_jax.models.io import model_folder, weights
from seg_jax.runs import alignment, console, matching, stage
from seg_jax.training import contrastive, optimizers, state


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of the program receive."""
    words, _ = alignment.tokenizer(dataclasses.replace(test_align.SMALL, out=tmp_path / "words"))
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

    @contextlib.contextmanager
    def hold(run):
        note("hold", run.out, run.resume, run.anew, stage.models_read(run))
        run.out.mkdir(parents=True)
        yield

    def tried(run, model, words):
        note("tried", run.held_out)
        interval = {"mean": 0.0, "low": 0.0, "high": 0.0}
        return {"names": interval, "cases": {"mean": 0.0, "chance": 0.0}}

    def draw_weights(plan):
        note("random", plan.run.seed)
        return nnx.state(Nothing())

    run_stand_ins.put_mesh(monkeypatch, note)
    patch(weights, "blank", blank)
    patch(weights, "load", load)
    patch(stage, "run_stage", run_stage)
    patch(stage, "hold_folder", hold)
    patch(stage, "open_log", lambda folder: run_stand_ins.Log())
    patch(contrastive, "step", lambda graph, *options: note("step", options))
    patch(alignment, "tokenizer", lambda run: (words, run.checkpoint))
    patch(alignment, "Cases", lambda run, words: note("cases", run.cases, run.feed) or iter(()))
    patch(alignment, "tried", tried)
    patch(alignment.Plan, "draw_weights", draw_weights)
    patch(model_folder, "save", lambda model, folder, source: note("save", folder, source))
    patch(matching, "show", lambda told: None)
    patch(console, "say", lambda text: None)
    patch(console, "tell", lambda path: note("tell", path))
    return note.of


def test_every_option_of_align(prints):
    fingerprints.walk(prints, align, test_align.SMALL)
    muon = dataclasses.replace(test_align.SMALL, optimizer=optimizers.Muon())
    fingerprints.walk(prints, align, muon, parts=("optimizer",))


def test_an_option_of_align_that_nothing_reads_is_found(prints):
    def dropping(config):
        align.main(dataclasses.replace(config, objective=test_align.SMALL.objective))

    with pytest.raises(AssertionError, match=r"objective\.hard: read and dropped"):
        fingerprints.walk(
            prints, types.SimpleNamespace(main=dropping), test_align.SMALL, parts=("objective",)
        )
