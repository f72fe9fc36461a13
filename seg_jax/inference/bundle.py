"""A trained model in a folder: weights, tokenizer, layout of its rows and its task."""

from __future__ import annotations

import dataclasses
import json
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
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights.save(nnx.merge(bundle.graph, bundle.params), temporary)
        for path in sorted(bundle.tokenizer_folder.glob("*.j*")):
            if path.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(path, temporary / path.name)
        manifest = {
            "layout": dataclasses.asdict(bundle.layout),
            "task": dataclasses.asdict(bundle.task),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    model = weights.load(folder, compute=compute or layers.Compute())
    graph, params = nnx.split(model)
    return Bundle(graph, params, Tokenizer.load(folder), folder, layout, task)


def _manifest(path: Path) -> tuple[Layout, Referring]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        layout = dict(found["layout"])
        task = dict(found["task"])
        layout["canvas"] = tuple(layout["canvas"])
        task["mixture"] = Mixture(**task["mixture"])
        return Layout(**layout), Referring(**task)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the layout and task that seg-jax saves beside its weights, "
            f"got {type(error).__name__}: {error}; give the checkpoint folder of a training run"
        ) from error
