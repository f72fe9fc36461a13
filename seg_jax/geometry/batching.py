"""Lets vmap widen the leading axes of a function instead of rewriting its loops."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def vmap_as_leading_axis(function: Callable) -> Callable:
    """Returns a function of leading axes to which vmap adds one more: its loops stay shared."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def add_axis(size, batched, *values):
        spread = [
            v if b else jnp.broadcast_to(v, (size, *v.shape))
            for v, b in zip(values, batched, strict=True)
        ]
        out = mapped(*spread)
        return out, jax.tree.map(lambda _: True, out)

    return mapped
