"""Lays weights, optimizer state and batches over a mesh of devices by one table of axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
"""Of every mesh: copies of the weights, shards of the weights, shards of each layer's work."""

MESH: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "width": ("fsdp",),
    "inner": ("tensor",),
    "vocabulary": ("tensor",),
    "expert": ("tensor",),
    "whole": (),
}
"""What each logical axis is divided among."""

_INTO, _OUT_OF = ("width", "inner"), ("inner", "width")

WEIGHTS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(name, "kernel"): _INTO for name in ("q", "k", "v", "gate", "up", "merge_in")},
    **{(name, "bias"): ("inner",) for name in ("q", "k", "v", "gate", "up", "merge_in")},
    **{(name, "kernel"): _OUT_OF for name in ("o", "down", "merge_out")},
    **{(name, "bias"): ("whole",) for name in ("o", "down", "merge_out")},
    ("embed", "embedding"): ("vocabulary", "width"),
    ("head", "embedding"): ("vocabulary", "width"),
    ("patch", "kernel"): ("whole", "width"),
    ("kv_in", "kernel"): ("width", "whole"),
    ("kv_out", "kernel"): _INTO,
    ("router", "kernel"): ("width", "whole"),
    ("expert_gate", "kernel"): ("expert", "width", "whole"),
    ("expert_up", "kernel"): ("expert", "width", "whole"),
    ("expert_down", "kernel"): ("expert", "whole", "width"),
}
"""Logical axes of the last axes of weights, by layer and kind. Axes before them (layers of a
stack) and all other arrays (norms, counters) are whole on every device."""


def mesh(shape: Mapping[str, int] | None = None, devices: list[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes data, fsdp and tensor.

    Args:
      shape: sizes of axes; those left out are 1, a single -1 takes what is left. None: all
        devices on fsdp.
      devices: all of the process's if None.

    Raises:
      ValueError: an unknown axis, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = {"fsdp": -1} if shape is None else dict(shape)
    if unknown := set(shape) - set(AXES):
        raise ValueError(f"mesh: expected axes among {AXES}, got {sorted(unknown)}")
    sizes = [shape.get(axis, 1) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh: expected sizes that multiply to {len(devices)} devices (one may be -1), "
            f"got {dict(zip(AXES, sizes, strict=True))}"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    if devices[0].platform == "cpu":
        return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=kinds)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)


def shardings(tree: Any, on: Mesh | AbstractMesh) -> Any:
    """Returns the sharding of each leaf of a tree that holds weights: a state, moments, gradients.

    Leaves are known by the last names of their paths, so optimizer moments lie as their weights.

    Args:
      tree: arrays or their shapes.
      on: the mesh.

    Raises:
      ValueError: an axis of a weight that its mesh axes do not divide.
    """
    wrong: list[str] = []

    def one(path, leaf):
        names = tuple(str(k.key) for k in path if hasattr(k, "key"))
        spec = partition(names, leaf.shape)
        for size, axes in zip(leaf.shape, spec, strict=False):
            if size % (parts := _parts(axes, on)):
                wrong.append(f"{'/'.join(names)} {leaf.shape}: {size} by {parts} ({axes})")
        return NamedSharding(on, spec)

    placed = jax.tree_util.tree_map_with_path(one, tree)
    if wrong:
        raise ValueError(
            f"mesh {dict(on.shape)}: expected sizes that divide every weight, got "
            f"{'; '.join(wrong[:3])} ({len(wrong)} in all): do: choose another mesh"
        )
    return placed


def partition(names: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how the array at a path is divided among the axes of a mesh."""
    logical = WEIGHTS.get((names[-2], names[-1]), ()) if len(names) >= 2 else ()
    if len(logical) > len(shape):  # A moment that keeps no such axes, such as a scalar.
        logical = ()
    lead = (None,) * (len(shape) - len(logical))
    return PartitionSpec(*lead, *(MESH[name] or None for name in logical))


def batch(on: Mesh, rows: int | None = None) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the rows of a batch.

    Args:
      on: the mesh.
      rows: checked if given.

    Raises:
      ValueError: data x fsdp does not divide the rows.
    """
    parts = _parts(MESH["batch"], on)
    if rows is not None and rows % parts:
        raise ValueError(
            f"batch: expected rows that data x fsdp = {parts} divides, got {rows}: "
            "do: change the batch size or the mesh"
        )
    return NamedSharding(on, PartitionSpec(MESH["batch"]))


def replicated(on: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(on, PartitionSpec())


def rows(x: Any) -> Any:
    """Returns x [B ..] kept divided by rows between the layers, inside `jax.set_mesh` only.

    Without it the compiler may divide activations as it divides the weights, by width.
    """
    on = jax.sharding.get_abstract_mesh()
    if on.empty or not set(MESH["batch"]) <= set(on.axis_names):
        return x
    if x.shape[0] % math.prod(on.shape[axis] for axis in MESH["batch"]):
        return x
    free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(MESH["batch"], *free))


def by_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of trees [B ..] that every device runs on its own rows alone.

    For what the compiler cannot divide by itself: sorts, loops of run-time length, own kernels.
    Outside `jax.set_mesh`, and where data x fsdp does not divide the rows, it is the function.
    """

    def divided(*values):
        on = jax.sharding.get_abstract_mesh()
        if on.empty or not set(MESH["batch"]) <= set(on.axis_names):
            return function(*values)
        parts = _parts(MESH["batch"], on)
        if any(leaf.shape[0] % parts for leaf in jax.tree.leaves(values)):
            return function(*values)
        spec = PartitionSpec(MESH["batch"])
        return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(*values)

    return divided


def kept(tree: Any) -> Any:
    """Returns the tree of weights held where `shardings` lays it, inside `jax.set_mesh` only.

    Without it the compiler may leave a step's new weights whole on every device.
    """
    on = jax.sharding.get_abstract_mesh()
    if on.empty or not set(AXES) <= set(on.axis_names):
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, on))


def _parts(axes: Any, on: Mesh | AbstractMesh) -> int:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(on.shape[axis] for axis in axes)
