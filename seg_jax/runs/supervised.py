"""A run of supervised fine-tuning (SFT): its configuration and its stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from seg_jax.data import pipeline
from seg_jax.data.encode import Encoder
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.bundle import Bundle
from seg_jax.models import flops
from seg_jax.models.adapters.lora import Learning
from seg_jax.models.vlm import qwen25_vl
from seg_jax.records import Batch, PackedBatch
from seg_jax.runs import abstract, stage, validation
from seg_jax.runs.batches import sharded_batches
from seg_jax.runs.lowering import Measured, Step
from seg_jax.runs.start import Model, Start
from seg_jax.runs.training_run import TrainingRun
from seg_jax.training import optimizers, sft, state, steps, throughput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingRun):
    """A run of supervised fine-tuning.

    Without a checkpoint the weights are random and `model` says their sizes.
    """

    out: Path = Path("runs/finetune")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    objective: sft.Objective = sft.Objective()
    seed: int = 0
    """Seed of random weights and of new adapters; `feed.seed` is that of the order of the
    samples."""
    ordered_numbers: bool = True
    """Random weights only: number tokens begin close to those of close values."""

    def __post_init__(self):
        super().__post_init__()
        if self.feed.batch % self.objective.accumulate:
            raise ValueError(
                f"objective.accumulate: expected a divisor of the {self.feed.batch} rows of a "
                f"batch, got {self.objective.accumulate}; do: choose another, or another feed.batch"
            )

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the run as its checkpoint completes it, see `TrainingRun.completed`.

        Raises:
          ValueError: the folder is no model's, or the run contradicts it.
        """
        if checkpoint is None and self.checkpoint is None:
            run = dataclasses.replace(self, model=self.model or qwen25_vl.Config())
            run = super(Config, run).completed(check=check)
            return run._with_segmenter_checked() if check else run
        random = ("ordered_numbers",) if self.adapter.rank else ("seed", "ordered_numbers")
        for name in random:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if check and value != default:
                raise ValueError(
                    f"{name}: expected none beside a checkpoint, whose weights are not random, "
                    f"got {value}; do: leave it out"
                )
        run = super().completed(checkpoint, check=check)
        return run._with_segmenter_checked() if check else run

    def _with_segmenter_checked(self) -> Config:
        """Returns the run.

        Raises:
          ValueError: it has a segmenter that nothing would be drawn by, or validates without one.
        """
        assert self.task is not None
        if self.validate.samples:
            frozen_segmenter.check(self.task, self.segmenter)
        elif self.segmenter is not None:
            raise ValueError(
                "segmenter: expected validate.samples beside it, whose answers it draws, got "
                f"{self.segmenter} alone; do: give --validate.samples 256, or leave it out"
            )
        return self

    def unlowered(self) -> tuple[str, ...]:
        """Returns the names of the options that no step depends on."""
        return (*super().unlowered(), "seed", "ordered_numbers")

    def plan(self, devices: Sequence[Any]) -> Plan:
        """Returns the steps of the run over some devices, see `abstract.VLMPlan.of_run`."""
        return Plan.of_run(self, devices)

    def measured_step(self, plan: Plan) -> Measured:
        """Returns the step with what draws random weights and one batch of drawn images."""
        step = plan.sft()

        def draw() -> tuple[Any, ...]:
            current, frozen = plan.random_state()
            return current, jax.device_put(plan.drawn_batch()), *last_arguments(frozen)

        return Measured(step, draw, self.compute.dtype)


class Plan(abstract.VLMPlan):
    """The steps of supervised fine-tuning from shapes alone."""

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Returns what makes each step of the run, by name."""
        return {"sft": self.sft, "evaluate": self.evaluate}

    def sft(self) -> Step:
        """Returns the step of training."""
        run, batch = self.run, self.rows("sft")
        parts = passes_of_step(run, self.config, batch, rows=batch.weights.shape[0])
        done = flops.with_gradient(parts, self.modes) | self.optimizer_work()
        function = steps.supervised_step(self.actor, run.objective, run.optimizer)
        advice = self.training_advice(run.objective.accumulate, "objective.accumulate")
        arguments = (self.state, batch, *last_arguments(self.frozen))
        return Step("sft", function, arguments, done, advice=advice)

    def random_state(self) -> tuple[state.State, Any]:
        """Returns a state and frozen weights, normal of deviation 0.02, on the devices."""
        transform = optimizers.build(self.run.optimizer)

        def draw(key: jax.Array) -> tuple[state.State, Any]:
            leaves, tree = jax.tree.flatten(self.params)
            keys = jax.random.split(key, len(leaves))
            drawn = [
                (0.02 * jax.random.normal(one, leaf.shape, leaf.dtype)).astype(leaf.dtype)
                for one, leaf in zip(keys, leaves, strict=True)
            ]
            learned, frozen = self.learning.split(jax.tree.unflatten(tree, drawn))
            return state.fresh(learned, transform, horizon=1), frozen

        return jax.jit(draw)(jax.random.key(0))

    def drawn_batch(self) -> Batch | PackedBatch:
        """Returns a batch of the plan's source, on the host."""
        run, bundle = self.run, self.bundle
        feed = dataclasses.replace(run.feed, workers=0, threads=0, prefetch=0)
        task = bundle.task
        if "trace" in task.needs.values():  # Scenes have no written conversations.
            task = task.without_unjudged()
        return next(pipeline.batches(run.source, task, bundle.encoder, feed=feed, rows="sft"))


def train(run: Config, start: Start, place: stage.Place) -> stage.Trained:
    """Returns the trained state; the stage resumes from what it finds in its place."""
    mesh, bundle = run.mesh.build(), start.bundle
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    drawn = sharded_batches(run, bundle.task, encoder, mesh=mesh, rows="sft")
    batches, to_device = drawn.iterator, drawn.to_device
    actor = steps.Actor(bundle.graph, bundle.tokenizer, chunk=run.loss_chunk)
    step = steps.supervised_step(actor, run.objective, run.optimizer)
    unchanged = last_arguments(start.frozen)

    def body(current: state.State):
        return step(current, to_device(next(batches)), *unchanged)

    frozen = frozen_segmenter.NOTHING
    if run.validate.samples:
        frozen = frozen_segmenter.load(bundle.task, run.segmenter, on=mesh)
    return stage.run_stage(
        run,
        body,
        start,
        batches=batches,
        place=place,
        mesh=mesh,
        best_seconds=_seconds_at_peak(run, bundle, encoder, start.learning),
        samples=drawn.samples,
        validator=validation.validator(
            run,
            bundle,
            drawn.asked,
            mesh=mesh,
            stage=place.stage,
            whole=start.all_weights,
            frozen=frozen,
        ),
    )


def last_arguments(frozen: Any) -> tuple[Any, ...]:
    """Returns the frozen weights as the last argument of a step, left out where there are none."""
    return () if frozen is None else (frozen,)


def passes_of_step(
    run: Config, sizes: Model, batch: Batch | PackedBatch, *, rows: int
) -> list[flops.Part]:
    """Returns the passes of a step over so many rows like those of a batch."""
    counter = flops.Counter(sizes, run.compute)
    patches = batch.images.patches.shape[1]
    if isinstance(batch, PackedBatch):
        length = batch.weights.shape[-1]
        head = counter.head(rows, length, run.loss_chunk)
        return [*counter.read(rows, length, patches), head]
    _, answers, length = batch.ids.shape
    read = batch.tokens.ids.shape[1]
    return [
        *counter.read(rows, read, patches),
        counter.extend(rows, answers, length, behind=read),
        counter.head(rows * answers, length, run.loss_chunk),
    ]


def _seconds_at_peak(
    run: Config, bundle: Bundle, encoder: Encoder, learning: Learning | None
) -> float | None:
    """Returns the seconds of a step at the devices' peak, None where that is not known."""
    if throughput.best_seconds(1.0) is None:
        return None
    feed = dataclasses.replace(run.feed, batch=1, threads=0, prefetch=0, workers=0)
    batch = next(pipeline.batches(run.source, bundle.task, encoder, feed=feed, rows="sft"))
    sizes = nnx.merge(bundle.graph, bundle.params).config
    modes = None if learning is None else learning.modes
    done = flops.with_gradient(passes_of_step(run, sizes, batch, rows=run.feed.batch), modes)
    return throughput.best_seconds(sum(done.get(name, 0.0) for name in flops.NEEDED))
