"""A run of reinforcement learning (GSPO): its configuration and its stage."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.data import priority
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Mixed, Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.models import flops
from seg_jax.models.parallel import sharding
from seg_jax.records import Prompts, Rollout, check_least
from seg_jax.runs import abstract, datasets, own_rewards, sampled_answers, stage, validation
from seg_jax.runs.batches import sharded_batches
from seg_jax.runs.drawing import Drawing
from seg_jax.runs.lowering import Step
from seg_jax.runs.start import Start
from seg_jax.runs.training_run import TrainingRun
from seg_jax.tasks.own_scores import OwnScores
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task
from seg_jax.training import optimizers, policy, rounds, state, steps
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
    """Seed of the sampled answers and of new adapters; `feed.seed` is that of the order of the
    samples."""
    source: datasets.Source = dataclasses.field(default_factory=lambda: Scenes(seed=1))
    feed: Feed = Feed(batch=32)
    """Prompts of a step."""
    rounds: int = 1
    """Batches of prompts that a step may draw until it has its number of groups whose rewards
    differ, which needs policy.drop_equal (DAPO's dynamic sampling, 2503.14476, equation 11). What
    the last batch has too many is lost; if even it is not enough, the step has fewer groups that
    count. 1: the groups of a batch as they come. More go over a finite set the faster: the log's
    `epoch` counts its passes, which loop.epochs cannot plan."""
    priority: priority.Priority = priority.Priority()
    sampling: steps.Sampling = steps.Sampling()
    policy: policy.Policy = policy.Policy()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weights of the task's scores in the reward, by their names; none: the task's usual ones.
    Scores of your own have weights here too."""
    reward: tuple[str, ...] = ()
    """Functions of your own, FILE.py:FUNCTION, whose scores count beside the task's, each with
    weight 1 where weights name none: see `seg_jax/tasks/own_scores.py`."""
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.AdamW(
        lr=1e-6, schedule=optimizers.Schedule(final=1.0)
    )
    log: Board = Board()
    panel_every: int = 0
    """Steps between images of sampled answers in OUT/panels; 0 draws none."""

    probe: int = 2
    """Batches whose answers are judged before the first step, to say whether reinforcement can
    pay: greedy, mean and best by truth; 0: none. They are the first prompts to learn from, not
    held-out ones, of which `validate` tells. The run is the same either way."""

    def __post_init__(self):
        super().__post_init__()
        check_least(self, "reinforce", probe=0)
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

        self._check_chosen()
        pieces = self.policy.minibatches * self.policy.accumulate
        if self.feed.batch % pieces:
            raise ValueError(
                "policy.minibatches times policy.accumulate: expected a divisor of the "
                f"{self.feed.batch} prompts of a step, got {pieces}; do: choose others, or another "
                "feed.batch"
            )

    def _check_chosen(self) -> None:
        """Raises ValueError for ways to choose prompts that cannot be followed."""
        if self.rounds < 1:
            raise ValueError(
                f"rounds: expected at least 1 batch, got {self.rounds}; do: give a number above 0"
            )
        if self.rounds > 1 and not self.policy.drop_equal:
            raise ValueError(
                f"rounds: expected policy.drop_equal beside {self.rounds}, as groups that do not "
                "differ fill what places are left, got none; do: give --policy.drop-equal"
            )
        chosen = f"{self.rounds} rounds" if self.rounds > 1 else f"priority.by {self.priority.by}"
        if self.loop.epochs is not None and self.gathers:
            raise ValueError(
                f"loop.epochs: expected loop.steps beside {chosen}, as how many steps a pass has "
                f"is not known before, got {self.loop.epochs} passes; do: give --loop.steps, and "
                "see epoch in the log"
            )
        if self.rounds > 1 and self.layout is not None and self.layout.buckets > 1:
            raise ValueError(
                f"rounds: expected prompts of one length, layout.buckets 1, beside {self.rounds}, "
                f"got {self.layout.buckets}; do: leave one of both out"
            )
        if self.priority.by != "off":
            for name in ("workers", "prefetch"):
                default = Feed.__dataclass_fields__[name].default
                if (value := getattr(self.feed, name)) != default:
                    raise ValueError(
                        f"feed.{name}: expected {default} beside priority.by, as prompts that "
                        f"hang on past answers are not read ahead, got {value}; do: leave it out"
                    )

    def check_finite(self) -> None:
        """Raises ValueError where prompts of an endless source are to be chosen by the past."""
        source = self.source
        parts = source.parts if isinstance(source, Mixed) else (source,)
        if self.priority.by != "off" and any(
            isinstance(part, Scenes) and part.count is None for part in parts
        ):
            raise ValueError(
                f"priority.by: expected a finite source, whose prompts come up again, for "
                f"{self.priority.by}, got endless scenes; do: give --source.count or --data"
            )

    @property
    def answer_tokens(self) -> int | None:
        """Columns of the true answer that prompts have with them; None: without it."""
        return None if self.policy.truth == "off" else self.sampling.max_tokens

    def _check_judged(self, task: Task) -> None:
        """Raises ValueError for questions that nothing judges, or weights of unknown scores."""
        if isinstance(task, Referring):
            task.mixture.check_judged()
        unknown = sorted(self.weights.keys() - task.reward_weights.keys())
        if unknown and not self.reward:  # Of functions the names are known when they have run.
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
        if check:
            frozen_segmenter.check(run.task, run.segmenter)
        return dataclasses.replace(run, weights=run.weights or dict(run.task.reward_weights))

    def with_weights_named(self, options: Sequence[str]) -> Config:
        """Returns the run with a place for each weight of scores of a user's own.

        What they are called is known to their functions alone, which have not run yet.

        Args:
          options: of the command line, perhaps with --weights.NAME.
        """
        words = [option.partition("=")[0] for option in options]
        if not self.reward and "--reward" not in words:
            return self
        names = [w.removeprefix("--weights.") for w in words if w.startswith("--weights.")]
        more = {name.replace("-", "_"): own_rewards.USUAL_WEIGHT for name in names}
        weights = self.weights | {n: one for n, one in more.items() if n not in self.weights}
        return dataclasses.replace(self, reward=self.reward or ("",), weights=weights)

    def default_task(self, taught: Task | None) -> Task:
        """Returns what a model was taught without the questions that nothing judges."""
        return (taught or Referring()).without_unjudged()

    def unlowered(self) -> tuple[str, ...]:
        """Returns the names of the options that no step depends on."""
        return (*super().unlowered(), "log", "panel_every", "probe", "priority.floor")

    @property
    def gathers(self) -> bool:
        """Whether answers are judged before a step has its prompts, or for what comes later."""
        return self.rounds > 1 or self.priority.by != "off"

    @property
    def steps_of_training(self) -> tuple[str, ...]:
        """Names of the steps that it consists of, in their order."""
        return ("sample", *(("gather",) if self.gathers else ()), "update")

    def plan(self, devices: Sequence[Any]) -> Plan:
        """Returns the steps of the run over some devices, see `abstract.VLMPlan.of_run`."""
        return Plan.of_run(self, devices)


class Plan(abstract.VLMPlan):
    """The steps of reinforcement from shapes alone."""

    def steps(self) -> dict[str, Callable[[], Step]]:
        """Returns what makes each step of the run, by name."""
        found = {"sample": self.sample, "update": self.update, "evaluate": self.evaluate}
        return found | {"gather": self.gather} if self.run.gathers else found

    def sample(self) -> Step:
        """Returns the step that draws answers."""
        run, prompts, task = self.run, self.rows("prompts"), self.bundle.task
        function = steps.sampler(self.actor, run.sampling, seed=run.seed, task=task)
        number = jax.ShapeDtypeStruct(
            (), jnp.int32, sharding=sharding.replicated_sharding(self.mesh)
        )
        first = (number,) if run.gathers else ()
        return Step(
            "sample",
            function,
            (self.weights, prompts, number, *first),
            self.decoding_work(prompts, run.sampling.answers, run.sampling.max_tokens),
            beside=[self.state.moments, self._reference, self.segmenter.params],
            advice=self.decoding_advice(),
            passes=run.sampling.max_tokens,
        )

    def update(self) -> Step:
        """Returns the step that judges answers and learns from them."""
        run, own = self._weighed
        prompts = self.rows("prompts")
        function = steps.reinforcing_step(
            self.actor,
            self.bundle.task,
            policy=run.policy,
            weights=run.weights,
            optimizer=run.optimizer,
            sampling=run.sampling,
            segment=self.segmenter.segment,
            own=own,
        )
        return Step(
            "update",
            function,
            (self.state, prompts, self._rollout(), self._reference, *self._unchanged),
            self._learning_work(prompts),
            advice=self.training_advice(run.policy.minibatches, "policy.minibatches"),
        )

    def gather(self) -> Step:
        """Returns the step that judges the answers to a further batch and keeps what differs."""
        run, own = self._weighed
        prompts, rollout, frozen = self.rows("prompts"), self._rollout(), self.segmenter
        function = steps.gathering_step(
            self.actor,
            self.bundle.task,
            policy=run.policy,
            weights=run.weights,
            segment=frozen.segment,
            own=own,
        )
        differ = self.batch(np.zeros(1, bool), run.feed.batch)
        groups = rounds.Groups(prompts, rollout, differ) if run.rounds > 1 else None
        beside = [self.state, self._reference]
        arguments = (groups, prompts, rollout, *frozen.argument)
        return Step("gather", function, arguments, {}, beside=beside)

    @functools.cached_property
    def _weighed(self) -> tuple[Config, OwnScores | None]:
        """The run with the weights of all scores, and those of the user."""
        found = own_rewards.of_run(self.run, self.bundle)
        return found.run, found.own

    @property
    def _unchanged(self) -> tuple[Any, ...]:
        """Shapes of all weights that an update only reads, as its last arguments."""
        return _last_arguments(self.segmenter, self.frozen)

    @property
    def _reference(self) -> Any:
        """Shapes of the weights that the policy is held to, None where it is held to none.

        Those that are frozen are the policy's own.
        """
        return self.state.params if self.run.policy.kl > 0 else None

    def _rollout(self) -> Rollout:
        """Returns the shapes of the answers of a step."""
        shape = (1, self.run.sampling.answers, self.run.sampling.max_tokens)
        row = Rollout(
            ids=np.zeros(shape, np.int32),
            used=np.zeros(shape, bool),
            logp=np.zeros(shape, np.float32),
            computed=np.zeros(shape[:2], np.int32),
        )
        return self.batch(row, self.run.feed.batch)

    def _learning_work(self, prompts: Prompts) -> flops.Flops:
        """Returns the work of an update."""
        run, counter = self.run, flops.Counter(self.config, self.run.compute)
        rows, read = prompts.tokens.ids.shape
        truths = int(run.policy.truth != "off")
        answers, length = run.sampling.answers + truths, run.sampling.max_tokens
        parts = [
            *counter.read(rows, read, prompts.images.patches.shape[1]),
            counter.extend(rows, answers, length - 1, behind=read),
            counter.head(rows * answers, length, run.loss_chunk),
        ]
        done = flops.with_gradient(parts, self.modes)
        done |= self.optimizer_work(run.policy.minibatches)
        if run.policy.kl > 0:
            done |= {"reference": sum(flops.without_gradient(parts).values())}
        if truths:
            parts = [
                *counter.read(rows, read, prompts.images.patches.shape[1]),
                counter.extend(rows, truths, length - 1, behind=read),
                counter.head(rows * truths, length, run.loss_chunk),
            ]
            done |= {"truth": sum(flops.without_gradient(parts).values())}
        drawn = {"images": rows, "answers": run.sampling.answers + truths}
        return done | frozen_segmenter.work(self.bundle.task, run.segmenter, **drawn)


def task_to_save(run: Config) -> Task:
    """Returns the task that the model of a completed run has learnt in all its life.

    It is asked what the run asks, and keeps from its checkpoint the questions that this stage has
    left out.
    """
    task = run.task or Referring()
    stored = None
    if run.checkpoint is not None:
        stored = bundles.own_task(run.checkpoint, type(task), adapter=run.adapter.folder)
    return task if stored is None else task.with_questions_of(stored)


def train(
    run: Config,
    start: Start,
    place: stage.Place,
    *,
    show: Show = lambda step, prompts, rollout: None,
    frozen: Frozen | None = None,
    rewarded: own_rewards.Rewarded | None = None,
) -> stage.Trained:
    """Returns the trained state; the stage resumes from what it finds in its place.

    Args:
      run: a completed configuration.
      start: the model that it begins with.
      place: where the stage writes.
      show: is told of the answers of each step.
      frozen: the run's segmenter, if it was loaded before.
      rewarded: the run with the user's own scores, if these were tried before.
    """
    run.check_finite()
    run, own, _ = rewarded or own_rewards.of_run(run, start.bundle)
    mesh, bundle = run.mesh.build(), start.bundle
    drawn = sharded_batches(
        run, bundle.task, bundle.encoder, mesh=mesh, rows="prompts", first=run.priority
    )
    actor = steps.Actor(bundle.graph, bundle.tokenizer, chunk=run.loss_chunk, ends=bundle.end_ids)
    draw_by = steps.sampler(actor, run.sampling, seed=run.seed, task=bundle.task)
    frozen = frozen or frozen_segmenter.load(bundle.task, run.segmenter, on=mesh)
    beside: dict[str, Any] = {"mesh": mesh, "frozen": frozen, "own": own}
    judging = _judging(run, bundle.task, frozen, own)
    gather = _gathering(actor, bundle.task, frozen, judging) if run.gathers else None
    learn = _learning(run, actor, bundle.task, _last_arguments(frozen, start.frozen), judging)
    whole, reference = start.all_weights, None
    if run.policy.kl > 0:
        reference = start.weights()
        start = start._replace(weights=lambda: jax.tree.map(jnp.copy, reference))
    if run.probe:
        start = start._replace(weights=_weights_probed(run, start, draw=draw_by, **beside))

    def draw(learned: Any, *prompts: Any) -> Rollout:
        return draw_by(whole(learned), *prompts)

    batches, rows, clock = drawn.iterator, run.feed.batch, Clock(run.loop.log_every)
    drawing = Drawing(
        batches, drawn.to_device, draw, clock, gather=gather, rounds=run.rounds, prompts=rows
    )

    def body(current: state.State):
        step = clock.start(current)
        prompts, rollout, shown, told = drawing(current)
        current, metrics = clock.lap("learning", learn(current, prompts, rollout, reference))
        show(step, *shown)
        if clock.seconds:
            count = float(metrics["length/mean"]) * rows * run.sampling.answers
            metrics |= clock.step_metrics(count, batches=told.get("rounds", 1))
        return current, metrics | told

    validator = validation.validator(
        run, bundle, drawn.asked, stage=place.stage, whole=whole, **beside
    )
    return stage.run_stage(
        run,
        body,
        start,
        batches=batches,
        place=place,
        mesh=mesh,
        samples=drawn.samples,
        validator=validator,
    )


def _judging(run: Config, task: Task, frozen: Frozen, own: OwnScores | None) -> dict[str, Any]:
    """Returns what the steps of a run judge answers by."""
    weights = run.weights or task.reward_weights
    return {"weights": weights, "own": own, "segment": frozen.segment, "policy": run.policy}


def _last_arguments(segmenter: Frozen, frozen: Any) -> tuple[Any, ...]:
    """Returns the last arguments of an update: a segmenter's weights and the frozen ones."""
    return segmenter.argument if frozen is None else (segmenter.params, frozen)


def _learning(
    run: Config,
    actor: steps.Actor,
    task: Task,
    beside: tuple[Any, ...],
    judging: Mapping[str, Any],
) -> Callable[..., Any]:
    """Returns the step (state, prompts, rollout, reference) -> (state, metrics)."""
    learn = steps.reinforcing_step(
        actor, task, optimizer=run.optimizer, sampling=run.sampling, **judging
    )
    return lambda *arguments: learn(*arguments, *beside)


def _gathering(
    actor: steps.Actor, task: Task, frozen: Frozen, judging: Mapping[str, Any]
) -> Callable[[Any, Prompts, Rollout], Any]:
    """Returns what judges the answers to a batch and keeps what differs."""
    gather = steps.gathering_step(actor, task, **judging)
    return lambda groups, prompts, rollout: gather(groups, prompts, rollout, *frozen.argument)


def _weights_probed(
    run: Config,
    start: Start,
    *,
    draw: Any,
    mesh: jax.sharding.Mesh,
    frozen: Frozen,
    own: OwnScores | None,
) -> Callable[[], Any]:
    """Returns what gives the weights of a run that begins afresh, and says what they answer."""

    def weights() -> Any:
        params = start.weights()
        sampled_answers.tell_before(
            run,
            start.bundle,
            start.all_weights(params),
            draw=draw,
            mesh=mesh,
            frozen=frozen,
            own=own,
        )
        return params

    return weights
