"""Evaluation: greedy answers over a source, judged by the task, with bootstrap intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from seg_jax.evaluation import bootstrap
from seg_jax.grammar import outline
from seg_jax.records import Kind, Prompts, Rollout, Verdict
from seg_jax.tasks.task import Example, Judgement


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of each question, in the order of the source (host)."""

    examples: list[Example]
    texts: list[str]
    kinds: Int[np.ndarray, " n"]
    iou: Float[np.ndarray, " n"]
    intersection: Int[np.ndarray, " n"]
    union: Int[np.ndarray, " n"]
    centroid_error: Float[np.ndarray, " n"]
    """In sides of the image; nan where there is no answer."""
    verdicts: Int[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]
    """Tokens of each answer, end token included."""
    computed: int = 0
    """Tokens that were computed for all of them."""
    together: int = 0
    """Tokens that would have been, had every batch been decoded at once."""


Answer = Callable[[Prompts], tuple[Rollout, Judgement, Any]]
"""Prompts on the host -> one answer each, its judgement and its verdict."""


def run(
    answer: Answer,
    prompts: Iterable[tuple[list[Example], Prompts]],
    decode: Callable[[list[int]], str],
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Returns the outcome of every question of the batches, in order."""
    examples: list[Example] = []
    texts: list[str] = []
    columns: dict[str, list[np.ndarray]] = {}
    computed = together = 0
    for batch, (rollout, judged, verdict) in _ahead(answer, prompts):
        real = len(batch)
        ids, used = np.asarray(rollout.ids)[:real, 0], np.asarray(rollout.used)[:real, 0]
        for name, values in {
            "iou": judged.scores["iou"],
            "intersection": judged.intersection,
            "union": judged.union,
            "centroid_error": judged.centroid_error,
            "verdicts": verdict,
            "tokens": used.sum(-1, keepdims=True),
        }.items():
            columns.setdefault(name, []).append(np.asarray(values)[:real, 0])
        whole = np.asarray(rollout.used).sum(-1)
        together += whole.size * int(whole.max())
        if rollout.computed is not None:
            computed += int(np.asarray(rollout.computed).sum())
        examples += batch
        texts += [decode(row[keep].tolist()) for row, keep in zip(ids, used, strict=True)]
        progress(len(examples))
    if not examples:
        raise ValueError("evaluation: expected at least one question, got none")
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    kinds = np.array([example.kind for example in examples])
    return Outcome(
        examples=examples, texts=texts, kinds=kinds, computed=computed, together=together, **joined
    )


def _ahead(
    answer: Answer, prompts: Iterable[tuple[list[Example], Prompts]]
) -> Iterator[tuple[list[Example], tuple[Rollout, Judgement, Any]]]:
    """Yields batches with their answers; the host draws the next while devices answer one."""
    before = None
    for batch, rows in prompts:
        answered = batch, answer(rows)
        if before is not None:
            yield before
        before = answered
    if before is not None:
        yield before


def summarise(outcome: Outcome, *, seed: int = 0) -> dict[str, Any]:
    """Returns the numbers of an outcome; means carry 95 % bootstrap intervals.

    gIoU, cIoU and P@0.5 are over mask answers; box and point answers have their own lines. Of
    questions about what is not there the IoU is 1 where the answer says so, else 0; with such
    questions n_acc_said is the share of these answers, t_acc_said of the others that do not.
    """
    mask = outcome.kinds == Kind.MASK
    summary: dict[str, Any] = {"questions": len(outcome.examples)}
    if mask.any():
        iou = outcome.iou[mask]
        summary["giou"] = _interval(bootstrap.mean_interval(iou, seed=seed))
        summary["ciou"] = _interval(
            bootstrap.ratio_interval(outcome.intersection[mask], outcome.union[mask], seed=seed)
        )
        above = (iou > 0.5).astype(np.float64)
        summary["p_at_0.5"] = _interval(bootstrap.mean_interval(above, seed=seed))
    for kind, name in ((Kind.BOX, "box_iou"), (Kind.POINT, "point_in_mask")):
        if (outcome.kinds == kind).any():
            values = outcome.iou[outcome.kinds == kind]
            summary[name] = _interval(bootstrap.mean_interval(values, seed=seed))
    absent = np.array([not example.mask.any() for example in outcome.examples])
    if absent.any():
        said = _says_nothing(outcome).astype(np.float64)
        summary["n_acc_said"] = _interval(bootstrap.mean_interval(said[absent], seed=seed))
        if not absent.all():
            summary["t_acc_said"] = _interval(bootstrap.mean_interval(1 - said[~absent], seed=seed))
    answered = outcome.centroid_error[np.isfinite(outcome.centroid_error)]
    if answered.size:
        summary["centroid_error"] = _interval(bootstrap.mean_interval(answered, seed=seed))
    parsed = (outcome.verdicts == Verdict.OK).astype(np.float64)
    summary["parse_rate"] = _interval(bootstrap.mean_interval(parsed, seed=seed))
    summary["verdicts"] = {v.name: int((outcome.verdicts == v).sum()) for v in Verdict}
    lengths = outcome.tokens.astype(np.float64)
    summary["tokens"] = _interval(bootstrap.mean_interval(lengths, seed=seed))
    if outcome.computed:
        useful = float(lengths.sum())
        summary["useful_tokens"] = round(useful / outcome.computed, 6)
        summary["useful_tokens_unfilled"] = round(useful / outcome.together, 6)
    return summary


def _says_nothing(outcome: Outcome) -> Bool[np.ndarray, " n"]:
    """Returns which answers say that there is no such object."""
    pairs = zip(outcome.texts, outcome.kinds, strict=True)
    return np.array([outline.read(text, Kind(kind)).says_nothing for text, kind in pairs])


def _interval(interval: bootstrap.Interval) -> dict[str, float]:
    return {key: round(float(value), 6) for key, value in dataclasses.asdict(interval).items()}
