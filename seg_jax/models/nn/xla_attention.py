"""Softmax attention of whole rows by XLA's own products, on any device.

Axes here: `S` keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from seg_jax.models.parallel import sharding
from seg_jax.records import Array

MASKED_SCORE = -1e30
"""Score of a forbidden key: finite, so that a row without keys gives numbers, not NaN."""


LONG_ROW = 1024
"""Rows of more tokens or patches than this never hold the scores of all pairs at once."""


NO_SEGMENT = -2
"""Segment of what fills up blocks: no token or patch is in it (padding of rows has 0 or -1)."""


class Heads(NamedTuple):
    """Queries, keys and values of one layer; keys and values have fewer heads (GQA)."""

    q: Float[Array, "*n heads hd"]
    k: Float[Array, "*n kv hd"]
    v: Float[Array, "*n kv vd"]
    """As wide as keys in most models."""


def attend(
    heads: Heads, segments: Int[Array, "B T"], *, causal: bool
) -> Float[Array, "B T heads vd"]:
    """Returns attention within equal segments: block-diagonal, causal within a block if asked.

    Padding is a segment like any other, so that no row is without keys. Rows longer than `LONG_ROW`
    are worked off in parts of their queries, so that never T x T scores exist at once.
    """
    batch, length = segments.shape
    columns = jnp.arange(length)  # Not numpy's: no table of who sees whom in the compiled text.

    def part(q, wanted, at):
        allowed = wanted[:, :, None] == segments[:, None, :]
        if causal:
            allowed &= at[:, None] >= columns
        return _weigh_values(q, heads.k, heads.v, allowed=allowed)

    if length <= LONG_ROW:
        return part(heads.q, segments, columns)
    parts = -(-length // (LONG_ROW // 2))
    size = -(-length // parts)
    size += -size % sharding.along_rows()
    tail = (0, parts * size - length)
    q = jnp.pad(heads.q, ((0, 0), tail, (0, 0), (0, 0)))
    q = sharding.constrain_parts(q.reshape(batch, parts, size, *q.shape[2:]).swapaxes(0, 1), 2)
    wanted = jnp.pad(segments, ((0, 0), tail)).reshape(batch, parts, size).swapaxes(0, 1)
    at = jnp.arange(parts * size).reshape(parts, size)
    # The backward pass makes the scores of a part again rather than keep all of them.
    out = jax.lax.map(jax.checkpoint(lambda item: part(*item)), (q, wanted, at))
    return out.swapaxes(0, 1).reshape(batch, parts * size, *out.shape[3:])[:, :length]


def attend_keys(
    heads: Heads, used: Bool[Array, "B S"] | None = None
) -> Float[Array, "B T heads vd"]:
    """Returns attention of queries to all keys, or to the used ones; there may be fewer queries.

    Of more than `LONG_ROW` queries, part after part is worked off, as by `attend`.

    Args:
      heads: queries [B T ..], keys and values [B S ..], as many heads of each.
      used: where a key counts; None: everywhere.
    """
    batch, length, *rest = heads.q.shape
    # Laid out for the products once; XLA would do so for every part.
    keys, values = heads.k.transpose(0, 2, 3, 1), heads.v.swapaxes(1, 2)

    def part(q: Float[Array, "B heads t hd"]) -> Float[Array, "B heads t vd"]:
        scores = jnp.matmul(q, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        if used is not None:
            scores = jnp.where(used[:, None, None], scores, MASKED_SCORE)
        largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - largest)
        out = jnp.matmul(weights.astype(values.dtype), values)
        return (out / weights.sum(-1, keepdims=True)).astype(values.dtype)

    q = heads.q.swapaxes(1, 2)
    if length <= LONG_ROW:
        return part(q).swapaxes(1, 2)
    parts = -(-length // (LONG_ROW // 4))  # Whose scores lie in the caches of a processor.
    size = -(-length // parts)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, parts * size - length), (0, 0)))
    q = q.reshape(batch, rest[0], parts, size, rest[1]).transpose(2, 0, 1, 3, 4)
    out = jax.lax.map(jax.checkpoint(part), q).transpose(1, 0, 3, 2, 4)
    return out.reshape(batch, parts * size, *out.shape[3:])[:, :length]


def attend_windows(
    heads: Heads, segments: Int[Array, "B T"], *, reach: int
) -> Float[Array, "B T heads vd"]:
    """Returns attention within equal segments that lie together, none longer than `reach`.

    Such a segment lies in two neighbouring blocks of `reach` tokens at most, so that a block looks
    at itself and its neighbours only: T x 3 reach scores for T x T. Of a longer segment a token
    sees the part within these blocks.
    """
    batch, length = segments.shape
    blocks = -(-length // reach)
    tail = (0, blocks * reach - length)

    def cut(x, fill=0):
        x = jnp.pad(x, ((0, 0), tail, *((0, 0),) * (x.ndim - 2)), constant_values=fill)
        return x.reshape(batch, blocks, reach, *x.shape[2:])

    def around(x, fill=0):
        edge = ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 2))
        wide = jnp.pad(x, edge, constant_values=fill)
        return jnp.concatenate([wide[:, :-2], wide[:, 1:-1], wide[:, 2:]], 2)

    def flat(x):
        return x.reshape(batch * blocks, *x.shape[2:])

    own = cut(segments, NO_SEGMENT)
    allowed = flat(own)[:, :, None] == flat(around(own, NO_SEGMENT))[:, None, :]
    k, v = (flat(around(cut(part))) for part in (heads.k, heads.v))
    out = _weigh_values(flat(cut(heads.q)), k, v, allowed=allowed)
    return out.reshape(batch, blocks * reach, *out.shape[2:])[:, :length]


def _weigh_values(
    q: Float[Array, "B T heads hd"],
    k: Float[Array, "B S kv hd"],
    v: Float[Array, "B S kv vd"],
    *,
    allowed: Bool[Array, "B _ S"],
) -> Float[Array, "B T heads vd"]:
    """Returns the values of allowed keys, weighted by the softmax of their scores."""
    batch, length, count, width = q.shape
    kv = k.shape[2]
    q = q.reshape(batch, length, kv, count // kv, width)
    scores = jnp.einsum("btkrd,bskd->bkrts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed[:, None, None], scores * width**-0.5, MASKED_SCORE)
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    out = jnp.einsum("bkrts,bskd->btkrd", weights, v)
    return out.reshape(batch, length, count, v.shape[-1])
