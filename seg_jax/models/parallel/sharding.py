"""Lays weights, optimizer state and batches over a mesh of devices by one table of axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from seg_jax.models.parallel import chips, mesh_limits
from seg_jax.models.parallel.mesh_axes import (
    ALL,
    AXES,
    DIVIDED,
    MESH,
    WHOLE,
    names_of,
    partition,
    parts_of,
)

HOST = "pinned_host"
"""Kind of the memory of a device's host."""

SHARE = 1 / 3
"""Share of a device's memory that weights may take to be whole while answers are decoded."""


def mesh(shape: Mapping[str, int] | None = None, devices: list[Any] | None = None) -> Mesh:
    """Returns a mesh with all `AXES`.

    Over several slices of TPUs `data` goes across them: only copies of the weights, which speak
    once a step, speak over the network between slices.

    Args:
      shape: sizes of axes; those left out are 1, a single -1 takes what is left. None: all
        devices on fsdp, slices on data.
      devices: all of the process's if None.

    Raises:
      ValueError: an unknown axis, sizes that do not multiply to the number of devices, or a
        `data` that is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if tpu else 1
    shape = {"data": slices, "fsdp": -1} if shape is None else dict(shape)
    if unknown := set(shape) - set(AXES):
        raise ValueError(
            f"mesh: expected axes among {AXES}, got {sorted(unknown)}"
            "; do: rename these to one of them"
        )
    sizes = [shape.get(axis, 1) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh: expected sizes that multiply to {len(devices)} devices (one may be -1), "
            f"got {dict(zip(AXES, sizes, strict=True))}; "
            f"do: take sizes of {mesh_limits.in_words(mesh_limits.divisors(len(devices)))}"
        )
    if sizes[0] % slices:
        raise ValueError(
            f"mesh: expected data to be a multiple of {slices} slices, got {sizes[0]}; "
            f"do: --mesh.data {slices}"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return Mesh(_arranged(devices, sizes, slices), AXES, axis_types=kinds)


def _arranged(devices: list[Any], sizes: list[int], slices: int) -> np.ndarray:
    """Returns the devices as an array of these sizes, neighbours on an axis close to each other."""
    if devices[0].platform == "cpu":
        return np.asarray(devices).reshape(sizes)
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    across = [slices] + [1] * (len(sizes) - 1)
    return mesh_utils.create_hybrid_device_mesh(
        [sizes[0] // slices, *sizes[1:]], across, devices, allow_split_physical_axes=True
    )


def shardings(tree: Any, on: Mesh | AbstractMesh) -> Any:
    """Returns the sharding of each leaf of a tree that holds weights: a state, moments, gradients.

    Leaves are known by the last names of their paths, so optimizer moments lie as their weights.

    Args:
      tree: arrays or their shapes.
      on: the mesh.

    Raises:
      ValueError: an axis of a weight that its mesh axes do not divide; the sizes that would are
        told.
    """
    wrong: list[str] = []

    def one(path, leaf):
        names = names_of(path)
        spec = partition(names, leaf.shape)
        for size, axes in zip(leaf.shape, spec, strict=False):
            if size % (parts := parts_of(axes, on)):
                by = f"{parts} ({mesh_limits.product(axes)})"
                wrong.append(f"{'/'.join(names)} {leaf.shape}: {size} by {by}")
        return NamedSharding(on, spec)

    placed = jax.tree_util.tree_map_with_path(one, tree)
    if wrong:
        raise ValueError(
            f"mesh {dict(on.shape)}: expected sizes that divide every weight, got "
            f"{'; '.join(wrong[:3])} ({len(wrong)} in all); do: {mesh_limits.advice(tree, on)}"
        )
    return placed


def with_shardings(tree: Any, places: Any) -> Any:
    """Returns the shapes of a tree with the shardings of another; no array is made."""

    def one(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(one, tree, places)


def batch(on: Mesh, rows: int | None = None) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the rows of a batch.

    Args:
      on: the mesh.
      rows: checked if given.

    Raises:
      ValueError: data x fsdp x expert does not divide the rows; the numbers that would are told.
    """
    parts = parts_of(MESH["batch"], on)
    if rows is not None and rows % parts:
        near = sorted({max(parts, rows // parts * parts), -(-rows // parts) * parts})
        axes = mesh_limits.product(MESH["batch"])
        sizes = mesh_limits.in_words(mesh_limits.divisors(rows))
        raise ValueError(
            f"batch: expected rows that {axes} = {parts} divides, got {rows}; do: take "
            f"{mesh_limits.in_words(near)} rows, or a mesh with {axes} of {sizes}"
        )
    return NamedSharding(on, PartitionSpec(MESH["batch"]))


def row_parts(on: Mesh | AbstractMesh) -> int:
    """Returns how many parts the rows of a batch are divided into."""
    return parts_of(MESH["batch"], on)


def place(tree: Any, places: Any) -> Any:
    """Returns the arrays at their shardings; with several processes, all have the whole arrays."""

    def one(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, places)


def gather(tree: Any) -> Any:
    """Returns the whole arrays in the first process, on its host where they lie in several.

    All processes must call it. On the devices no more than a layer of a stack is whole at a time.
    """

    def whole(x: Any) -> Any:
        found = multihost_utils.process_allgather(x, tiled=True)
        return found if jax.process_index() == 0 else None

    def one(leaf: Any) -> Any:
        if leaf.is_fully_addressable:
            return leaf
        if leaf.ndim < 3:
            return whole(leaf)
        layers = [whole(leaf[layer]) for layer in range(len(leaf))]
        return np.stack(layers) if jax.process_index() == 0 else None

    return jax.tree.map(one, tree)


def replicated_sharding(on: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(on, PartitionSpec())


def current_mesh() -> AbstractMesh | None:
    """Returns the mesh with all `AXES` that `jax.set_mesh` has set, or None."""
    on = jax.sharding.get_abstract_mesh()
    return on if not on.empty and set(AXES) <= set(on.axis_names) else None


def constrain_rows(x: Any, *, whole: bool = True) -> Any:
    """Returns x [B .. T D] kept divided by rows between the layers, inside `jax.set_mesh` only.

    Long rows are divided among `context` too. Without it the compiler may divide activations as
    it divides the weights, by width; and where it divides channels that a product is added to, the
    sum comes out with its rows exchanged (an error of XLA, see README.md).

    Args:
      x: what layers are added to.
      whole: whether its channels are whole; else the compiler may divide them, as it does heads.
    """
    on = current_mesh()
    if on is None:
        return x
    if x.shape[0] % parts_of(MESH["batch"], on):
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[0] = MESH["batch"]
    if whole:
        spec[-1] = None
    if along_rows() > 1 and x.ndim > 2 and x.shape[-2] % along_rows() == 0:
        spec[-2] = MESH["sequence"]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def spread_rows(tree: Any) -> Any:
    """Returns a tree [B ..] divided by rows as a batch is, inside `jax.set_mesh` only."""
    on = current_mesh()
    if on is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(MESH["batch"]))


def constrain_maps(x: Any) -> Any:
    """Returns maps x [B H W D] kept divided by images, each whole.

    Inside `jax.set_mesh` only; where every device works on rows of its own (`map_rows`) there is
    nothing to divide. Left to itself the compiler may divide the places of maps that are cut into
    windows and joined again; and some products, whose channels it divides, come out with their
    rows exchanged (an error of XLA, see README.md).
    """
    on = current_mesh()
    if on is None or on.manual_axes or x.shape[0] % parts_of(MESH["batch"], on):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(MESH["batch"]))


def tokens(x: Any) -> PartitionSpec:
    """Returns how x [B .. T D] is divided by rows and by tokens, as far as they divide.

    Every other axis is whole; inside `jax.set_mesh` only.
    """
    on = jax.sharding.get_abstract_mesh()
    spec: list[Any] = [None] * x.ndim
    if x.shape[0] % parts_of(MESH["batch"], on) == 0:
        spec[0] = MESH["batch"]
    if x.ndim > 2 and x.shape[-2] % parts_of(MESH["sequence"], on) == 0:
        spec[-2] = MESH["sequence"]
    return PartitionSpec(*spec)


def constrain_parts(x: Any, axis: int) -> Any:
    """Returns parts of rows [parts B .. T ..] for a loop over them, each divided as whole rows are.

    Long rows lie in one piece after another along `context`: of parts cut from them as they lie,
    each would be on one device alone. Inside `jax.set_mesh` with several devices on `context` only.

    Args:
      x: parts, one after another.
      axis: of tokens; the sizes that divide are multiples of `along_rows()`.
    """
    count = along_rows()
    if count == 1 or x.shape[axis] % count:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[0], spec[axis] = None, MESH["sequence"]
    if x.shape[1] % parts_of(MESH["batch"], jax.sharding.get_abstract_mesh()) == 0:
        spec[1] = MESH["batch"]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def along_rows() -> int:
    """Returns how many devices share a long row; 1 outside `jax.set_mesh`."""
    on = current_mesh()
    return 1 if on is None else parts_of(MESH["sequence"], on)


def shards_of_rows(rows: int) -> int:
    """Returns how many parts devices hold of a batch of rows: 1 outside `jax.set_mesh`."""
    on = current_mesh()
    return 1 if on is None or rows % row_parts(on) else row_parts(on)


def map_rows(function: Callable[..., Any], *, whole: Any = None) -> Callable[..., Any]:
    """Returns a function of trees [B ..] that every device runs on its own rows alone.

    For what the compiler cannot divide by itself: sorts, loops of run-time length, own kernels.
    Outside `jax.set_mesh`, and where the rows do not divide, it is the function.

    Args:
      function: of trees [B ..]; given `whole`, of that tree before them.
      whole: a tree that all devices get all of, such as weights; None: there is none.
    """
    first = () if whole is None else (whole,)

    def divided(*values):
        on = current_mesh()
        if on is None or any(x.shape[0] % row_parts(on) for x in jax.tree.leaves(values)):
            return function(*first, *values)
        spec = PartitionSpec(MESH["batch"])
        specs = (*(PartitionSpec() for _ in first), *(spec for _ in values))
        mapped = jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)
        return mapped(*first, *values)

    return divided


def constrain_weights(tree: Any) -> Any:
    """Returns the tree of weights held where `shardings` lays it, inside `jax.set_mesh` only.

    Without it the compiler may leave a step's new weights whole on every device.
    """
    on = current_mesh()
    if on is None:
        return tree

    def one(leaf: Any, place: NamedSharding) -> NamedSharding:
        return place.with_memory_kind(HOST) if _on_host(leaf) else place

    places = jax.tree.map(one, tree, shardings(tree, on))
    return jax.lax.with_sharding_constraint(tree, places)


class DecodingLayout(NamedTuple):
    """How weights lie while answers are decoded."""

    on: AbstractMesh
    rules: Mapping[str, tuple[str, ...]]
    """`WHOLE` or `DIVIDED`."""

    @property
    def tokens_travel(self) -> bool:
        """Whether tokens travel to the weights."""
        return self.rules is DIVIDED

    def __call__(self, tree: Any) -> Any:
        """Returns weights as they lie; those that all devices do not divide are whole."""

        def one(path, leaf):
            spec = partition(names_of(path), leaf.shape, self.rules)
            sizes = zip(leaf.shape, spec, strict=False)
            if any(size % parts_of(axes, self.on) for size, axes in sizes):
                spec = partition(names_of(path), leaf.shape, WHOLE)
            return jax.lax.with_sharding_constraint(leaf, spec)

        return jax.tree_util.tree_map_with_path(one, tree)


def decoding_layout(tree: Any, *, gib: float | None, divides: bool) -> DecodingLayout | None:
    """Returns how weights are laid over devices while answers are decoded; None: as they are.

    It is for the beginning of a program that decodes: weights then move once, not once a token.

    Args:
      tree: the weights that decoding reads, in the dtype it computes in.
      gib: of a device that they may take to be whole; None: a `SHARE` of its memory, all of them
        where that is not known. Tokens travel only where a number is given.
      divides: whether the model's layers let tokens travel where weights are not whole.
    """
    on = current_mesh()
    if on is None or on.size == 1:
        return None
    asked = gib is not None
    if gib is None:
        kind = on.abstract_device.device_kind if on.abstract_device is not None else ""
        gib = SHARE * chips.memory_gib(kind)

    def size(path, leaf):
        spec = partition(names_of(path), leaf.shape, WHOLE)
        return leaf.size * leaf.dtype.itemsize / math.prod(parts_of(axes, on) for axes in spec)

    taken = sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, tree)))
    if taken <= gib * 2**30:
        return DecodingLayout(on, WHOLE)
    return DecodingLayout(on, DIVIDED) if divides and asked else None


def constrain_whole(tree: Any) -> Any:
    """Returns the leaves of a tree whole on every device, inside `jax.set_mesh` only."""
    on = jax.sharding.get_abstract_mesh()
    return tree if on.empty else jax.lax.with_sharding_constraint(tree, PartitionSpec())


def constrain_channels(x: Any) -> Any:
    """Returns x [.. C] with its channels divided as `DIVIDED` divides them, if they divide."""
    on = current_mesh()
    if on is None or x.shape[-1] % parts_of(ALL, on):
        return x
    spec = PartitionSpec(*(None,) * (x.ndim - 1), ALL)
    return jax.lax.with_sharding_constraint(x, spec)


def to_device_memory(x: Any) -> Any:
    """Returns x in the memory of its devices, wherever it was."""
    return jax.device_put(x, jax.memory.Space.Device) if _on_host(x) else x


def to_memory_of(x: Any, like: Any) -> Any:
    """Returns x in the memory that another array lies in."""
    return jax.device_put(x, jax.memory.Space.Host) if _on_host(like) else x


def _on_host(x: Any) -> bool:
    """Returns whether an array lies in the memory of its host."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host
