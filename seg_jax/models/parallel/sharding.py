"""Lays weights, optimizer state and batches over a mesh of devices by one table of axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from seg_jax.models.parallel import chips

HOST = "pinned_host"
"""Kind of the memory of a device's host."""

AXES = ("data", "fsdp", "expert", "context", "tensor")
"""Axes of every mesh: copies of the weights, shards of the weights, shards of the experts, shards
of long rows, shards of each layer's work. Neighbours on the last axes are the closest devices."""

MESH: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("context",),
    "width": ("fsdp", "expert", "context"),
    "inner": ("tensor",),
    "vocabulary": ("tensor",),
    "expert": ("expert", "tensor"),
    "expert_width": ("fsdp", "context"),
    "whole": (),
}
"""What each logical axis is divided among. Beside the experts `expert` works as more of `fsdp`, and
so does `context` for weights: no device holds what another one holds, but for `data`."""

WHOLE: dict[str, tuple[str, ...]] = MESH | {"width": (), "expert_width": ()}
"""The same while answers are decoded and there is room: every device holds all that `tensor` (and
`expert`) leave to it, gathered once a rollout instead of once a token."""

ALL = ("tensor", "fsdp", "expert", "context", "data")
DIVIDED: dict[str, tuple[str, ...]] = WHOLE | {"inner": ALL}
"""The same where there is no room: every device holds its channels of each layer, and the few
tokens of a step travel to the weights. The tables of the vocabulary are whole all the same."""

SHARE = 1 / 3
"""Share of a device's memory that weights may take to be whole while answers are decoded."""

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
    ("expert_gate", "kernel"): ("expert", "expert_width", "whole"),
    ("expert_up", "kernel"): ("expert", "expert_width", "whole"),
    ("expert_down", "kernel"): ("expert", "whole", "expert_width"),
}
"""Logical axes of the last axes of weights, by layer and kind. Axes before them (layers of a
stack) and all other arrays (norms, counters) are whole on every device."""


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
        raise ValueError(f"mesh: expected axes among {AXES}, got {sorted(unknown)}")
    sizes = [shape.get(axis, 1) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(
            f"mesh: expected sizes that multiply to {len(devices)} devices (one may be -1), "
            f"got {dict(zip(AXES, sizes, strict=True))}: "
            f"do: take sizes of {_listed(_divisors(len(devices)))}"
        )
    if sizes[0] % slices:
        raise ValueError(
            f"mesh: expected data to be a multiple of {slices} slices, got {sizes[0]}: "
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
                wrong.append(
                    f"{'/'.join(names)} {leaf.shape}: {size} by {parts} ({_product(axes)})"
                )
        return NamedSharding(on, spec)

    placed = jax.tree_util.tree_map_with_path(one, tree)
    if wrong:
        raise ValueError(
            f"mesh {dict(on.shape)}: expected sizes that divide every weight, got "
            f"{'; '.join(wrong[:3])} ({len(wrong)} in all): do: {_advice(tree, on)}"
        )
    return placed


def laid(tree: Any, places: Any) -> Any:
    """Returns the shapes of a tree with the shardings of another; no array is made."""

    def one(leaf, place):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(one, tree, places)


def _advice(tree: Any, on: Mesh | AbstractMesh) -> str:
    """Returns the sizes that divide every weight, and the mesh of as many devices closest to `on`.

    Close is a mesh whose sizes are few doublings away.
    """
    limits: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for size, axes in zip(leaf.shape, partition(names_of(path), leaf.shape), strict=False):
            axes = (axes,) if isinstance(axes, str) else axes
            if axes:
                limits[axes] = math.gcd(limits.get(axes, 0), size)
    told = [
        f"{_product(axes)} of {_listed(_divisors(math.gcd(limit, on.size)))}"
        for axes, limit in limits.items()
        if limit % parts_of(axes, on)
    ]

    def shapes(axes: tuple[str, ...], left: int) -> Iterator[dict[str, int]]:
        if len(axes) == 1:
            yield {axes[0]: left}
            return
        for size in _divisors(left):
            yield from ({axes[0]: size} | rest for rest in shapes(axes[1:], left // size))

    def away(shape: dict[str, int]) -> tuple[float, int]:
        steps = sum(abs(math.log2(shape[axis] / on.shape[axis])) for axis in AXES)
        return round(steps, 6), -shape["fsdp"]

    def fits(shape: dict[str, int]) -> bool:
        divided = (limit % math.prod(shape[a] for a in axes) for axes, limit in limits.items())
        return not any(divided)

    # All on data always fits: every device then holds all weights.
    best = min(filter(fits, shapes(AXES, on.size)), key=away)
    near = " ".join(f"--mesh.{axis} {size}" for axis, size in best.items() if size > 1)
    return f"take {', '.join(told)}; closest is {near}"


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the names on a key path that `partition` knows arrays by."""
    return tuple(str(key.key) for key in path if hasattr(key, "key"))


def partition(
    names: tuple[str, ...],
    shape: tuple[int, ...],
    rules: Mapping[str, tuple[str, ...]] = MESH,
) -> PartitionSpec:
    """Returns how the array at a path is divided among the axes of a mesh."""
    logical = WEIGHTS.get((names[-2], names[-1]), ()) if len(names) >= 2 else ()
    if len(logical) > len(shape):  # A moment that keeps no such axes, such as a scalar.
        logical = ()
    lead = (None,) * (len(shape) - len(logical))
    return PartitionSpec(*lead, *(rules[name] or None for name in logical))


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
        axes = _product(MESH["batch"])
        raise ValueError(
            f"batch: expected rows that {axes} = {parts} divides, got {rows}: do: take "
            f"{_listed(near)} rows, or a mesh with {axes} of {_listed(_divisors(rows))}"
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


def replicated(on: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(on, PartitionSpec())


def current() -> AbstractMesh | None:
    """Returns the mesh with all `AXES` that `jax.set_mesh` has set, or None."""
    on = jax.sharding.get_abstract_mesh()
    return on if not on.empty and set(AXES) <= set(on.axis_names) else None


def rows(x: Any) -> Any:
    """Returns x [B .. T D] kept divided by rows between the layers, inside `jax.set_mesh` only.

    Long rows are divided among `context` too. Without it the compiler may divide activations as
    it divides the weights, by width.
    """
    on = current()
    if on is None:
        return x
    if x.shape[0] % parts_of(MESH["batch"], on):
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[0] = MESH["batch"]
    if along_rows() > 1 and x.ndim > 2 and x.shape[-2] % along_rows() == 0:
        spec[-2] = MESH["sequence"]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


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


def parts(x: Any, axis: int) -> Any:
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
    on = current()
    return 1 if on is None else parts_of(MESH["sequence"], on)


def queues(rows: int) -> int:
    """Returns how many parts devices hold of a batch of rows: 1 outside `jax.set_mesh`."""
    on = current()
    return 1 if on is None or rows % row_parts(on) else row_parts(on)


def by_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of trees [B ..] that every device runs on its own rows alone.

    For what the compiler cannot divide by itself: sorts, loops of run-time length, own kernels.
    Outside `jax.set_mesh`, and where the rows do not divide, it is the function.
    """

    def divided(*values):
        on = current()
        if on is None or any(x.shape[0] % row_parts(on) for x in jax.tree.leaves(values)):
            return function(*values)
        spec = PartitionSpec(MESH["batch"])
        return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(*values)

    return divided


def kept(tree: Any) -> Any:
    """Returns the tree of weights held where `shardings` lays it, inside `jax.set_mesh` only.

    Without it the compiler may leave a step's new weights whole on every device.
    """
    on = current()
    if on is None:
        return tree

    def one(leaf: Any, place: NamedSharding) -> NamedSharding:
        return place.with_memory_kind(HOST) if _away(leaf) else place

    places = jax.tree.map(one, tree, shardings(tree, on))
    return jax.lax.with_sharding_constraint(tree, places)


class Decoding(NamedTuple):
    """How weights lie while answers are decoded."""

    on: AbstractMesh
    rules: Mapping[str, tuple[str, ...]]
    """`WHOLE` or `DIVIDED`."""

    @property
    def divided(self) -> bool:
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


def decoding(tree: Any, *, gib: float | None, divides: bool) -> Decoding | None:
    """Returns how a tree of weights is to lie while answers are decoded, None: as it does.

    It is for the beginning of a program that decodes: weights then move once, not once a token.

    Args:
      tree: the weights that decoding reads, in the dtype it computes in.
      gib: of a device that they may take to be whole; None: a `SHARE` of its memory, all of them
        where that is not known. Tokens travel only where a number is given.
      divides: whether the model's layers let tokens travel where weights are not whole.
    """
    on = current()
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
        return Decoding(on, WHOLE)
    return Decoding(on, DIVIDED) if divides and asked else None


def gathered(x: Any) -> Any:
    """Returns x whole on every device."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def by_channels(x: Any) -> Any:
    """Returns x [.. C] with its channels divided as `DIVIDED` divides them, if they divide."""
    on = current()
    if on is None or x.shape[-1] % parts_of(ALL, on):
        return x
    spec = PartitionSpec(*(None,) * (x.ndim - 1), ALL)
    return jax.lax.with_sharding_constraint(x, spec)


def near(x: Any) -> Any:
    """Returns x in the memory of its devices, wherever it was."""
    return jax.device_put(x, jax.memory.Space.Device) if _away(x) else x


def back(x: Any, like: Any) -> Any:
    """Returns x in the memory that another array lies in."""
    return jax.device_put(x, jax.memory.Space.Host) if _away(like) else x


def _away(x: Any) -> bool:
    """Returns whether an array lies in the memory of its host."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def parts_of(axes: Any, on: Mesh | AbstractMesh) -> int:
    """Returns how many parts something is divided into along an axis of a mesh, or several."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(on.shape[axis] for axis in axes)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def _product(axes: Any) -> str:
    return axes if isinstance(axes, str) else " x ".join(axes)
