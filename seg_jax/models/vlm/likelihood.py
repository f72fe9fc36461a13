"""Log-probabilities of tokens, never holding the logits of a whole row at once.

Axes here: `J` tokens that share a soft target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from seg_jax.models.nn import linear
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import constraint, protocol
from seg_jax.records import Array, Automaton, Images, Tokens


class Likelihood(NamedTuple):
    """What a model thinks of given tokens."""

    logp: Float[Array, "*n T"]
    entropy: Float[Array, "*n T"]
    """Entropy of the distribution that the token comes from, in nats."""


def token_logp(
    hidden: Float[Array, "*n T D"],
    unembed: Float[Array, "V D"],
    targets: Int[Array, "*n T"],
    *,
    chunk: int | None = None,
    temperature: float = 1.0,
    grammar: Automaton | None = None,
    given: constraint.Permit | None = None,
) -> Float[Array, "*n T"]:
    """Returns the log-probability of each target under softmax(hidden unembed^T / temperature).

    Args:
      hidden: outputs of the model at the tokens before the targets.
      unembed: output head.
      targets: ids.
      chunk: tokens of a row whose logits exist at once, in the backward pass too (where they
        are computed again). None: all at once and kept, fastest for a small vocabulary.
      temperature: the sampler's, to score under the distribution that was drawn from.
      grammar: what the targets were held to; the softmax is then over the tokens that it allowed.
      given: what the grammar allowed at each target.
    """
    return token_likelihood(
        hidden,
        unembed,
        targets,
        chunk=chunk,
        temperature=temperature,
        grammar=grammar,
        given=given,
    ).logp


def token_likelihood(
    hidden: Float[Array, "*n T D"],
    unembed: Float[Array, "V D"],
    targets: Int[Array, "*n T"],
    *,
    chunk: int | None = None,
    temperature: float = 1.0,
    grammar: Automaton | None = None,
    given: constraint.Permit | None = None,
) -> Likelihood:
    """Returns log-probability and entropy at each target; arguments as in `token_logp`."""

    def piece(hidden, targets, given=None):
        logits = linear.logits(hidden, unembed) / temperature
        if grammar is not None and given is not None:
            logits = constraint.mask_logits(grammar, given, logits)
        total = jax.nn.logsumexp(logits, -1)
        # A comparison instead of a gather: its gradient is no scatter, and V may be sharded.
        hit = jnp.arange(logits.shape[-1]) == targets[..., None]
        chosen = jnp.sum(jnp.where(hit, logits, 0.0), -1)
        surprise = total[..., None] - logits
        return Likelihood(chosen - total, jnp.sum(jnp.exp(-surprise) * surprise, -1))

    more = () if given is None else (given,)
    return _chunked(piece, hidden, targets, *more, chunk=chunk)


def soft_cross_entropy(
    hidden: Float[Array, "*n T D"],
    unembed: Float[Array, "V D"],
    targets: Int[Array, "*n T"],
    *,
    neighbours: Int[Array, "known J"],
    shares: Float[Array, "known J"],
    chunk: int | None = None,
) -> Float[Array, "*n T"]:
    """Returns the cross-entropy to targets that are spread over neighbouring tokens.

    Args:
      hidden: outputs of the model at the tokens before the targets.
      unembed: output head.
      targets: ids.
      neighbours: tokens that share in the target of each id.
      shares: their shares, adding up to 1 per row (0 for fillers).
      chunk: as in `token_logp`.
    """
    neighbours, shares = jnp.asarray(neighbours), jnp.asarray(shares)

    def piece(hidden, targets):
        logits = linear.logits(hidden, unembed)
        near = jnp.take_along_axis(logits, neighbours[targets], -1)
        return jax.nn.logsumexp(logits, -1) - jnp.sum(shares[targets] * near, -1)

    return _chunked(piece, hidden, targets, chunk=chunk)


def answer_likelihood(
    model: protocol.VLM,
    tokens: Tokens,
    images: Images | None,
    *,
    ids: Int[Array, "B G L"],
    chunk: int | None = None,
    temperature: float = 1.0,
    grammar: Automaton | None = None,
    kinds: Int[Array, " B"] | None = None,
) -> Likelihood:
    """Returns what the model thinks of each token of G answers per prompt, prompts read once.

    `logp` equals `decode.generate`'s for the same weights, temperature and grammar, L being its
    `max_tokens`. Columns after the end token hold numbers without meaning: mask them with
    `Rollout.used`.
    """
    given = None if grammar is None else constraint.permits_along(grammar, kinds, ids)
    prefix = model.prefill(tokens, images)
    first = jnp.broadcast_to(
        prefix.hidden[:, None, None], (*ids.shape[:2], 1, prefix.hidden.shape[-1])
    )
    hidden = jnp.concatenate([first, model.extend(ids[..., :-1], prefix)], 2)
    return token_likelihood(
        hidden,
        model.unembed(),
        ids,
        chunk=chunk,
        temperature=temperature,
        grammar=grammar,
        given=given,
    )


def _chunked(
    piece: Callable[..., Any], hidden: Array, targets: Array, *more: Any, chunk: int | None
) -> Any:
    """Returns `piece` of trees [*n T ..] as if applied at once, chunk by chunk along T."""
    rows = (hidden, targets, *more)
    length, axis = targets.shape[-1], targets.ndim - 1
    if chunk is None:
        return piece(*rows)
    if chunk < 1:
        raise ValueError(
            f"chunk: expected at least 1 token or None, got {chunk}"
            "; do: pass a number of tokens, or None for all at once"
        )
    chunk += -chunk % sharding.along_rows()
    count = -(-length // chunk)

    def split(x):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, count * chunk - length)
        x = jnp.pad(x, pad).reshape(*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
        return sharding.constrain_parts(jnp.moveaxis(x, axis, 0), axis + 1)

    def join(y):
        y = jnp.moveaxis(y, 0, axis)
        return y.reshape(*y.shape[:axis], count * chunk)[..., :length]

    one = jax.checkpoint(piece, prevent_cse=False)
    _, out = jax.lax.scan(lambda _, xs: (None, one(*xs)), None, jax.tree.map(split, rows))
    return jax.tree.map(join, out)
