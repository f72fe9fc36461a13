"""Sums the rows of a protocol up by data set: means with bootstrap intervals (host)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.foreground.protocols import Row

TITLES = {
    "structure": "S",
    "weighted_f": "wF",
    "f_mean": "mean F",
    "f_max": "max F",
    "f_adaptive": "adaptive F",
    "e_mean": "mean E",
    "e_max": "max E",
    "e_adaptive": "adaptive E",
    "absolute_error": "MAE",
    "iou": "IoU",
    "reward": "reward",
}
"""How tables call the numbers."""
OF_GROUPS = ("structure", "weighted_f", "e_mean", "absolute_error")
"""What is told of parts of a data set: the numbers of most papers."""


def summarise(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Returns the numbers of each data set, all in 0..1, none of them rounded.

    A number is a mean over images, f_max and e_max the highest point of the mean of all curves.
    Each carries an interval, for which images are drawn.

    Args:
      rows: of all images.
      seed: of the intervals.

    Raises:
      ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(
            "evaluation: expected at least one image, got none; do: give data sets of masks"
        )
    sets: dict[str, Any] = {}
    for name in dict.fromkeys(row.set for row in rows):
        some = [row for row in rows if row.set == name]
        sets[name] = {"images": len(some)} | {one: _number(some, one, seed) for one in TITLES}
        groups = sorted({row.group for row in some} - {""})
        sets[name]["groups"] = {
            group: _group([row for row in some if row.group == group], seed) for group in groups
        }
    return {"images": len(rows), "sets": sets}


def _group(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    return {"images": len(rows)} | {one: _number(rows, one, seed) for one in OF_GROUPS}


def _number(rows: Sequence[Row], name: str, seed: int) -> dict[str, float]:
    """Returns a number with its interval."""
    if name in ("f_max", "e_max"):
        curve = f"{name[0]}_curve"
        curves = np.stack([getattr(row.measures, curve) for row in rows])
        return dataclasses.asdict(bootstrap.peak_interval(curves, seed=seed))
    values = np.array([row.as_json()[name] for row in rows])
    return dataclasses.asdict(bootstrap.mean_interval(values, seed=seed))
