"""Measures boundary IoU and F of masks against OpenCV with numpy, on one core each."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli.benchmarks import harness
from seg_jax.runs import run_folder

# This file is imported again in a process of its own: JAX has to find itself on one core there.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A measurement of the boundary scores."""

    size: int = 512
    """Height and width of the masks in pixels."""
    batch: int = 64
    """Pairs of masks at once."""
    rounds: int = 7
    """Turns of each run; medians are shown."""
    seed: int = 0
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if not (16 <= self.size <= 4096 and self.batch >= 1 and self.rounds >= 1):
            raise ValueError(
                f"boundary: expected a size of 16 to 4096, batch and rounds >= 1, got {self}; do: "
                "choose values in this range"
            )


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    alone = functools.partial(harness.on_one_core, measure)
    return harness.report(config, alone, _show)


def _show(results: dict[str, Any]) -> None:
    """Prints the table."""
    title = f"Boundary scores of {results['batch']} pairs of {results['size']} px masks"
    harness.show_ratios(
        results, title, rows="scores", name="score", peer=("OpenCV", "opencv_microseconds")
    )


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers; runs in a process of its own."""
    import jax
    import jax.numpy as jnp

    from seg_jax.geometry import bitmask, overlap

    masks = _masks(config)
    moved = [np.roll(mask, (3, 5), (0, 1)) for mask in masks]
    words = [jax.block_until_ready(bitmask.pack(np.stack(side))) for side in (masks, moved)]
    size = jnp.full((config.batch, 2), config.size, jnp.int32)
    rows = []
    for name, ours, peer in (
        ("boundary IoU", jax.jit(overlap.boundary_iou), _iou),
        ("boundary F", jax.jit(overlap.boundary_f), _f),
    ):
        timed = {
            "ours": lambda ours=ours: jax.block_until_ready(ours(*words, size)),
            "opencv": lambda peer=peer: [peer(a, b) for a, b in zip(masks, moved, strict=True)],
        }
        taken = harness.by_turns(timed, config.rounds, harness.process_seconds)
        gap = np.abs(np.asarray(timed["ours"]()) - np.array(timed["opencv"]())).max()
        rows.append(
            {
                "score": name,
                "ours_microseconds": 1e6 * taken["ours"] / config.batch,
                "opencv_microseconds": 1e6 * taken["opencv"] / config.batch,
                "ratio": taken["opencv"] / taken["ours"],
                "largest_gap": float(gap),
            }
        )
    return {"machine": harness.machine(), **run_folder.plain(config), "scores": rows}


def _masks(config: Config) -> list[np.ndarray]:
    """Returns masks of three discs each."""
    rng, side = np.random.default_rng(config.seed), config.size
    y, x = np.mgrid[:side, :side]
    masks = []
    for _ in range(config.batch):
        mask = np.zeros((side, side), bool)
        for _ in range(3):
            row, column, radius = rng.uniform((0.1, 0.1, 0.04), (0.9, 0.9, 0.3)) * side
            mask |= (x - column) ** 2 + (y - row) ** 2 < radius**2
        masks.append(mask)
    return masks


def _iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Returns the IoU of the bands along the outlines, as the published code works it out."""
    import cv2

    def band(mask):
        steps = max(1, round(0.02 * float(np.hypot(*mask.shape))))
        mask = mask.view(np.uint8)
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=steps)
        return (mask - inner[1:-1, 1:-1]) > 0

    a, b = band(mask), band(other)
    return float(np.logical_and(a, b).sum() / np.logical_or(a, b).sum())


def _f(mask: np.ndarray, other: np.ndarray) -> float:
    """Returns the F of outlines that may lie a disc's radius apart, as DAVIS has it."""
    import cv2

    def outline(mask):
        far = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        here, right, below, beyond = mask, far[:-1, 1:], far[1:, :-1], far[1:, 1:]
        return (here != right) | (here != below) | (here != beyond)

    reach = int(np.ceil(0.008 * np.hypot(*mask.shape)))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (x * x + y * y <= reach * reach).astype(np.uint8)
    a, b = outline(mask), outline(other)
    near_a, near_b = (cv2.dilate(line.view(np.uint8), disc) > 0 for line in (a, b))
    precision, recall = (a & near_b).sum() / a.sum(), (b & near_a).sum() / b.sum()
    return float(2 * precision * recall / (precision + recall))
