"""Masks of what answers point at, inside a jitted step: each image is encoded once for all.

Source: Seg-R1 (arXiv 2506.22624), its rule from boxes and clicks to a mask.

Axes here: `E` rows and columns of a view, `G` answers about it, `T` both corners of a box and all
clicks of an answer.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Real, UInt8, UInt32

from seg_jax.geometry import bitmask
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import decoder
from seg_jax.models.sam2.prompts import FIRST_CORNER, SECOND_CORNER
from seg_jax.models.sam2.sam2 import Prepared, Sam2
from seg_jax.records import Array, Clicks


def masks(
    model: Sam2,
    view: UInt8[Array, "B E E 3"],
    clicks: Clicks,
    *,
    channels: Literal["rgb", "bgr"] = "rgb",
) -> UInt32[Array, "B G K E"]:
    """Returns the packed mask of each answer: the union over its boxes.

    A box is asked for with the clicks within it, its edges included; the others are not seen.
    An answer without boxes is one prompt of all its clicks, one without anything has no mask.
    Every device draws for its own images, one after the other.

    Args:
      model: that draws.
      view: the images, each stretched to a square.
      clicks: the answers to each, [B G ..].
      channels: the order of colours that the model is shown; what was released shows it bgr.
    """
    graph, params = nnx.split(model)

    def rows(params: Any, view: UInt8[Array, "b E E 3"], clicks: Clicks) -> Array:
        model = nnx.merge(graph, params)
        return jax.lax.map(lambda row: _of_image(model, *row), (view, clicks))

    view = view[..., ::-1] if channels == "bgr" else view
    return sharding.map_rows(rows, whole=params)(view, clicks)


class _Slot(NamedTuple):
    """One prompt of each answer, where it has one."""

    points_px: Float[Array, "G T 2"]
    labels: Int[Array, "G T"]
    used: Bool[Array, "G T"]


def _of_image(model: Sam2, view: UInt8[Array, "E E 3"], clicks: Clicks) -> UInt32[Array, "G K E"]:
    """Returns the masks of the answers about one image; a slot that none has costs nothing."""
    side, edge = model.config.side, view.shape[0]
    image = stretched(view[None], side)
    prepared = model.prepare(model.encode(model.normalise(image)))
    nothing = jnp.zeros((clicks.used.shape[0], -(-edge // bitmask.WORD), edge), jnp.uint32)

    def add(words: UInt32[Array, "G K E"], slot: _Slot):
        drawn = jax.lax.cond(
            slot.used.any(),
            lambda slot: _draw(model, prepared, slot, edge),
            lambda slot: nothing,
            slot,
        )
        return words | drawn, None

    return jax.lax.scan(add, nothing, _slots(clicks, side))[0]


def stretched(view: Real[Array, "B E E 3"], side: int) -> Float[Array, "B side side 3"]:
    """Returns images of 0..255 at side x side pixels, bilinear, averaged where they shrink."""
    shape = (len(view), side, side, 3)
    return jax.image.resize(view.astype(jnp.float32), shape, "bilinear")


def _slots(clicks: Clicks, side: int) -> _Slot:
    """Returns the prompts of answers, one box a slot [Q ..]; without a box all clicks are one.

    Of an answer that has nothing for a slot nothing is used there.
    """
    boxes, boxed = clicks.boxes_unit, clicks.boxed
    if not boxed.shape[-1]:
        boxes, boxed = jnp.zeros((len(boxed), 1, 4)), jnp.zeros((len(boxed), 1), bool)
    corners = boxes.reshape(*boxed.shape, 2, 2)
    at = clicks.points_unit[:, None]
    within = jnp.all((at >= corners[:, :, :1]) & (at <= corners[:, :, 1:]), -1) & boxed[..., None]
    alone = ~jnp.any(boxed, -1)[:, None, None] & (jnp.arange(boxed.shape[1]) == 0)[None, :, None]
    seen = clicks.used[:, None] & (within | alone)
    at = jnp.broadcast_to(at, (*within.shape, 2))
    labels = jnp.broadcast_to(clicks.labels[:, None], within.shape)
    kinds = jnp.broadcast_to(jnp.array([FIRST_CORNER, SECOND_CORNER]), corners.shape[:3])
    slots = _Slot(
        jnp.concatenate([corners, at], 2) * side,
        jnp.concatenate([kinds, labels], 2),
        jnp.concatenate([jnp.repeat(boxed[..., None], 2, -1), seen], 2),
    )
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), slots)


def _draw(model: Sam2, prepared: Prepared, slot: _Slot, edge: int) -> UInt32[Array, "G K E"]:
    """Returns the masks of one prompt of each answer, empty where it has none."""
    points, labels, used = (leaf[None] for leaf in slot)
    found = model.answers(prepared, points, labels, used=used)
    logits = decoder.choose(found, model.config).logits[0]
    logits = jax.image.resize(logits, (len(logits), edge, edge), "bilinear", antialias=False)
    return bitmask.pack((logits > 0) & jnp.any(slot.used, -1)[:, None, None])
