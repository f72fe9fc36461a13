"""The steps of a run as they will be compiled, from shapes alone: no weight exists."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seg_jax.data import pipeline, sources
from seg_jax.data.encode import Encoder
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.predictor import Predictor
from seg_jax.models import flops
from seg_jax.models.parallel import sharding
from seg_jax.records import Batch, PackedBatch, Prompts, Rollout
from seg_jax.runs import reinforcement, start, supervised
from seg_jax.training import optimizers, state
from seg_jax.training import steps as jitted_steps

Run = supervised.Config | reinforcement.Config


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of a run, ready to be lowered."""

    name: str
    function: Any
    """Jitted."""
    arguments: tuple[Any, ...]
    """Shapes with their shardings."""
    work: flops.Flops
    """Operations of one call, all devices together."""
    beside: Any = None
    """What lies in memory meanwhile without being an argument: shapes with their shardings."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's model and rows over a mesh."""

    run: Run
    bundle: Bundle
    """With shapes for weights."""
    mesh: jax.sharding.Mesh

    @property
    def config(self) -> Any:
        """Sizes of the model."""
        return nnx.merge(self.bundle.graph, self.bundle.params).config

    @functools.cached_property
    def state(self) -> state.State:
        """State of the training, as it lies on the devices."""
        transform = optimizers.build(self.run.optimizer)
        offload = self.run.offload
        return state.shapes(self.bundle.params, transform, self.mesh, offload=offload)

    @functools.cached_property
    def actor(self) -> jitted_steps.Actor:
        """Model and tokenizer."""
        bundle = self.bundle
        return jitted_steps.Actor(
            bundle.graph, bundle.tokenizer, chunk=self.run.loss_chunk, ends=bundle.end_ids
        )

    def rows(self, kind: Literal["sft", "prompts"]) -> Any:
        """Returns the shapes of a batch of the kind, as the pipeline makes it."""
        run, bundle = self.run, self.bundle
        feed = dataclasses.replace(run.feed, batch=1, workers=0, threads=1, prefetch=1)
        task = bundle.task
        if kind == "prompts":
            task = task.without_unjudged()
        # Of the lengths that prompts may have, what fits the longest fits all.
        encoder = Encoder(bundle.tokenizer, dataclasses.replace(bundle.encoder.layout, buckets=1))
        row = next(pipeline.batches(run.source, task, encoder, feed=feed, rows=kind))
        return self.batch(row, run.feed.batch)

    def batch(self, row: Any, count: int) -> Any:
        """Returns the shapes of `count` such rows, spread over the devices."""
        place = sharding.batch(self.mesh, count)

        def many(leaf):
            return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=place)

        return jax.tree.map(many, row)


def plan(run: Run, devices: list[Any]) -> Plan:
    """Returns the plan of a run: its checkpoint's model, or the one that its configuration says.

    Of a checkpoint only the small files are read.

    Raises:
      ValueError: neither a checkpoint nor a model, or the mesh does not divide the model.
    """
    mesh = run.mesh.build(devices)
    run = run.completed()
    # Shapes do not depend on what the images show, and scenes are at hand everywhere.
    if not isinstance(run.source, sources.Scenes):
        run = dataclasses.replace(run, source=sources.Scenes())
    if run.checkpoint is not None:
        return Plan(run, start.blank_from_checkpoint(run), mesh)
    if run.model is None:
        raise ValueError(
            "CONFIG.py: expected a checkpoint or a model in the configuration, got neither; "
            "do: give --checkpoint FOLDER"
        )
    with tempfile.TemporaryDirectory() as folder:
        return Plan(run, start.blank_model(run, Path(folder)), mesh)


def steps(plan: Plan) -> dict[str, Callable[[], Step]]:
    """Returns what makes each step of a run, by name."""
    run, evaluate = plan.run, lambda: _evaluate(plan)
    if isinstance(run, supervised.Config):
        return {"sft": lambda: _sft(plan, run), "evaluate": evaluate}
    return {
        "sample": lambda: _sample(plan, run),
        "update": lambda: _update(plan, run),
        "evaluate": evaluate,
    }


def _sft(plan: Plan, run: supervised.Config) -> Step:
    batch: Batch | PackedBatch = plan.rows("sft")
    parts = supervised.passes_of_step(run, plan.config, batch, rows=batch.weights.shape[0])
    done = flops.with_gradient(parts) | _update_work(plan)
    function = jitted_steps.supervised_step(plan.actor, run.objective, run.optimizer)
    return Step("sft", function, (plan.state, batch), done)


def _sample(plan: Plan, run: reinforcement.Config) -> Step:
    prompts: Prompts = plan.rows("prompts")
    function = jitted_steps.sampler(plan.actor, run.sampling, seed=run.seed, task=plan.bundle.task)
    arguments = (plan.state.params, prompts, _scalar(plan))
    done = _decoding(plan, prompts, run.sampling.answers, run.sampling.max_tokens)
    beside = [plan.state.moments, plan.state.params if run.policy.kl > 0 else None]
    return Step("sample", function, arguments, done, beside)


def _update(plan: Plan, run: reinforcement.Config) -> Step:
    prompts: Prompts = plan.rows("prompts")
    rows, read = prompts.tokens.ids.shape
    answers, length = run.sampling.answers, run.sampling.max_tokens
    shape = (1, answers, length)
    rollout = Rollout(
        ids=np.zeros(shape, np.int32),
        used=np.zeros(shape, bool),
        logp=np.zeros(shape, np.float32),
        computed=np.zeros(shape[:2], np.int32),
    )
    weights = run.weights
    function = jitted_steps.reinforcing_step(
        plan.actor,
        plan.bundle.task,
        policy=run.policy,
        weights=weights,
        optimizer=run.optimizer,
        sampling=run.sampling,
    )
    reference = plan.state.params if run.policy.kl > 0 else None
    arguments = (plan.state, prompts, plan.batch(rollout, rows), reference)
    counter = flops.Counter(plan.config, run.compute)
    parts = [
        *counter.read(rows, read, prompts.images.patches.shape[1]),
        counter.extend(rows, answers, length - 1, behind=read),
        counter.head(rows * answers, length, run.loss_chunk),
    ]
    done = flops.with_gradient(parts)
    done |= _update_work(plan, run.policy.minibatches)
    if reference is not None:
        done |= {"reference": sum(flops.without_gradient(parts).values())}
    return Step("update", function, arguments, done)


def _evaluate(plan: Plan) -> Step:
    prompts: Prompts = plan.rows("prompts")
    function = Predictor(plan.bundle).judged_answer
    done = _decoding(plan, prompts, 1, plan.bundle.layout.max_answer)
    return Step("evaluate", function, (plan.state.params, prompts), done)


def _decoding(plan: Plan, prompts: Prompts, answers: int, length: int) -> flops.Flops:
    """Returns the work of answers of the full length; most end sooner."""
    rows, read = prompts.tokens.ids.shape
    counter = flops.Counter(plan.config, plan.run.compute)
    return flops.without_gradient(
        [
            *counter.read(rows, read, prompts.images.patches.shape[1]),
            *counter.decode(rows, answers, length, behind=read),
        ]
    )


def _update_work(plan: Plan, updates: int = 1) -> flops.Flops:
    """Returns the work of Newton-Schulz iterations, if the optimizer makes any.

    Each is X <- a X + (b A + c A A) X with A = X X^T, for X [m n], m <= n.
    """
    chosen = plan.run.optimizer
    if not isinstance(chosen, optimizers.Muon):
        return {}
    done = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(plan.bundle.params):
        if optimizers.is_matrix(path):
            *stack, m, n = *leaf.shape[:-2], *sorted(leaf.shape[-2:])
            done += float(np.prod(stack, dtype=float)) * (4.0 * m * m * n + 2.0 * m**3)
    return {"optimizer": done * chosen.newton_schulz_steps * updates}


def _scalar(plan: Plan) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated_sharding(plan.mesh))
