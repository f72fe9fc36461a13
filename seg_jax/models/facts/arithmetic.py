"""The matrix products of a vision-language model, by which `flops` counts the work on a batch.

Source: a product [m k] [k n] is 2 m k n operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Blocks(NamedTuple):
    """Equal blocks of a stack, with what one of them computes."""

    count: int
    weights: float
    """Operations with weights for a token."""
    last: float
    """Those of them whose result no gradient needs: the last product."""
    pair: float
    """Operations of attention for a query and a key."""
    spread: float = 0.0
    """Operations for a token of a prompt, each time that answers look at it (latent attention)."""
    cached_pair: float = 0.0
    """Operations of attention for a query and a key of a cache; as `pair` if 0."""
    reach: int = 0
    """Patches of a window, where blocks look no further."""


class Arithmetic(NamedTuple):
    """What a model computes for a token and for a patch."""

    decoder: list[Blocks]
    tower: list[Blocks]
    embed: float
    """Operations that embed a patch."""
    merge: float
    """Operations that make visual tokens, for each patch."""
    head: float
    """Operations that score the token after a token."""


def of_grouped_queries(text: Any, *, head: int) -> list[Blocks]:
    """Returns the blocks of a decoder with grouped-query attention and SwiGLU.

    Args:
      text: sizes, by the names of `transformers`.
      head: channels of a head.
    """
    wide = text.hidden_size
    heads, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    attention = 2.0 * wide * (heads + 2 * keys) + 2.0 * heads * wide
    last = 2.0 * wide * text.intermediate_size
    return [Blocks(text.num_hidden_layers, attention + 3 * last, last, 4.0 * heads)]


def of_tower(vision: Any, *, depth: int, products: int) -> Blocks:
    """Returns the blocks of a vision tower whose patches see all of their image.

    Args:
      vision: sizes, by the names of `transformers`.
      depth: number of blocks.
      products: products of the feed-forward layer: 3 where it is gated, 2 where it is not.
    """
    wide = vision.hidden_size
    last = 2.0 * wide * vision.intermediate_size
    return Blocks(depth, 8.0 * wide * wide + products * last, last, 4.0 * wide)


def of_model(
    config: Any, *, decoder: list[Blocks], tower: list[Blocks], mergers: int = 1
) -> Arithmetic:
    """Returns the arithmetic of a model of patches, one or more mergers, decoder and output head.

    Args:
      config: sizes of the model.
      decoder: blocks of the decoder.
      tower: blocks of the vision tower.
      mergers: how often patches are merged into visual tokens.
    """
    vision, text = config.vision, config.text
    wide, unit = vision.hidden_size, vision.spatial_merge_size**2
    return Arithmetic(
        decoder=decoder,
        tower=tower,
        embed=2.0 * 3 * vision.patch_size**2 * wide,
        merge=mergers * 2.0 * (wide * unit) * (wide * unit + text.hidden_size) / unit,
        head=2.0 * text.hidden_size * text.vocab_size,
    )
