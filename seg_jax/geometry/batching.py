"""Makes vmap add a leading axis to a function's arguments instead of rewriting its loops."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def vmap_as_leading_axis(function: Callable) -> Callable:
    """Returns a function that accepts any leading axes; under vmap it is called with one more.

    By default vmap rewrites every loop inside a function for a batch. Here the loops stay as they
    were written, and only the shapes grow.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def add_axis(size, has_axis, *values):
        broadcast = [
            v if axis else jnp.broadcast_to(v, (size, *v.shape))
            for v, axis in zip(values, has_axis, strict=True)
        ]
        out = mapped(*broadcast)
        return out, jax.tree.map(lambda _: True, out)

    return mapped
