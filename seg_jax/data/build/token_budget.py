"""Measures what the outlines of a data set cost in tokens, and what they keep of their masks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from seg_jax.data.sources import Source
from seg_jax.geometry import bitmask, runlengths
from seg_jax.grammar import outline
from seg_jax.records import Kind
from seg_jax.tasks.referring import Referring, outline_text

EPSILONS = (0.0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02)
"""Tolerances as shares of a ring's length; the data script's is 0.001, the paper's best 0.005."""
EDGES = (0, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
"""Tokens of an answer, between which the histogram counts."""

# How the tokenizers cut text before they merge bytes; within an outline nothing is merged further.
_CUTS = {
    "qwen": re.compile(r"\d|[^\W\d_]+| ?[^\s\w]+|\s+"),
    "kimi": re.compile(r"\d{1,3}|[^\W\d_]+| ?[^\s\w]+|\s+"),
}


def count_tokens(text: str, family: str) -> int:
    """Returns how many tokens an outline takes where digits stand alone, or up to three together.

    Args:
      text: of the outline.
      family: "qwen" or "kimi".
    """
    return len(_CUTS[family].findall(text))


def measure(
    source: Source,
    task: Referring,
    *,
    objects: int,
    epsilons: Sequence[float] = EPSILONS,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Returns for each tolerance what so many objects' outlines cost and keep.

    A row tells `epsilon`, the mean `points`, mean `tokens` and their 95th percentile by family of
    tokenizers, a `histogram` of Qwen's between `EDGES`, and the mean, 5th percentile and least
    `iou` of the mask with what is filled after text has been written and read.

    Args:
      source: of the masks; images are taken evenly from all of it.
      task: whose budgets of points and rings, decimals and least area hold.
      objects: to measure, at most.
      epsilons: tolerances, as shares of a ring's length.
      progress: is told how many objects are done.

    Raises:
      ValueError: the source has no objects.
    """
    found: dict[float, list[tuple[float, ...]]] = {epsilon: [] for epsilon in epsilons}
    for done, mask in enumerate(_masks(source, objects)):
        for epsilon in epsilons:
            found[epsilon].append(_measure_mask(mask, dataclasses.replace(task, epsilon=epsilon)))
        progress(done + 1)
    if not found[epsilons[0]]:
        raise ValueError("stats: expected objects with masks, got none; do: leave out --stats")
    return [_table_row(epsilon, np.array(rows)) for epsilon, rows in found.items()]


def _masks(source: Source, objects: int) -> Iterator[Bool[np.ndarray, "H W"]]:
    """Yields masks of images that lie evenly in a source."""
    left = objects
    for index in np.unique(np.linspace(0, len(source) - 1, min(objects, len(source))).astype(int)):
        for mask in source[int(index)].masks:
            if left and mask.any():
                left -= 1
                yield mask


def _measure_mask(mask: Bool[np.ndarray, "H W"], task: Referring) -> tuple[float, ...]:
    """Returns points, tokens by family, and the IoU of a mask with its outline."""
    text = outline_text(mask, Kind.MASK, task)
    rings = outline.read(text, Kind.MASK).rings
    height, width = mask.shape
    flat = [(ring * [width, height]).ravel().tolist() for ring in rings]
    filled = runlengths.fill(flat, height=height, width=width, rings="evenodd")
    drawn = bitmask.from_rle(filled)
    iou = (drawn & mask).sum() / (drawn | mask).sum()
    points = sum(len(ring) for ring in rings)
    return (
        float(points),
        float(count_tokens(text, "qwen")),
        float(count_tokens(text, "kimi")),
        float(iou),
    )


def _table_row(epsilon: float, values: np.ndarray) -> dict[str, Any]:
    points, qwen, kimi, iou = values.T
    histogram, _ = np.histogram(qwen, [*EDGES, np.inf])
    return {
        "epsilon": epsilon,
        "objects": len(values),
        "points": float(points.mean()),
        **{f"tokens_{name}": float(some.mean()) for name, some in (("qwen", qwen), ("kimi", kimi))},
        "tokens_qwen_p95": float(np.percentile(qwen, 95)),
        "tokens_kimi_p95": float(np.percentile(kimi, 95)),
        "histogram": histogram.tolist(),
        "iou": float(iou.mean()),
        "iou_p5": float(np.percentile(iou, 5)),
        "iou_least": float(iou.min()),
    }
