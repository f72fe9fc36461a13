"""A trained model in a folder: weights, tokenizer, layout of its rows and its task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from flax import nnx
from jax.sharding import Mesh
from msgspec import Meta

from seg_jax import checksums, files, schemas
from seg_jax.data import encode
from seg_jax.data.encode import Encoder, Layout, Native
from seg_jax.grammar.tokenizer import tiktoken_bpe, tokens
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.inference import processing
from seg_jax.models import families
from seg_jax.models.adapters import lora, peft_folder
from seg_jax.models.adapters.lora import Learning
from seg_jax.models.io import model_folder, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.tasks import table
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task

MANIFEST = "seg_jax.json"
"""What Hugging Face's files do not say: layout and task."""
MOST_MANIFEST_BYTES = 1 << 20
"""The largest manifest that is read; they have a kilobyte."""
MOST_ENDS = 100
"""Tokens that may end an answer; published models have up to three."""
TOKENIZERS = (tokens.TOKENS, tiktoken_bpe.FILE)
"""One of these is a tokenizer."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What is needed to ask a model."""

    graph: nnx.GraphDef
    """The model without its weights."""
    params: Any
    """Weights, or their shapes as long as none are needed."""
    tokenizer: Tokenizer
    tokenizer_folder: Path
    """Where the tokenizer's files lie; they travel with the model."""
    layout: Layout
    task: Task
    more_ends: tuple[int, ...] = ()
    """Tokens that end an answer beside the tokenizer's own two (`generation_config.json`)."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        own = (self.tokenizer.end_id, self.tokenizer.eos_id)
        return tuple(dict.fromkeys((*own, *self.more_ends)))

    @property
    def encoder(self) -> Encoder:
        """The encoder of the model's tokenizer and layout."""
        return Encoder(self.tokenizer, self.layout)


def save(bundle: Bundle, folder: Path) -> None:
    """Writes the folder: Hugging Face's files and the manifest; whole or not at all.

    Raises:
      OSError: the folder cannot be written.
    """
    with model_folder.replacing(folder) as temporary:
        model = nnx.merge(bundle.graph, bundle.params)
        model_folder.write(model, temporary, source=bundle.tokenizer_folder)
        if not any((temporary / name).exists() for name in TOKENIZERS):
            raise FileNotFoundError(
                f"{bundle.tokenizer_folder}: expected the tokenizer that the model was loaded "
                "with, got none; do: put its folder back"
            )
        processing.write(
            temporary, config=model.config, layout=bundle.layout, tokenizer=bundle.tokenizer
        )
        write_manifest(temporary, bundle.layout, bundle.task)


def save_adapter(
    bundle: Bundle, folder: Path, *, learning: Learning, learned: Any, base: Path
) -> None:
    """Writes the folder of an adapter, in peft's format and the manifest; whole or not at all.

    Args:
      bundle: the model that it belongs to, its layout and task those that were learnt.
      folder: where to.
      learning: which weights have learnt.
      learned: these, on the host.
      base: folder of the model.

    Raises:
      OSError: the folder cannot be written.
    """
    with model_folder.replacing(folder) as temporary:
        peft_folder.write(temporary, learning, learned, base=str(base))
        write_manifest(temporary, bundle.layout, bundle.task)


def write_manifest(folder: Path, layout: Layout, task: Task) -> None:
    """Writes what Hugging Face's files do not say."""
    manifest = {"layout": dataclasses.asdict(layout), "task": table.as_json(task)}
    files.write_json(folder / MANIFEST, manifest)


def load(
    folder: Path,
    *,
    compute: Compute | None = None,
    on: Mesh | None = None,
    visual_tokens: int | None = None,
    task_kind: type[Task] | None = None,
    adapter: Path | None = None,
) -> Bundle:
    """Returns the model of a folder that `save` wrote, or of a plain one of Hugging Face's.

    A plain folder's images are cut as its `preprocessor_config.json` says; its task is the
    default one.

    Args:
      folder: of the model.
      compute: how it is to compute; float32 if None.
      on: the mesh to lay the parameters over; None: the default device.
      visual_tokens: image tokens of a row of a plain folder, 1280 if None.
      task_kind: class of the task that the folder stores, if it is none of the package's.
      adapter: folder of an adapter that works beside the weights; layout and task are its own
        where it says them.

    Raises:
      ValueError: the folder is not such a one, a file in it is broken, `visual_tokens` are
        given for a model that was trained with others, or the adapter is of another base.
    """
    bundle = blank(
        folder,
        compute=compute,
        visual_tokens=visual_tokens,
        task_kind=task_kind,
        adapter=adapter,
    )
    found = None
    if adapter is not None:  # A wrong one is told before weights are read.
        found = peft_folder.Folder(adapter, nnx.merge(bundle.graph, bundle.params).config)
    _, params = nnx.split(weights.load(folder, compute=compute, on=on))
    if found is None:
        return dataclasses.replace(bundle, params=params)
    graph, shapes = lora.attach(bundle.graph, params, found.learning)
    params = lora.all_weights(params, peft_folder.lay_arrays(found.leaves(), shapes, on=on))
    found.check()
    return dataclasses.replace(bundle, graph=graph, params=params)


def blank(
    folder: Path,
    *,
    compute: Compute | None = None,
    visual_tokens: int | None = None,
    task_kind: type[Task] | None = None,
    adapter: Path | None = None,
) -> Bundle:
    """Returns the model of a folder with shapes for weights: only its small files are read.

    Args:
      folder: of the model.
      compute: how it is to compute; float32 if None.
      visual_tokens: image tokens of a row of a plain folder, 1280 if None.
      task_kind: as in `load`.
      adapter: whose layout and task these are; its weights are not there.

    Raises:
      ValueError: as `load`, of these files.
    """
    _check_folder(folder)
    layout, task = describe(
        folder, visual_tokens=visual_tokens, task_kind=task_kind, adapter=adapter
    )
    tokenizer, config = Tokenizer.load(folder), families.read(folder)
    _check_fit(config, tokenizer, layout, folder)
    graph, shapes = nnx.split(weights.blank(config, compute or Compute()))
    ends = _ends(folder, config.text.vocab_size)
    checksums.check_folder(folder, lambda name: not weights.is_of_weights(name))
    return Bundle(graph, shapes, tokenizer, folder, layout, task, ends)


def own_task(
    folder: Path, task_kind: type[Task] | None = None, *, adapter: Path | None = None
) -> Task | None:
    """Returns the task that was saved with a model; None for a plain folder of Hugging Face's.

    Args:
      folder: of the model.
      task_kind: as in `load`.
      adapter: folder of an adapter that was learnt beside it.

    Raises:
      ValueError: it is no folder, or its manifest is broken.
    """
    _check_folder(folder)
    path = _teller(folder, adapter) / MANIFEST
    return _manifest(path, task_kind)[1] if path.exists() else None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a checkpoint folder, got "
            f"{'a file' if folder.exists() else 'nothing there'}; "
            "do: give the folder that a training run ended with, as runs/quickstart/checkpoint"
        )


def _teller(folder: Path, adapter: Path | None) -> Path:
    """Returns the folder whose manifest tells layout and task: the adapter's, if it has one."""
    return adapter if adapter is not None and (adapter / MANIFEST).exists() else folder


def describe(
    folder: Path,
    *,
    visual_tokens: int | None = None,
    task_kind: type[Task] | None = None,
    adapter: Path | None = None,
) -> tuple[Layout, Task]:
    """Returns layout and task of a model's folder.

    Args:
      folder: of the model.
      visual_tokens: image tokens of a row of a plain folder, 1280 if None.
      task_kind: as in `load`; the task of a plain folder is the default one.
      adapter: folder of an adapter that was learnt beside it.

    Raises:
      ValueError: the manifest is broken or says how many visual tokens there are, or there is
        none and nothing says how images are cut.
    """
    path = _teller(folder, adapter) / MANIFEST
    families.check_no_adapter(folder)
    if path.exists():
        layout, task = _manifest(path, task_kind)
        if visual_tokens is not None and visual_tokens != (
            taught := layout.max_patches // layout.merge**2
        ):
            raise ValueError(
                f"visual_tokens: expected {taught}, with which {folder} was trained, got "
                f"{visual_tokens}; do: leave --visual-tokens out"
            )
        return layout, task
    try:
        config = families.read(folder)
    except ValueError as error:
        raise ValueError(
            f"{path}: expected it or a model of Hugging Face's, got neither ({error}); do: give "
            "the "
            "checkpoint folder of a training run, or what seg-jax convert wrote"
        ) from error
    try:
        facts = families.vlm_facts(config)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    preprocessor = families.preprocessor(folder)
    if not preprocessor:
        raise ValueError(
            f"{folder}: expected {MANIFEST} or preprocessor_config.json, got neither; do: copy the "
            "one that belongs to the weights"
        )
    try:
        images = facts.image_layout(
            preprocessor, visual_tokens=visual_tokens or encode.VISUAL_TOKENS
        )
        if facts.window_tokens is None:
            return encode.layout_of(images), Referring()
        windows = facts.window_tokens(config)
        return encode.layout_of(images, window_tokens=windows), Referring()
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        if "; do: " in str(error):
            raise ValueError(f"{folder / 'preprocessor_config.json'}: {error}") from error
        raise ValueError(
            f"{folder / 'preprocessor_config.json'}: expected how images are cut, got "
            f"{type(error).__name__}: {error}; do: copy the file that belongs to the weights"
        ) from error


def _ends(folder: Path, table: int) -> tuple[int, ...]:
    """Returns the end tokens of `generation_config.json`, none if there is none."""
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    eos = files.read_json_object(path).get("eos_token_id")
    ends = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    advice = "copy the file that belongs to the weights"
    kind = list[Annotated[int, Meta(ge=0, lt=table)]]
    schemas.check([*ends], kind, where=f"{path}: eos_token_id", advice=advice)
    if len({*ends}) > MOST_ENDS:
        raise ValueError(
            f"{path}: eos_token_id: expected at most {MOST_ENDS} tokens, got {len({*ends})}; do: "
            f"{advice}"
        )
    return tuple(dict.fromkeys(ends))


def _check_fit(config: Any, tokenizer: Tokenizer, layout: Layout, folder: Path) -> None:
    """Raises unless weights, tokenizer and layout speak of the same patches and tokens."""
    table = config.text.vocab_size
    try:
        image_id = tokenizer.image_id
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    pairs = {
        "layout.patch": (layout.patch, config.vision.patch_size),
        "layout.merge": (layout.merge, config.vision.spatial_merge_size),
        "the tokenizer's image token": (image_id, config.image_token_id),
        "tokens beyond the model's table": (max(0, tokenizer.vocab_size - table), 0),
    }
    for name, (got, expected) in pairs.items():
        if got != expected:
            raise ValueError(
                f"{folder}: {name}: expected {expected} as in config.json, got {got}; "
                "do: copy the whole folder again, its files do not belong together"
            )


class _Native(schemas.Record, frozen=True, forbid_unknown_fields=True):
    limit: schemas.Whole = Native.limit
    pad: bool = Native.pad


class _Layout(schemas.Record, frozen=True, forbid_unknown_fields=True):
    """What is stored of a `Layout`; older folders know fewer names, or `window_cells`."""

    patch: schemas.Whole
    merge: schemas.Whole
    window_tokens: schemas.Whole
    min_pixels: schemas.Whole
    max_pixels: schemas.Whole
    max_patches: schemas.Whole
    max_prompt: schemas.Whole
    max_question: schemas.Whole
    max_answer: schemas.Whole
    canvas: tuple[schemas.Whole, schemas.Whole]
    buckets: schemas.Whole = 1
    native: _Native | None = None


class _Manifest(schemas.Record, frozen=True):
    layout: dict[str, Any]
    task: dict[str, Any]


def _manifest(path: Path, task_kind: type[Task] | None) -> tuple[Layout, Task]:
    """Returns what a manifest says of layout and task."""
    where, advice = str(path), table.ADVICE
    stored = files.read_json(path, most=MOST_MANIFEST_BYTES, advice=advice)
    manifest = schemas.check(stored, _Manifest, where=where, advice=advice)
    named = dict(manifest.layout)
    if "window_cells" in named:
        named["window_tokens"] = named.pop("window_cells")
    found = schemas.check(named, _Layout, where=f"{where}, layout", advice=advice)
    values = {name: getattr(found, name) for name in found.__struct_fields__}
    native = values.pop("native")
    if native is not None:
        native = Native(limit=native.limit, pad=native.pad)
    try:
        task = table.from_json(manifest.task, task_kind, where=f"{where}, ")
        return Layout(native=native, **values), task
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {error}") from error
