"""Measures S, E, IoU and MAE of masks and the measures of grey maps against numpy, on one core.

The peer is the definition as published evaluators write it: float maps, moments of slices, a
smoothing of two dimensions, a distance transform of the whole image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from seg_jax.cli.benchmarks import harness
from seg_jax.runs import run_folder

# This file is imported again in a process of its own: JAX has to find itself on one core there.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the measures of foreground maps."""

    size: int = 768
    """Height and width of the maps in pixels."""
    batch: int = 32
    """Pairs of masks at once, as many as answers are judged together."""
    rounds: int = 7
    """Turns of each run; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if not (16 <= self.size <= 4096 and self.batch >= 1 and self.rounds >= 1):
            raise ValueError(
                f"saliency: expected a size of 16 to 4096, batch and rounds >= 1, got {self}; do: "
                "choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    alone = functools.partial(harness.on_one_core, measure)
    return harness.report(config, alone, _show)


def _show(results: dict[str, Any]) -> None:
    """Prints the table."""
    title = f"Measures of {results['batch']} maps of {results['size']} px"
    harness.show_ratios(
        results,
        title,
        rows="measures",
        name="measures",
        peer=("numpy and scipy", "peer_microseconds"),
    )


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers; runs in a process of its own."""
    import jax
    import jax.numpy as jnp

    from seg_jax.evaluation.foreground import measures
    from seg_jax.geometry import bitmask, overlap, saliency

    greys, truths = _maps(config)
    masks = [255 * (grey > 127).astype(np.uint8) for grey in greys]
    words = [
        jax.block_until_ready(bitmask.pack(np.stack(some)))
        for some in ([mask > 0 for mask in masks], truths)
    ]
    size = jnp.full((config.batch, 2), config.size, jnp.int32)

    @jax.jit
    def of_masks(words, truth, size):
        structure = saliency.structure(words, truth, size)
        enhanced = saliency.enhanced(words, truth, size)
        error = saliency.absolute_error(words, truth, size)
        return jnp.stack([structure, enhanced, overlap.iou(words, truth), error], -1)

    def each(function: Callable[..., Any], maps: list[np.ndarray]) -> np.ndarray:
        pairs = zip(maps, truths, strict=True)
        return np.array([np.hstack(function(grey, truth)) for grey, truth in pairs])

    rows = []
    for name, ours, peer in (
        (
            "S, E, IoU, MAE of masks",
            lambda: jax.block_until_ready(of_masks(*words, size)),
            lambda: each(_peer_of_masks, masks),
        ),
        (
            "all of grey maps (host)",
            lambda: each(measures.measure, greys),
            lambda: each(_peer_of_maps, greys),
        ),
    ):
        taken = harness.by_turns(
            {"ours": ours, "peer": peer}, config.rounds, harness.process_seconds
        )
        rows.append(
            {
                "measures": name,
                "ours_microseconds": 1e6 * taken["ours"] / config.batch,
                "peer_microseconds": 1e6 * taken["peer"] / config.batch,
                "ratio": taken["peer"] / taken["ours"],
                "largest_gap": float(np.abs(np.asarray(ours()) - peer()).max()),
            }
        )
    return {"machine": harness.machine(), **run_folder.plain(config), "measures": rows}


def _maps(config: Config) -> tuple[list[UInt8[np.ndarray, "H W"]], list[Bool[np.ndarray, "H W"]]]:
    """Returns soft maps of discs, and the discs a little aside as true masks."""
    rng, side = np.random.default_rng(config.seed), config.size
    y, x = np.mgrid[:side, :side]
    greys, truths = [], []
    for _ in range(config.batch):
        row, column, radius = rng.uniform((0.3, 0.3, 0.1), (0.7, 0.7, 0.3)) * side
        far = np.hypot(y - row, x - column) - radius
        greys.append(np.clip(128 - 4 * far, 0, 255).astype(np.uint8))
        truths.append(np.hypot(y - row, x - column - radius / 5) < radius)
    return greys, truths


def _peer_of_masks(
    grey: UInt8[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]
) -> tuple[float, ...]:
    """Returns S, E, IoU and MAE of a mask."""
    value = _stretched(grey)
    found = value >= 0.5
    iou = (found & truth).sum() / (found | truth).sum()
    enhanced = _e(np.array([(found & truth).sum()]), np.array([(found & ~truth).sum()]), truth)
    return _structure(value, truth), float(enhanced[0]), float(iou), np.abs(value - truth).mean()


def _peer_of_maps(grey: UInt8[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> tuple:
    """Returns the fields of `measures.Measures` of a grey map."""
    value = _stretched(grey)
    over = value >= min(2 * value.mean(), 1)
    right, wrong = np.array([(over & truth).sum()]), np.array([(over & ~truth).sum()])
    stored = (value * 255).astype(np.uint8)
    hits, alarms = (
        np.histogram(stored[where], bins=np.arange(257))[0][::-1].cumsum()
        for where in (truth, ~truth)
    )
    return (
        np.abs(value - truth).mean(),
        _structure(value, truth),
        _weighted_f(value, truth),
        _f(right, wrong, truth),
        _e(right, wrong, truth),
        _f(hits, alarms, truth),
        _e(hits, alarms, truth),
    )


def _stretched(grey: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    value = grey / 255
    return (value - value.min()) / (value.max() - value.min())


def _structure(value: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    def likeness(some):
        return 2 * some.mean() / (some.mean() ** 2 + 1 + some.std(ddof=1))

    score = truth.mean() * likeness(value[truth])
    score += (1 - truth.mean()) * likeness(1 - value[~truth])
    row, column = (int(mean.round()) + 1 for mean in np.argwhere(truth).mean(0))
    for rows in (slice(row), slice(row, None)):
        for columns in (slice(column), slice(column, None)):
            one, other = value[rows, columns], truth[rows, columns]
            x, y = one.mean(), other.mean()
            apart = ((one - x) ** 2).sum() + ((other - y) ** 2).sum()
            together = ((one - x) * (other - y)).sum()
            score += one.size / truth.size * 4 * x * y * together / ((x**2 + y**2) * apart)
    return float(score / 2)


def _e(right: np.ndarray, wrong: np.ndarray, truth: Bool[np.ndarray, "H W"]) -> np.ndarray:
    true, every, total = truth.sum(), truth.size, 0.0
    means = (right + wrong) / every, true / every
    for count, mine, theirs in (
        (right, 1, 1),
        (wrong, 1, 0),
        (true - right, 0, 1),
        (every - true - wrong, 0, 0),
    ):
        one, other = mine - means[0], theirs - means[1]
        total = total + count * (1 + 2 * one * other / (one**2 + other**2)) ** 2 / 4
    return np.asarray(total / (every - 1))


def _f(right: np.ndarray, wrong: np.ndarray, truth: Bool[np.ndarray, "H W"]) -> np.ndarray:
    precision, recall = right / np.maximum(right + wrong, 1), right / truth.sum()
    return 1.3 * precision * recall / np.where(right == 0, 1, 0.3 * precision + recall)


def _weighted_f(value: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    from scipy import ndimage

    transform: Any = ndimage.distance_transform_edt(~truth, return_indices=True)
    distance, nearest = transform
    error = np.abs(value - truth)
    y, x = np.mgrid[-3:4, -3:4]
    kernel = np.exp(-(x**2 + y**2) / 50)
    smooth = ndimage.convolve(error[tuple(nearest)], kernel / kernel.sum(), mode="constant")
    least = np.where(truth & (smooth < error), smooth, error)
    weighted = least * np.where(truth, 1, 2 - 0.5 ** (distance / 5))
    right, wrong = truth.sum() - weighted[truth].sum(), weighted[~truth].sum()
    recall, precision = 1 - weighted[truth].mean(), right / (right + wrong)
    return float(2 * recall * precision / (recall + precision))
