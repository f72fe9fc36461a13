"""A segmenter learns masks of boxes and clicks: losses, corrections, the step.

Source: Segment Anything, Kirillov et al. 2023, sections 3 and appendix A; SAM 2, Ravi et al. 2024,
appendix D.2.2: focal and dice loss, L1 on the expected IoU, clicks where the mask so far is wrong.

Axes here: `N` objects of an image, `T` slots of a prompt; `h` rows of logits.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.models.parallel import sharding
from seg_jax.models.sam2.decoder import Candidates
from seg_jax.models.sam2.prompts import FIRST_CORNER, SECOND_CORNER
from seg_jax.records import Array, check_least
from seg_jax.training import optimizers, state
from seg_jax.training.state import State

ALPHA, GAMMA = 0.25, 2
"""Focal loss: weight of places within the mask, power of the distance to the truth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a segmenter learns of an object, prompt after prompt."""

    focal: float = 20.0
    dice: float = 1.0
    quality: float = 1.0
    """Weight of the distance between the IoU that is expected and that there is."""
    presence: float = 1.0
    """Weight of saying that there is an object, as there always is."""
    boxes: float = 0.5
    """Share of objects that are first asked for by a box; the others are by a click within."""
    jitter: float = 0.1
    """Standard deviation of a box's corners from the true ones, as a share of its sides."""
    corrections: int = 2
    """Further clicks, each where the mask so far is wrong."""

    def __post_init__(self):
        names = ("focal", "dice", "quality", "presence", "boxes", "jitter", "corrections")
        check_least(self, "objective", **dict.fromkeys(names, 0))
        if self.boxes > 1:
            raise ValueError(
                f"objective.boxes: expected a share in 0..1, got {self.boxes}; do: give a fraction"
            )
        if not any((self.focal, self.dice)):
            raise ValueError(
                "objective: expected a weight of focal or dice above 0, got none; do: give one"
            )


class Objects(NamedTuple):
    """A batch of images with some objects of each (device)."""

    images: UInt8[Array, "B side side 3"]
    masks: Bool[Array, "B N side side"]
    """None of them is empty."""


class Prompts(NamedTuple):
    """What is asked, with slots for two corners, a click, and corrections."""

    points_px: Float[Array, "B N T 2"]
    labels: Int[Array, "B N T"]
    used: Bool[Array, "B N T"]


def focal(logits: Float[Array, "*n h w"], share: Float[Array, "*n h w"]) -> Float[Array, "*n"]:
    """Returns the focal loss, a mean over places, of which `share` (0..1) lies in the true mask.

    Source: Lin et al. 2017, equation 5; for shares, Li et al. 2020 (generalized focal loss), 3.1.
    """
    cross = jax.nn.softplus(logits) - share * logits
    apart = jnp.abs(share - jax.nn.sigmoid(logits)) ** GAMMA
    weight = ALPHA * share + (1 - ALPHA) * (1 - share)
    return jnp.mean(weight * apart * cross, (-2, -1))


def dice(logits: Float[Array, "*n h w"], share: Float[Array, "*n h w"]) -> Float[Array, "*n"]:
    """Returns one less the dice coefficient, with 1 added to both sums, as SAM's training has it.

    Source: V-Net, Milletari et al. 2016, section 3.
    """
    within = jax.nn.sigmoid(logits)
    both = jnp.sum(within * share, (-2, -1))
    return 1 - (2 * both + 1) / (jnp.sum(within, (-2, -1)) + jnp.sum(share, (-2, -1)) + 1)


def iou(logits: Float[Array, "*n h w"], share: Float[Array, "*n h w"]) -> Float[Array, "*n"]:
    """Returns the IoU with the places that lie in the true mask for the most part."""
    drawn, true = logits > 0, share > 0.5
    both, either = ((jnp.sum(x, (-2, -1))) for x in (drawn & true, drawn | true))
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


def loss(
    objective: Objective, found: Candidates, share: Float[Array, "B N h w"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss of the answers to one prompt of each object, and what to log of it.

    The single mask learns, and of its readings the one that is best already: the others are free to
    mean something else. All of them learn how good they are.
    """
    true = jnp.broadcast_to(share[:, :, None], found.logits.shape)
    parts = {"focal": focal(found.logits, true), "dice": dice(found.logits, true)}
    each = objective.focal * parts["focal"] + objective.dice * parts["dice"]
    there = jax.lax.stop_gradient(iou(found.logits, true))
    apart = jnp.abs(found.quality - there).mean()
    absent = jax.nn.softplus(-found.presence).mean()
    # Not by `min`: its gradient divides by the number of equal values, which is 0 where a compiler
    # computes them anew with other roundings.
    best = 1 + jnp.argmin(jax.lax.stop_gradient(each[:, :, 1:]), -1)
    reading = jnp.take_along_axis(each, best[..., None], -1)[..., 0]
    value = (each[:, :, 0] + reading).mean()
    value = value + objective.quality * apart + objective.presence * absent
    told = {name: one[:, :, 0].mean() for name, one in parts.items()}
    return value, told | {"quality": apart, "iou": there[:, :, 0].mean()}


def first_prompts(
    objective: Objective, key: jax.Array, masks: Bool[Array, "B N side side"]
) -> Prompts:
    """Returns a box or a click for each object, with room for the corrections."""
    keys = jax.random.split(key, 3)
    boxed = jax.random.bernoulli(keys[0], objective.boxes, masks.shape[:2])
    corners = _boxes(masks)
    sides = corners[:, :, 1:] - corners[:, :, :1]
    moved = objective.jitter * sides * jax.random.normal(keys[1], corners.shape)
    corners = jnp.clip(corners + moved, 0, masks.shape[-1])
    click, _ = _draw_place(keys[2], masks)
    room = ((0, 0), (0, 0), (0, objective.corrections))
    kinds = jnp.broadcast_to(jnp.array([FIRST_CORNER, SECOND_CORNER, 1]), (*boxed.shape, 3))
    return Prompts(
        jnp.pad(jnp.concatenate([corners, click[:, :, None]], 2), (*room, (0, 0))),
        jnp.pad(kinds, room),
        jnp.pad(jnp.stack([boxed, boxed, ~boxed], -1), room),
    )


def corrected(
    prompts: Prompts,
    key: jax.Array,
    *,
    masks: Bool[Array, "B N side side"],
    drawn: Bool[Array, "B N side side"],
    turn: Int[Array, ""] | int,
) -> Prompts:
    """Returns prompts with one more click where the drawn mask is wrong, if it is anywhere.

    Args:
      prompts: so far.
      key: draws the place, all that are wrong alike.
      masks: the true ones.
      drawn: for the prompts so far.
      turn: number of the correction, from 0.
    """
    click, wrong = _draw_place(key, masks ^ drawn)
    place = click.astype(jnp.int32)
    rows = jnp.take_along_axis(masks, place[..., 1][..., None, None], 2)[:, :, 0]
    label = jnp.take_along_axis(rows, place[..., :1], 2).astype(jnp.int32)

    def put(leaf: Array, value: Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, value, 3 + turn, 2)

    return Prompts(
        put(prompts.points_px, click[:, :, None]),
        put(prompts.labels, label),
        put(prompts.used, wrong[..., None]),
    )


def _boxes(masks: Bool[Array, "B N side side"]) -> Float[Array, "B N 2 2"]:
    """Returns the corners around masks, x then y."""
    ends = []
    for axis in (-2, -1):
        seen = jnp.any(masks, axis)
        first = jnp.argmax(seen, -1)
        ends.append(jnp.stack([first, seen.shape[-1] - jnp.argmax(seen[..., ::-1], -1)], -1))
    return jnp.stack(ends, -1).astype(jnp.float32)


def _draw_place(
    key: jax.Array, region: Bool[Array, "B N side side"]
) -> tuple[Float[Array, "B N 2"], Bool[Array, "B N"]]:
    """Returns a point in some pixel of each region, all alike, and whether there is any."""
    pixel, within = jax.random.split(key)
    counts = jnp.cumsum(region.reshape(*region.shape[:2], -1), -1, dtype=jnp.int32)
    total = counts[..., -1]
    wanted = jnp.floor(jax.random.uniform(pixel, total.shape) * total).astype(jnp.int32)
    wanted = jnp.minimum(wanted, jnp.maximum(total - 1, 0))
    place = jnp.sum(counts <= wanted[..., None], -1)
    side = region.shape[-1]
    point = jnp.stack([place % side, jnp.minimum(place // side, side - 1)], -1)
    # Below 1 by more than a rounding at any side: the pixel stays the same.
    return point + 0.999 * jax.random.uniform(within, point.shape), total > 0


def shares(masks: Bool[Array, "B N side side"], rows: int) -> Float[Array, "B N h h"]:
    """Returns how much of each place of a coarser grid lies in the masks."""
    times = masks.shape[-1] // rows
    cells = masks.reshape(*masks.shape[:2], rows, times, rows, times)
    return cells.astype(jnp.float32).mean((3, 5))


def objective_of(
    objective: Objective, model: Any, objects: Objects, *, key: jax.Array
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean loss over prompts and their corrections, and what to log.

    Metrics are those of the last turn, `iou/first` aside.
    """
    prepared = model.prepare(model.encode(model.normalise(objects.images)))
    share = shares(objects.masks, model.config.mask_side)
    first, rest = jax.random.split(key)

    def turn(prompts: Prompts, given: tuple[jax.Array, jax.Array]):
        number, key = given
        found = model.answers(prepared, prompts.points_px, prompts.labels, used=prompts.used)
        value, told = loss(objective, found, share)
        single = jax.lax.stop_gradient(found.logits[:, :, 0])
        drawn = jax.image.resize(single, objects.masks.shape, "bilinear", antialias=False) > 0
        after = corrected(prompts, key, masks=objects.masks, drawn=drawn, turn=number)
        return after, (value, told)

    turns = objective.corrections + 1
    prompts = first_prompts(objective, first, objects.masks)
    # What is added after the last turn has no slot.
    prompts = jax.tree.map(lambda x: jnp.concatenate([x, x[:, :, -1:]], 2), prompts)
    prompts = prompts._replace(used=prompts.used.at[:, :, -1].set(False))
    given = jnp.arange(turns), jax.random.split(rest, turns)
    _, (values, told) = jax.lax.scan(turn, prompts, given)
    metrics = {name: one[-1] for name, one in told.items()}
    return values.mean(), metrics | {"iou/first": told["iou"][0]}


def step(
    graph: nnx.GraphDef, objective: Objective, optimizer: optimizers.Optimizer, *, seed: int
) -> Any:
    """Returns the jitted function (state, objects) -> (state, metrics); the state is donated."""
    transform = optimizers.build(optimizer)

    def one(before: State, objects: Objects) -> tuple[State, dict[str, Float[Array, ""]]]:
        key = state.step_key(seed, before.step)

        def value(params: Any):
            return objective_of(objective, nnx.merge(graph, params), objects, key=key)

        (found, metrics), grads = jax.value_and_grad(value, has_aux=True)(before.params)
        norm = optax.global_norm(grads)
        sound = jnp.isfinite(found) & jnp.isfinite(norm)
        after, rate = state.advance(
            before, grads, optimizer=optimizer, transform=transform, sound=sound
        )
        told = {"loss": found, "grad_norm": norm, "learning_rate": rate}
        return sharding.constrain_weights(after), metrics | told

    return jax.jit(one, donate_argnums=0)
