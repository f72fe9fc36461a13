"""Draws the polygons that the benchmarks of the raster kernels score."""

from __future__ import annotations

import dataclasses
from typing import Any

# Imported again in a process of its own, where JAX has to find itself on one core: not at the top.

Rings = Any
"""f32[batch, points, 2] in pixels."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of polygons."""

    kind: str
    points: int
    height: int
    width: int
    batch: int
    radius: float | None = None
    """Radius of blobs as a fraction of the shorter side; None draws all sizes."""


def draw(case: Case, seed: int) -> tuple[Rings, Rings]:
    """Returns true rings and answers near them, f32[batch, points, 2] in pixels."""
    import numpy as np

    rng = np.random.default_rng(seed)
    count, many, size = case.points, case.batch, np.array([case.width, case.height])
    side = min(case.height, case.width)
    angle = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 2 * np.pi, (many, 1))
    low, high = np.log([0.04, 0.35])
    scale = np.exp(rng.uniform(low, high, (many, 1))) if case.radius is None else case.radius
    radius = scale * side * np.ones((many, count))
    centre = rng.uniform(0.1, 0.9, (many, 1, 2)) * size
    if case.kind == "thin":  # A stroke of one to four pixels, there and back.
        turn, width = rng.uniform(0, np.pi, (many, 1)), rng.uniform(0.5, 2, (many, 1))
        x, y = radius * np.cos(angle), width * np.sign(np.sin(angle))
        x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    elif case.kind == "star":
        inner = rng.uniform(0.2, 0.7, (many, 1))
        radius *= np.where(np.arange(count) % 2 == 0, 1, inner)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
    else:
        waves = np.arange(1, 8)[:, None]
        phase = rng.uniform(0, 2 * np.pi, (many, 7, 1))
        bumps = rng.normal(size=(many, 7, 1)) * np.cos(waves * angle[:, None] + phase) / waves
        radius *= np.clip(1 + 0.35 * bumps.sum(1), 0.15, 2.5)
        stretch = np.exp(rng.normal(size=(many, 1)) * 0.3)
        x, y = radius * np.cos(angle) * stretch, radius * np.sin(angle) / stretch
    offset = np.stack([x, y], -1)
    true = np.clip(centre + offset, 0, size)
    extent = true.max(1, keepdims=True) - true.min(1, keepdims=True) + 1
    waves = np.arange(4)[:, None]
    turns = np.arange(count) * 2 * np.pi / count
    sway = np.cos(waves * turns + rng.uniform(0, 2 * np.pi, (many, 4, 1))) / (waves + 1)
    shift = (rng.normal(size=(many, 4, 1, 2)) * sway[..., None]).sum(1) * 0.05
    answer = np.clip(true + shift * extent, 0, size)
    return np.float32(true), np.float32(answer)


def scorer(case: Case, true: Rings, answers: Rings):
    """Returns a function that scores a batch of answers as we do, and what it works on.

    The latter: points, which of them are used, the true words and their areas, on the device.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from seg_jax.geometry import bitmask, raster

    height, width = case.height, case.width
    used = jnp.ones((case.batch, 1, case.points), bool)
    points = jnp.asarray(answers)[:, None]
    words = raster.fill(jnp.asarray(true)[:, None], used, height=height, width=width)
    area = bitmask.area(words)

    @jax.jit
    def score(points, used, words, area):
        covered, shared = raster.fill_counts(points, used, words, height=height, width=width)
        union = covered + area - shared
        return jnp.where(union > 0, shared / jnp.maximum(union, 1).astype(np.float32), 0.0)

    arguments = jax.block_until_ready((points, used, words, area))
    return (lambda: jax.block_until_ready(score(*arguments))), arguments


def crossed_columns(rings: Rings) -> float:
    """Returns how many columns the edges of a ring cross, on the average."""
    import numpy as np

    return float(np.abs(np.diff(rings, axis=1, append=rings[:, :1])[..., 0]).sum(1).mean())
