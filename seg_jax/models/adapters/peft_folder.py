"""Adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

Source: `peft` (LoraConfig, save_pretrained), version 0.21: A is [rank in], B [out rank] for each
layer of the hub; weights of `modules_to_save` stand whole under their own names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from msgspec import Meta

from seg_jax import checksums, files, schemas
from seg_jax.models import families
from seg_jax.models.adapters import lora
from seg_jax.models.adapters.lora import Learning, LoRA
from seg_jax.models.io import safetensors, weights
from seg_jax.models.parallel import sharding

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Begins every name of a tensor."""
_ADVICE = "save the adapter again with peft's save_pretrained"
_SIDES = {"A": "lora_a", "B": "lora_b"}
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_READ = re.compile(
    "task_type|peft_type|peft_version|auto_mapping|base_model_name_or_path|revision|inference_mode"
    "|r|target_modules|exclude_modules|lora_alpha|lora_dropout|use_rslora|modules_to_save"
    "|init_lora_weights|layers_to_transform|layers_pattern|megatron_config|megatron_core"
    "|loftq_config|eva_config|corda_config|lora_ga_config|qalora_group_size|velora_config"
    "|runtime_config|ensure_weight_tying"
)
"""Fields of a config that are read, or that change nothing in an adapter that is saved."""
_SAFE_DRAWS = (True, False, None, "gaussian", "eva", "orthogonal")
"""First draws that leave the weights of the base as they are."""


class _Config(schemas.Record, frozen=True):
    """What is read of an adapter's config."""

    peft_type: str
    r: Annotated[int, Meta(ge=1, le=2**16)]
    lora_alpha: Annotated[float, Meta(gt=0, le=1e9)]
    use_rslora: bool = False
    bias: str | None = "none"
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None


class _Pair(NamedTuple):
    """Where the adapter of a layer of the hub stands."""

    a: str
    b: str


class Folder:
    """An adapter in a folder, found to be one of a base."""

    def __init__(self, folder: Path, config: Any):
        """Reads what is small, and checks names and shapes.

        Args:
          folder: of the adapter.
          config: of the base.

        Raises:
          ValueError: a file is missing or broken, says what ours does not do, or is of another
            base: the first tensor that does not fit is named.
        """
        path = folder / CONFIG
        if not path.exists():
            raise ValueError(
                f"{folder}: expected an adapter, {CONFIG} and {WEIGHTS}, got no {CONFIG}; do: give "
                "the folder that peft, or a run with --adapter.rank, has written"
            )
        self._folder, self._config = folder, config
        told = _read_config(path)
        self.rank = told.r
        self.base = told.base_model_name_or_path or ""
        self._lora = LoRA(rank=told.r, alpha=told.lora_alpha, rank_stabilised=told.use_rslora)
        self._source = safetensors.open_file(folder / WEIGHTS)
        self._where = f"{folder / WEIGHTS}: "
        self._pairs: dict[str, dict[str, str]] = {}
        self._saved: dict[str, str] = {}
        self._note_names()
        self._check_shapes()

    def _note_names(self) -> None:
        """Notes which tensors there are, by the hub's names of what they change."""
        aliases = families.family_of(self._config).aliases
        modules = {module for layer in lora.layers(self._config) for module in layer.modules}
        own = {piece.name for piece in weights.tensor_parts(self._config)}
        for name in self._source.names():
            known = weights.hub_name(name.removeprefix(PREFIX), aliases)
            match = _NAME.fullmatch(known)
            if match is not None and match["module"] in modules:
                first = self._pairs.setdefault(match["module"], {}).setdefault(match["side"], name)
            elif match is None and known in own:
                first = self._saved.setdefault(known, name)
            else:
                self._refuse(name, "a linear layer or a weight of the base", "none of this name")
            if first != name:
                self._refuse(name, "one tensor of each weight", f"{first} too")
        for module, sides in self._pairs.items():
            for side in (side for side in _SIDES if side not in sides):
                self._refuse(f"{module}.lora_{side}.weight", "A and B of each layer", "one alone")
        if not self._pairs:
            self._refuse("*.lora_A.weight", "adapters of linear layers", "none")

    def _check_shapes(self) -> None:
        shapes = {piece.name: piece.shape for piece in weights.tensor_parts(self._config)}
        for module, sides in sorted(self._pairs.items()):
            out_of, into = shapes[f"{module}.weight"]
            for side, wanted in (("A", (self.rank, into)), ("B", (out_of, self.rank))):
                if (got := self._source.shape(sides[side])) != wanted:
                    self._refuse(sides[side], str(wanted), str(got))
        for known, name in sorted(self._saved.items()):
            if (got := self._source.shape(name)) != shapes[known]:
                self._refuse(name, str(shapes[known]), str(got))

    def _refuse(self, name: str, expected: str, got: str) -> None:
        told = f", as {self.base!r:.80}" if self.base else ""
        raise ValueError(
            f"{self._where}{name}: expected {expected}, got {got}; do: give the base that the "
            f"adapter was trained on{told}"
        )

    @functools.cached_property
    def learning(self) -> Learning:
        """The layers that have adapters, and the weights that were trained whole.

        Raises:
          ValueError: some layers of a stack have none.
        """
        adapted = []
        for layer in lora.layers(self._config):
            has = [module in self._pairs for module in layer.modules]
            if any(has) and not all(has):
                missing = f"{layer.modules[has.index(False)]}.lora_A.weight"
                self._refuse(missing, "adapters of all layers of a stack", "none of this one")
            if all(has):
                adapted.append(layer)
        pieces: dict[tuple[str, ...], list[str]] = {}
        for piece in weights.tensor_parts(self._config):
            pieces.setdefault(piece.path, []).append(piece.name)
        trained = set()
        for path, names in pieces.items():
            missing = [name for name in names if name not in self._saved]
            if len(missing) == len(names):
                continue
            if missing:
                self._refuse(missing[0], "this weight of all layers of a stack", "none")
            trained.add(path)
        return Learning(self._config, self._lora, tuple(adapted), frozenset(trained))

    def check(self) -> None:
        """Raises ValueError where layers of a stack are missing, or files are not as written."""
        assert self.learning.adapted
        checksums.check_folder(self._folder, lambda name: True)

    def array(self, name: str) -> np.ndarray:
        """Returns a whole tensor of the file in float32.

        Raises:
          ValueError: there are NaNs or infinities in it.
        """
        blocks = [block.astype(np.float32) for _, block in self._source.blocks(name)]
        whole = np.concatenate(blocks)
        if not np.isfinite(whole).all():
            self._refuse(name, "finite numbers", "NaN or infinity")
        return whole

    def leaves(self) -> dict[tuple[str, ...], np.ndarray]:
        """Returns all that the folder holds as arrays of ours, by their paths."""
        found: dict[tuple[str, ...], np.ndarray] = {}
        learning = self.learning
        kernels = _kernels(self._config)
        for layer in learning.adapted:
            for side, kind in _SIDES.items():
                if kind == "lora_a" and layer.number:
                    continue
                stack = []
                for piece in kernels[layer.path]:
                    module = piece.name.removesuffix(".weight")
                    matrix = self.array(self._pairs[module][side])
                    if side == "B":
                        matrix = np.split(matrix, piece.parts)[piece.part]
                    stack.append(matrix.T)
                lead = _lead(kernels[layer.path])
                found[*layer.path, kind] = np.stack(stack).reshape(*lead, *stack[0].shape)
        for path, pieces in _by_path(self._config, learning.trained or frozenset()).items():
            stack = []
            for piece in pieces:
                matrix = self.array(self._saved[piece.name])
                matrix = np.split(matrix, piece.parts)[piece.part]
                kernel = path[-1] == "kernel"
                stack.append(matrix.reshape(len(matrix), -1).T if kernel else matrix)
            found[path] = np.stack(stack).reshape(*_lead(pieces), *stack[0].shape)
        return found

    def add_to(
        self, name: str, blocks: Iterator[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields rows of a tensor of the base with the adapter added, or those in their place.

        Args:
          name: the hub's name of the tensor.
          blocks: rows of the base, each block with the number of its first row.

        Rows that change are in float32.
        """
        pair = self._pairs.get(name.removesuffix(".weight"))
        saved = self._saved.get(name)
        if pair is None and saved is None:
            yield from blocks
            return
        if saved is not None:
            whole = self.array(saved)
            for first, block in blocks:
                yield first, whole[first : first + len(block)]
            return
        assert pair is not None
        a, b = self.array(pair["A"]), self.array(pair["B"])
        for first, block in blocks:
            more = self._lora.scale * (b[first : first + len(block)] @ a)
            yield first, block.astype(np.float32) + more.reshape(block.shape)


def _read_config(path: Path) -> _Config:
    """Returns an adapter's config, known to say nothing that ours does not do."""
    stored = files.read_json_object(path)
    told = schemas.check(stored, _Config, where=str(path), advice=_ADVICE)
    wanted = {"peft_type": "LORA", "bias": "none"}
    for name, value in wanted.items():
        if (got := getattr(told, name)) not in (value, None):
            raise ValueError(
                f"{path}: {name}: expected {value!r}, got {schemas.short_repr(got)}: others are "
                "not supported; do: train a plain LoRA"
            )
    if told.init_lora_weights not in _SAFE_DRAWS:
        raise ValueError(
            f"{path}: init_lora_weights: expected a draw that leaves the base as it is, got "
            f"{schemas.short_repr(told.init_lora_weights)}, beside which the base is another; do: "
            "save it with peft's path_initial_model_for_weight_conversion"
        )
    for name, value in stored.items():
        if not _READ.fullmatch(name) and name not in wanted and value:
            raise ValueError(
                f"{path}: {name}: expected none, got {schemas.short_repr(value)}: it is not "
                "supported; do: train a plain LoRA, or merge the adapter with peft's "
                "merge_and_unload"
            )
    return told


def write(folder: Path, learning: Learning, learned: Any, *, base: str) -> None:
    """Writes what has been learnt beside frozen weights.

    Args:
      folder: an empty one.
      learning: which weights these are.
      learned: their arrays, a tree.
      base: name or folder of the model that they belong to.
    """
    found = {path: np.asarray(leaf) for path, leaf in weights.leaves(learned).items()}
    tensors = dict(sorted(_tensors(learning, found).items()))
    entries = [
        safetensors.Entry(name, np.dtype(array.dtype), array.shape)
        for name, array in tensors.items()
    ]
    file = safetensors.one_file(WEIGHTS, entries)
    safetensors.write(file, folder, lambda name: iter([tensors[name]]))
    files.write_json(folder / CONFIG, _config(learning, base))


def _tensors(
    learning: Learning, found: Mapping[tuple[str, ...], np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns what is written, by peft's names."""
    out: dict[str, np.ndarray] = {}
    kernels, outside = _kernels(learning.config), functools.partial(_outside, learning.config)
    rows: dict[str, dict[int, np.ndarray]] = {}
    for layer in learning.adapted:
        for piece in kernels[layer.path]:
            name = f"{PREFIX}{outside(piece.name.removesuffix('.weight'))}"
            if layer.number == 0:
                a = found[*layer.path, "lora_a"][piece.at]
                out[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            b = found[*layer.path, "lora_b"][piece.at]
            rows.setdefault(f"{name}.lora_B.weight", {})[piece.part] = b.T
    shapes: dict[str, tuple[int, ...]] = {}
    for path, pieces in _by_path(learning.config, learning.trained or frozenset()).items():
        for piece in pieces:
            array = found[path][piece.at] if piece.at else found[path]
            name = f"{PREFIX}{outside(piece.name)}"
            rows.setdefault(name, {})[piece.part] = array.T if path[-1] == "kernel" else array
            shapes[name] = piece.shape
    for name, parts in rows.items():
        whole = np.concatenate([parts[number] for number in sorted(parts)])
        out[name] = whole.reshape(shapes.get(name, whole.shape))
    return out


def _config(learning: Learning, base: str) -> dict[str, Any]:
    told = learning.lora
    assert told.rank is not None
    alpha = told.rank if told.alpha is None else told.alpha
    saved = {
        _outside(learning.config, piece.name).rpartition(".")[0]
        for pieces in _by_path(learning.config, learning.trained or frozenset()).values()
        for piece in pieces
    }
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": told.rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "use_rslora": told.rank_stabilised,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": _targets(learning),
        "modules_to_save": sorted(saved) or None,
    }


def _targets(learning: Learning) -> list[str] | str:
    """Returns the ends of the names of adapted layers; an expression where others have them too."""
    wanted = {module for layer in learning.adapted for module in layer.modules}
    every = {piece.name.rpartition(".")[0] for piece in weights.tensor_parts(learning.config)}
    ends = {module.rpartition(".")[2] for module in wanted}
    if {module for module in every if module.rpartition(".")[2] in ends} == wanted:
        return sorted(ends)
    # Numbers of layers and experts stand within names; one at an end tells layers apart.
    names = {re.escape(_outside(learning.config, module)) for module in wanted}
    return "|".join(sorted({re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", name) for name in names}))


def _outside(config: Any, name: str) -> str:
    """Returns the name within a loaded model of what has a name on the hub."""
    for start, hub in families.family_of(config).aliases:
        if name.startswith(hub):
            return start + name.removeprefix(hub)
    return name


@functools.cache
def _kernels(config: Any) -> dict[tuple[str, ...], list[weights.TensorPart]]:
    """Returns where the kernels of layers stand, by the paths of layers."""
    found: dict[tuple[str, ...], list[weights.TensorPart]] = {}
    for piece in weights.tensor_parts(config):
        if piece.path[-1] == "kernel":
            found.setdefault(piece.path[:-1], []).append(piece)
    return found


def _by_path(
    config: Any, paths: frozenset[tuple[str, ...]]
) -> dict[tuple[str, ...], list[weights.TensorPart]]:
    """Returns where some of our arrays stand."""
    found: dict[tuple[str, ...], list[weights.TensorPart]] = {}
    for piece in weights.tensor_parts(config):
        if piece.path in paths:
            found.setdefault(piece.path, []).append(piece)
    return found


def _lead(pieces: list[weights.TensorPart]) -> tuple[int, ...]:
    """Returns the sizes of the axes of layers and experts."""
    return tuple(1 + max(axis) for axis in zip(*(piece.at for piece in pieces), strict=True))


def lay_arrays(
    arrays: Mapping[tuple[str, ...], np.ndarray], shapes: Any, *, on: Mesh | None = None
) -> Any:
    """Returns arrays as a tree with the dtypes of their shapes, laid over a mesh.

    Args:
      arrays: by their paths, as `Folder.leaves` has them.
      shapes: of the weights of a model with adapters.
      on: the mesh; None: the default device.
    """
    flat = [(tuple(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(shapes)]
    tree = nnx.from_flat_state(
        [
            (path, leaf.replace(arrays[path].astype(leaf.dtype)))
            for path, leaf in flat
            if path in arrays
        ]
    )
    return (
        jax.device_put(tree) if on is None else sharding.place(tree, sharding.shardings(tree, on))
    )
