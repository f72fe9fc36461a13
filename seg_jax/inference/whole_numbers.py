"""A small model that knows places by decimals learns no number anew to click with whole ones."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seg_jax import files
from seg_jax.grammar.tokenizer import tokens, whole_numbers
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models import families
from seg_jax.models.io import weights

ROWS = 32
"""Tables of embeddings have a multiple of so many rows."""


def save(bundle: Bundle, folder: Path, *, frame: int) -> None:
    """Writes a model with a token for each of 0..frame and for the tags of clicks.

    The embedding of a number begins as that of the decimal it means, n / frame, and so does its row
    of the head; those of a tag as the means of the pieces that it was written in.

    Args:
      bundle: a small model of ours, with its weights.
      folder: to make.
      frame: the number that means 1.0, 1..99.

    Raises:
      ValueError: its tokenizer is none of a small model of ours, or has such tokens.
      OSError: the folder cannot be written.
    """
    grown = whole_numbers.grow(bundle.tokenizer, frame=frame)
    with tempfile.TemporaryDirectory() as name:
        beside = Path(name)
        for path in families.companions(bundle.tokenizer_folder):
            shutil.copy(path, beside / path.name)
        files.write_text(beside / tokens.TOKENS, grown.definition)
        model = nnx.merge(bundle.graph, bundle.params)
        rows = -(-max(grown.vocab_size, model.config.text.vocab_size) // ROWS) * ROWS
        text = dataclasses.replace(model.config.text, vocab_size=rows)
        sizes = dataclasses.replace(model.config, text=text)
        graph, shapes = nnx.split(weights.blank(sizes, model.compute))

        def longer(blank: jax.ShapeDtypeStruct, leaf: jax.Array) -> jax.Array:
            if blank.shape == leaf.shape:
                return leaf
            table = np.zeros(blank.shape, np.float32)
            table[: len(leaf)] = leaf
            table[grown.alike[:, 0]] = table[grown.alike[:, 1]]
            for tag, pieces in grown.tags:
                table[tag] = table[list(pieces)].mean(0)
            return jnp.asarray(table, leaf.dtype)

        params = jax.tree.map(longer, shapes, bundle.params)
        more = {"tokenizer": Tokenizer.load(beside), "tokenizer_folder": beside}
        bundles.save(dataclasses.replace(bundle, graph=graph, params=params, **more), folder)
