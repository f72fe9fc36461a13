"""Every option of some benchmarks changes what is measured, or is refused; nothing is timed.

Those of decode, data, policy and step are shown to be read, by `test_every_option`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import types
from pathlib import Path

import fingerprints
import jax
import numpy as np
import pytest
import small_run

from seg_jax.cli.benchmarks import (
    boundary,
    harness,
    polygon_cases,
    raster,
    raster_costs,
    raster_peers,
    reward,
    rollout,
    torch_peer,
)
from seg_jax.data import pipeline
from seg_jax.data.sources import Scenes
from seg_jax.runs import console, run_folder, start
from seg_jax.tasks import task


@pytest.fixture
def note(monkeypatch, tmp_path):
    """Returns a function that notes what a measurement receives; its `log` holds the notes."""
    log = [fingerprints.Fingerprint()]

    def note(name, *values):
        log[0].note(name, *values)

    def by_turns(runs, rounds, clock):
        note("turns", sorted(runs), rounds)
        return {name: 1.0 + place for place, name in enumerate(runs)}

    patch = monkeypatch.setattr
    patch(harness, "on_one_core", lambda function, *values: function(*values))
    patch(harness, "by_turns", by_turns)
    patch(harness, "machine", dict)
    patch(harness, "operations", lambda compiled: 1.0)
    patch(run_folder, "tell_json", lambda results, path: note("numbers", path))
    patch(console, "say", lambda text: None)
    patch(console, "table", lambda *_: None)
    for program in (raster, boundary, reward, rollout):
        patch(program, "_show", lambda results: None)

    def fingerprint(program, config):
        log[0] = fingerprints.Fingerprint()
        monkeypatch.chdir(tempfile.mkdtemp(dir=tmp_path))
        program.main(config)
        return tuple(log[0].parts)

    note.prints = fingerprint
    return note


def _digest(array):
    return array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


RASTER = {
    "as a user starts it": raster.Config(),
    "all": raster.Config(full=True),
    "two kinds": raster.Config(kinds=("blob", "thin"), sizes=(64, 128), batches=(4,)),
}


@pytest.mark.parametrize("mode", RASTER)
def test_every_option_of_raster(mode, note, monkeypatch):
    def costs(name):
        return lambda base, *_, rounds, seed: note(name, base, rounds, seed)

    patch = monkeypatch.setattr
    patch(raster_peers, "find_module", lambda name: None)
    patch(polygon_cases, "draw", lambda case, seed: note("draw", case, seed))
    patch(raster, "_compare", lambda case, data, peers, *, rounds: note("compare", case, rounds))
    for name in ("growth", "roofline", "reading"):
        patch(raster_costs, name, costs(name))
    fingerprints.walk(note.prints, raster, RASTER[mode])


def test_every_option_of_boundary(note, monkeypatch):
    masks = boundary._masks

    def noted(config):
        drawn = masks(config)
        note("masks", _digest(np.stack(drawn)))
        return drawn

    def jit(function):
        return lambda *values: np.zeros(len(values[0]))

    monkeypatch.setattr(boundary, "_masks", noted)
    monkeypatch.setattr(boundary, "_iou", lambda mask, other: 0.0)
    monkeypatch.setattr(boundary, "_f", lambda mask, other: 0.0)
    monkeypatch.setattr(jax, "jit", jit)
    fingerprints.walk(note.prints, boundary, boundary.Config(size=16, batch=2))


def test_every_option_of_reward(note, monkeypatch):
    def large(seed):
        note("scenes", seed)
        return Scenes()

    def batches_in_order(source, asked, encoder, *, batch):
        note("questions", source.count, batch)
        example = types.SimpleNamespace(answer="the answer")
        return iter([([example] * batch, types.SimpleNamespace(truth=np.zeros(batch)))])

    def judge(asked, answers, truth, *, reader):
        note("judge", answers.ids.shape)
        return types.SimpleNamespace(scores={"iou": np.ones(1)})

    patch, given = monkeypatch.setattr, small_run.bundle()
    patch(torch_peer, "large", large)
    patch(start, "make_tokenizer", lambda *_: given.tokenizer)
    patch(pipeline, "batches_in_order", batches_in_order)
    patch(task, "judge", judge)
    patch(jax, "jit", lambda function, **_: function)
    fingerprints.walk(note.prints, reward, reward.Config(prompts=2, answers=2, columns=8))


def _stand_for_the_sampler(patch, note):
    """Notes how answers are sampled, and how long they may be."""
    given = small_run.bundle()

    def questions(count, seed):
        note("questions", count, seed)
        return types.SimpleNamespace(bundle=given, prompts=np.zeros(count))

    def program(questions, answers, tokens, **options):
        options.pop("grammar", None)  # A table; there is one or there is none.

        def sample(params, prompts, limits):
            note("sample", answers, tokens, options, len(prompts))
            if limits is not None:
                note("limits", _digest(np.asarray(limits)))
            ones = np.ones(1, np.int32)
            return types.SimpleNamespace(ids=ones, computed=ones)

        return sample

    class Jitted:
        def __init__(self, function):
            self.call = function

        def __call__(self, *values):
            return self.call(*values)

        def lower(self, *values):
            self.call(*values)
            return types.SimpleNamespace(compile=lambda: None)

    patch(torch_peer, "questions", questions)
    patch(rollout, "_program", program)
    patch(jax, "jit", Jitted)
    patch(jax, "device_put", lambda values: values)
    # Prompts are copied for each answer, and what is made is read from the device.
    patch(jax.tree, "map", lambda function, value: value)


def test_every_option_of_rollout(note, monkeypatch):
    _stand_for_the_sampler(monkeypatch.setattr, note)
    fingerprints.walk(note.prints, rollout, rollout.Config(prompts=4, answers=4, long_share=0.5))


def test_an_option_of_a_benchmark_that_nothing_reads_is_found(note, monkeypatch):
    _stand_for_the_sampler(monkeypatch.setattr, note)

    def dropping(config):
        rollout.main(dataclasses.replace(config, chunk=1))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="chunk: read and dropped"):
        fingerprints.walk(note.prints, program, rollout.Config(prompts=4), parts=("chunk",))


def test_numbers_go_where_they_are_wanted(note, monkeypatch):
    monkeypatch.setattr(boundary, "measure", lambda config: {})
    assert note.prints(boundary, boundary.Config(json=Path("a.json"))) == (
        ("numbers", Path("a.json")),
    )
