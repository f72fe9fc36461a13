"""Says how sure a mean is: percentile bootstrap intervals (host)."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

LEVEL = 0.95
"""Confidence of every interval; tables and pages print it, see `level`."""

_CHUNK = 1 << 21  # drawn numbers held at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate from a sample with the bounds of its bootstrap interval at `LEVEL`."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def level() -> str:
    """Returns the confidence of the intervals as text: "95 %"."""
    return f"{100 * LEVEL:g} %"


def mean_interval(values: Shaped[np.ndarray, " n"], *, seed: int, draws: int = 10_000) -> Interval:
    """Returns the mean of the values with its interval.

    Args:
      values: one number (or truth value) per independent scene, n >= 1. A single value has no
        spread to learn from: its interval is a point.
      seed: the same seed gives the same interval.
      draws: number of resamples.

    Raises:
      ValueError: no values, or some that are not finite.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    column = _check_finite("values", values)
    means = _resample((column,), np.mean, seed=seed, draws=draws)
    return _interval(float(column.mean()), means)


def ratio_interval(
    numerators: Shaped[np.ndarray, " n"],
    denominators: Shaped[np.ndarray, " n"],
    *,
    seed: int,
    draws: int = 10_000,
) -> Interval:
    """Returns the sum of numerators over the sum of denominators with its interval.

    Of intersections and unions in pixels that is the cumulative IoU. Scenes are drawn in pairs;
    resamples whose denominators are all zero are left out.

    Raises:
      ValueError: lengths differ, no values, some that are not finite, negative denominators or only
        zeros.
    """
    above, below = _pair(numerators, denominators)
    if (below < 0).any() or not below.any():
        raise ValueError(
            f"denominators: expected numbers >= 0, not all zero, got {below.min():g} to "
            f"{below.max():g}; do: pass the sizes of unions"
        )

    def ratio(above, below, axis):
        with np.errstate(invalid="ignore"):  # Zero over zero is left out below.
            return above.sum(axis) / below.sum(axis)

    ratios = _resample((above, below), ratio, seed=seed, draws=draws)
    return _interval(float(above.sum() / below.sum()), ratios[np.isfinite(ratios)])


def gain_interval(
    before: Shaped[np.ndarray, " n"],
    after: Shaped[np.ndarray, " n"],
    *,
    seed: int,
    draws: int = 10_000,
) -> Interval:
    """Returns the mean of `after - before` on the same scenes with its interval.

    Zero outside the interval means that the change is more than the choice of scenes. Pairing takes
    out what scenes have in common, so this is narrower than the two intervals side by side.

    Raises:
      ValueError: lengths differ, no values, or some that are not finite.
    """
    first, second = _pair(before, after)
    return mean_interval(second - first, seed=seed, draws=draws)


def peak_interval(
    curves: Float[np.ndarray, "n points"], *, seed: int, draws: int = 2000
) -> Interval:
    """Returns the highest point of the mean of curves with its interval.

    Args:
      curves: one per independent scene, n >= 1.
      seed: the same seed gives the same interval.
      draws: number of resamples; of each the highest point is looked for anew.

    Raises:
      ValueError: no curves, or numbers that are not finite.
    """
    curves = _check_finite("curves", curves)
    count = len(curves)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    peaks: list[float] = []
    while len(peaks) < draws:
        some = min(draws - len(peaks), max(1, _CHUNK // count))
        chosen = rng.integers(0, count, (some, count))
        times = np.stack([np.bincount(one, minlength=count) for one in chosen])
        peaks += (times @ curves / count).max(1).tolist()
    return _interval(float(curves.mean(0).max()), np.array(peaks))


def _pair(first, second) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    if len(first) != len(second):
        raise ValueError(
            f"values: expected two per scene, got {len(first)} and {len(second)}; "
            "do: evaluate both on the same scenes"
        )
    return _check_finite("values", first), _check_finite("values", second)


def _check_finite(name: str, values: Shaped[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    numbers = np.asarray(values, np.float64)
    bad = int((~np.isfinite(numbers)).sum())
    if not len(numbers) or bad:
        got = f"{bad} of {len(numbers)} that are not" if bad else "none"
        raise ValueError(
            f"{name}: expected finite numbers, got {got}; do: choose what such scenes count as"
        )
    return numbers


def _resample(
    columns: tuple[Float[np.ndarray, " n"], ...],
    statistic: Callable[..., Float[np.ndarray, " draws"]],
    *,
    seed: int,
    draws: int,
) -> Float[np.ndarray, " draws"]:
    """Returns a statistic of columns whose rows are drawn with replacement."""
    from scipy import stats  # Takes half a second, which only evaluations need to wait.

    if draws < 1:
        raise ValueError(f"draws: expected at least 1, got {draws}; do: take some 10000")
    if len(columns[0]) == 1:  # scipy takes two or more.
        return np.atleast_1d(statistic(*columns, axis=0))
    with warnings.catch_warnings():
        # It warns of resamples that are no number, which `ratio_interval` leaves out.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            columns,
            statistic,
            n_resamples=draws,
            batch=max(1, _CHUNK // len(columns[0])),
            vectorized=True,
            paired=True,
            method="percentile",
            rng=np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))),
        )
    return drawn.bootstrap_distribution


def _interval(mean: float, drawn: Float[np.ndarray, " draws"]) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))
