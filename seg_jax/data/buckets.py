"""Trims the padding of prompts to one of a few lengths: few programs, little waste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from seg_jax.data.encode import Layout
from seg_jax.records import Images, Prompts, Tokens


def batch_of_rows(rows: Sequence[Prompts], layout: Layout) -> Prompts:
    """Returns rows (no batch axis) as a batch of the shortest length that holds them."""
    return trim_padding(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), layout)


def trim_padding(
    prompts: Prompts,
    layout: Layout,
    *,
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
) -> Prompts:
    """Returns a batch with no more columns than the least bucket that holds all its prompts.

    Bucket k of the layout's n has k/n of its tokens and of its patches, rounded up. Prompts stay
    right-aligned; what they hold, and so every answer up to the rounding of sums, stays the same.

    Args:
      prompts: some rows of a batch as the encoder makes them (host).
      layout: the encoder's layout.
      gather: gives what all processes have, plain values, in each of them, so that processes that
        hold rows of one batch take one bucket.
    """
    if layout.buckets == 1:
        return prompts
    padding = np.logical_and.accumulate(np.asarray(prompts.tokens.segments == 0).all(0))
    patches = np.count_nonzero(np.asarray(prompts.images.image) >= 0, axis=-1).max()
    needs = (
        _bucket_number(int(np.count_nonzero(~padding)), layout.max_prompt, layout),
        _bucket_number(int(patches), layout.max_patches, layout),
    )
    bucket = max(max(need) for need in gather(list(needs)))
    tokens, last = _lengths_of_bucket(layout, bucket)
    first = layout.max_prompt - tokens
    return prompts._replace(
        tokens=Tokens(*(leaf[..., first:] for leaf in prompts.tokens)),
        images=Images(*(leaf[:, :last] for leaf in prompts.images)),
    )


def lengths(layout: Layout) -> list[tuple[int, int]]:
    """Returns the tokens and patches of each bucket, the shortest first."""
    return [_lengths_of_bucket(layout, bucket + 1) for bucket in range(layout.buckets)]


def _lengths_of_bucket(layout: Layout, bucket: int) -> tuple[int, int]:
    cell = layout.merge**2
    patches = cell * _columns(layout.max_patches // cell, bucket, layout.buckets)
    return _columns(layout.max_prompt, bucket, layout.buckets), patches


def _bucket_number(used: int, most: int, layout: Layout) -> int:
    """Returns the number (from 1) of the least bucket that holds the used columns."""
    return max(1, -(-used * layout.buckets // most))


def _columns(most: int, bucket: int, of: int) -> int:
    return -(-most * bucket // of)
