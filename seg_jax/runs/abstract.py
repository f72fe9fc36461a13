"""The steps of a vision-language model's run, from shapes alone: no weight exists."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from flax import nnx

from seg_jax.data import pipeline, sources
from seg_jax.data.encode import Encoder
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.inference.predictor import Predictor
from seg_jax.models import flops
from seg_jax.models.adapters import lora
from seg_jax.models.adapters.lora import Learning
from seg_jax.models.parallel import mesh_axes, sharding
from seg_jax.records import Prompts
from seg_jax.runs import start
from seg_jax.runs.lowering import Plan, Step
from seg_jax.training import optimizers, state
from seg_jax.training import steps as jitted_steps

PlanT = TypeVar("PlanT", bound="VLMPlan")


@dataclasses.dataclass(frozen=True)
class VLMPlan(Plan):
    """A run's model and rows over a mesh; a kind of run says its steps."""

    run: Any
    """A completed configuration."""
    bundle: Bundle
    """With shapes for weights."""
    mesh: jax.sharding.Mesh

    @classmethod
    def of_run(cls: type[PlanT], run: Any, devices: Sequence[Any]) -> PlanT:
        """Returns the plan of a run: its checkpoint's model, or the one its configuration says.

        Of a checkpoint only the small files are read.

        Raises:
          ValueError: neither a checkpoint nor a model, or the mesh does not divide the model.
        """
        mesh = run.mesh.build(list(devices))
        run = run.completed()
        # Shapes do not depend on what the images show, and scenes are at hand everywhere.
        if not isinstance(run.source, sources.Scenes):
            run = dataclasses.replace(run, source=sources.Scenes())
        if run.checkpoint is not None:
            return cls(run, start.with_adapters(run, start.blank_from_checkpoint(run)), mesh)
        if run.model is None:
            raise ValueError(
                "CONFIG.py: expected a checkpoint or a model in the configuration, got neither; "
                "do: give --checkpoint FOLDER"
            )
        with tempfile.TemporaryDirectory() as folder:
            return cls(run, start.with_adapters(run, start.blank_model(run, Path(folder))), mesh)

    @property
    def params(self) -> Any:
        """Shapes of the weights, a tree."""
        return self.bundle.params

    @property
    def config(self) -> Any:
        """Sizes of the model."""
        return nnx.merge(self.bundle.graph, self.bundle.params).config

    @functools.cached_property
    def learning(self) -> Learning:
        """Which weights learn."""
        return start.learning(self.run, self.config)

    @property
    def modes(self) -> Mapping[str, str]:
        """What becomes of each part of the model."""
        return self.learning.modes

    @functools.cached_property
    def state(self) -> state.State:
        """State of the training, as it lies on the devices."""
        transform = optimizers.build(self.run.optimizer)
        offload, learned = self.run.offload, self.learning.split(self.bundle.params)[0]
        return state.shapes(learned, transform, self.mesh, offload=offload)

    @functools.cached_property
    def frozen(self) -> Any:
        """Shapes of the weights that do not learn, None where all do."""
        found = self.learning.split(self.bundle.params)[1]
        if found is None:
            return None
        return sharding.with_shardings(found, sharding.shardings(found, self.mesh))

    @property
    def weights(self) -> Any:
        """Shapes of all weights as they lie on the devices."""
        return lora.all_weights(self.state.params, self.frozen)

    @functools.cached_property
    def actor(self) -> jitted_steps.Actor:
        """Model and tokenizer."""
        bundle = self.bundle
        return jitted_steps.Actor(
            bundle.graph, bundle.tokenizer, chunk=self.run.loss_chunk, ends=bundle.end_ids
        )

    @functools.cached_property
    def segmenter(self) -> Frozen:
        """Shapes of the model that draws where answers are judged, if the run has one."""
        folder = self.run.segmenter
        if folder is None:
            return frozen_segmenter.NOTHING
        return frozen_segmenter.shapes(self.bundle.task, folder, on=self.mesh)

    def rows(self, kind: Literal["sft", "prompts"]) -> Any:
        """Returns the shapes of a batch of the kind, as the pipeline makes it."""
        run, bundle = self.run, self.bundle
        feed = dataclasses.replace(run.feed, batch=1, workers=0, threads=1, prefetch=1)
        # Nor do shapes on the question, and scenes have no written conversations to ask about.
        task = bundle.task.without_unjudged()
        # Of the lengths that prompts may have, what fits the longest fits all.
        encoder = Encoder(bundle.tokenizer, dataclasses.replace(bundle.encoder.layout, buckets=1))
        more = {"answer_tokens": run.answer_tokens} if kind == "prompts" else {}
        row = next(pipeline.batches(run.source, task, encoder, feed=feed, rows=kind, **more))
        return self.batch(row, run.feed.batch)

    def batch(self, row: Any, count: int) -> Any:
        """Returns the shapes of `count` such rows, spread over the devices."""
        place = sharding.batch(self.mesh, count)

        def many(leaf):
            return jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype, sharding=place)

        return jax.tree.map(many, row)

    def evaluate(self) -> Step:
        """Returns the step of evaluation: a greedy answer to each prompt, judged."""
        prompts: Prompts = self.rows("prompts")._replace(answer=None)
        function = Predictor(self.bundle, frozen=self.segmenter).judged_answer
        done = self.decoding_work(prompts, 1, self.bundle.layout.max_answer)
        arguments = (self.weights, prompts, *self.segmenter.argument)
        advice, longest = self.decoding_advice(), self.bundle.layout.max_answer
        return Step("evaluate", function, arguments, done, advice=advice, passes=longest)

    def decoding_work(self, prompts: Prompts, answers: int, length: int) -> flops.Flops:
        """Returns the work of answers of the full length; most end sooner."""
        rows, read = prompts.tokens.ids.shape
        counter = flops.Counter(self.config, self.run.compute)
        return flops.without_gradient(
            [
                *counter.read(rows, read, prompts.images.patches.shape[1]),
                *counter.decode(rows, answers, length, behind=read),
            ]
        )

    def optimizer_work(self, updates: int = 1) -> flops.Flops:
        """Returns the work of Newton-Schulz iterations, if the optimizer makes any.

        Each is X <- a X + (b A + c A A) X with A = X X^T, for X [m n], m <= n.
        """
        chosen = self.run.optimizer
        if not isinstance(chosen, optimizers.Muon):
            return {}
        done = 0.0
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.params):
            if optimizers.is_matrix(path):
                *stack, m, n = *leaf.shape[:-2], *sorted(leaf.shape[-2:])
                done += float(np.prod(stack, dtype=float)) * (4.0 * m * m * n + 2.0 * m**3)
        return {"optimizer": done * chosen.newton_schulz_steps * updates}

    def training_advice(self, pieces: int, option: str) -> tuple[str, ...]:
        """Returns what may make a step of training fit.

        Args:
          pieces: that a batch is cut into now.
          option: the name of that number.
        """
        run, ways = self.run, []
        if run.loss_chunk is None:
            ways.append("--loss-chunk 256: not the scores of all tokens at once")
        if run.compute.remat != "full":
            ways.append("--compute.remat full")
        if run.compute.dtype == "float32":
            ways.append("--compute.dtype bfloat16")
        rows, more = run.feed.batch, 2 * pieces
        if rows % more == 0 and rows // more >= self._shards_of_rows:
            ways.append(f"--{option} {more}")
        return (*ways, *self._smaller_batch)

    def decoding_advice(self) -> tuple[str, ...]:
        """Returns what may make a step that decodes answers fit."""
        ways = ["a larger mesh.tensor: it divides caches and the weights that every chip reads"]
        if self.run.compute.decode_gib != 0:
            ways.insert(0, "--compute.decode-gib 0: no weight whole while answers are decoded")
        return (*ways, *self._smaller_batch)

    @property
    def _shards_of_rows(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes.MESH["batch"])

    @property
    def _smaller_batch(self) -> tuple[str, ...]:
        least = self._shards_of_rows
        return (f"a smaller feed.batch, down to {least}",) if self.run.feed.batch > least else ()
