"""A model that says which text fits which image, at work on images and texts of any size.

Axes here: `N` images or texts, `E` width of the space that both are brought into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from seg_jax.data import centre_crop
from seg_jax.grammar.tokenizer import sentences
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute

AT_ONCE = 32
"""Images, and texts, that are encoded together."""


class Matcher:
    """Brings images and texts into one space; what fits lies close."""

    def __init__(self, model: Any, tokenizer: Tokenizer):
        """Takes a model with its weights, and the tokenizer that it was taught with.

        Raises:
          ValueError: the tokenizer has tokens that the model does not know.
        """
        self.config, self.tokenizer = model.config, tokenizer
        self.cut = 0
        """How many texts were too long so far: their last words were not read."""
        if tokenizer.vocab_size > (known := model.config.text.vocab_size):
            raise ValueError(
                f"tokenizer: expected at most the model's {known} tokens, got "
                f"{tokenizer.vocab_size}; do: copy the tokenizer of the model"
            )
        graph, self._params = nnx.split(model)
        self._image = jax.jit(lambda params, pixels: nnx.merge(graph, params).image(pixels))
        self._text = jax.jit(lambda params, ids: nnx.merge(graph, params).text(ids))
        self.scale = float(model.scale())
        """What cosines are multiplied by before a softmax."""

    def images(self, images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "N E"]:
        """Returns the unit vectors of images of any size, in float32."""
        squares = [centre_crop.square(image, self.config.side) for image in images]
        return self._encode(self._image, np.stack(squares))

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Returns the unit vectors of texts, in float32."""
        found = sentences.rows(self.tokenizer, texts, length=self.config.length)
        self.cut += found.cut
        return self._encode(self._text, found.ids)

    def _encode(self, encode: Callable[..., Any], rows: np.ndarray) -> Float[np.ndarray, "N E"]:
        """Returns what a tower makes of rows, always so many at once: one program serves all."""
        parts = []
        for begin in range(0, len(rows), AT_ONCE):
            some = rows[begin : begin + AT_ONCE]
            filled = np.concatenate([some, np.repeat(some[:1], AT_ONCE - len(some), 0)])
            parts.append(np.asarray(encode(self._params, filled))[: len(some)])
        return np.concatenate(parts)


def load(source: Path, *, dtype: Literal["float32", "bfloat16"] | None = None) -> Matcher:
    """Returns the model in a folder with its tokenizer.

    Args:
      source: of the model: config.json, weights, tokenizer.json and tokenizer_config.json.
      dtype: of weights and products; None: as `config.json` says, float32 if it says nothing.

    Raises:
      ValueError: there is no such model, it matches no texts with images, or a file is broken.
    """
    config = families.read(source)
    try:
        families.check_pairs(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    tokenizer = Tokenizer.load(source)
    dtype = dtype or families.noted_dtype(source)
    model = weights.load(source, compute=Compute(dtype=dtype, param_dtype=dtype))
    return Matcher(model, tokenizer)
