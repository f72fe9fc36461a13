"""Evaluation: greedy answers over a source, judged by the task, with bootstrap intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from seg_jax.evaluation import bootstrap
from seg_jax.records import Prompts, Rollout, Verdict
from seg_jax.tasks import task as tasks
from seg_jax.tasks.task import Example, Judgement, Task


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
    read, their verdicts and their lengths are reported for every task.
    """
    summary: dict[str, Any] = {"questions": len(outcome.examples)}
    parsed = tasks.Metric("parse_rate", (outcome.verdicts == Verdict.OK).astype(np.float64))
    for metric in (*task.metrics(outcome), parsed):
        summary[metric.name] = _interval(metric, seed)
    summary["verdicts"] = {v.name: int((outcome.verdicts == v).sum()) for v in Verdict}
    lengths = outcome.tokens.astype(np.float64)
    summary["tokens"] = _interval(tasks.Metric("tokens", lengths), seed)
    if outcome.computed:
        useful = float(lengths.sum())
        summary["useful_tokens"] = round(useful / outcome.computed, 6)
        summary["useful_tokens_unfilled"] = round(useful / outcome.together, 6)
    return summary


def _interval(metric: tasks.Metric, seed: int) -> dict[str, float]:
    """Returns a metric with its interval as plain values."""
    if metric.weights is None:
        interval = bootstrap.mean_interval(metric.values, seed=seed)
    else:
        interval = bootstrap.ratio_interval(metric.values, metric.weights, seed=seed)
    return {key: round(float(value), 6) for key, value in dataclasses.asdict(interval).items()}
