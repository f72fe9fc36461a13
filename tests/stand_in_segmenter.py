"""Stands for a SAM 2: it draws what has the colour that is clicked on, or all that is in a box."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from seg_jax.geometry import bitmask
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.records import Clicks


def like_the_clicked(drawing: Any, truth: Any, answer: Clicks) -> Any:
    """Returns the masks [B G K E] of prompts."""
    del drawing
    edge = truth.view.shape[-2]

    def of_one(view, box, boxed, points, labels, used):
        spots = jnp.clip((points * edge).astype(int), 0, edge - 1)
        alike = (view[None] == view[spots[:, 1], spots[:, 0]][:, None, None]).all(-1)
        on = (alike & (used & (labels == 1))[:, None, None]).any(0)
        off = (alike & (used & (labels == 0))[:, None, None]).any(0)
        at = (jnp.arange(edge) + 0.5) / edge
        x, y = ((at >= box[0, n]) & (at < box[0, n + 2]) for n in (0, 1))
        return bitmask.pack((on & ~off) | (y[:, None] & x & boxed[0]))

    every = jax.vmap(of_one, in_axes=(None, 0, 0, 0, 0, 0))
    parts = (answer.boxes_unit, answer.boxed, answer.points_unit, answer.labels, answer.used)
    return jax.vmap(every)(truth.view, *parts)


FROZEN = Frozen(like_the_clicked, jnp.zeros(()))
