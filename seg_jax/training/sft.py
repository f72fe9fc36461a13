"""Supervised fine-tuning: cross-entropy on answer tokens and its update."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Float

from seg_jax.records import Array, Batch, PackedBatch, check_least
from seg_jax.training import gradients
from seg_jax.training import state as states
from seg_jax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How the loss is formed."""

    soften_bins: float = 0.0
    """Standard deviation of the Gaussian around a coordinate, in steps of the last decimal.
    0 means hard targets. It acts on numbers that are one token each."""
    accumulate: int = 1
    """Pieces that a batch is cut into; their gradients are summed in float32, weighted by their
    tokens."""

    def __post_init__(self):
        check_least(self, "objective", accumulate=1, soften_bins=0)


TokenLoss = Callable[[Any, Batch | PackedBatch], Float[Array, "*n L"]]
"""(params, batch) -> cross-entropy of each target."""


def update(
    config: Objective,
    state: states.State,
    batch: Batch | PackedBatch,
    *,
    token_loss: TokenLoss,
    optimizer: Optimizer,
    transform: optax.GradientTransformation,
) -> tuple[states.State, dict[str, Float[Array, ""]]]:
    """Returns the state after one update on the batch, with metrics.

    The loss is the weighted mean over all targets of the batch, however it is cut. A loss or
    gradient that is not finite changes no weight.
    """
    weight = batch.weights.sum()
    total = jnp.where(weight > 0, weight, 1.0)
    rows = batch.weights.shape[0]
    if rows % config.accumulate:
        raise ValueError(
            f"objective.accumulate: expected a divisor of {rows} rows, got {config.accumulate}"
            "; do: choose a number that divides the rows of a batch"
        )

    def share(params, piece):
        return jnp.sum(token_loss(params, piece) * piece.weights) / total, None

    loss, grads, _ = gradients.accumulate(share, state.params, batch, pieces=config.accumulate)
    norm = optax.global_norm(grads)
    sound = jnp.isfinite(loss) & jnp.isfinite(norm)
    state, rate = states.advance(
        state, grads, optimizer=optimizer, transform=transform, sound=sound
    )
    return state, {
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": rate,
        "answer_tokens": weight,
    }
