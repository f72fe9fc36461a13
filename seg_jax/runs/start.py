"""The model that a run begins with: read from a folder, or of random weights."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import jax
from flax import nnx
from tyro.conf import subcommand

from seg_jax.data import sources
from seg_jax.grammar.tokenizer import tokens
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import number_embedding
from seg_jax.runs.datasets import Source
from seg_jax.tasks.task import Task

if TYPE_CHECKING:
    Model = Any
else:  # All are called Config: the names are for the parser of options.
    Model = functools.reduce(
        operator.or_,
        [
            Annotated[family.config, subcommand(name)]
            for name, family in families.FAMILIES.items()
            if family.vlm is not None
        ],
    )
"""Sizes of a vision-language model of any family."""


class Start(NamedTuple):
    """What a run begins with."""

    bundle: Bundle
    """The model, perhaps with shapes for weights."""
    weights: Callable[[], Any]
    """Gives weights in their shards on the run's mesh away: the steps of the run overwrite them.
    Called once, and not at all where the run goes on from a checkpoint of its own."""


def check_divisions(run: Any) -> None:
    """Raises ValueError where the devices do not divide the weights, or the rows of a batch.

    Only shapes are made, so a run that cannot begin says so before it reads weights, makes a
    tokenizer or holds a folder.

    Args:
      run: a completed configuration with a model.
    """
    mesh = run.mesh.build()
    _, shapes = nnx.split(weights.blank(run.model, run.compute))
    sharding.shardings(shapes, mesh)
    sharding.batch(mesh, run.feed.batch)


def from_checkpoint(run: Any) -> Start:
    """Returns the model of a run's checkpoint; its weights are read at once but to resume.

    Args:
      run: a completed configuration with a checkpoint; its task and layout are the model's.

    Raises:
      ValueError: the folder holds no model, or none that knows the task's decimals.
    """
    mesh = run.mesh.build()

    def read() -> Bundle:
        return _of_run(
            run,
            bundles.load(run.checkpoint, compute=run.compute, on=mesh, task_kind=type(run.task)),
        )

    if run.resume:
        return Start(blank_from_checkpoint(run), lambda: read().params)
    bundle = read()
    return Start(bundle, lambda: bundle.params)


def blank_from_checkpoint(run: Any) -> Bundle:
    """Returns the model of a run's checkpoint with shapes for weights: small files are read.

    Raises:
      ValueError: as `from_checkpoint`.
    """
    return _of_run(
        run, bundles.blank(run.checkpoint, compute=run.compute, task_kind=type(run.task))
    )


def _of_run(run: Any, bundle: Bundle) -> Bundle:
    """Returns a model with the task and layout of a run in the place of its own."""
    decimals = tokens.whole_decimals(bundle.tokenizer)
    if None not in (decimals, run.task.decimals) and decimals != run.task.decimals:
        raise ValueError(
            f"task.digits: expected {decimals}, the decimals of the number tokens of "
            f"{run.checkpoint}, got {run.task.decimals}; do: --task.digits {decimals}"
        )
    return dataclasses.replace(bundle, task=run.task, layout=run.layout)


def with_random_weights(run: Any, tokenizer_folder: Path) -> Start:
    """Returns a model that is to have random weights, with a tokenizer of its own.

    Raises:
      ValueError: the configured model fits no tokenizer.
    """
    bundle = blank_model(run, tokenizer_folder)
    return Start(bundle, weight_initializer(run, bundle, run.mesh.build()))


def blank_model(run: Any, tokenizer_folder: Path) -> Bundle:
    """Returns the configured model with shapes for weights."""
    tokenizer = make_tokenizer(run.source, run.task, tokenizer_folder)
    graph, shapes = nnx.split(
        weights.blank(families.with_tokens(run.model, tokenizer), run.compute)
    )
    return Bundle(graph, shapes, tokenizer, tokenizer_folder, run.layout, run.task)


def weight_initializer(run: Any, bundle: Bundle, on: jax.sharding.Mesh) -> Any:
    """Returns the jitted function () -> random weights on a mesh.

    They are the same on any mesh; each device makes its own shards and no others.
    """
    sizes = nnx.merge(bundle.graph, bundle.params).config
    values, _ = tokens.number_table(bundle.tokenizer)

    def draw() -> Any:
        kind = families.family_of(sizes).model
        model = kind(sizes, compute=run.compute, rngs=nnx.Rngs(run.seed))
        if run.ordered_numbers:
            key = jax.random.key(run.seed)
            model.embed.embedding[...] = number_embedding.embed(model.embed, values, key)
        return nnx.state(model)

    return jax.jit(draw, out_shardings=sharding.shardings(bundle.params, on))


def make_tokenizer(source: Source, task: Task, folder: Path) -> tokens.Tokenizer:
    """Returns a small tokenizer of the source's phrases and the task's numbers; made once."""
    if (folder / "tokenizer.json").exists():
        return tokens.Tokenizer.load(folder)
    phrases = sources.corpus(source)
    if isinstance(source, sources.Scenes):
        phrases += sources.corpus(sources.Scenes())  # `evaluate` asks about these by itself.
    sentences = task.sentences(phrases)
    return tokens.train(sentences, folder=folder, numbers="whole", digits=task.decimals or 1)
