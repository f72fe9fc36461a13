"""Which meshes divide a model, read off the shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from seg_jax.models.parallel.mesh_axes import AXES, names_of, partition, parts_of


def limits_of(tree: Any) -> dict[tuple[str, ...], int]:
    """Returns the numbers that products of axes of a mesh must divide, by these axes.

    Args:
      tree: weights or their shapes.
    """
    limits: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for size, axes in zip(leaf.shape, partition(names_of(path), leaf.shape), strict=False):
            axes = (axes,) if isinstance(axes, str) else axes
            if axes:
                limits[axes] = math.gcd(limits.get(axes, 0), size)
    return limits


def advice(tree: Any, on: Mesh | AbstractMesh) -> str:
    """Returns the sizes that divide every weight, and the mesh of as many devices closest to `on`.

    Close is a mesh whose sizes are few doublings away.
    """
    limits = limits_of(tree)
    wanted = [
        f"{product(axes)} of {in_words(divisors(math.gcd(limit, on.size)))}"
        for axes, limit in limits.items()
        if limit % parts_of(axes, on)
    ]

    def shapes(axes: tuple[str, ...], left: int) -> Iterator[dict[str, int]]:
        if len(axes) == 1:
            yield {axes[0]: left}
            return
        for size in divisors(left):
            yield from ({axes[0]: size} | rest for rest in shapes(axes[1:], left // size))

    def away(shape: dict[str, int]) -> tuple[float, int]:
        steps = sum(abs(math.log2(shape[axis] / on.shape[axis])) for axis in AXES)
        return round(steps, 6), -shape["fsdp"]

    def fits(shape: dict[str, int]) -> bool:
        divided = (limit % math.prod(shape[a] for a in axes) for axes, limit in limits.items())
        return not any(divided)

    # All on data always fits: every device then holds all weights.
    best = min(filter(fits, shapes(AXES, on.size)), key=away)
    closest = " ".join(f"--mesh.{axis} {size}" for axis, size in best.items() if size > 1)
    return f"take {', '.join(wanted)}; closest is {closest}"


def divisors(number: int) -> list[int]:
    """Returns all divisors, the least first."""
    return [size for size in range(1, number + 1) if number % size == 0]


def in_words(numbers: list[int]) -> str:
    """Returns a list as a sentence has it: 1, 2 or 4."""
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def product(axes: Any) -> str:
    """Returns axes as a message has their product: data x fsdp."""
    return axes if isinstance(axes, str) else " x ".join(axes)
