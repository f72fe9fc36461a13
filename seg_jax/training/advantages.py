"""Rewards of answers, and their advantages within groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Bool, Float

from seg_jax.records import Array

Spread = Literal["population", "sample", "none"]
TINY = 1e-6
"""A group has nothing to tell whose rewards deviate by less than this share of the largest one:
no more than roundings of their sums."""


def reward(
    scores: Mapping[str, Float[Array, "*n"]], weights: Mapping[str, float]
) -> Float[Array, "*n"]:
    """Returns the weighted sum of named scores.

    Raises:
      ValueError: a weight names no score.
    """
    unknown = set(weights) - set(scores)
    if unknown:
        raise ValueError(
            f"reward: expected weights for {sorted(scores)}, got {sorted(unknown)}"
            "; do: correct the names of these weights"
        )
    return jnp.sum(jnp.stack([weight * scores[name] for name, weight in weights.items()]), 0)


def share_of_attainable(
    rewards: Float[Array, "*n"], weights: Mapping[str, float], *, length_penalty: float = 0.0
) -> Float[Array, "*n"]:
    """Returns rewards as shares of the way from the least to the largest that weights allow, 0..1.

    Scores lie in 0..1; what is taken for the length is the penalty at most, and at least nothing.
    """
    least = sum(min(weight, 0.0) for weight in weights.values()) - length_penalty
    largest = sum(max(weight, 0.0) for weight in weights.values())
    if least == largest:
        raise ValueError(
            f"weights: expected a score that counts, got {dict(weights)}; do: weigh one above 0"
        )
    return jnp.clip((rewards - least) / (largest - least), 0.0, 1.0)


def within_groups(
    rewards: Float[Array, "B G"],
    *,
    spread: Spread = "population",
    spread_floor: float = 0.0,
    spread_eps: float = 0.0,
    ranked: bool = False,
) -> Float[Array, "B G"]:
    """Returns (r - mean) / (max(std, floor) + eps) within each group; 0 where all are equal.

    Args:
      rewards: of the answers of each group.
      spread: what std is.
      spread_floor: its least value.
      spread_eps: what is added to it.
      ranked: whether r is the `ranks` of the rewards.

    Source: GSPO equation 6; without the division Dr. GRPO, section 3.2; ranks without it GOPO.
    """
    differs = differ(rewards)[:, None]
    centred, population, scale = _deviations(ranks(rewards) if ranked else rewards)
    if spread == "none":
        scaled = centred * scale
    else:
        answers = rewards.shape[1]
        bessel = math.sqrt(answers / max(answers - 1, 1)) if spread == "sample" else 1.0
        least = jnp.maximum(spread_floor / scale, TINY)
        scaled = centred / (jnp.maximum(bessel * population, least) + spread_eps / scale)
    return jnp.where(differs, scaled, 0.0)


def ranks(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Returns 2 - 4 (rank - 1) / (G - 1) within each group, ranks from 1 for the best to G.

    Equal rewards share the mean of their ranks; those within roundings of each other are equal.

    Source: GOPO, arXiv 2602.03876, its advantage; mean ranks as in Kendall 1945.
    """
    _, _, scale = _deviations(rewards)
    shares = rewards / scale
    above = shares[:, :, None] - shares[:, None, :]
    # Answers below less answers above: twice the distance of a mean rank from the middle one.
    lead = jnp.sum(jnp.where(jnp.abs(above) > TINY, jnp.sign(above), 0.0), -1)
    return 2.0 * lead / max(rewards.shape[1] - 1, 1)


def differ(rewards: Float[Array, "B G"]) -> Bool[Array, " B"]:
    """Returns which groups have rewards that differ; the others have no advantage."""
    return _deviations(rewards)[1][:, 0] > TINY


def _deviations(rewards):
    """Returns rewards less the mean of their group, their deviation, and the unit of both."""
    largest = jnp.max(jnp.abs(rewards), 1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    # Squares of small numbers would be 0, and of large ones infinite.
    shares = rewards / scale
    centred = shares - shares.mean(1, keepdims=True)
    return centred, jnp.sqrt(jnp.mean(jnp.square(centred), 1, keepdims=True)), scale


def smooth_truth(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Returns rewards whose last, the true answer's, is the others' mean where one has no less.

    Source: ViSurf, arXiv 2510.10606, section 3.4, which smooths the reward of labels.
    """
    own, truth = rewards[:, :-1], rewards[:, -1:]
    reached = own.max(1, keepdims=True) >= truth
    return jnp.concatenate([own, jnp.where(reached, own.mean(1, keepdims=True), truth)], 1)
