"""Says how sure a mean is: percentile bootstrap intervals (host)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

_LEVEL = 0.95
_CHUNK = 1 << 21  # drawn numbers held at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate from a sample with the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Shaped[np.ndarray, " n"], *, seed: int, draws: int = 10_000) -> Interval:
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
    column = _checked("values", values)
    means = _resample(column[:, None], seed=seed, draws=draws)[:, 0]
    return _interval(float(column.mean()), means)


def bootstrap_ratio(
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
    table = np.stack([*_pair(numerators, denominators)], axis=1)
    if (table[:, 1] < 0).any() or not table[:, 1].any():
        raise ValueError(
            f"expected denominators >= 0, not all zero, got {table[:, 1].min():g} to"
            f" {table[:, 1].max():g}, do pass the sizes of unions"
        )
    sums = _resample(table, seed=seed, draws=draws)
    sums = sums[sums[:, 1] > 0]
    total = table.sum(0)
    return _interval(float(total[0] / total[1]), sums[:, 0] / sums[:, 1])


def paired(
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
    return bootstrap(second - first, seed=seed, draws=draws)


def _pair(first, second) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    if len(first) != len(second):
        raise ValueError(
            f"expected two values per scene, got {len(first)} and {len(second)},"
            " do evaluate both on the same scenes"
        )
    return _checked("values", first), _checked("values", second)


def _checked(name: str, values: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    numbers = np.asarray(values, np.float64)
    bad = int((~np.isfinite(numbers)).sum())
    if not len(numbers) or bad:
        got = f"{bad} of {len(numbers)} that are not" if bad else "none"
        raise ValueError(f"expected finite {name}, got {got}, do choose what such scenes count as")
    return numbers


def _resample(
    table: Float[np.ndarray, "n k"], *, seed: int, draws: int
) -> Float[np.ndarray, "draws k"]:
    """Returns the column means of tables whose rows are drawn with replacement."""
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}, do take some 10000")
    count = len(table)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    means = np.empty((draws, table.shape[1]))
    step = max(1, _CHUNK // count)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        rows = rng.integers(count, size=(size, count), dtype=np.int32)
        for column, numbers in enumerate(table.T):
            means[start : start + size, column] = numbers[rows].mean(axis=1)
    return means


def _interval(mean: float, drawn: Float[np.ndarray, " draws"]) -> Interval:
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(mean, float(low), float(high))
