"""Batches of a pipeline, taken and compared."""

import jax
import numpy as np


def take(iterator, count):
    """Returns the next batches."""
    return [next(iterator) for _ in range(count)]


def assert_same(one, other):
    """Raises unless all arrays of two trees are equal."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
