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
from seg_jax.models.adapters import lora, peft_folder
from seg_jax.models.adapters.lora import Learning
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
    """Gives the weights that learn, in their shards on the run's mesh, away: the steps of the run
    overwrite them. Called once, and not at all where the run goes on from a checkpoint of its own.
    """
    learning: Learning | None = None
    """Which weights learn; None: all."""
    frozen: Any = None
    """The weights that do not, which no step overwrites; None: there are none."""

    @property
    def learned(self) -> Any:
        """The weights that learn, perhaps their shapes, as the bundle has them."""
        params = self.bundle.params
        return params if self.learning is None else self.learning.split(params)[0]

    def all_weights(self, learned: Any) -> Any:
        """Returns all weights of the model with those that have learnt; no copies."""
        return lora.all_weights(learned, self.frozen)


def check_divisions(run: Any) -> None:
    """Raises ValueError where devices do not divide weights or rows, or no weights can learn.

    Only shapes are made, so a run that cannot begin says so before it reads weights, makes a
    tokenizer or holds a folder.

    Args:
      run: a completed configuration with a model.
    """
    if run.checkpoint is None and lora.is_wanted(run.adapter):
        raise ValueError(
            "adapter: expected a --checkpoint whose weights stay as they are, got random ones; do: "
            "give the base, or leave the adapter out"
        )
    learning(run, run.model)
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

    if run.resume and learning(run, run.model).is_whole:
        return Start(blank_from_checkpoint(run), lambda: read().params)
    return _beginning(run, read(), mesh)


def learning(run: Any, config: Any) -> Learning:
    """Returns which weights of a model a run teaches.

    Raises:
      ValueError: its options contradict each other, or the adapter is of another base.
    """
    folder = run.adapter.folder
    if folder is None:
        return lora.plan(config, run.adapter, run.parts)
    for part, mode in vars(run.parts).items():
        if mode is not None:
            raise ValueError(
                f"parts.{part}: expected none beside adapter.folder, which says what learns, got "
                f"{mode}; do: leave it out"
            )
    return peft_folder.Folder(folder, config).learning


def with_adapters(run: Any, bundle: Bundle) -> Bundle:
    """Returns a model with the adapters of a run, all weights as shapes where it has any."""
    learns = learning(run, nnx.merge(bundle.graph, bundle.params).config)
    if not learns.adapted:
        return bundle
    graph, shapes = lora.attach(bundle.graph, bundle.params, learns)
    return dataclasses.replace(bundle, graph=graph, params=shapes)


def _beginning(run: Any, bundle: Bundle, mesh: jax.sharding.Mesh) -> Start:
    """Returns what a run begins with of a model with its weights."""
    config = nnx.merge(bundle.graph, bundle.params).config
    learns = learning(run, config)
    if learns.is_whole:
        return Start(bundle, lambda: bundle.params)
    made = with_adapters(run, bundle)
    params = bundle.params
    if run.adapter.folder is not None:
        found = peft_folder.Folder(run.adapter.folder, config).leaves()
        params = lora.all_weights(params, peft_folder.lay_arrays(found, made.params, on=mesh))
    elif learns.adapted:
        shapes = lora.only_adapters(made.params)
        params = lora.all_weights(params, lora.draw(shapes, seed=run.seed, on=mesh))
    learned, frozen = learns.split(params)
    bundle = dataclasses.replace(made, params=params)
    return Start(bundle, lambda: learned, learns, frozen)


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
    bundle, mesh = blank_model(run, tokenizer_folder), run.mesh.build()
    initializer = weight_initializer(run, bundle, mesh)
    if learning(run, run.model).is_whole:
        return Start(bundle, initializer)
    return _beginning(run, dataclasses.replace(bundle, params=initializer()), mesh)


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
