"""Stands for whatever a training run is built of: what each builder receives is noted."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from typing import Any

import jax
import numpy as np
import pytest
import small_run
from flax import nnx

from seg_jax.data import fitting, pipeline, sources
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built
from seg_jax.grammar.tokenizer import tokens
from seg_jax.inference import bundle as bundles
from seg_jax.models import families
from seg_jax.models.adapters import lora
from seg_jax.models.io import weights
from seg_jax.models.vlm import number_embedding
from seg_jax.report import html_page, panels
from seg_jax.runs import (
    memory_fitting,
    own_rewards,
    reinforcement,
    run_folder,
    sampled_answers,
    stage,
    start,
    validation,
)
from seg_jax.training import loop, optimizers, processes, state, steps


class Log:
    """Stands for the log of a run."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        """Has nothing to close."""

    def forget_after(self, *_: Any) -> None:
        """Forgets nothing."""


class Jitted:
    """Stands for a jitted step; lowered, it notes the shapes of its arguments."""

    def __init__(self, note):
        self._note = note

    def lower(self, *arguments: Any) -> Jitted:
        """Returns itself."""
        leaves, tree = jax.tree.flatten(arguments)
        self._note("lower", str(tree), [(leaf.shape, str(leaf.dtype)) for leaf in leaves])
        return self


class Compiled:
    """Stands for a compiled step of training."""

    def __call__(self, current: Any, *_: Any) -> tuple[Any, dict[str, float]]:
        """Returns the state as it is."""
        return current, {"loss": 1.0}

    def as_text(self) -> str:
        """Returns no program."""
        return ""


def put(patch, note):
    """Puts stand-ins in the place of builders; each notes what it receives of a run's options."""
    given = small_run.bundle()
    blank, real_actor = given.params, steps.Actor
    ready = {rows: small_run.batch(rows) for rows in ("sft", "prompts")}

    def read(folder, *, compute, on=None, task_kind=None):
        note("load", folder, compute, on is not None)
        return given

    def join(config):
        note("processes", config)
        return contextlib.nullcontext()

    def tokenizer(sentences, *, folder, **options):
        note("tokenizer", hash(tuple(sentences)), options)
        return given.tokenizer

    def model(config, compute):
        note("sizes", config, compute)
        return nnx.merge(given.graph, given.params)

    def batches(source, task, encoder, feed, *, rows, first=None, answer_tokens=None, **_):
        note("batches", source, task, encoder.layout, feed, rows, first, answer_tokens)
        return iter([ready[rows]])

    def run(plan, body, current, *, stage, traces, **_):
        note("loop", plan, stage, traces)
        return current, 0.0

    def checkpoints(folder, **options):
        note("checkpoints", folder, options)
        return types.SimpleNamespace(latest=lambda: None, close=lambda: None)

    def fresh(params, transform, **options):
        note("state", options["horizon"], options.get("offload"))
        return state.State(np.zeros((), int), np.zeros((), int), params, ())

    def shapes(params, transform, mesh, *, offload):
        note("shapes", offload)
        return state.State(jax.ShapeDtypeStruct((), int), jax.ShapeDtypeStruct((), int), params, ())

    def actor(graph, tokenizer, **options):
        note("actor", options)
        return real_actor(graph, tokenizer, **options)

    def supervised_step(actor, *options):
        note("step", options)
        return Jitted(note)

    def sampler(actor, *options, **named):
        note("sampler", options, named)
        return Jitted(note)

    def step(actor, *options, **named):
        note("step", options, named)
        return Jitted(note)

    @contextlib.contextmanager
    def hold(folder, config, **options):
        note("hold", folder, options)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
        yield

    def open_log(folder, board=None):
        note("log", folder, board)
        return Log()

    def for_devices(run, steps):
        if run.fit:
            note("fit", steps)
        return run

    def validator(run, bundle, asked, *, mesh, stage, whole, frozen, own=None):
        note("validator", run.validate, asked, stage)

    real_plan = lora.plan
    lora.layers(nnx.merge(given.graph, given.params).config)  # Found once, with the true shapes.

    def plan(config, adapter, parts):
        note("learning", adapter, parts)
        return real_plan(config, adapter, parts)

    def draw(shapes, *, seed, on):
        note("adapters", seed)
        return shapes

    def save_adapter(bundle, folder, *, learning, learned, base):
        note("save", bundle.task, bundle.layout, base)

    def arguments(run, bundle):
        truth = jax.tree.map(np.asarray, ready["prompts"].truth)
        size = np.asarray(truth.size)
        return truth, truth, size[..., 0], size[..., 1]

    put_mesh(patch, note)
    patch.setattr(memory_fitting, "for_devices", for_devices)
    patch.setattr(own_rewards, "_arguments", arguments)
    patch.setattr(lora, "plan", plan)
    patch.setattr(lora, "draw", draw)
    patch.setattr(bundles, "save_adapter", save_adapter)
    patch.setattr(validation, "validator", validator)
    patch.setattr(processes, "join", join)
    patch.setattr(bundles, "load", read)
    patch.setattr(bundles, "blank", read)
    patch.setattr(bundles, "save", lambda bundle, folder: note("save", bundle.task, bundle.layout))
    patch.setattr(tokens, "train", tokenizer)
    patch.setattr(weights, "blank", model)
    patch.setattr(families, "with_tokens", lambda model, tokenizer: model)
    # What is refused is built of no option; that its parts act is shown where they are used.
    patch.setattr(start, "check_divisions", lambda run: None)
    patch.setattr(start, "weight_initializer", _noted_initializer(note, blank))
    patch.setattr(pipeline, "batches", batches)
    patch.setattr(fitting, "fitting_source", lambda source, *_, **__: (source, Findings()))
    patch.setattr(loop, "run", run)
    patch.setattr(stage, "Checkpoints", checkpoints)
    patch.setattr(stage, "open_log", open_log)
    patch.setattr(state, "fresh", fresh)
    patch.setattr(state, "shapes", shapes)
    patch.setattr(optimizers, "build", lambda optimizer: note("optimizer", optimizer))
    patch.setattr(steps, "Actor", actor)
    patch.setattr(steps, "supervised_step", supervised_step)
    patch.setattr(steps, "sampler", sampler)
    patch.setattr(steps, "reinforcing_step", step)
    patch.setattr(steps, "gathering_step", step)
    patch.setattr(reinforcement, "Drawing", lambda *_, **named: note("drawing", named["rounds"]))
    patch.setattr(sampled_answers, "tell_before", lambda run, *_, **__: note("probe", run.probe))
    patch.setattr(run_folder, "hold", hold)
    patch.setattr(run_folder, "versions", dict)
    patch.setattr(html_page, "write", lambda *_: None)
    patch.setattr(panels, "Viewer", lambda bundle, task, frozen: note("panels", task))
    patch.setattr(stage.sharding, "gather", lambda params: params)
    patch.setattr(stage.jax, "set_mesh", lambda mesh: contextlib.nullcontext())
    # Data sets are not here; what would be read of them is the source itself.
    patch.setattr(Built, "__len__", lambda self: 8)
    patch.setattr(Built, "offers", lambda self, wanted: set(wanted), raising=False)
    patch.setattr(Built, "question_kinds", lambda self, wanted: set(wanted), raising=False)
    patch.setattr(Built, "absent_count", lambda self: 1)
    patch.setattr(sources, "corpus", lambda source: [])  # Its source is noted with batches.
    patch.setattr(tokens, "number_table", lambda tokenizer: (None, None))
    patch.setattr(tokens, "whole_decimals", lambda tokenizer: None)


def put_mesh(patch, note):
    """Puts the mesh of one device in the place of every other."""
    mesh = small_run.alone()

    def build(self, devices=None):
        note("mesh", dataclasses.asdict(self))
        return mesh

    patch.setattr(steps.Mesh, "build", build)


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
