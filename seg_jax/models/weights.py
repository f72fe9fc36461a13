"""Reads and writes Qwen2.5-VL weights in the safetensors layout of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from seg_jax.models import layers, qwen25_vl

SHARD_BYTES = 5 * 10**9
"""Largest file that is written, as on the hub."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one array of a layer stands in their file."""

    path: tuple[str, ...]
    layer: int | None
    name: str
    part: int
    parts: int
    shape: tuple[int, ...]
    """Of the whole tensor in their file."""


def load(
    source: str | Path | Mapping[str, np.ndarray],
    *,
    config: qwen25_vl.Config | None = None,
    compute: layers.Compute | None = None,
) -> qwen25_vl.Qwen25VL:
    """Returns the model in a hub folder, or of a mapping of their names and its config.

    Args:
      source: folder with `config.json` and `model.safetensors` (or shards and their index).
      config: replaces the folder's `config.json`; needed for a mapping.
      compute: how to compute, and the dtype that parameters are kept in.

    Raises:
      ValueError: missing, surplus, misshapen or unreadable weights.
    """
    compute = compute or layers.Compute()
    if isinstance(source, Mapping):
        if config is None:
            raise ValueError("config: expected a Config beside a mapping of arrays, got None")
        return _assemble(config, compute, _Tensors(source))
    folder = Path(source)
    config = config or _config(folder / "config.json")
    return _assemble(config, compute, _open(folder))


def save(model: qwen25_vl.Qwen25VL, folder: str | Path) -> None:
    """Writes `config.json` and safetensors that transformers' `from_pretrained` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = export(model)
    (folder / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")
    files = _shards(tensors)
    if len(files) == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for i, names in enumerate(files):
        file = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        save_file({n: tensors[n] for n in names}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n")


def export(model: qwen25_vl.Qwen25VL) -> dict[str, np.ndarray]:
    """Returns all weights by their hub names, in the dtype that they are kept in."""
    ours = {path: np.asarray(leaf) for path, leaf in _leaves(nnx.state(model)).items()}
    tensors: dict[str, list[np.ndarray]] = {}
    shapes = {}
    for slot in sorted(slots(model.config), key=lambda slot: slot.part):
        array = ours[slot.path] if slot.layer is None else ours[slot.path][slot.layer]
        rows = array.T if slot.path[-1] == "kernel" else array
        tensors.setdefault(slot.name, []).append(rows)
        shapes[slot.name] = slot.shape
    return {
        name: np.ascontiguousarray(np.concatenate(parts).reshape(shapes[name]))
        for name, parts in tensors.items()
    }


class _Tensors:
    """Their tensors by hub name, read one at a time."""

    where = ""
    """Begins an error's line: the folder, if they come from one."""

    def __init__(self, source: Mapping[str, np.ndarray]):
        self.names = {_hub_name(name): name for name in source}
        self.source = source

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.source[self.names[name]].shape)

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self.source[self.names[name]])


class _Files(_Tensors):
    """The same from safetensors files, held open and mapped."""

    def __init__(self, files: Mapping[str, Path], folder: Path):
        self.where = f"{folder}: "
        self.names = {_hub_name(name): name for name in files}
        self.files = files
        self.open: dict[Path, Any] = {}

    def _file(self, name: str) -> Any:
        path = self.files[self.names[name]]
        if path not in self.open:
            self.open[path] = _safe_open(path)
        return self.open[path]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).get_slice(self.names[name]).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self._file(name).get_tensor(self.names[name])


def slots(config: qwen25_vl.Config) -> Iterator[Slot]:
    """Yields every array of a model, layer by layer, with its place in their file."""
    for path, leaf in _leaves(_abstract(config, layers.Compute())).items():
        pattern = _pattern(path)
        name, part, parts = pattern, 0, 1
        if found := re.fullmatch(r"(.*)\[(\d)/(\d)\]", pattern):
            name, part, parts = found[1], int(found[2]), int(found[3])
        stacked = "{}" in name
        shape = leaf.shape[1:] if stacked else leaf.shape
        shape = shape[::-1] if path[-1] == "kernel" else shape
        shape = (shape[0] * parts, *shape[1:])
        if path == ("vision", "patch", "kernel"):
            v = config.vision
            shape = (shape[0], 3, v.temporal_patch_size, v.patch_size, v.patch_size)
        for layer in range(leaf.shape[0]) if stacked else [None]:
            yield Slot(path, layer, name.format(layer), part, parts, shape)


def _pattern(path: tuple[str, ...]) -> str:
    """Returns their name for one of our paths."""
    exact = qwen25_vl.NAMES.get("/".join(path))
    if exact:
        return exact
    return qwen25_vl.NAMES["/".join((*path[:-1], "*"))].replace(
        "*", {"kernel": "weight", "bias": "bias"}[path[-1]]
    )


def _assemble(
    config: qwen25_vl.Config, compute: layers.Compute, theirs: _Tensors
) -> qwen25_vl.Qwen25VL:
    """Returns the model made of their tensors."""
    wanted = list(slots(config))
    _check_names({slot.name for slot in wanted}, theirs, config)
    wrong = [
        f"{slot.name}: expected {slot.shape}, got {theirs.shape(slot.name)}"
        for slot in wanted
        if theirs.shape(slot.name) != slot.shape
    ]
    if wrong:
        raise ValueError(theirs.where + _several("shapes", wrong) + ": do: check config.json")
    dtype = jnp.dtype(compute.param_dtype)
    stacks: dict[tuple[str, ...], list[np.ndarray]] = {}
    for slot in wanted:
        array = theirs.read(slot.name)
        array = np.split(array.reshape(array.shape[0], -1), slot.parts)[slot.part]
        array = array.T if slot.path[-1] == "kernel" else array.reshape(-1, *slot.shape[1:])
        stacks.setdefault(slot.path, []).append(array.astype(dtype))
    layered = {slot.path for slot in wanted if slot.layer is not None}
    model = nnx.eval_shape(lambda: _blank(config, compute))
    graph, state = nnx.split(model)

    def fill(path, leaf):
        names = _path(path)
        arrays = stacks.pop(names)
        return jnp.asarray(np.stack(arrays) if names in layered else arrays[0]).reshape(leaf.shape)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def _check_names(wanted: set[str], theirs: _Tensors, config: qwen25_vl.Config) -> None:
    """Refuses missing and surplus names, each with the nearest name on the other side."""
    got = set(theirs.names)
    if config.tie_word_embeddings:
        got = got - {"lm_head.weight"}  # Some files repeat the tied embedding.
    missing, surplus = sorted(wanted - got), sorted(got - wanted)
    lines = []
    if missing:
        lines.append(_several("missing", [_near(name, surplus) for name in missing]))
    if surplus:
        lines.append(_several("surplus", [_near(name, missing) for name in surplus]))
    if lines:
        raise ValueError(
            f"{theirs.where}expected the {len(wanted)} tensors of this config, got "
            + "; ".join(lines)
            + ": do: check that config.json belongs to these weights"
        )


def _near(name: str, others: list[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f"{name} (near {close[0]})" if close else name


def _several(what: str, lines: list[str]) -> str:
    shown = ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
    return f"{len(lines)} {what}: {shown}"


def _hub_name(name: str) -> str:
    """Returns the hub's name of a tensor; transformers' own state_dict names differ."""
    for start, hub in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(start):
            return hub + name.removeprefix(start)
    return name


def _open(folder: Path) -> _Files:
    """Returns the tensors of a folder."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.exists():
        named = _json(index)["weight_map"]
        return _Files({name: folder / file for name, file in named.items()}, folder)
    if whole.exists():
        return _Files(dict.fromkeys(_safe_open(whole).keys(), whole), folder)
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pth", ".pt"))
    if pickles:
        raise ValueError(
            f"{folder}: expected safetensors, got {pickles[0]}: such a file can run code when it "
            "is opened; do: convert it with transformers' save_pretrained"
        )
    raise ValueError(
        f"{folder}: expected model.safetensors or its index, got neither: do: fetch the weights"
    )


def _safe_open(path: Path) -> Any:
    """Opens a safetensors file or says in one line what is wrong with it."""
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a file named by the index, got none") from None
    except (SafetensorError, OSError, struct.error) as error:
        raise ValueError(
            f"{path}: expected a whole safetensors file, got a broken or truncated one ({error}): "
            "do: fetch it again"
        ) from None


def _config(path: Path) -> qwen25_vl.Config:
    found = _json(path)
    try:
        return qwen25_vl.Config.from_hf(found)
    except ValueError as error:
        reason = str(error).removeprefix("config.json: ")
        raise ValueError(f"{path}: {reason}: do: copy the one of these weights") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a file, got none: do: fetch it again") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}: do: fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, got {found!r:.40}: do: fetch it again")
    return found


def _shards(tensors: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Returns the names of each file, none larger than SHARD_BYTES unless one tensor is."""
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if files[-1] and size + tensor.nbytes > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += tensor.nbytes
    return files


def _blank(config: qwen25_vl.Config, compute: layers.Compute) -> qwen25_vl.Qwen25VL:
    return qwen25_vl.Qwen25VL(config, compute=compute, rngs=nnx.Rngs(0))


def _abstract(config: qwen25_vl.Config, compute: layers.Compute) -> Any:
    return nnx.state(nnx.eval_shape(lambda: _blank(config, compute)))


def _leaves(state: Any) -> dict[tuple[str, ...], Any]:
    found = jax.tree_util.tree_leaves_with_path(state)
    return {_path(path): leaf for path, leaf in found}


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the names of a key path, without NNX's last step into the variable."""
    return tuple(str(key.key) for key in path if hasattr(key, "key"))
