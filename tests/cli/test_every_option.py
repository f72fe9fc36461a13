"""Every option of every program acts on the run or is refused: none is read and dropped.

Training runs are started with stand-ins in the place of whatever is built from their options; what
these receive is the run's fingerprint. A configuration itself is no part of it.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import option_walk
import pytest
import small_run
from fingerprints import Fingerprint, walk
from flax import nnx

from seg_jax.cli import finetune, main, reinforce
from seg_jax.cli.benchmarks import harness
from seg_jax.data import pipeline
from seg_jax.data.encode import Layout, Native
from seg_jax.data.packing import Pack
from seg_jax.data.sources import Built, Mixed
from seg_jax.grammar.tokenizer import tokens
from seg_jax.inference import bundle as bundles
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.vlm import kimi_vl, number_embedding, qwen3_vl
from seg_jax.report import html_page, panels
from seg_jax.runs import reinforcement, run_folder, stage, start, supervised
from seg_jax.runs.training_run import TrainingRun
from seg_jax.training import loop, optimizers, policy, processes, state, steps


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the folder of a model that was trained here."""
    folder = tmp_path_factory.mktemp("given") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return folder


class Log:
    """Stands for the log of a run."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        """Has nothing to close."""

    def forget_after(self, *_: Any) -> None:
        """Forgets nothing."""


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> the fingerprint of the run that it starts."""
    monkeypatch.chdir(tmp_path)
    prints = [Fingerprint()]
    _stand_ins(monkeypatch, lambda name, *values: prints[0].note(name, *values))

    def fingerprint(program, config):
        prints[0] = Fingerprint()
        program.main(config)
        return tuple(prints[0].parts)

    return fingerprint


def _stand_ins(patch, note):
    """Puts stand-ins in the place of builders; each notes what it receives of a run's options."""
    given, mesh = small_run.bundle(), small_run.alone()
    blank = given.params

    def built(self, devices=None):
        note("mesh", dataclasses.asdict(self))
        return mesh

    def read(folder, *, compute, on=None, task_kind=None):
        note("load", folder, compute, on is not None)
        return given

    def join(config):
        note("processes", config)
        return contextlib.nullcontext()

    def tokenizer(sentences, **options):
        note("tokenizer", hash(tuple(sentences)), options)
        return given.tokenizer

    def model(config, compute):
        note("sizes", config, compute)
        return nnx.merge(given.graph, given.params)

    def batches(source, task, encoder, feed, *, rows, **_):
        note("batches", source, task, encoder.layout, feed, rows)
        return iter(())

    def run(plan, body, current, *, stage, traces, **_):
        note("loop", plan, stage, traces)
        return current, 0.0

    def checkpoints(folder, **options):
        note("checkpoints", folder, options)
        return types.SimpleNamespace(latest=lambda: None, close=lambda: None)

    def fresh(params, transform, **options):
        note("state", options["horizon"], options["offload"])
        return state.State(np.zeros((), int), np.zeros((), int), params, ())

    def actor(graph, tokenizer, **options):
        note("actor", options)

    def supervised_step(actor, *options):
        note("step", options)

    def sampler(actor, *options, **named):
        note("sampler", options, named)

    def step(actor, *options, **named):
        note("step", options, named)

    @contextlib.contextmanager
    def hold(folder, config, **options):
        note("hold", folder, options)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        yield

    def open_log(folder, board=None):
        note("log", folder, board)
        return Log()

    patch.setattr(steps.Mesh, "build", built)
    patch.setattr(processes, "join", join)
    patch.setattr(bundles, "load", read)
    patch.setattr(bundles, "blank", read)
    patch.setattr(bundles, "save", lambda bundle, folder: note("save", bundle.task, bundle.layout))
    patch.setattr(tokens, "train", tokenizer)
    patch.setattr(weights, "blank", model)
    patch.setattr(families, "with_tokens", lambda model, tokenizer: model)
    patch.setattr(start, "weight_initializer", _noted_initializer(note, blank))
    patch.setattr(pipeline, "batches", batches)
    patch.setattr(loop, "run", run)
    patch.setattr(stage, "Checkpoints", checkpoints)
    patch.setattr(stage, "open_log", open_log)
    patch.setattr(state, "fresh", fresh)
    patch.setattr(optimizers, "build", lambda optimizer: note("optimizer", optimizer))
    patch.setattr(steps, "Actor", actor)
    patch.setattr(steps, "supervised_step", supervised_step)
    patch.setattr(steps, "sampler", sampler)
    patch.setattr(steps, "reinforcing_step", step)
    patch.setattr(run_folder, "hold", hold)
    patch.setattr(run_folder, "versions", dict)
    patch.setattr(html_page, "write", lambda *_: None)
    patch.setattr(panels, "Viewer", lambda bundle, task: note("panels", task))
    patch.setattr(stage.sharding, "gather", lambda params: params)
    patch.setattr(stage.jax, "set_mesh", lambda mesh: contextlib.nullcontext())
    # Data sets are not here; what would be read of them is the source itself.
    patch.setattr(Built, "__len__", lambda self: 8)
    patch.setattr(Built, "offers", lambda self, wanted: set(wanted), raising=False)
    patch.setattr(Built, "question_kinds", lambda self, wanted: set(wanted), raising=False)
    patch.setattr(Built, "absent_count", lambda self: 1)
    patch.setattr(start.sources, "corpus", lambda source: [])  # Its source is noted with batches.
    patch.setattr(tokens, "number_table", lambda tokenizer: (None, None))
    patch.setattr(tokens, "whole_decimals", lambda tokenizer: None)


def _noted_initializer(note, blank):
    """Returns the true function of random weights with its ingredients noted, not drawn."""
    real = start.weight_initializer

    class Model:
        def __init__(self, sizes, *, compute, rngs):
            note("weights", sizes, compute, rngs)
            self.embed = types.SimpleNamespace(embedding={})

    def initializer(run, bundle, on):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(families, "family_of", lambda sizes: types.SimpleNamespace(model=Model))
            patch.setattr(nnx, "Rngs", lambda seed: seed)
            patch.setattr(nnx, "state", lambda model: blank)
            patch.setattr(jax.random, "key", lambda seed: seed)
            patch.setattr(number_embedding, "embed", lambda *a: note("ordered", a[-1]))
            patch.setattr(jax, "jit", lambda function, **_: function)
            drawn = real(run, bundle, on)()
        return lambda: drawn

    return initializer


SMALL = small_run.sft_config()
SETS = Built(folders=(Path("one"),))
FINETUNE = {
    "random weights": (SMALL, ("",)),
    "AdamW": (dataclasses.replace(SMALL, optimizer=optimizers.AdamW()), ("optimizer",)),
    "packed rows": (
        dataclasses.replace(SMALL, feed=pipeline.Feed(batch=2, pack=Pack(tokens=280, patches=40))),
        ("feed",),
    ),
    "data sets": (dataclasses.replace(SMALL, source=SETS), ("source",)),
    "data sets by name": (
        dataclasses.replace(SMALL, data=(Path("one"),), data_weights=(1.0,)),
        ("data", "split"),
    ),
    "mixed data sets": (
        dataclasses.replace(SMALL, source=Mixed(parts=(SETS, SETS), weights=(1.0, 2.0))),
        ("source",),
    ),
    "Qwen3-VL": (
        dataclasses.replace(
            SMALL,
            model=qwen3_vl.Config(),
            layout=dataclasses.replace(SMALL.layout, patch=16, merge=2),
        ),
        ("model",),
    ),
    "Kimi-VL": (
        dataclasses.replace(
            SMALL,
            model=kimi_vl.Config(),
            layout=Layout(native=Native()),
        ),
        ("model", "layout"),
    ),
}
REINFORCE = {
    "a checkpoint": (small_run.gspo_config(), ("",)),
    "refilled rows": (small_run.gspo_config(sampling=steps.Sampling(rows=8)), ("sampling",)),
    "corrected ratios": (
        small_run.gspo_config(
            policy=policy.Policy(kl=0.1, correction=policy.Correction(level="token"))
        ),
        ("policy",),
    ),
    "Muon": (small_run.gspo_config(optimizer=optimizers.Muon()), ("optimizer",)),
}
"""Configurations, and which of their options are walked over."""


@pytest.mark.parametrize("name", FINETUNE)
def test_every_option_of_finetune(name, prints):
    base, parts = FINETUNE[name]
    walk(prints, finetune, base, parts=parts)


def test_every_option_of_finetune_from_a_checkpoint(prints, checkpoint):
    bare = dataclasses.replace(SMALL, checkpoint=checkpoint, model=None, task=None, layout=None)
    walk(prints, finetune, bare.completed())


@pytest.mark.parametrize("name", REINFORCE)
def test_every_option_of_reinforce(name, prints, checkpoint):
    base, parts = REINFORCE[name]
    bare = dataclasses.replace(base, checkpoint=checkpoint, model=None, layout=None)
    walk(prints, reinforce, bare.completed(), parts=parts)


def test_an_option_that_nothing_reads_is_found(prints):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(supervised.Config):
        """A run with an option too many."""

        spare: int = 0

    values = {field.name: getattr(SMALL, field.name) for field in dataclasses.fields(SMALL)}
    with pytest.raises(AssertionError, match="spare: read and dropped"):
        walk(prints, finetune, Config(**values), parts=("seed", "spare"))


def test_the_walk_reaches_every_leaf():
    names = [leaf.name for leaf in option_walk.leaves(SMALL)]
    assert {"feed.batch", "source.world.height", "task.mixture.absent", "model.text.vocab_size"} < {
        *names
    }
    assert len(names) > 150
    other = [leaf for leaf in option_walk.leaves(SMALL) if leaf.name == "task.digits"]
    assert other[0].changed[0].task.digits == SMALL.task.digits + 1


# The other programs: each option is read where the program or its room does its work. What their
# stages receive in each mode is walked over in test_options_of_*.py; of benchmark this is the only
# proof for decode, data, policy and step.

ROOMS = {
    "quickstart": ["cli/quickstart.py"],
    "evaluate": ["cli/evaluate.py", "cli/model_options.py"],
    "predict": ["cli/predict.py", "cli/model_options.py"],
    "convert": ["cli/convert.py"],
    "build": ["cli/build.py", "data/build", "data/formats"],
    "annotate": ["cli/annotate.py", "annotation", "data/build"],
    "compile": ["cli/compile.py"],
    **{f"benchmark {part}": ["cli/benchmarks"] for part in harness.PARTS},
}
PACKAGE = Path(main.__file__).parents[1]


def reads(paths):
    """Returns the names of attributes that code reads, what only checks them left out."""
    files = [file for path in paths for file in ([path] if path.suffix else path.rglob("*.py"))]
    return {name for file in files for name in _reads_in(file)}


@functools.cache
def _reads_in(file):
    return frozenset(_reads_of(ast.parse(file.read_text())))


def _reads_of(node):
    if isinstance(node, ast.FunctionDef) and node.name.startswith(("__post", "_check", "_refuse")):
        return set()
    found = {name for child in ast.iter_child_nodes(node) for name in _reads_of(child)}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        found.add(node.attr)
    return found


def options(kind):
    """Yields (class, field) of a configuration and of all that it is made of."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield kind, field.name
        for member in option_walk._members(hints[field.name]):
            if dataclasses.is_dataclass(member):
                yield from options(member)


WALKED = {
    owner
    for kind in (supervised.Config, reinforcement.Config)
    for owner, _ in options(kind)
    if owner is not kind
}
"""Parts of a training run, whose options are walked over above."""


def unread(program, kind):
    """Returns the options of a program that no code of its rooms, or of their classes', reads."""
    rooms = [PACKAGE / room for room in ROOMS[program]]
    lost = []
    for owner, name in options(kind):
        own = Path(inspect.getfile(owner))
        places = rooms if owner is kind else [*rooms, own]
        if owner not in WALKED and name not in reads(places):
            lost.append(f"{owner.__qualname__}.{name}")
    return lost


@pytest.mark.parametrize("program", ROOMS)
def test_every_option_of_other_programs_is_read(program):
    assert unread(program, main._load(program).Config) == []


def test_an_unread_option_of_another_program_is_found():
    predict = main._load("predict")
    kind = dataclasses.make_dataclass(
        "Config", [("spare", int, 0)], bases=(predict.Config,), frozen=True, kw_only=True
    )
    assert unread("predict", kind) == ["Config.spare"]


def test_no_program_is_left_out():
    assert {"finetune", "reinforce", *ROOMS} == {
        *main.PROGRAMS,
        *(f"benchmark {part}" for part in harness.PARTS),
    } - {"benchmark"}
    # compile and benchmark step take the options of a training run as they stand.
    assert issubclass(supervised.Config, TrainingRun)
    assert issubclass(reinforcement.Config, TrainingRun)
