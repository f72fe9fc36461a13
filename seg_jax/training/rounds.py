"""Groups of a step gathered from several batches of prompts: DAPO's dynamic sampling."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from seg_jax.models.parallel import sharding
from seg_jax.records import Array, Prompts, Rollout


class Groups(NamedTuple):
    """Prompts with their answers, one group a row (device)."""

    prompts: Prompts
    rollout: Rollout
    differ: Bool[Array, " B"]
    """Whether the rewards of a group differ."""


class Told(NamedTuple):
    """What the host is told of a batch and of what is gathered, whole on every device."""

    gathered: Int[Array, ""]
    """Groups that differ, of those gathered so far."""
    differ: Float[Array, ""]
    """Share of the batch's groups that differ."""
    reward: Float[Array, ""]
    """Mean reward of the batch's sampled answers."""
    solved: Float[Array, " B"]
    """Mean reward of each prompt's sampled answers, as a share of what can be had, 0..1."""


def fill(before: Groups | None, new: Groups) -> Groups:
    """Returns as many groups as a batch has, the first ones that differ, in the order they came.

    Groups that do not differ fill what places are left; among the others, so that each minibatch
    has its share of them.

    Source: DAPO, arXiv 2503.14476, equation 11 and algorithm 1: sampling goes on until a batch is
    full of groups that are neither all right nor all wrong. Differs: rewards have degrees, so the
    condition is that they differ; and shapes are fixed, so that places may be left over.
    """
    if before is None:
        before = jax.tree.map(lambda leaf: leaf[:0], new)
    rows = new.differ.shape[0]
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), before, new)
    chosen = jnp.sort(jnp.argsort(~both.differ, stable=True)[:rows])
    return sharding.spread_rows(jax.tree.map(lambda leaf: leaf[chosen], both))
