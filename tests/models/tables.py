"""Reads a port's table of names without the loader that is tested elsewhere."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import numpy as np


class Place(NamedTuple):
    """Where one layer of one of our arrays stands in their tensors."""

    path: tuple[str, ...]
    layer: int | None
    name: str
    part: int
    parts: int
    shape: tuple[int, ...]
    """Of their whole tensor, convolutions as matrices."""


def places(names: dict[str, str], params: Any) -> list[Place]:
    """Returns all places of a model's state."""
    out = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = names_of(path)
        pattern = names.get("/".join(path))
        if pattern is None:
            theirs = {"kernel": "weight", "bias": "bias"}[path[-1]]
            pattern = names["/".join((*path[:-1], "*"))].replace("*", theirs)
        part, parts = 0, 1
        if found := re.fullmatch(r"(.*)\[(\d)/(\d)\]", pattern):
            pattern, part, parts = found[1], int(found[2]), int(found[3])
        stacked = "{}" in pattern
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = shape[::-1] if path[-1] == "kernel" else shape
        shape = (shape[0] * parts, *shape[1:])
        for layer in range(leaf.shape[0]) if stacked else [None]:
            name = pattern.replace("{}", str(layer))
            out.append(Place(path, layer, name, part, parts, shape))
    return out


def names_of(path) -> tuple[str, ...]:
    """Returns the names of a key path."""
    return tuple(str(key.key) for key in path if hasattr(key, "key"))


def matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a tensor with all axes but the first in one, as kernels have it."""
    return shape if len(shape) < 3 else (shape[0], int(np.prod(shape[1:])))


def fill(names: dict[str, str], params: Any, tensors: dict[str, Any]) -> Any:
    """Returns the state made of their tensors, each of which must be used."""
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    found: dict[tuple[str, ...], list] = {}
    used = set()
    for place in places(names, params):
        used.add(place.name)
        whole = tensors[place.name]
        piece = np.split(whole.reshape(matrix(whole.shape)), place.parts)[place.part]
        found.setdefault(place.path, []).append(piece.T if place.path[-1] == "kernel" else piece)
    assert used == set(tensors)

    def stack(path, leaf):
        return np.stack(found[names_of(path)]).reshape(leaf.shape)

    return jax.device_put(jax.tree_util.tree_map_with_path(stack, params))
