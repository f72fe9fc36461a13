"""Weights of models as at birth, but drawn by numpy: to compile the draws takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from seg_jax.models import sharding


def drawn(shapes: Any, spread: Callable[[tuple[str, ...]], float]) -> Any:
    """Returns weights of the shapes of a model, from seed 0.

    Args:
      shapes: of the weights.
      spread: takes the names of a weight and returns the standard deviation; where it returns 0, a
        scale is 1 and all else is 0.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        names = sharding.names_of(path)
        wide = spread(names)
        if wide == 0:
            return np.full(leaf.shape, float(names[-1] == "scale"), leaf.dtype)
        return (wide * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


def loud(names: tuple[str, ...]) -> float:
    """Spreads matrices and embeddings so wide that every token hangs on those before it."""
    return 0.0 if names[-1] in ("scale", "bias") else 0.1
