"""Gives a small tokenizer of decimals ("0.37") what clicks are written with: whole numbers, tags.

A tokenizer that `tokens.train` makes with `numbers="whole"` has a token for each decimal and
writes 37 digit by digit, so that a model which knows places by their decimals has to learn them
again. Here each whole number of a frame becomes a token and is told which decimal it means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seg_jax.grammar.tokenizer.tokens import Tokenizer, number_table

TAGS = ("<points>[[", "]]</points> <labels>[", "]</labels>")
"""What stands around the numbers of a click, a token each."""
MOST = 99
"""The largest number: two digits are cut as one piece."""
_ONE_DIGIT, _TWO_DIGITS = r"|\p{N}|", r"|\p{N}{1,2}|"


class Grown(NamedTuple):
    """A tokenizer.json with more tokens, and what the new ones mean."""

    definition: str
    vocab_size: int
    """Ids in all; those of the tokens that there were have not changed."""
    alike: Int[np.ndarray, "N 2"]
    """Whole numbers and the decimals that they mean, ids both."""
    tags: tuple[tuple[int, tuple[int, ...]], ...]
    """Ids of the tags, and of the pieces that each was written in before."""


def grow(tokenizer: Tokenizer, *, frame: int, tags: Sequence[str] = TAGS) -> Grown:
    """Returns the definition of a tokenizer that writes 0..frame and the tags as one token each.

    Args:
      tokenizer: of decimals that are one token each, and of digits.
      frame: the number that means 1.0, 1..99.
      tags: texts that become tokens.

    Raises:
      ValueError: the tokenizer is another, has such tokens already, or the frame is out of range.
    """
    if not 1 <= frame <= MOST:
        raise ValueError(f"whole numbers: expected a frame in 1..{MOST}, got {frame}; do: less")
    whole = json.loads(tokenizer.definition)
    vocab, added = whole["model"].get("vocab"), whole["added_tokens"]
    value, family = number_table(tokenizer)
    decimals = np.flatnonzero(family == 0)
    known = {token["content"] for token in added}
    if known & {*tags}:
        raise ValueError(
            "whole numbers: expected a tokenizer without them, got one that has them; do: take "
            "the model as it is"
        )
    pattern = json.dumps(_ONE_DIGIT)[1:-1]
    text = json.dumps(whole["pre_tokenizer"])
    if not len(decimals) or not isinstance(vocab, dict) or text.count(pattern) != 1:
        raise ValueError(
            "whole numbers: expected a tokenizer whose decimals are tokens and whose digits are "
            "cut one by one, as small models of ours have it, got another; do: take such a model"
        )
    # Ids of special tokens follow the vocabulary: within it they stay what they are.
    vocab |= {token["content"]: token["id"] for token in added}
    end = tokenizer.vocab_size
    numbers = [str(number) for number in range(frame + 1)]
    vocab |= {name: end + i for i, name in enumerate(n for n in numbers if n not in vocab)}
    whole["pre_tokenizer"] = json.loads(text.replace(pattern, json.dumps(_TWO_DIGITS)[1:-1]))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    first = len(vocab)
    whole["added_tokens"] = [
        *added,
        *({"id": first + i, "content": tag, **flags} for i, tag in enumerate(tags)),
    ]
    nearest = [
        decimals[np.abs(value[decimals] - number / frame).argmin()] for number in range(frame + 1)
    ]
    return Grown(
        json.dumps(whole, ensure_ascii=False, indent=2),
        first + len(tags),
        np.stack([[vocab[name] for name in numbers], nearest], 1),
        tuple((first + i, tuple(tokenizer.encode(tag))) for i, tag in enumerate(tags)),
    )
