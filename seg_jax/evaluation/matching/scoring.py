"""Sums choices up by subset and direction: accuracy with intervals beside chance (host)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.matching.choices import DIRECTIONS, Scored


def summarise(scored: Sequence[Scored], *, seed: int = 0) -> dict[str, Any]:
    """Returns the share of right choices of each subset and direction, 0..1, none rounded.

    Each carries chance (the mean of one over the alternatives) and an interval, for which whole
    cases are drawn. `mean` is the mean over subsets and directions, each counting alike, as the
    authors' own average; its interval draws the cases of all subsets.

    Args:
      scored: choices of any subsets.
      seed: of the intervals.

    Raises:
      ValueError: there are none.
    """
    if not scored:
        raise ValueError("evaluation: expected at least one choice, got none; do: give cases")
    subsets: dict[str, Any] = {}
    for name in dict.fromkeys(one.subset for one in scored):
        of_subset = [one for one in scored if one.subset == name]
        subsets[name] = {"cases": len({one.case for one in of_subset})} | {
            direction: _accuracy(some, seed)
            for direction in DIRECTIONS
            if (some := [one for one in of_subset if one.direction == direction])
        }
    means = [told[name] for told in subsets.values() for name in DIRECTIONS if name in told]
    return {
        "choices": len(scored),
        "unscored": sum(one.choice is None for one in scored),
        "subsets": subsets,
        "mean": float(np.mean([one["mean"] for one in means])),
        "chance": float(np.mean([one["chance"] for one in means])),
    }


def _accuracy(scored: Sequence[Scored], seed: int) -> dict[str, Any]:
    """Returns the share of right choices with its interval, by cases."""
    cases = {case: place for place, case in enumerate(dict.fromkeys(one.case for one in scored))}
    right, count = np.zeros(len(cases)), np.zeros(len(cases))
    for one in scored:
        right[cases[one.case]] += one.right
        count[cases[one.case]] += 1
    interval = bootstrap.ratio_interval(right, count, seed=seed)
    chance = float(np.mean([1 / len(one.scores) for one in scored]))
    return dataclasses.asdict(interval) | {"chance": chance, "choices": len(scored)}
