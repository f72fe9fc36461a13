"""A trained model in a folder: weights, tokenizer, layout of its rows and its task."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from flax import nnx

from seg_jax.data.encode import Encoder, Layout
from seg_jax.grammar.tokens import Tokenizer
from seg_jax.models import layers, weights
from seg_jax.tasks.referring import Mixture, Referring

MANIFEST = "seg_jax.json"
"""What Hugging Face's files do not say: layout and task."""


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What is needed to ask a model."""

    graph: nnx.GraphDef
    """The model without its weights."""
    params: Any
    tokenizer: Tokenizer
    tokenizer_folder: Path
    """Where the tokenizer's files lie; they travel with the model."""
    layout: Layout
    task: Referring

    @property
    def encoder(self) -> Encoder:
        """The encoder of the model's tokenizer and layout."""
        return Encoder(self.tokenizer, self.layout)


def save(bundle: Bundle, folder: Path) -> None:
    """Writes the folder: Hugging Face's files and the manifest; whole or not at all.

    Raises:
      OSError: the folder cannot be written.
    """
    temporary = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights.save(nnx.merge(bundle.graph, bundle.params), temporary)
        for path in sorted(bundle.tokenizer_folder.glob("*.j*")):
            if path.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(path, temporary / path.name)
        if not (temporary / "tokenizer.json").exists():
            raise FileNotFoundError(
                f"{bundle.tokenizer_folder}: expected the tokenizer that the model was loaded "
                "with, got none; put its folder back"
            )
        manifest = {
            "layout": dataclasses.asdict(bundle.layout),
            "task": dataclasses.asdict(bundle.task),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, *, compute: layers.Compute | None = None) -> Bundle:
    """Returns the model of a folder that `save` wrote.

    Args:
      folder: of the model.
      compute: how it is to compute; float32 if None.

    Raises:
      ValueError: the folder is not such a one, or a file in it is broken.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected a checkpoint folder, got "
            f"{'a file' if folder.exists() else 'nothing there'}; "
            "give the folder that a training run ended with, as runs/quickstart/checkpoint"
        )
    layout, task = _manifest(folder / MANIFEST)
    tokenizer = Tokenizer.load(folder)
    try:
        model = weights.load(folder, compute=compute or layers.Compute())
    except (AttributeError, KeyError, TypeError, ArithmeticError, UnicodeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: expected the sizes of a Qwen2.5-VL model, got "
            f"{type(error).__name__}: {error}; copy the file that belongs to the weights"
        ) from error
    _check_fit(model.config, tokenizer, layout, folder)
    graph, params = nnx.split(model)
    return Bundle(graph, params, tokenizer, folder, layout, task)


def _check_fit(config: Any, tokenizer: Tokenizer, layout: Layout, folder: Path) -> None:
    """Raises unless weights, tokenizer and layout speak of the same patches and tokens."""
    table = config.text.vocab_size
    pairs = {
        "layout.patch": (layout.patch, config.vision.patch_size),
        "layout.merge": (layout.merge, config.vision.spatial_merge_size),
        "the tokenizer's image token": (tokenizer.image_id, config.image_token_id),
        "tokens beyond the model's table": (max(0, tokenizer.vocab_size - table), 0),
    }
    for name, (got, expected) in pairs.items():
        if got != expected:
            raise ValueError(
                f"{folder}: {name}: expected {expected} as in config.json, got {got}; "
                "its files do not belong together, copy the whole folder again"
            )


def _manifest(path: Path) -> tuple[Layout, Referring]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        layout = dict(found["layout"])
        task = dict(found["task"])
        height, width = layout["canvas"]
        layout["canvas"] = (height, width)
        sizes = [height, width, *(size for name, size in layout.items() if name != "canvas")]
        if any(type(size) is not int or not 0 < size < 2**31 for size in sizes):
            raise ValueError(f"a layout that is not of positive whole numbers, {layout}")
        lacking = {field.name for field in dataclasses.fields(Layout)} - layout.keys()
        if lacking:
            raise ValueError(f"a layout without {', '.join(sorted(lacking))}")
        for kind, values in ((Referring, task), (Mixture, dict(task["mixture"]))):
            for field in dataclasses.fields(kind):
                _check_kind(field.name, values.get(field.name, field.default), field.default)
        task["mixture"] = Mixture(**task["mixture"])
        return Layout(**layout), Referring(**task)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the layout and task that seg-jax saves beside its weights, "
            f"got {type(error).__name__}: {error}; give the checkpoint folder of a training run"
        ) from error


_WORDS = {"rule": ("coco", "center"), "wordings": ("one", "many")}


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Raises unless a field of a task is of its default's kind."""
    if name in _WORDS and value not in _WORDS[name]:
        raise ValueError(f"{name} {value!r} instead of one of {_WORDS[name]}")
    if isinstance(default, int | float):
        whole = isinstance(default, int)
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise ValueError(f"{name} {value!r} instead of a number")
