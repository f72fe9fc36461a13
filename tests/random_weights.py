"""Weights of models as at birth, but drawn by numpy: to compile the draws takes seconds."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from seg_jax.models.parallel import mesh_axes


def drawn(shapes: Any, spread: float = 0.1, *, router: float | None = None) -> Any:
    """Returns weights of the shapes of a model, from seed 0: scales are 1 and biases 0.

    Args:
      shapes: of the weights.
      spread: standard deviation of all others; as it is, every token hangs on those before it.
      router: that of routers and their biases, if it is another.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = mesh_axes.names_of(path)
        routes = router is not None and "router" in names
        if names[-1] in ("scale", "bias") and not routes:
            return np.full(leaf.shape, float(names[-1] == "scale"), leaf.dtype)
        wide = router if routes else spread
        return (wide * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))
