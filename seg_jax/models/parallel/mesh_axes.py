"""The table of axes: how weights and rows are divided among the axes of a mesh."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

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

_INTO, _OUT_OF = ("width", "inner"), ("inner", "width")
_MAPS = ("fine", "middle", "coarse", "coarsest", "to_fine", "to_middle", "widen")
"""Layers of a segmenter that bring maps to another width. The heads of its decoder (`first`,
`between`, `last`) are too small to be divided."""

_PLAIN: dict[tuple[str, str], tuple[str, ...]] = {
    **{(name, "kernel"): _INTO for name in ("q", "k", "v", "gate", "up", "merge_in")},
    **{(name, "bias"): ("inner",) for name in ("q", "k", "v", "gate", "up", "merge_in")},
    **{(name, "kernel"): _OUT_OF for name in ("o", "down", "merge_out")},
    **{(name, "bias"): ("whole",) for name in ("o", "down", "merge_out")},
    **{(name, "kernel"): _INTO for name in _MAPS},
    **{(name, "bias"): ("inner",) for name in _MAPS},
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
_KERNELS = {layer: axes for (layer, kind), axes in _PLAIN.items() if kind == "kernel"}

WEIGHTS: dict[tuple[str, str], tuple[str, ...]] = {
    **_PLAIN,
    **{(layer, "lora_a"): (*axes[:-1], "whole") for layer, axes in _KERNELS.items()},
    **{(layer, "lora_b"): (*axes[:-2], "whole", axes[-1]) for layer, axes in _KERNELS.items()},
}
"""Logical axes of the last axes of weights, by layer and kind. Axes before them (layers of a
stack) and all other arrays (norms, counters) are whole on every device. The matrices of an adapter
lie as the side of its kernel that they have."""


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


def parts_of(axes: Any, on: Mesh | AbstractMesh) -> int:
    """Returns how many parts something is divided into along an axis of a mesh, or several."""
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(on.shape[axis] for axis in axes)
