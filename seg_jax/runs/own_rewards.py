"""The scores of a user's own in a run: tried on true answers before its first step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.data import fitting, pipeline
from seg_jax.data.encode import Encoder
from seg_jax.inference.bundle import Bundle
from seg_jax.runs import console, user_functions
from seg_jax.runs.user_functions import UserFunction
from seg_jax.tasks import own_scores
from seg_jax.tasks.own_scores import OwnScores, Reward
from seg_jax.tasks.task import Task
from seg_jax.training import processes

USUAL_WEIGHT = 1.0
"""Weight of a user's score that nothing weighs; to leave one out of the reward, give it 0."""

_PROMPTS = 8
"""True answers that functions are tried on."""
_SLOW_SECONDS = 1.0
"""What a function on the host may add to a step without a warning."""

RunT = TypeVar("RunT")


class Rewarded(NamedTuple):
    """A run with its own scores."""

    run: Any
    """With a weight of every score."""
    own: OwnScores | None
    """None: there are no others than the task's."""
    functions: tuple[UserFunction, ...]


def of_run(run: Any, bundle: Bundle | None) -> Rewarded:
    """Returns a run with the scores that its functions add to the task's.

    Each function is tried on true answers of the run's source and on an answer that says nothing,
    and what it makes of them is told, of a function on the host its seconds too.

    Args:
      run: a completed configuration of reinforcement, with its source.
      bundle: its model, perhaps with shapes for weights; None where it has no such functions.

    Raises:
      ValueError: a function cannot be loaded, fails or returns no scores; a name is taken, or a
        weight names no score.
    """
    if not run.reward:
        return Rewarded(run, None, ())
    assert bundle is not None
    functions = tuple(user_functions.load(title, option="reward") for title in run.reward)
    arguments = _arguments(run, bundle)
    tried = [_tried(function, arguments) for function in functions]
    rewards = [one.reward for one in tried]
    own_scores.check_names(rewards, bundle.task)
    own = OwnScores(tuple(rewards), bundle.task, console.say)
    run = dataclasses.replace(run, weights=_weights(run.weights, own, bundle.task))
    if processes.is_first():
        for one in tried:
            _tell(one, run)
    return Rewarded(run, own, functions)


def _weights(given: Mapping[str, float], own: OwnScores, task: Task) -> dict[str, float]:
    """Returns the weights of all scores that count.

    Raises:
      ValueError: one names no score.
    """
    weights = dict(given or task.reward_weights)
    weights |= {name: USUAL_WEIGHT for name in own.names if name not in weights}
    known = (*task.reward_weights, *own.names)
    if unknown := [name for name in weights if name not in known]:
        raise ValueError(
            f"weights: expected scores of the task {task.name!r} and of reward, which are "
            f"{', '.join(known)}, got {unknown[0]}; do: leave it out"
        )
    return weights


def _arguments(run: Any, bundle: Bundle) -> tuple[Any, ...]:
    """Returns what functions get of some true answers and, as the last one, of none (host)."""
    task = bundle.task.without_unjudged()
    layout = dataclasses.replace(bundle.encoder.layout, buckets=1)
    encoder = Encoder(bundle.tokenizer, layout)
    feed = dataclasses.replace(run.feed, batch=_PROMPTS, workers=0, threads=1, prefetch=1)
    source, _ = fitting.fitting_source(run.source, encoder, rows="prompts")
    length = layout.max_answer
    drawn = pipeline.batches(source, task, encoder, feed=feed, rows="prompts", answer_tokens=length)
    prompts = next(drawn)
    ids = np.concatenate([prompts.answer.ids, np.full_like(prompts.answer.ids[:1], 0)])
    used = np.concatenate([prompts.answer.used, np.zeros_like(prompts.answer.used[:1])])
    truth = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:1]]), prompts.truth)
    answer, _ = jax.jit(task.reader(bundle.tokenizer.pieces))(ids, used, truth)
    size = np.asarray(task.size_px(truth))
    return jax.tree.map(np.asarray, (answer, truth, size[..., 0], size[..., 1]))


class _Tried(NamedTuple):
    """What a function made of true answers and, the last one, of none."""

    reward: Reward
    scores: Mapping[str, np.ndarray]
    seconds: float
    """Time of an answer, for a function on the host."""


def _tried(function: UserFunction, arguments: Sequence[Any]) -> _Tried:
    """Returns what a function makes of answers.

    Raises:
      ValueError: it fails, or returns no scores.
    """
    arguments = tuple(arguments)
    try:
        reward = own_scores.with_names(function.title, function.function, arguments)
        begin = time.perf_counter()
        if reward.is_on_host:
            scores = own_scores.host_scores(reward, arguments)
            seconds = time.perf_counter() - begin
        else:
            given = jax.tree.map(jnp.asarray, arguments)
            scores = jax.jit(lambda *some: own_scores.traced_scores(reward, some))(*given)
            seconds = 0.0
    except own_scores.NoScores:
        raise
    except Exception as error:
        raise ValueError(
            f"reward: expected scores of the true answers of {_PROMPTS} prompts and of an answer "
            f"that says nothing, got {function.failure(error)}; do: mend {function.name}"
        ) from error
    scores = {name: np.asarray(values) for name, values in scores.items()}
    return _Tried(reward, scores, seconds / len(arguments[-1]))


def _tell(tried: _Tried, run: Any) -> None:
    """Says what a function made of answers, and what it costs."""
    for name, values in tried.scores.items():
        known = values[np.isfinite(values)]
        nothing = "no number" if not np.isfinite(values[-1]) else f"{values[-1]:.3f}"
        mean = "no number" if not np.isfinite(values[:-1]).all() else f"{values[:-1].mean():.3f}"
        console.say(
            f"reward {tried.reward.title}: {name} is {mean} for the true answers of "
            f"{len(values) - 1} prompts, {nothing} for an answer that says nothing; it weighs "
            f"{run.weights[name]:g}"
        )
        low, high = -own_scores.TOLERANCE, 1 + own_scores.TOLERANCE
        invalid = len(values) - int(((known >= low) & (known <= high)).sum())
        if invalid:
            console.say(
                f"warning: reward {tried.reward.title}: {name} is no number in 0..1 for {invalid} "
                f"of {len(values)} answers: what is no number counts as 0, others as the nearer "
                f"end (invalid/{name} in the log)"
            )
    if tried.reward.is_on_host:
        answers = run.feed.batch * (run.sampling.answers + (run.policy.truth != "off"))
        seconds = tried.seconds * answers / jax.process_count()
        warning = "warning: " if seconds >= _SLOW_SECONDS else ""
        console.say(
            f"{warning}reward {tried.reward.title}: on the host, {tried.seconds * 1e3:.2f} ms an "
            f"answer: about {seconds:.2f} s of each step, in which devices wait"
        )
