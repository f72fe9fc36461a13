"""Turns the weights of hubs into models and back, by the table of names of each port.

A table says where each of ours stands among theirs. `{}` is the layer (ours are stacked on a
leading axis), `{+2}` the layer of a stack that begins at their layer 2, `{e}` the expert (ours on
the next axis), `*` kernel and weight or bias and bias, `[i/n]` the i-th of n equal parts of the
rows of theirs. Kernels are transposed weights, but for `[kernel]`: theirs is a kernel itself.
"""

from __future__ import annotations

import difflib
import functools
import gc
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from seg_jax import checksums, files, schemas
from seg_jax.models import families
from seg_jax.models.io import orbax_params, safetensors, torch_archive
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding


class TensorPart(NamedTuple):
    """Where one array of a layer, or of one expert of a layer, stands in their files."""

    path: tuple[str, ...]
    """Names of our array."""
    at: tuple[int, ...]
    """Index into our axes of layers and experts."""
    name: str
    """Name of their tensor."""
    part: int
    """Number of the part of their tensor's rows."""
    parts: int
    """Number of equal parts that their tensor's rows are divided into."""
    turned: bool
    """Whether our array is the transpose of theirs, all axes but the first taken as one."""
    shape: tuple[int, ...]
    """Shape of their whole tensor."""
    dtype: np.dtype
    """Dtype that our model keeps the array in."""


def load(
    source: str | Path | Mapping[str, Any],
    *,
    config: Any = None,
    compute: Compute | None = None,
    on: Mesh | None = None,
) -> Any:
    """Returns the model in a hub folder, or of a mapping of their names and its config.

    Of a folder no more is held at a time than one of the model's arrays, or one device's share of
    it where the model lies on a mesh, beside what is already on the devices.

    Args:
      source: folder with `config.json` and `model.safetensors` (or shards and their index, or an
        Orbax checkpoint of ours in `params`); or a file of a family's authors (`.pt`).
      config: replaces the folder's `config.json`; needed for a mapping.
      compute: how to compute, and the dtype that parameters are kept in.
      on: the mesh to lay the parameters over as `sharding.shardings` has it; each process reads
        what its own devices hold. None: the default device.

    Raises:
      ValueError: missing, surplus, misshapen, unreadable or not finite weights.
    """
    compute = compute or Compute()
    if isinstance(source, Mapping):
        if config is None:
            raise ValueError(
                "config: expected a Config beside a mapping of arrays, got None; do: pass config="
            )
        return _assemble(config, compute, safetensors.Arrays(source), on=on)
    folder = Path(source)
    if is_archive(folder):
        found, archive = open_archive(folder)
        return _assemble(config or found, compute, archive, on=on, published=True)
    config = config or families.read(folder)
    if (folder / orbax_params.FOLDER).is_dir():
        model = _restore(config, compute, folder, on=on)
    else:
        model = _assemble(config, compute, safetensors.open_folder(folder), on=on)
    check_files(folder)  # Last: what is wrong in a way of its own is told in its own words.
    return model


def is_archive(path: Path) -> bool:
    """Returns whether a path is that of a file of a model's authors, not of a folder."""
    return path.suffix in torch_archive.SUFFIXES and not path.is_dir()


def open_archive(path: Path) -> tuple[Any, safetensors.Arrays]:
    """Returns the config of a file of a model's authors, and its tensors.

    Their names are those of `family.table(config, published=True)`: the hub's in most families.

    Raises:
      ValueError: no weights that `torch.save` wrote, or those of no family that is published so.
    """
    archive = torch_archive.Archive(path)
    shapes = {name: archive.shape(name) for name in archive.names()}
    for family in families.FAMILIES.values():
        if (known := family.published) is not None and known.is_of(shapes):
            try:
                config = known.config(shapes)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            return config, torch_archive.Renamed(archive, known.sources(shapes))
    names = [one for one, family in families.FAMILIES.items() if family.published is not None]
    raise ValueError(
        f"{path}: expected weights as the authors of {', '.join(names)} publish them, got the "
        f"tensor {schemas.short_repr(min(shapes))} and {len(shapes) - 1} more; do: give a folder "
        "of the hub with safetensors"
    )


def check_files(folder: Path) -> None:
    """Compares the weights of a folder with its checksums, if it has any.

    Of several processes each reads its share of the bytes; where one finds damage, all end.

    Raises:
      ValueError: a file is damaged.
    """
    share = (jax.process_index(), jax.process_count())
    checksums.check_folder(folder, is_of_weights, share=share)


def is_of_weights(name: str) -> bool:
    """Returns whether a file of a model's folder holds weights."""
    return name.endswith(".safetensors") or name.startswith(f"{orbax_params.FOLDER}/")


def save(model: Any, folder: str | Path) -> None:
    """Writes `config.json` and safetensors that transformers' `from_pretrained` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ours = ModelTensors(model.config, nnx.state(model))
    files.write_json(folder / "config.json", model.config.to_hf())
    plan = safetensors.plan(ours.entries())
    for file in plan:
        safetensors.write(file, folder, lambda name: iter([ours.read(name)]))
    safetensors.write_index(plan, folder)


def export(model: Any) -> dict[str, np.ndarray]:
    """Returns all weights by their hub names, in the dtype that they are kept in."""
    ours = ModelTensors(model.config, nnx.state(model))
    return {entry.name: ours.read(entry.name) for entry in ours.entries()}


class ModelTensors:
    """The parameters of a model as the tensors that hubs have."""

    def __init__(self, config: Any, params: Any):
        """Takes the config and the state of a model."""
        self._leaves = leaves(params)
        self._parts: dict[str, list[TensorPart]] = {}
        for piece in tensor_parts(config):
            self._parts.setdefault(piece.name, []).append(piece)

    def entries(self) -> list[safetensors.Entry]:
        """Returns every tensor as it is to be written."""
        return [
            safetensors.Entry(name, np.dtype(self._leaves[found[0].path].dtype), found[0].shape)
            for name, found in self._parts.items()
        ]

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor; no other is brought from the devices."""
        parts = []
        for piece in sorted(self._parts[name], key=lambda piece: piece.part):
            leaf = self._leaves[piece.path]
            array = np.asarray(leaf[piece.at] if piece.at else leaf)
            parts.append(array.T if piece.turned else array)
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(whole).reshape(self._parts[name][0].shape)


class HubTensors:
    """Their tensors, found to be those of a config, by the names of the hub."""

    def __init__(self, config: Any, source: safetensors.Arrays, *, published: bool = False):
        """Checks names and shapes.

        Args:
          config: of the model.
          source: its tensors.
          published: whether names are those of its authors' own file.

        Raises:
          ValueError: tensors are missing, surplus or misshapen.
        """
        family = families.family_of(config)
        self.source = source
        self.parts = tensor_parts(config, published=published)
        self.entries: dict[str, safetensors.Entry] = {}
        """Every tensor that the model has, as it is in the source."""
        self._names: dict[str, str] = {}
        wanted = {piece.name: piece.shape for piece in self.parts}
        for name in source.names():
            known = hub_name(name, family.aliases)
            if known not in wanted and (
                safetensors.BUFFER.search(known)
                or (family.surplus is not None and family.surplus.match(known))
            ):
                continue
            if (other := self._names.setdefault(known, name)) != name:
                raise ValueError(
                    f"{source.where}{name}: expected each tensor once, got it as {other} too; do: "
                    "remove the one that is wrong"
                )
        for name in family.repeated(config):
            if name in self._names and name not in wanted:
                self._check_repeats(name, family.table(config)["embed/embedding"])
                del self._names[name]
        _check_names(set(wanted), set(self._names), source.where)
        wrong = [
            f"{name}: expected {shape}, got {source.shape(self._names[name])}"
            for name, shape in wanted.items()
            if source.shape(self._names[name]) != shape
        ]
        if wrong:
            raise ValueError(source.where + _several("shapes", wrong) + "; do: check config.json")
        for name, shape in wanted.items():
            self.entries[name] = safetensors.Entry(name, source.dtype(self._names[name]), shape)

    def _check_repeats(self, name: str, embedding: str) -> None:
        """Raises ValueError unless tied weights repeat the embedding."""
        source, theirs, known = self.source, self._names[name], self._names.get(embedding)
        if known is None:
            return  # It is missed in a moment.
        shape = source.shape(theirs)
        same = shape == source.shape(known) and all(
            np.array_equal(*(_rows(source, one, begin) for one in (theirs, known)), equal_nan=True)
            for begin in range(0, shape[0], _ROWS)
        )
        if not same:
            raise ValueError(
                f"{source.where}{name}: expected the values of {embedding}, to which "
                "tie_word_embeddings in config.json ties it, got others; do: set "
                "tie_word_embeddings to false to keep it, as transformers does, or remove the "
                "tensor"
            )

    def blocks(
        self, name: str, begin: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields rows begin..end of a tensor in pieces, each with the number of its first row.

        Raises:
          ValueError: there are NaNs or infinities in them.
        """
        for first, block in self.source.blocks(self._names[name], begin, end):
            if not _is_finite(block):
                raise ValueError(
                    f"{self.source.where}{self._names[name]}: expected finite weights, got NaN or "
                    "infinity; do: fetch the weights again, or take a checkpoint from before the "
                    "training diverged"
                )
            yield first, block


def _is_finite(block: np.ndarray) -> bool:
    """Returns whether no value is NaN or infinite."""
    if block.dtype != jnp.bfloat16 or not block.size:
        return bool(np.isfinite(block).all())
    # NumPy converts each bfloat16; of their bits it finds the extremes ten times faster.
    positive, negative = block.view(np.int16).max(), block.view(np.uint16).max()
    return positive < 0x7F80 and negative < 0xFF80


@functools.cache  # Needed at every load and save.
def tensor_parts(config: Any, *, published: bool = False) -> tuple[TensorPart, ...]:
    """Returns every array of a model, layer by layer, with its place in their files.

    Args:
      config: of the model.
      published: by the names of its authors' own file instead of the hub's.
    """
    found: list[TensorPart] = []
    family = families.family_of(config)
    names, convolutions = family.table(config, published=published), family.convolutions(config)
    rough = Compute(param_dtype="bfloat16")  # What stays wide is kept wide on purpose.
    dtypes = {path: leaf.dtype for path, leaf in leaves(blank(config, rough)).items()}
    for path, leaf in leaves(blank(config, Compute())).items():
        pattern = _pattern(names, path)
        part, parts = 0, 1
        turned = path[-1] == "kernel" and not pattern.endswith("[kernel]")
        pattern = pattern.removesuffix("[kernel]")
        if match := re.fullmatch(r"(.*)\[(\d+)/(\d+)\]", pattern):
            pattern, part, parts = match[1], int(match[2]), int(match[3])
        lead = bool(_LAYER.search(pattern)) + ("{e}" in pattern)
        shape: tuple[int, ...] = leaf.shape[lead:]
        shape = shape[::-1] if turned else shape
        shape = (shape[0] * parts, *shape[1:]) if shape else ()
        if (inner := convolutions.get("/".join(path))) is not None:
            shape = (*shape[:1], *inner)
        dtype = np.dtype(dtypes[path])
        for at in np.ndindex(*leaf.shape[:lead]):
            name = _numbered(pattern, at)
            found.append(TensorPart(path, at, name, part, parts, turned, shape, dtype))
    return tuple(found)


def blank(config: Any, compute: Compute) -> Any:
    """Returns a model of shapes instead of weights."""
    return nnx.merge(*_shapes(config, compute))


@functools.lru_cache(maxsize=16)
def _shapes(config: Any, compute: Compute) -> tuple[nnx.GraphDef, Any]:
    family = families.family_of(config)
    model = nnx.eval_shape(lambda: family.model(config, compute=compute, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    # Shapes that are made under a mesh are laid over it; another may ask for them next.
    return graph, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    """Returns the arrays of a model or its state by the names of their paths."""
    state = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    found = jax.tree_util.tree_leaves_with_path(state)
    return {_path(path): leaf for path, leaf in found}


def _pattern(names: Mapping[str, str], path: tuple[str, ...]) -> str:
    """Returns the hub's name, with its placeholders, of the parameter at one of our paths."""
    if exact := names.get("/".join(path)):
        return exact
    theirs = {"kernel": "weight", "bias": "bias"}[path[-1]]
    return names["/".join((*path[:-1], "*"))].replace("*", theirs)


def _numbered(pattern: str, at: tuple[int, ...]) -> str:
    if not at:
        return pattern
    name = _LAYER.sub(lambda found: str(at[0] + int(found[1] or 0)), pattern)
    return name.replace("{e}", str(at[-1]))


_LAYER = re.compile(r"\{(\+\d+)?\}")


def _assemble(
    config: Any,
    compute: Compute,
    source: safetensors.Arrays,
    *,
    on: Mesh | None,
    published: bool = False,
) -> Any:
    """Returns the model made of their tensors."""
    theirs = HubTensors(config, source, published=published)
    grouped: dict[tuple[str, ...], list[TensorPart]] = {}
    for piece in theirs.parts:
        grouped.setdefault(piece.path, []).append(piece)
    graph, state = nnx.split(blank(config, compute))
    places = None if on is None else sharding.shardings(state, on)

    def fill(path, leaf, place=None):
        def share(index: tuple[slice, ...]) -> np.ndarray:
            return _read_share(theirs, grouped[_path(path)], index, dtype=leaf.dtype)

        return _place_shares(leaf.shape, place, share)

    trees = (state,) if places is None else (state, places)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, *trees))


def _restore(config: Any, compute: Compute, folder: Path, *, on: Mesh | None) -> Any:
    """Returns the model of an Orbax checkpoint."""
    graph, state = nnx.split(blank(config, compute))
    if on is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: here, state)
    else:
        places = sharding.shardings(state, on)
    return nnx.merge(graph, orbax_params.read(folder, sharding.with_shardings(state, places)))


def _place_shares(
    shape: tuple[int, ...], place: Any, share: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """Returns an array with a sharding; one share of it at a time is on the host."""
    if place is None:
        out = jax.device_put(share(tuple(slice(0, size) for size in shape)))
        _settle(out)
        return out
    alike: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in place.addressable_devices_indices_map(shape).items():
        spans = zip(index, shape, strict=True)
        alike.setdefault(tuple(part.indices(size)[:2] for part, size in spans), []).append(device)
    arrays = []
    for spans, devices in alike.items():
        buffer = share(tuple(slice(*span) for span in spans))
        arrays += [jax.device_put(buffer, device) for device in devices]
        del buffer
        _settle(arrays)
    return jax.make_array_from_single_device_arrays(shape, place, arrays)


def _settle(arrays: Any) -> None:
    """Waits for transfers and lets go of the buffers that they came from.

    Without it buffers pile up on the host; JAX lets go of them when Python collects garbage.
    """
    jax.block_until_ready(arrays)
    gc.collect(0)


def _read_share(
    theirs: HubTensors, found: list[TensorPart], index: tuple[slice, ...], *, dtype: Any
) -> np.ndarray:
    """Returns the indexed share of one of our arrays."""
    out = np.empty([part.stop - part.start for part in index], np.dtype(dtype))
    lead = len(found[0].at)
    wanted, inner = index[:lead], index[lead:]
    for piece in found:
        if all(part.start <= i < part.stop for i, part in zip(piece.at, wanted, strict=True)):
            at = tuple(i - part.start for i, part in zip(piece.at, wanted, strict=True))
            _copy_rows(theirs, piece, inner, out=out[(*at, ...)])
    return out


def _copy_rows(
    theirs: HubTensors, piece: TensorPart, index: tuple[slice, ...], *, out: np.ndarray
) -> None:
    """Copies the indexed share of one of our arrays of a layer from their rows, block by block."""
    if not index:  # A scalar.
        for _, block in theirs.blocks(piece.name):
            out[...] = block
        return
    rows, *rest = index[::-1] if piece.turned else index
    skipped = piece.part * piece.shape[0] // piece.parts
    for first, block in theirs.blocks(piece.name, skipped + rows.start, skipped + rows.stop):
        begin = first - skipped - rows.start
        span = slice(begin, begin + len(block))
        if piece.turned:
            out[:, span] = block.reshape(len(block), -1)[:, rest[0]].T
        else:
            out[span] = block[(slice(None), *rest)]


_ROWS = 4096
"""Rows of two tensors that are compared at once."""


def _rows(source: safetensors.Arrays, name: str, begin: int) -> np.ndarray:
    """Returns some rows of a matrix in float32."""
    end = min(begin + _ROWS, source.shape(name)[0])
    blocks = [block for _, block in source.blocks(name, begin, end)]
    return np.concatenate(blocks).astype(np.float32)


def _check_names(wanted: set[str], got: set[str], where: str) -> None:
    """Refuses missing and surplus names, each with the nearest name on the other side."""
    missing, surplus = sorted(wanted - got), sorted(got - wanted)
    if adapter := [name for name in surplus if re.search(r"(^|\.)lora_|^base_model\.", name)]:
        raise ValueError(
            f"{where}{adapter[0]}: expected the weights of a model, got those of an adapter "
            "(LoRA); do: merge it into its model first (peft's merge_and_unload)"
        )
    lines = []
    if missing:
        lines.append(
            _several("missing", [_with_nearest(name, surplus) for name in missing[:5]], missing)
        )
    if surplus:
        lines.append(
            _several("surplus", [_with_nearest(name, missing) for name in surplus[:5]], surplus)
        )
    if lines:
        raise ValueError(
            f"{where}expected the {len(wanted)} tensors of this config, got "
            + "; ".join(lines)
            + "; do: check that config.json belongs to these weights"
        )


def _with_nearest(name: str, others: list[str]) -> str:
    close = difflib.get_close_matches(name, others, n=1)
    return f"{name} (near {close[0]})" if close else name


def _several(what: str, lines: list[str], of: list[str] | None = None) -> str:
    count = len(of or lines)
    shown = ", ".join(lines[:5]) + (f" and {count - 5} more" if count > 5 else "")
    return f"{count} {what}: {shown}"


def hub_name(name: str, aliases: tuple[tuple[str, str], ...]) -> str:
    """Returns the hub's name of a tensor; transformers' own state_dict names differ."""
    for start, hub in aliases:
        if name.startswith(start):
            return hub + name.removeprefix(start)
    return name


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the names of a key path, without NNX's last step into the variable."""
    return tuple(str(key.key) for key in path if hasattr(key, "key"))
