"""The characters of every token as a reading machine sees them, and those of whole answers.

Axes here: `C` characters of the longest token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, Int8

from seg_jax.records import Array


class Table(NamedTuple):
    """The characters of every token as a machine sees them (host)."""

    classes: Int8[np.ndarray, "V C"]
    """Classes of characters; the one that means nothing after the last one."""


def make(
    pieces: Sequence[bytes | None],
    classes: Callable[[bytes], bytes],
    *,
    nothing: int,
    vocab_size: int | None = None,
) -> Table:
    """Returns the table of a tokenizer.

    Args:
      pieces: the bytes of every token by id (`Tokenizer.pieces`); None for tokens without text.
      classes: the classes of a token's characters, as few as have the same effect.
      nothing: the class that changes nothing.
      vocab_size: rows of the table, at least one per piece; further ids have no text.
    """
    texts = [classes(piece or b"") for piece in pieces]
    rows = len(texts) if vocab_size is None else vocab_size
    if rows < len(texts):
        raise ValueError(
            f"reader.table: expected a vocab_size of at least {len(texts)}, got {rows}; do: pass "
            "the size of the model's embedding table"
        )
    longest = max([len(text) for text in texts], default=0)
    table = np.full((rows, max(longest, 1)), nothing, np.int8)
    for row, text in zip(table, texts, strict=False):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    # Not on a device yet: a mesh in force would lay it out, for its own programs only.
    return Table(table)


def characters(
    table: Table, ids: Int[Array, "*n L"], used: Bool[Array, "*n L"], *, nothing: int
) -> Int[Array, "L_C N"]:
    """Returns the classes of whole answers, one answer a column.

    Args:
      table: of the tokenizer that wrote them.
      ids: tokens of the answers; ids outside the table have no text.
      used: False for tokens to skip: padding, or what follows the end token.
      nothing: the class that changes nothing.
    """
    lanes, length = int(np.prod(ids.shape[:-1])), ids.shape[-1]
    known = used & (ids >= 0) & (ids < table.classes.shape[0])
    classes = jnp.asarray(table.classes)[jnp.where(known, ids, 0)].astype(jnp.int32)
    classes = jnp.where(known[..., None], classes, nothing)
    return classes.reshape(lanes, length * table.classes.shape[1]).T
