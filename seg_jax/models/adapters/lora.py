"""Which weights of a model learn, and the low-rank adapters (LoRA) beside those that do not.

Source: LoRA, arXiv 2106.09685, section 4.1; rsLoRA, arXiv 2312.03732; the first draw of A and B as
`peft` has it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Adaptable
from seg_jax.models.parallel import sharding

Mode = Literal["frozen", "adapted", "trained"]
ADAPTERS = ("lora_a", "lora_b")
"""Last names of the paths of adapters."""
_SHOWN = 8
"""Names that a message shows at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters: x kernel + scale (x A) B, of which only A and B learn."""

    rank: int | None = None
    """Columns of A and rows of B, as 16; None: no adapters."""
    alpha: float | None = None
    """The scale is alpha / rank; None: 1."""
    rank_stabilised: bool = False
    """The scale is alpha / sqrt(rank) instead (rsLoRA): ranks above 32 go on to help."""
    targets: tuple[str, ...] = ()
    """Layers that get adapters: ends of their names on the hub, as q_proj, or regular expressions
    of them; none: all linear layers of the adapted parts, routed experts included."""
    folder: Path | None = None
    """Adapter to go on with, in peft's format; it says all else that stands here."""

    def __post_init__(self):
        if self.rank is not None and self.rank < 1:
            raise ValueError(
                f"adapter.rank: expected at least 1, got {self.rank}; do: give a rank as 16, or "
                "leave it out to train without adapters"
            )
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(
                f"adapter.alpha: expected a finite number above 0, got {self.alpha}; do: give one, "
                "as twice the rank"
            )
        fields = type(self).__dataclass_fields__
        for name in ("alpha", "rank_stabilised", "targets") if self.rank is None else ():
            if getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"adapter.{name}: expected an adapter.rank beside it, got "
                    f"{getattr(self, name)} alone; do: give --adapter.rank, as 16"
                )
        if self.rank is not None and self.folder is not None:
            raise ValueError(
                f"adapter.rank: expected none beside adapter.folder, whose rank it is, got "
                f"{self.rank}; do: leave one of both out"
            )
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(
                    f"adapter.targets: expected ends of names or regular expressions, got "
                    f"{target!r} ({error}); do: correct it"
                ) from None

    @property
    def scale(self) -> float:
        """Factor on the product of A and B."""
        assert self.rank is not None
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def is_wanted(config: LoRA) -> bool:
    """Returns whether there are to be adapters."""
    return config.rank is not None or config.folder is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What becomes of each part of a model: it stays frozen, gets adapters, or all of it learns.

    None: trained; beside adapters the decoder is adapted and the rest frozen.
    """

    vision: Mode | None = None
    """The vision tower."""
    merger: Mode | None = None
    """The layers between tower and decoder (merger, projector)."""
    text: Mode | None = None
    """The decoder; embeddings, head and norms are frozen where it is adapted."""

    def modes(self, *, adapters: bool) -> dict[str, str]:
        """Returns the mode of each part.

        Raises:
          ValueError: no part is adapted though there are adapters, one is and there are none, or
            nothing learns.
        """
        usual = {"vision": "frozen", "merger": "frozen", "text": "adapted"}
        if not adapters:
            usual = dict.fromkeys(usual, "trained")
        found = {name: getattr(self, name) or mode for name, mode in usual.items()}
        adapted = [name for name, mode in found.items() if mode == "adapted"]
        if adapted and not adapters:
            raise ValueError(
                f"parts.{adapted[0]}: expected an adapter.rank beside adapted, got none; do: give "
                "--adapter.rank, as 16"
            )
        if adapters and not adapted:
            raise ValueError(
                "adapter: expected a part that is adapted, got none; do: give --parts.text adapted"
                ", or leave the adapters out"
            )
        if set(found.values()) == {"frozen"}:
            raise ValueError(
                "parts: expected a part that learns, got all frozen; do: train or adapt one"
            )
        return found


class Layer(NamedTuple):
    """A layer that can have an adapter."""

    path: tuple[str, ...]
    """Names of our layer."""
    part: str
    """Part of the model, as `Parts` names them."""
    modules: tuple[str, ...]
    """The hub's names of the layers that it is a stack of."""
    number: int
    """Which part of the hub's layers it is; all share the A of the first."""


@functools.cache
def layers(config: Any) -> tuple[Layer, ...]:
    """Returns the layers of a model that can have adapters: its linear ones, routers apart."""
    convolutions = families.family_of(config).convolutions(config)
    model = weights.blank(config, Compute())
    found: dict[tuple[str, ...], list[weights.TensorPart]] = {}
    for piece in weights.tensor_parts(config):
        if piece.path[-1] == "kernel" and "/".join(piece.path) not in convolutions:
            found.setdefault(piece.path[:-1], []).append(piece)
    return tuple(
        Layer(
            path,
            part_of(config, path),
            tuple(piece.name.removesuffix(".weight") for piece in pieces),
            pieces[0].part,
        )
        for path, pieces in found.items()
        if isinstance(_module(model, path), Adaptable)
    )


def part_of(config: Any, path: tuple[str, ...]) -> str:
    """Returns the part of a model that the weights at a path belong to."""
    name = "/".join(path)
    if any(f"{name}/".startswith(f"{one}/") for one in families.vlm_facts(config).merger):
        return "merger"
    return "vision" if path[0] == "vision" else "text"


@dataclasses.dataclass(frozen=True)
class Learning:
    """Which weights of a model learn, of those that it has and of adapters beside them."""

    config: Any
    """Config of the model."""
    lora: LoRA
    """Its rank is known where there are adapters."""
    adapted: tuple[Layer, ...]
    """Layers with adapters."""
    trained: frozenset[tuple[str, ...]] | None
    """Paths of the model's own weights that learn; None: all."""

    @property
    def modes(self) -> dict[str, str]:
        """What becomes of each part; of parts that learn in both ways, trained."""
        usual = "trained" if self.trained is None else "frozen"
        found = dict.fromkeys(("vision", "merger", "text"), usual)
        found |= {layer.part: "adapted" for layer in self.adapted}
        return found | {
            part_of(self.config, path): "trained" for path in sorted(self.trained or ())
        }

    @property
    def is_whole(self) -> bool:
        """Whether all weights learn and there are no adapters."""
        return self.trained is None

    def learns(self, path: tuple[str, ...]) -> bool:
        """Returns whether the weights at a path learn."""
        return self.trained is None or path[-1] in ADAPTERS or path in self.trained

    def split(self, params: Any) -> tuple[Any, Any]:
        """Returns the weights that learn, and those that are frozen; None where all learn."""
        if self.is_whole:
            return params, None
        sides: tuple[list, list] = ([], [])
        for path, leaf in nnx.to_flat_state(params):
            sides[not self.learns(tuple(map(str, path)))].append((path, leaf))
        learned, frozen = map(nnx.from_flat_state, sides)
        return learned, frozen


def all_weights(learned: Any, frozen: Any) -> Any:
    """Returns all weights of a model, learned and frozen ones; no copies."""
    return learned if frozen is None else nnx.merge_state(learned, frozen)


def plan(config: Any, lora: LoRA, parts: Parts) -> Learning:
    """Returns which weights learn.

    Args:
      config: of the model.
      lora: with a rank, or without adapters.
      parts: what becomes of each part.

    Raises:
      ValueError: parts and adapters contradict each other, or targets match no layer, or some
        layers of a stack alone.
    """
    modes = parts.modes(adapters=lora.rank is not None)
    if set(modes.values()) == {"trained"}:
        return Learning(config, lora, (), None)
    trained = frozenset(
        piece.path
        for piece in weights.tensor_parts(config)
        if modes[part_of(config, piece.path)] == "trained"
    )
    adapted = _target_layers(config, lora.targets, modes) if lora.rank is not None else ()
    return Learning(config, lora, adapted, trained)


def _target_layers(
    config: Any, targets: tuple[str, ...], modes: Mapping[str, str]
) -> tuple[Layer, ...]:
    """Returns the layers of the adapted parts that targets name."""
    known = [layer for layer in layers(config) if modes[layer.part] == "adapted"]
    found = known if not targets else [layer for layer in known if _is_target(layer, targets)]
    for target in targets:
        if not any(_is_target(layer, (target,)) for layer in known):
            raise ValueError(
                f"adapter.targets: expected names of linear layers of the adapted parts "
                f"({_ends(known)}), got {target!r}, which matches none; do: give one of these, or "
                "a regular expression that matches them"
            )
    for part in (part for part, mode in modes.items() if mode == "adapted"):
        if not any(layer.part == part for layer in found):
            raise ValueError(
                f"parts.{part}: expected adapter.targets in it ("
                f"{_ends(layer for layer in known if layer.part == part)}), got none; do: add one, "
                "or freeze this part"
            )
    return tuple(found)


def _is_target(layer: Layer, targets: Iterable[str]) -> bool:
    """Returns whether one of the targets names a layer, all of its stack or none."""
    named = [
        any(re.fullmatch(rf"(?:.*\.)?(?:{target})", module) for target in targets)
        for module in layer.modules
    ]
    if any(named) and not all(named):
        raise ValueError(
            "adapter.targets: expected all layers of a stack or none, got "
            f"{layer.modules[named.index(True)]} without {layer.modules[named.index(False)]}; do: "
            "leave the numbers of layers out"
        )
    return all(named)


def _ends(found: Iterable[Layer]) -> str:
    """Returns the last names of layers, as targets may give them."""
    names = list(dict.fromkeys(layer.modules[0].rpartition(".")[2] for layer in found))
    return ", ".join(names[:_SHOWN]) + (", .." if len(names) > _SHOWN else "")


def attach(graph: nnx.GraphDef, params: Any, learning: Learning) -> tuple[nnx.GraphDef, Any]:
    """Returns the graph of a model with adapters, and the shapes of its weights and of theirs.

    Args:
      graph: of the model without them.
      params: its weights, or their shapes.
      learning: which layers get adapters, and of which rank.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    model = nnx.merge(graph, shapes)
    rank = learning.lora.rank
    for layer in learning.adapted:
        assert rank is not None
        module = _module(model, layer.path)
        *lead, into, out_of = module.kernel.shape

        def param(*size: int) -> nnx.Param:
            return nnx.Param(jax.ShapeDtypeStruct(size, jnp.float32))

        if layer.number == 0:
            module.lora_a = param(*lead, into, rank)
        module.lora_b = param(*lead, rank, out_of)
        module.lora_scale = learning.lora.scale
    return nnx.split(model)


def only_adapters(params: Any) -> Any:
    """Returns the adapters of weights, or their shapes, alone."""
    flat = nnx.to_flat_state(params)
    return nnx.from_flat_state([(path, leaf) for path, leaf in flat if path[-1] in ADAPTERS])


def draw(shapes: Any, *, seed: int, on: Mesh | None = None) -> Any:
    """Returns adapters at birth: A uniform within 1 / sqrt(in), B zero, the same on any mesh.

    Args:
      shapes: of the adapters alone.
      seed: of A.
      on: the mesh that they are laid over; None: the default device.
    """
    flat = sorted(nnx.to_flat_state(shapes), key=lambda item: item[0])

    def drawn() -> Any:
        keys = jax.random.split(jax.random.key(seed), len(flat))
        found = []
        for key, (path, leaf) in zip(keys, flat, strict=True):
            value = jnp.zeros(leaf.shape, leaf.dtype)
            if path[-1] == "lora_a":
                bound = leaf.shape[-2] ** -0.5
                value = jax.random.uniform(key, leaf.shape, leaf.dtype, -bound, bound)
            found.append((path, leaf.replace(value)))
        return nnx.from_flat_state(found)

    places = None if on is None else sharding.shardings(shapes, on)
    return jax.jit(drawn, out_shardings=places)()


def _module(model: Any, path: tuple[str, ...]) -> Any:
    """Returns the module at a path."""
    return functools.reduce(getattr, path, model)
