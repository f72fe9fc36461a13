"""Embeddings of number tokens that know from the start which numbers are close."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from seg_jax.models.nn.linear import Embedding
from seg_jax.records import Array

WAVES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Half turns that the features of a number make between 0 and 1."""
LOUDNESS = 1.0
"""Length of a number's features, in lengths of a random row."""


def embed(table: Embedding, values: Float[np.ndarray, " V"], key: Array) -> Float[Array, "rows D"]:
    """Returns a fresh table whose number tokens begin as Fourier features of their values.

    Rows of numbers are drawn towards sines and cosines of the value in a random orthonormal
    basis, the slow ones loudest, so that close numbers begin close whatever surrounds them in
    their tokens; half of their random part stays and tells tokens of one value apart. Other rows
    are left alone. With an output head tied to the table, neighbouring coordinates are then
    likely together from the first step.

    Args:
      table: with random rows; at least V of them.
      values: of each token, NaN where it is no number.
      key: draws the basis.

    Source: Fourier features, Tancik et al. 2020, for tokens instead of positions.
    """
    rows = table.embedding[...]
    waves = np.array(WAVES)
    angle = np.pi * np.nan_to_num(values)[:, None] * waves
    loud = 1 / np.sqrt(waves + 0.5)
    features = np.concatenate([loud * np.sin(angle), loud * np.cos(angle)], 1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    width = rows.shape[-1]
    if features.shape[1] > width:
        raise ValueError(
            f"embeddings: expected a table of width {features.shape[1]} or more, got {width}; "
            "do: leave number tokens as they are drawn"
        )
    basis = jnp.linalg.qr(jax.random.normal(key, (width, features.shape[1])))[0]
    length = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(rows), -1)))
    numbers = rows[: len(values)] / 2 + LOUDNESS * length * (jnp.float32(features) @ basis.T)
    whole = jnp.where(jnp.isnan(values)[:, None], rows[: len(values)], numbers)
    return rows.at[: len(values)].set(whole.astype(rows.dtype))
