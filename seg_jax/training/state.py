"""The state of a training run: weights, moments, step and horizon, born sharded."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from seg_jax.records import Array
from seg_jax.training.optimizer import Optimizer


class State(NamedTuple):
    """All that a step changes, and the horizon that its learning rate looks to."""

    step: Int[Array, ""]
    horizon: Int[Array, ""]
    """Steps of the whole run; a program may shorten it to keep a time budget."""
    params: Any
    """Pytree of weights, as `nnx.split` gives it."""
    moments: optax.OptState


def fresh(params: Any, transform: optax.GradientTransformation, *, horizon: int) -> State:
    """Returns the state before the first step."""
    steps = jnp.zeros((), jnp.int32)
    return State(steps, jnp.asarray(horizon, jnp.int32), params, transform.init(params))


def advance(
    state: State,
    grads: Any,
    optimizer: Optimizer,
    transform: optax.GradientTransformation,
    *,
    sound: Bool[Array, ""] | None = None,
) -> tuple[State, Float[Array, ""]]:
    """Returns the state after one update and the learning rate that it used.

    Where the update is not sound, weights and moments stay as they were: the run can be stopped
    later, and saved, without a copy of every state.
    """
    direction, moments = transform.update(grads, state.moments, state.params)
    rate = optimizer.schedule.rate(optimizer.lr, state.step, state.horizon)
    params = jax.tree.map(
        lambda weight, d: (weight - rate * d).astype(weight.dtype), state.params, direction
    )
    if sound is not None:
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (params, moments),
            (state.params, state.moments),
        )
    return State(state.step + 1, state.horizon, params, moments), rate


def step_key(seed: int, step: Int[Array, ""] | int, stream: int = 0) -> jax.Array:
    """Returns the random key of a step: a new one each step, the same after a resume."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
