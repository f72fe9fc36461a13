"""Held-out questions of a run, and greedy answers to them while it trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from seg_jax.data import held_out, pipeline, sources
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.inference.predictor import Predictor
from seg_jax.models.parallel import sharding
from seg_jax.runs import console, evaluation
from seg_jax.tasks.own_scores import OwnScores
from seg_jax.tasks.task import Task
from seg_jax.training import processes
from seg_jax.training.validation import Validation, Validator


def check(run: Any) -> None:
    """Raises ValueError where the passes or the validation of a run cannot be.

    Nothing is read but how many images data sets have, so a run says so before it begins.

    Args:
      run: a completed configuration with its source.
    """
    run.loop.planned(sources.pass_length(run.source), run.feed.batch)
    if run.validate.samples:
        _score_and_task(run, run.task)
        held_out.choose(run.source, run.validate.samples, split=run.validate.split)


def validator(
    run: Any,
    bundle: Bundle,
    asked: Source | None,
    *,
    mesh: jax.sharding.Mesh,
    stage: str,
    whole: Callable[[Any], Any] = lambda learned: learned,
    frozen: Frozen = NOTHING,
    own: OwnScores | None = None,
) -> Validator | None:
    """Returns what measures the weights of a run while it trains; None where it has no validation.

    Args:
      run: a completed configuration.
      bundle: its model.
      asked: the held-out images.
      mesh: that the weights lie on.
      stage: its name, for what is told.
      whole: returns all weights of those that learn.
      frozen: draws what answers point at, for a task whose scores are of masks.
      own: scores of a user beside the task's.
    """
    if asked is None:
        return None
    score, task = _score_and_task(run, bundle.task)
    frozen_segmenter.check_given(task, frozen.segment)
    predictor = Predictor(dataclasses.replace(bundle, task=task), frozen=frozen, own=own)
    questions = _Questions(predictor, asked, run.validate.batch, mesh)
    tell = console.say if processes.is_first() else _say_nothing

    def measure(learned: Any) -> dict[str, float]:
        return questions.mean_scores(whole(learned))

    return Validator(run.validate, score, measure, tell=lambda text: tell(f"{stage}: {text}"))


def _score_and_task(run: Any, task: Task) -> tuple[str, Task]:
    """Returns the score that tells what is best, and the task with the questions that are asked.

    Raises:
      ValueError: the task has no such score, or cannot be asked so.
    """
    config: Validation = run.validate
    # A run that is rewarded by functions of a user has weighed their scores too.
    known = dict.fromkeys((*task.reward_weights, *getattr(run, "weights", ())))
    score = config.score or next(iter(known))
    if score not in known:
        raise ValueError(
            f"validate.score: expected one of {', '.join(known)}, the scores of the "
            f"task {task.name!r}, got {score!r}; do: choose one, or leave it out"
        )
    if config.mixture is None:
        return score, task.without_unjudged()
    asked = evaluation.with_mixture(task, config.mixture)
    if "absent" in asked.needs.values() and "absent" not in task.needs.values():
        raise ValueError(
            "validate.mixture.absent: expected a run that asks about absent things, got one that "
            "does not; do: set task.mixture.absent too, or leave this share out"
        )
    return score, asked


class _Questions:
    """The held-out questions, drawn once, and the jitted decoder that answers them."""

    def __init__(self, predictor: Predictor, asked: Source, batch: int, mesh: jax.sharding.Mesh):
        self._bundle, self._asked, self._mesh = predictor.bundle, asked, mesh
        self._count = evaluation.whole_rows(min(batch, len(asked)), mesh)
        self._frozen = predictor.frozen

        def scores(*arguments: Any) -> Any:
            return predictor.judged_answer(*arguments)[1].scores

        # Every process gets all of them, so that all decide alike.
        self._scores = jax.jit(scores, out_shardings=sharding.replicated_sharding(mesh))

    def mean_scores(self, params: Any) -> dict[str, float]:
        """Returns the mean of each score over all questions."""
        places = sharding.batch(self._mesh)
        found: list[tuple[int, Any]] = []
        with jax.set_mesh(self._mesh):
            for real, prompts in self._batches:
                on_devices = pipeline.to_device(prompts, places, rows=self._count)
                scores = self._scores(params, on_devices, *self._frozen.argument)
                found.append((real, scores))
        means: dict[str, float] = {}
        for name in found[0][1]:
            parts = [np.asarray(scores[name])[:real, 0] for real, scores in found]
            means[name] = float(np.mean(np.concatenate(parts), dtype=np.float64))
        return means

    @functools.cached_property
    def _batches(self) -> list[tuple[int, Any]]:
        """Each batch: how many questions are in it, and the rows that this process holds."""
        met = Findings()
        rows = pipeline.local_rows(sharding.batch(self._mesh), self._count)
        bundle = self._bundle
        drawn = [
            (len(examples), jax.tree.map(lambda leaf: leaf[rows], prompts))
            for examples, prompts in pipeline.batches_in_order(
                self._asked, bundle.task, bundle.encoder, batch=self._count, findings=met
            )
        ]
        if processes.is_first():
            for line in met.lines():
                console.say(f"validation: {line}")
        if not drawn:
            raise ValueError(
                f"validate.samples: expected at least one question, got none: {met.commonest()}; "
                "do: mend the data, or ask about other images"
            )
        return drawn


def _say_nothing(text: str) -> None:
    """Stays silent: the first process speaks."""
