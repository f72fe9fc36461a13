"""A run of reinforcement learning (GSPO): its configuration and its stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from seg_jax.data.encode import Encoder
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.records import Prompts, Rollout
from seg_jax.runs import datasets, stage
from seg_jax.runs.batches import sharded_batches
from seg_jax.runs.start import Start
from seg_jax.runs.training_run import TrainingRun
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task
from seg_jax.training import optimizers, policy, state, steps
from seg_jax.training.clock import Clock
from seg_jax.training.log import Board

Show = Callable[[int, Prompts, Rollout], None]
"""Called with (number of the step, this process's prompts on the host, answers) after each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingRun):
    """A run of reinforcement learning.

    Its questions are those that the checkpoint was taught, but for names, which nothing judges.
    """

    out: Path = Path("runs/reinforce")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    seed: int = 0
    """Seed of the sampled answers; `feed.seed` is that of the order of the samples."""
    source: datasets.Source = dataclasses.field(default_factory=lambda: Scenes(seed=1))
    feed: Feed = Feed(batch=32)
    """Prompts of a step."""
    sampling: steps.Sampling = steps.Sampling()
    policy: policy.Policy = policy.Policy()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weights of the task's scores in the reward, by their names; none: the task's usual ones."""
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.AdamW(
        lr=1e-6, schedule=optimizers.Schedule(final=1.0)
    )
    log: Board = Board()
    panel_every: int = 0
    """Steps between images of sampled answers in OUT/panels; 0 draws none."""

    def __post_init__(self):
        super().__post_init__()
        if self.task is not None:
            self._check_judged(self.task)
        if not all(map(math.isfinite, self.weights.values())):
            raise ValueError(
                f"weights: expected finite numbers, got {self.weights}; do: give others"
            )
        if self.panel_every < 0:
            raise ValueError(f"panel_every: expected >= 0 steps, got {self.panel_every}; do: 0")
        for name in ("questions", "packed_rows", "packed_tokens", "pack"):
            default = Feed.__dataclass_fields__[name].default
            if (value := getattr(self.feed, name)) != default:
                raise ValueError(
                    f"feed.{name}: expected {default}, got {value}: prompts are neither several "
                    "to an image nor packed; do: leave it out"
                )

    def _check_judged(self, task: Task) -> None:
        """Raises ValueError for questions that nothing judges, or weights of unknown scores."""
        if isinstance(task, Referring):
            task.mixture.check_judged()
        unknown = sorted(self.weights.keys() - task.reward_weights.keys())
        if unknown:
            raise ValueError(
                f"weights: expected scores of the task {task.name!r}, which are "
                f"{', '.join(task.reward_weights)}, got {unknown[0]}; do: leave it out"
            )

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the run as its checkpoint completes it, with the weights of the task's scores.

        Raises:
          ValueError: the folder is no model's, or the run contradicts it.
        """
        run = super().completed(checkpoint, check=check)
        assert run.task is not None
        return dataclasses.replace(run, weights=run.weights or dict(run.task.reward_weights))

    def default_task(self, taught: Task | None) -> Task:
        """Returns what a model was taught without the questions that nothing judges."""
        return (taught or Referring()).without_unjudged()


def task_to_save(run: Config) -> Task:
    """Returns the task that the model of a completed run has learnt in all its life.

    It is asked what the run asks, and keeps from its checkpoint the questions that this stage has
    left out.
    """
    task = run.task or Referring()
    stored = None if run.checkpoint is None else bundles.own_task(run.checkpoint, type(task))
    return task if stored is None else task.with_questions_of(stored)


def train(
    run: Config,
    start: Start,
    place: stage.Place,
    *,
    show: Show = lambda step, prompts, rollout: None,
) -> stage.Trained:
    """Returns the trained state; the stage resumes from what it finds in its place."""
    mesh, bundle = run.mesh.build(), start.bundle
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    batches, to_device = sharded_batches(run, bundle.task, encoder, mesh=mesh, rows="prompts")
    actor = steps.Actor(bundle.graph, bundle.tokenizer, chunk=run.loss_chunk, ends=bundle.end_ids)
    draw = steps.sampler(actor, run.sampling, seed=run.seed, task=bundle.task)
    learn = steps.reinforcing_step(
        actor,
        bundle.task,
        policy=run.policy,
        weights=run.weights or bundle.task.reward_weights,
        optimizer=run.optimizer,
        sampling=run.sampling,
    )
    reference = None
    if run.policy.kl > 0:
        reference = start.weights()
        start = start._replace(weights=lambda: jax.tree.map(jnp.copy, reference))
    clock, answers = Clock(run.loop.log_every), run.feed.batch * run.sampling.answers

    def body(current: state.State):
        step = clock.start(current)
        batch = next(batches)
        prompts = clock.lap("data", to_device(batch))
        rollout = clock.lap("sampling", draw(current.params, prompts, current.step))
        current, metrics = clock.lap("learning", learn(current, prompts, rollout, reference))
        show(step, batch, rollout)
        if clock.seconds:
            metrics |= clock.step_metrics(float(metrics["length/mean"]) * answers)
        return current, metrics

    return stage.run_stage(run, body, start, batches=batches, place=place, mesh=mesh)
