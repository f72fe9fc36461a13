"""Evaluation: answers over a source, a model's or the true ones, judged by the task."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from seg_jax.data.encode import Encoder
from seg_jax.evaluation import bootstrap
from seg_jax.grammar import chat
from seg_jax.records import Prompts, Rollout, Verdict
from seg_jax.tasks import task as tasks
from seg_jax.tasks.task import Example, Judgement, Metric, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome(tasks.Outcome):
    """The judged answers to many questions, and how many tokens they took (host)."""

    tokens: Int[np.ndarray, " n"]
    """Tokens of each answer, end token included."""
    computed: int = 0
    """Tokens that were computed for all of them."""
    together: int = 0
    """Tokens that would have been, had every batch been decoded at once."""


Answer = Callable[[Prompts], tuple[Rollout, Judgement]]
"""Prompts on the host -> one answer each and its judgement."""


class NoQuestions(ValueError):
    """There was nothing to ask."""


def run(
    answer: Answer,
    prompts: Iterable[tuple[list[Example], Prompts]],
    decode: Callable[[list[int]], str],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Returns the outcome of every question of the batches, in order."""
    examples: list[Example] = []
    texts: list[str] = []
    parts: list[tuple[Judgement, Int[np.ndarray, " n"]]] = []
    computed = together = 0
    for batch, (rollout, judged) in _ahead(answer, prompts):
        real = len(batch)
        ids, used = np.asarray(rollout.ids)[:real, 0], np.asarray(rollout.used)[:real, 0]
        first = jax.tree.map(lambda values, real=real: np.asarray(values)[:real, 0], judged)
        parts.append((first, used.sum(-1)))
        whole = np.asarray(rollout.used).sum(-1)
        together += whole.size * int(whole.max())
        if rollout.computed is not None:
            computed += int(np.asarray(rollout.computed).sum())
        examples += batch
        texts += [decode(row[keep].tolist()) for row, keep in zip(ids, used, strict=True)]
        progress(len(examples))
    if not examples:
        raise NoQuestions("evaluation: expected at least one question, got none; do: ask some")
    judged, tokens = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
    return Outcome(
        examples=examples,
        texts=texts,
        scores=judged.scores,
        measures=judged.measures,
        verdicts=judged.verdict,
        tokens=tokens,
        computed=computed,
        together=together,
    )


def _ahead(
    answer: Answer, prompts: Iterable[tuple[list[Example], Prompts]]
) -> Iterator[tuple[list[Example], tuple[Rollout, Judgement]]]:
    """Yields batches with their answers; the host draws the next while devices answer one."""
    before = None
    for batch, rows in prompts:
        answered = batch, answer(rows)
        if before is not None:
            yield before
        before = answered
    if before is not None:
        yield before


def summarise(task: Task, outcome: Outcome, *, seed: int = 0) -> dict[str, Any]:
    """Returns the numbers of an outcome; means carry bootstrap intervals.

    The task names the numbers that say how good answers are; the share of answers that can be
    read, their verdicts and their lengths are reported for every task, and the main score by kind
    of thing where examples say what they are about.
    """
    summary: dict[str, Any] = {"questions": len(outcome.examples)}
    parsed = Metric("parse_rate", (outcome.verdicts == Verdict.OK).astype(np.float64))
    for metric in (*task.metrics(outcome), parsed):
        summary[metric.name] = interval(metric, seed)
    kinds = rows_by_kind(outcome.examples)
    main = next(iter(task.reward_weights))
    if kinds:
        summary["by_kind"] = {
            kind: interval(Metric(kind, outcome.scores[main][rows].astype(np.float64)), seed)
            for kind, rows in kinds.items()
        }
    summary["verdicts"] = {v.name: int((outcome.verdicts == v).sum()) for v in Verdict}
    lengths = outcome.tokens.astype(np.float64)
    summary["tokens"] = interval(Metric("tokens", lengths), seed)
    if outcome.computed:
        useful = float(lengths.sum())
        summary["useful_tokens"] = round(useful / outcome.computed, 6)
        summary["useful_tokens_unfilled"] = round(useful / outcome.together, 6)
    return summary


def true_answers(
    task: Task,
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    batch: int = 128,
    segment: Callable[[Any, Any, Any], Any] | None = None,
    drawing: tuple[Any, ...] = (),
) -> Outcome:
    """Returns the outcome of the true answers as a model is taught to write them: the teacher's.

    An outline of few points is not the region that it stands for. What imitation can reach at best
    is what these answers, read again, are worth by the task's own scores.

    Args:
      task: that made the examples.
      examples: with their true answers.
      encoder: whose tokens the answers are written in; an answer may be longer than its layout has
        room for.
      batch: answers judged at once.
      segment: (weights, truth, answers) -> masks of what they point at, for a task that needs it.
      drawing: these weights, where there are any.

    Raises:
      NoQuestions: there are no examples.
    """
    tokenizer, reader = encoder.tokenizer, task.reader(encoder.tokenizer.pieces)
    written = [chat.answer_ids(tokenizer, example.answer) for example in examples]
    length = max(map(len, written), default=0)

    def judged(ids: Any, used: Any, truth: Any, *weights: Any) -> tuple[Rollout, Judgement]:
        rollout = Rollout(ids[:, None], used[:, None], jnp.zeros(ids[:, None].shape))
        draw = None if segment is None else functools.partial(segment, *weights)
        return rollout, tasks.judge(task, rollout, truth, reader=reader, segment=draw)

    def rows() -> Iterator[tuple[list[Example], Any]]:
        for begin in range(0, len(examples), batch):
            some = [*examples[begin : begin + batch]]
            places = [min(begin + row, len(examples) - 1) for row in range(batch)]
            ids = np.full((batch, length), tokenizer.pad_id, np.int32)
            used = np.arange(length) < np.array([len(written[place]) for place in places])[:, None]
            ids[used] = np.concatenate([written[place] for place in places])
            canvas = encoder.layout.canvas
            truths = [task.truth(examples[place], canvas=canvas) for place in places]
            yield some, (ids, used, jax.tree.map(lambda *leaves: np.stack(leaves), *truths))

    judge = jax.jit(judged)
    return run(lambda given: judge(*given, *drawing), rows(), tokenizer.decode)


def by_kind(
    outcome: Outcome, *, score: str = "iou", among: Bool[np.ndarray, " n"] | None = None
) -> dict[str, float]:
    """Returns the mean score of the questions about each kind of thing, by name in order.

    Questions about things of unknown kind, of several kinds or of none are left out.

    Args:
      outcome: of questions, whatever is to be answered.
      score: of the task.
      among: the questions that count; all if None.
    """
    return {
        kind: float(outcome.scores[score][rows].mean())
        for kind, rows in rows_by_kind(outcome.examples, among=among).items()
    }


def rows_by_kind(
    examples: Sequence[Example], *, among: Bool[np.ndarray, " n"] | None = None
) -> dict[str, Int[np.ndarray, " _"]]:
    """Returns which examples are about each kind of thing, see `by_kind`."""
    kinds = np.array([example.category for example in examples], object)
    chosen = np.ones(len(kinds), bool) if among is None else among
    return {
        kind: np.flatnonzero((kinds == kind) & chosen)
        for kind in sorted(set(kinds[chosen].tolist()) - {""})
    }


def interval(metric: Metric, seed: int) -> dict[str, float]:
    """Returns a metric with its interval as plain values."""
    if metric.weights is None:
        found = bootstrap.mean_interval(metric.values, seed=seed)
    else:
        found = bootstrap.ratio_interval(metric.values, metric.weights, seed=seed)
    return {key: round(float(value), 6) for key, value in dataclasses.asdict(found).items()}
