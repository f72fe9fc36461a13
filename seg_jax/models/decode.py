"""Samples answers: each prompt read once, all its answers decoded in one compiled loop."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt32

from seg_jax.models import constraint, vlm
from seg_jax.records import Array, Automaton, Pictures, Rollout, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """The likeliest token always; `logp` is then the model's own, at temperature 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Random tokens; for training keep top_k and top_p off, so that `token_logp` agrees."""

    temperature: float = 1.0
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that have this probability together."""

    def __post_init__(self):
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "sampler: expected temperature > 0, top_k >= 0 and 0 < top_p <= 1, "
                f"got {self}: for the likeliest token use Greedy()"
            )


Sampler = Greedy | Sample


class _Draw(NamedTuple):
    ids: Int[Array, "B G"]
    logp: Float[Array, "B G"]


class _State(NamedTuple):
    rollout: Rollout
    done: Bool[Array, "B G"]
    suffix: vlm.Suffix
    held: constraint.Held | None


def generate(
    model: vlm.VLM,
    tokens: Tokens,
    pictures: Pictures | None,
    *,
    answers: int,
    max_tokens: int,
    sampler: Sampler,
    end_ids: tuple[int, ...],
    key: Array,
    pad_id: int = 0,
    rows: Int[Array, " B"] | None = None,
    grammar: Automaton | None = None,
    kinds: Int[Array, " B"] | None = None,
) -> Rollout:
    """Returns `answers` answers per prompt, drawn until an end token or `max_tokens`.

    A draw depends on the key, the prompt's number, the answer's number and the column alone, not
    on the other rows of the batch. `logp` is under the distribution drawn from, so at the
    sampler's temperature: `likelihood.answer_logp(..., temperature=...)` gives the same.

    Args:
      model: weights; merge them inside jit.
      tokens: right-aligned prompts, one conversation per row.
      pictures: of the prompts.
      answers: G per prompt; 1 where the sampler is greedy.
      max_tokens: L columns of the result; an answer that ends later is cut.
      sampler: how tokens are drawn.
      end_ids: tokens that end an answer (and belong to it).
      key: of the whole batch.
      pad_id: fills the columns after the end.
      rows: number of each prompt for its random draws; its row in the batch if None.
      grammar: what answers are held to; each then ends within `max_tokens`, if the shortest one
        does, and `logp` is under the distribution over the tokens that it allows.
      kinds: the `Kind` of answer that each prompt asks for; needed with a grammar.
    """
    if isinstance(sampler, Greedy) and answers != 1:
        raise ValueError(f"answers: expected 1 with Greedy(), got {answers}: they would be equal")
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    held = None if grammar is None else constraint.begin(grammar, kinds, answers)
    batch = tokens.ids.shape[0]
    prefix = model.prefill(tokens, pictures)
    decoder = model.decoder()
    keys = _keys(key, jnp.arange(batch) if rows is None else rows, answers)

    def choose(hidden: Float[Array, "B _ D"], held: constraint.Held | None, column) -> _Draw:
        logits = decoder.logits(hidden)
        if grammar is not None and held is not None:
            given = constraint.permit(grammar, held, max_tokens - column)
            logits = constraint.masked(grammar, given, logits)
        return _Draw(*draw(sampler, logits, jax.vmap(jax.vmap(_at(column)))(keys)))

    def put(state: _State, drawn: _Draw, column) -> _State:
        live = ~state.done
        new = Rollout(jnp.where(live, drawn.ids, pad_id), live, jnp.where(live, drawn.logp, 0.0))
        rollout = jax.tree.map(
            lambda old, x: jax.lax.dynamic_update_slice(
                old, x[..., None].astype(old.dtype), (0, 0, column)
            ),
            state.rollout,
            new,
        )
        ended = jnp.isin(drawn.ids, jnp.asarray(end_ids))
        held = state.held
        if grammar is not None and held is not None:
            held = constraint.after(grammar, held, new.ids)
        return state._replace(rollout=rollout, done=state.done | ended, held=held)

    def body(carry):
        column, state = carry
        last = jax.lax.dynamic_slice_in_dim(state.rollout.ids, column - 1, 1, 2)
        hidden, suffix = decoder.extend(last, prefix, state.suffix)
        state = state._replace(suffix=suffix)
        return column + 1, put(state, choose(hidden[:, :, 0], state.held, column), column)

    def going(carry):
        column, state = carry
        return (column < max_tokens) & ~jnp.all(state.done)

    shape = (batch, answers, max_tokens)
    blank = Rollout(
        jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)
    )
    suffix = decoder.empty(prefix, answers=answers, length=max_tokens - 1 or 1)
    state = _State(blank, jnp.zeros(shape[:2], bool), suffix, held)
    alike = jax.tree.map(lambda leaf: leaf[:, :1], held)  # All answers to a prompt begin alike.
    state = put(state, choose(prefix.hidden[:, None], alike, jnp.int32(0)), jnp.int32(0))
    return jax.lax.while_loop(going, body, (jnp.int32(1), state))[1].rollout


def draw(
    sampler: Sampler, logits: Float[Array, "B _ V"], keys: Array
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """Returns a token per key and its log-probability under the distribution drawn from."""
    noisy = logits
    if isinstance(sampler, Sample):
        logits = narrow(logits / sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p)
        bits = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, logits.shape[-1:])))(keys)
        noisy = logits + _gumbel(bits)
    # The first of the largest; a plain maximum runs faster than argmax on every backend tried.
    top = jnp.max(noisy, -1, keepdims=True)
    vocabulary = jnp.arange(noisy.shape[-1])
    ids = jnp.min(jnp.where(noisy == top, vocabulary, noisy.shape[-1] - 1), -1)
    hit = vocabulary == ids[..., None]
    chosen = jnp.max(jnp.where(hit, logits, -jnp.inf), -1)
    return ids.astype(jnp.int32), chosen - jax.nn.logsumexp(logits, -1)


def narrow(
    logits: Float[Array, "*n V"], *, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "*n V"]:
    """Returns the logits with all but the likeliest tokens at minus infinity.

    Tokens as likely as the last one kept are kept too.
    """
    if top_k and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p < 1:
        falling = -jnp.sort(-logits, -1)
        p = jax.nn.softmax(falling, -1)
        before = jnp.cumsum(p, -1) - p
        least = jnp.min(jnp.where(before < top_p, falling, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _keys(key: Array, rows: Int[Array, " B"], answers: int) -> Array:
    """Returns a key for every answer of every prompt."""
    fold = jax.random.fold_in
    return jax.vmap(lambda row: jax.vmap(lambda g: fold(fold(key, row), g))(jnp.arange(answers)))(
        rows
    )


def _at(column):
    """Returns the function from an answer's key to its key at a column."""
    return lambda key: jax.random.fold_in(key, column)


def _gumbel(bits: UInt32[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns noise whose maximum over logits + noise falls on each token with its probability.

    Source: Gumbel-max; u lies strictly inside 0..1, in steps of 2^-23.
    """
    u = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return -jnp.log(-jnp.log(u))
