"""The state of a training run: weights, moments, step and horizon, born sharded."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from seg_jax.models.parallel import sharding
from seg_jax.records import Array
from seg_jax.training.optimizers import Optimizer


class State(NamedTuple):
    """All that a step changes, and the horizon that its learning rate looks to."""

    step: Int[Array, ""]
    horizon: Int[Array, ""]
    """Steps of the whole run; a program may shorten it to keep a time budget."""
    params: Any
    """Pytree of weights, as `nnx.split` gives it."""
    moments: optax.OptState


def fresh(
    params: Any,
    transform: optax.GradientTransformation,
    *,
    horizon: int,
    on: Mesh | None = None,
    offload: bool = False,
) -> State:
    """Returns the state before the first step; its weights are the given arrays, no copies.

    Args:
      params: weights; on a mesh, in their shards.
      transform: of the optimizer.
      horizon: steps of the whole run.
      on: the mesh that all else is made on, each device its own shards only; None: the default
        device.
      offload: whether moments on a mesh lie in the memory of its hosts.
    """

    def rest(params: Any) -> State:
        steps = jnp.zeros((), jnp.int32)
        return State(steps, jnp.asarray(horizon, jnp.int32), None, transform.init(params))

    places = None if on is None else _places(jax.eval_shape(rest, params), on, offload)
    return jax.jit(rest, out_shardings=places)(params)._replace(params=params)


def shapes(
    params: Any, transform: optax.GradientTransformation, on: Mesh, *, offload: bool = False
) -> State:
    """Returns the shapes of a run's state as it lies on a mesh; the weights may be shapes too."""
    made = jax.eval_shape(lambda params: fresh(params, transform, horizon=1), params)
    return sharding.with_shardings(made, _places(made, on, offload))


def _places(made: State, on: Mesh, offload: bool) -> State:
    """Returns the sharding of each leaf of a state; offloaded, moments lie in the hosts' memory."""
    places = sharding.shardings(made, on)
    if not offload:
        return places

    def away(leaf: Any, place: Any) -> Any:
        return place.with_memory_kind(sharding.HOST) if leaf.ndim else place

    return places._replace(moments=jax.tree.map(away, made.moments, places.moments))


def advance(
    state: State,
    grads: Any,
    *,
    optimizer: Optimizer,
    transform: optax.GradientTransformation,
    sound: Bool[Array, ""] | None = None,
) -> tuple[State, Float[Array, ""]]:
    """Returns the state after one update and the learning rate that it used.

    Where the update is not sound, weights and moments stay as they were: the run can be stopped
    later, and saved, without a copy of every state. Moments that lie in the memory of the hosts
    come to the devices for the update and go back.
    """
    before = jax.tree.map(sharding.to_device_memory, state.moments)
    direction, moments = transform.update(grads, before, state.params)
    rate = optimizer.schedule.rate(optimizer.lr, state.step, state.horizon)
    params = jax.tree.map(
        lambda weight, d: (weight - rate * d).astype(weight.dtype), state.params, direction
    )
    if sound is not None:
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old),
            (params, moments),
            (state.params, before),
        )
    moments = jax.tree.map(sharding.to_memory_of, moments, state.moments)
    return State(state.step + 1, state.horizon, params, moments), rate


def step_key(seed: int, step: Int[Array, ""] | int, stream: int = 0) -> jax.Array:
    """Returns the random key of a step: a new one each step, the same after a resume."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
