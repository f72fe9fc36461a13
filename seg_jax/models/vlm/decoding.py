"""Takes the next tokens of answers through the blocks of a model, each with a cache of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float

from seg_jax.models.nn import batching
from seg_jax.models.vlm import protocol
from seg_jax.records import Array


def extend(
    blocks: Sequence[Callable[..., tuple[Any, Any]]],
    x: Float[Array, "B G Q D"],
    suffix: protocol.Suffix,
    *,
    reach: int,
    mix: Callable[..., tuple[Any, Any]],
) -> tuple[Float[Array, "B G Q D"], protocol.Suffix]:
    """Returns the outputs of the last block at the next Q tokens, and the longer cache.

    Args:
      blocks: (x, rotation, mix) -> (x, cache), one for each layer.
      x: the tokens as the first block takes them.
      suffix: cache of the answers so far.
      reach: columns of the cache.
      mix: (number of the layer, its cache, visible columns, what the block gives) -> (what is
        attended to, the longer cache).
    """
    new = x.shape[2]
    view = batching.visible_columns(suffix.length, suffix.slots, new=new, reach=reach)
    turn = batching.slice_columns(suffix.turn, suffix.length, suffix.slots, new=new)
    filled = []
    for number, (block, own) in enumerate(zip(blocks, suffix.own, strict=True)):
        x, own = block(x, turn, functools.partial(mix, number, own, view))
        filled.append(own)
    return x, suffix._replace(own=tuple(filled), length=suffix.length + new)
