"""Gradients of a batch that is cut into pieces to save memory, summed in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from seg_jax.records import Array

Objective = Callable[[Any, Any], tuple[Float[Array, ""], Any]]
"""(params, piece) -> the piece's share of the loss and what else it shows of itself."""


def accumulate(
    objective: Objective, params: Any, batch: Any, *, pieces: int
) -> tuple[Float[Array, ""], Any, Any]:
    """Returns the loss of a batch, its gradient and what the pieces show, as one tree [B ..].

    The losses of the pieces add up to that of the batch, and so do their gradients: in float32
    whatever the weights are, since sums of bfloat16 lose what the last pieces add. The result has
    the dtype of the weights.

    Args:
      objective: a piece's share of the loss; its second result has the piece's rows in front.
      params: the weights.
      batch: a tree [B ..]; B is a multiple of `pieces`.
      pieces: how many pieces of neighbouring rows are graded one after another.
    """
    graded = jax.value_and_grad(objective, has_aux=True)
    if pieces == 1:
        (value, shown), grads = graded(params, batch)
        return value, grads, shown

    def add(carry, piece):
        (value, shown), grads = graded(params, piece)
        return jax.tree.map(jnp.add, carry, (value, grads)), shown

    wide = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    (value, grads), shown = jax.lax.scan(add, (jnp.zeros(()), wide), split(batch, pieces))
    grads = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), grads, params)
    return value, grads, merge(shown)


def split(tree: Any, pieces: int) -> Any:
    """Returns the tree [B ..] in pieces [pieces B/pieces ..] of neighbouring rows."""
    return jax.tree.map(lambda leaf: leaf.reshape(pieces, -1, *leaf.shape[1:]), tree)


def merge(tree: Any) -> Any:
    """Returns the pieces [pieces b ..] as one tree [pieces * b ..]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
