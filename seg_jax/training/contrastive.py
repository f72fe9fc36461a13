"""Images and texts learn which belong together: CLIP's loss, hard negatives, the step.

Source: CLIP, Radford et al. 2021 (arXiv 2103.00020), figure 3; hard negatives as SPEC's poster has
them, Peng et al. 2023 (arXiv 2312.00081). There a sum runs over a set of hard negatives that has no
index of the image: whether those of its own case or of the whole batch are meant is open, so both
are here (`Objective.scope`).

Axes here: `N` pairs of an image and a text, `E` width of the common space.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.models.parallel import sharding
from seg_jax.records import Array, check_least
from seg_jax.training import optimizers, state
from seg_jax.training.state import State

MOST_SCALE = 100.0
"""The largest factor of cosines; OpenAI's training clips it there too."""
_FACTORS = (0x9E3779B1, 0x85EBCA77)
"""Odd numbers by which texts are summed up; of two sums both must be equal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What pairs learn beside CLIP's own loss."""

    hard: float = 1.0
    """Weight of the two terms with hard negatives; 0: CLIP's loss alone."""
    scope: Literal["case", "batch"] = "case"
    """Whether hard negatives are those of an image's own case, or of all cases of the batch."""
    anchors: Literal["one", "all"] = "all"
    """Whether one member of a case learns, the others being negatives only (the poster), or all."""
    mask_equal: bool = True
    """Whether pairs of equal texts are no negatives of each other."""

    def __post_init__(self):
        check_least(self, "objective", hard=0)


class Pairs(NamedTuple):
    """Pairs of an image and a text, some of them members of one case (device)."""

    pixels: UInt8[Array, "N H W 3"]
    ids: Int[Array, "N T"]
    case: Int[Array, " N"]
    """Number of the case that a pair is a member of; a pair of no case has a number of its own."""
    anchor: Bool[Array, " N"]
    """Whether a pair learns where one of a case does."""


class Losses(NamedTuple):
    """The parts of the loss, each a mean over the pairs that learn."""

    clip: Float[Array, ""]
    image_to_text: Float[Array, ""]
    """Loss of images, whose denominators have hard negative texts too."""
    text_to_image: Float[Array, ""]


def losses(
    objective: Objective,
    images: Float[Array, "N E"],
    texts: Float[Array, "N E"],
    *,
    scale: Float[Array, ""],
    pairs: Pairs,
) -> Losses:
    """Returns the parts of the loss of pairs whose vectors have length 1.

    A pair that is both in the batch and a hard negative stands in both sums of the poster's
    denominator, and counts twice.
    """
    learns = jnp.ones_like(pairs.anchor) if objective.anchors == "all" else pairs.anchor
    count = len(images)
    own = sharding.spread_rows(jnp.eye(count, dtype=bool))
    free = ~own
    if objective.mask_equal:
        free &= ~_equal(pairs.ids)
    batch = own | (free & learns[None, :])
    hard = free & _hard(objective, pairs.case, learns)
    found = []
    for rows, columns in ((images, texts), (texts, images)):
        # Columns come from all devices; the table stays divided by rows.
        logits = scale * rows @ sharding.constrain_whole(columns).T
        logits = sharding.spread_rows(logits.astype(jnp.float32))
        right = jnp.sum(jnp.where(own, logits, 0), -1)
        plain = _log_sum(logits, batch.astype(jnp.float32)) - right
        both = _log_sum(logits, batch.astype(jnp.float32) + hard) - right
        found.append((_mean(plain, learns), _mean(both, learns)))
    (image, with_texts), (text, with_images) = found
    return Losses((image + text) / 2, with_texts, with_images)


def _hard(
    objective: Objective, case: Int[Array, " N"], learns: Bool[Array, " N"]
) -> Bool[Array, "N N"]:
    """Returns which pairs (columns) are hard negatives of which (rows)."""
    same = sharding.spread_rows(case[:, None] == case[None, :])
    if objective.scope == "case":
        return same
    several = jnp.sum(same, -1) > 1
    negatives = several if objective.anchors == "all" else several & ~learns
    return jnp.broadcast_to(negatives[None, :], same.shape)


def _equal(ids: Int[Array, "N T"]) -> Bool[Array, "N N"]:
    """Returns which texts are equal, by two sums of 32 bits of each."""
    sums = []
    for factor in _FACTORS:
        powers = [pow(factor, place, 2**32) for place in range(1, ids.shape[1] + 1)]
        weights = jnp.asarray(powers, jnp.uint32)
        sums.append(jnp.sum(ids.astype(jnp.uint32) * weights, -1, dtype=jnp.uint32))
    first, second = sums
    equal = (first[:, None] == first[None, :]) & (second[:, None] == second[None, :])
    return sharding.spread_rows(equal)


def _log_sum(logits: Float[Array, "N N"], times: Float[Array, "N N"]) -> Float[Array, " N"]:
    """Returns the logarithm of each row's sum of exponentials, each counted so many times."""
    return jax.nn.logsumexp(logits, -1, b=times)


def _mean(values: Float[Array, " N"], counted: Bool[Array, " N"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(counted, values, 0)) / jnp.maximum(jnp.sum(counted), 1)


def objective_of(
    objective: Objective, model: Any, pairs: Pairs
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of a model that brings images and texts into one space, and what to log."""
    images, texts = model.image(pairs.pixels), model.text(pairs.ids)
    parts = losses(objective, images, texts, scale=model.scale(), pairs=pairs)
    value = parts.clip
    if objective.hard:
        value = value + objective.hard * (parts.image_to_text + parts.text_to_image)
    return value, parts._asdict() | {"scale": model.scale()}


def step(graph: nnx.GraphDef, objective: Objective, optimizer: optimizers.Optimizer) -> Any:
    """Returns the jitted function (state, pairs) -> (state, metrics); the state is donated."""
    transform = optimizers.build(optimizer)

    def one(before: State, pairs: Pairs) -> tuple[State, dict[str, Float[Array, ""]]]:
        def value(params: Any):
            return objective_of(objective, nnx.merge(graph, params), pairs)

        (found, metrics), grads = jax.value_and_grad(value, has_aux=True)(before.params)
        norm = optax.global_norm(grads)
        sound = jnp.isfinite(found) & jnp.isfinite(norm)
        after, rate = state.advance(
            before, grads, optimizer=optimizer, transform=transform, sound=sound
        )
        after = after._replace(params=_with_bounded_scale(after.params))
        told = {"loss": found, "grad_norm": norm, "learning_rate": rate}
        return sharding.constrain_weights(after), metrics | told

    return jax.jit(one, donate_argnums=0)


def _with_bounded_scale(params: Any) -> Any:
    """Returns weights whose scale is at most `MOST_SCALE`, and at least 1 as open_clip has it."""

    def bounded(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [str(key.key) for key in path if hasattr(key, "key")]
        return jnp.clip(leaf, 0, math.log(MOST_SCALE)) if names == ["log_scale"] else leaf

    return jax.tree_util.tree_map_with_path(bounded, params)
