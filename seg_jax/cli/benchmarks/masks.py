"""Measures the masks of answers in a step, each image encoded once, against encoding for every box.

The segmenter is the toy of configs/seg_r1/toy_sam2.py with random weights; the other way is that of
Seg-R1's released reward: each box of each answer encodes the image anew. Both are one program.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness
from seg_jax.records import Clicks
from seg_jax.runs import console, experiments, run_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of masks."""

    images: int = 24
    answers: int = 4
    """Answers about each image."""
    boxes: int = 1
    """Boxes of each answer."""
    clicks: int = 8
    """Clicks of each answer; those within a box are asked with it."""
    rounds: int = 5
    """Turns of both runs; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if min(self.images, self.answers, self.boxes, self.rounds) < 1:
            raise ValueError(
                "masks: expected images, answers, boxes and rounds >= 1, got "
                f"{self.images}, {self.answers}, {self.boxes} and {self.rounds}; do: give more"
            )
        if min(self.clicks, self.seed) < 0:
            raise ValueError(
                f"masks: expected clicks and a seed >= 0, got {self.clicks} and {self.seed}; do: "
                "give values in this range"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    draw, side = drawer(config.seed)
    view, clicks = _questions(config, side)
    alone = _one_box_each(view, clicks)
    runs = {"once": lambda: draw(view, clicks), "each": lambda: draw(*alone)}
    seconds = harness.by_turns(runs, config.rounds, time.perf_counter)
    together = runs["each"]().reshape(config.images, config.answers, config.boxes, -1)
    apart = runs["once"]().reshape(config.images, config.answers, -1)
    apart = np.bitwise_count(apart ^ np.bitwise_or.reduce(together, 2)).sum()
    return {
        "machine": harness.machine(),
        **run_folder.plain(config),
        "seconds": seconds,
        "times": seconds["each"] / seconds["once"],
        "pixels_apart": int(apart) / (config.images * config.answers * side**2),
    }


def drawer(seed: int) -> tuple[Callable[..., np.ndarray], int]:
    """Returns the function (view, clicks) -> words of a toy with random weights, and its side."""
    import jax
    from flax import nnx

    from seg_jax.models.sam2 import pointed_masks
    from seg_jax.models.sam2.sam2 import Sam2

    sizes = experiments.load("seg_r1/toy_sam2.py").MODEL
    graph = nnx.graphdef(nnx.eval_shape(lambda: Sam2(sizes, rngs=nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.state(Sam2(sizes, rngs=nnx.Rngs(seed))))()
    words = jax.jit(lambda p, view, clicks: pointed_masks.masks(nnx.merge(graph, p), view, clicks))
    return lambda view, clicks: np.asarray(words(params, view, clicks)), sizes.side


def _questions(config: Config, side: int) -> tuple[np.ndarray, Clicks]:
    """Returns random images as large as the model's, and random answers to them."""
    rng, lead = np.random.default_rng(config.seed), (config.images, config.answers)
    view = rng.integers(0, 256, (config.images, side, side, 3), np.uint8)
    corners = np.sort(rng.random((*lead, config.boxes, 2, 2), np.float32), -2)
    points = rng.random((*lead, config.clicks, 2), np.float32)
    return view, Clicks(
        corners.reshape(*lead, config.boxes, 4),
        np.ones((*lead, config.boxes), bool),
        points,
        rng.integers(0, 2, points.shape[:-1]).astype(np.int32),
        np.ones(points.shape[:-1], bool),
        np.ones(lead, bool),
    )


def _one_box_each(view: np.ndarray, clicks: Clicks) -> tuple[np.ndarray, Clicks]:
    """Returns every box of every answer as the only one about an image of its own."""
    images, answers, boxes = clicks.boxed.shape
    count = images * answers * boxes

    def each(leaf: np.ndarray) -> np.ndarray:
        repeated = np.repeat(leaf.reshape(images * answers, *leaf.shape[2:]), boxes, 0)
        return repeated[:, None]

    return np.repeat(view, answers * boxes, 0), Clicks(
        np.asarray(clicks.boxes_unit).reshape(count, 1, 1, 4),
        np.ones((count, 1, 1), bool),
        *(each(np.asarray(leaf)) for leaf in clicks[2:]),
    )


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{name} {value}" for name, value in results["machine"].items()))
    console.table(
        f"Masks of {results['images']} x {results['answers']} answers",
        ("boxes", "encoded once, ms", "for every box, ms", "times", "pixels apart"),
        [
            (
                str(results["boxes"]),
                f"{1e3 * results['seconds']['once']:.1f}",
                f"{1e3 * results['seconds']['each']:.1f}",
                f"{results['times']:.2f}",
                f"{results['pixels_apart']:.1e}",
            )
        ],
    )
