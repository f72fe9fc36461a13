"""Says what drawn answers are worth beside the greedy one: their mean, and the best by truth.

Axes here: `G` drawn answers to each of n questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from seg_jax.evaluation import task_metrics
from seg_jax.tasks.task import Example

INDICATION = (
    "the best by truth indicates what sharpening can win; it is no bound: where all answers of a "
    "start were coarse, GSPO went beyond it"
)
"""What the numbers say, and what not."""
WAYS = ("greedy", "mean", "best")


class Groups(NamedTuple):
    """What G answers to each of n questions are worth (host)."""

    reward: Float[np.ndarray, "n G"]
    scores: Mapping[str, Float[np.ndarray, "n G"]]
    differ: Bool[np.ndarray, " n"]
    """Groups whose rewards differ, by the threshold of training."""


def summarise(
    greedy: Mapping[str, Float[np.ndarray, " n"]], drawn: Groups, *, seed: int = 0
) -> dict[str, Any]:
    """Returns the numbers of G answers to each of n questions, with bootstrap intervals.

    Of each score: that of the greedy answer, the mean of the drawn ones, and the largest among
    them, each score for itself.

    Args:
      greedy: scores of the greedy answers, the reward among them.
      drawn: what the drawn answers are worth.
      seed: of the intervals; questions are drawn, each with its group.
    """
    columns = {"reward": drawn.reward, **drawn.scores}
    return {
        "answers": drawn.reward.shape[1],
        "groups_that_differ": _interval(drawn.differ, seed),
        "scores": {name: _ways(greedy[name], values, seed) for name, values in columns.items()},
        "indication": INDICATION,
    }


def by_kind(
    examples: Sequence[Example],
    greedy: Float[np.ndarray, " n"],
    drawn: Float[np.ndarray, "n G"],
    *,
    taught: Float[np.ndarray, " n"],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Returns a score by kind of thing: of the true answers as taught, greedy, mean and best."""
    return {
        kind: {
            "questions": len(rows),
            "taught": _interval(taught[rows], seed),
            **_ways(greedy[rows], drawn[rows], seed),
        }
        for kind, rows in task_metrics.rows_by_kind(examples).items()
    }


def line(summary: Mapping[str, Any]) -> str:
    """Returns the numbers of `summarise` as a line: means, and the interval of what differs."""
    parts = [
        f"{name} " + ", ".join(f"{ways[way]['mean']:.3f} {way}" for way in WAYS)
        for name, ways in summary["scores"].items()
    ]
    some = summary["groups_that_differ"]
    parts.append(f"groups that differ {some['mean']:.3f} [{some['low']:.3f}, {some['high']:.3f}]")
    return "; ".join(parts)


def _ways(
    greedy: Float[np.ndarray, " n"], drawn: Float[np.ndarray, "n G"], seed: int
) -> dict[str, dict[str, float]]:
    """Returns the greedy answers' mean, that of the drawn ones and that of the best of each."""
    columns = zip(WAYS, (greedy, drawn.mean(1), drawn.max(1)), strict=True)
    return {way: _interval(values, seed) for way, values in columns}


def _interval(values: np.ndarray, seed: int) -> dict[str, float]:
    metric = task_metrics.Metric("", np.asarray(values, np.float64))
    return task_metrics.interval(metric, seed)
