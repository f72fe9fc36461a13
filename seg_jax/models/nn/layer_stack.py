"""Applies equal layers whose parameters are stacked on a leading axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from seg_jax.models.nn.compute import Compute

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(block, carry, per-layer value) -> (carry, per-layer result), as in a scan."""


def apply(stack: nnx.Module, carry: Any, step: Step, *, each: Any, compute: Compute) -> tuple:
    """Returns the carry after all blocks of a stack and the stacked results of its layers.

    Args:
      stack: a block whose parameters have a leading axis of layers.
      carry: what goes from block to block.
      step: applies one block.
      each: a tree of values with a leading axis of layers, or None.
      compute: scan or unrolled, and what to recompute in the backward pass.
    """
    graph, params = nnx.split(stack)

    def body(carry, item):
        weights, value = item
        return step(nnx.merge(graph, weights), carry, value)

    if compute.remat == "full":
        body = jax.checkpoint(body, prevent_cse=compute.unroll)
    elif compute.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, prevent_cse=compute.unroll, policy=policy)
    return jax.lax.scan(body, carry, (params, each), unroll=compute.unroll or 1)


def unstack(stack: Any, lay: Callable[[Any], Any] | None = None) -> list[Any]:
    """Returns the blocks of a stack one by one, their weights laid over the devices by `lay`."""
    graph, params = nnx.split(stack)
    count = jax.tree.leaves(params)[0].shape[0]
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)]
    return [nnx.merge(graph, one if lay is None else lay(one)) for one in apart]
