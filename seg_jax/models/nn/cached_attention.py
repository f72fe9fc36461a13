"""Attention of answers to the cached keys and values of their prompt and to their own.

Axes here: `P` prompt tokens, `S` queues and `R` slots of a queue, as in `batching`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from seg_jax.models.nn import batching
from seg_jax.models.nn.batching import Slots
from seg_jax.models.nn.xla_attention import MASKED_SCORE, Heads
from seg_jax.records import Array


class PromptCache(NamedTuple):
    """Keys and values of the prompt in one layer, common to all its answers.

    Keys lie transposed, so that neither product of attention has to turn a cache around.
    """

    k: Float[Array, "B kv hd P"]
    v: Float[Array, "B kv P vd"]


class AnswerCache(NamedTuple):
    """Keys and values of each answer in one layer."""

    k: Float[Array, "B kv G hd L"]
    v: Float[Array, "B kv G L vd"]


def prompt_cache(heads: Heads) -> PromptCache:
    """Returns the keys and values of prompts, [B T kv hd], as answers read them."""
    return PromptCache(heads.k.transpose(0, 2, 3, 1), heads.v.transpose(0, 2, 1, 3))


def answer_cache(heads: Heads) -> AnswerCache:
    """Returns the keys and values of answers, [B G Q kv hd], as they read them themselves."""
    return AnswerCache(heads.k.transpose(0, 3, 1, 4, 2), heads.v.transpose(0, 3, 1, 2, 4))


def prolonged(prompt: PromptCache, answer: AnswerCache, count: Int[Array, " B"]) -> PromptCache:
    """Returns prompts with the first tokens of their one answer at their ends, as long as before.

    Args:
      prompt: keys and values of prompts whose first columns, as many as the tokens, are padding.
      answer: those of an answer each, G = 1.
      count: tokens of each that are meant.
    """
    length = prompt.v.shape[2]
    k = jnp.concatenate([prompt.k, answer.k[:, :, 0]], 3)
    v = jnp.concatenate([prompt.v, answer.v[:, :, 0]], 2)
    return PromptCache(
        batching.slice_rows(k, count, length=length, axis=3),
        batching.slice_rows(v, count, length=length, axis=2),
    )


def attend(
    q: Float[Array, "B G Q heads hd"],
    prompt: PromptCache,
    answer: AnswerCache,
    *,
    used: Bool[Array, "B P"],
    seen: Bool[Array, "*n Q L"],
    scale: float | None = None,
) -> Float[Array, "B G Q heads vd"]:
    """Returns attention of answers to their prompt, never copied per answer, and to themselves.

    Args:
      q: queries of G answers per prompt.
      prompt: the prompt's keys and values.
      answer: the answers' keys and values.
      used: True where the prompt has a token.
      seen: True where a query sees a column of its own row; of all rows, or [B G Q L].
      scale: of the scores; None: one over the root of the width of queries.
    """
    batch, answers, length, count, width = q.shape
    kv, reach, deep = prompt.v.shape[1:]
    rows = length * (count // kv)
    q = q.reshape(batch, answers, length, kv, count // kv, width)
    q = q * (width**-0.5 if scale is None else scale)
    q = q.transpose(0, 3, 1, 2, 4, 5).reshape(batch, kv, answers * rows, width)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    to_prompt = jnp.where(used[:, None, None], product(q, prompt.k), MASKED_SCORE)
    q, split = q.reshape(batch, kv, answers, rows, width), (batch, kv, answers, rows, -1)
    seen = jnp.repeat(seen, count // kv, axis=-2)
    to_own = jnp.where(seen[:, None] if seen.ndim > 2 else seen, product(q, answer.k), MASKED_SCORE)
    scores = jnp.concatenate([to_prompt.reshape(split), to_own], -1)
    weights = jax.nn.softmax(scores, -1).astype(answer.v.dtype)
    from_prompt = weights[..., :reach].reshape(batch, kv, answers * rows, reach) @ prompt.v
    out = from_prompt.reshape(split) + weights[..., reach:] @ answer.v
    out = out.reshape(batch, kv, answers, length, count // kv, deep)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(batch, answers, length, count, deep)


def attend_slots(
    q: Float[Array, "S R Q heads hd"],
    prompt: PromptCache,
    answer: AnswerCache,
    *,
    used: Bool[Array, "B P"],
    seen: Bool[Array, "*n Q L"],
    slots: Slots | None,
    scale: float | None = None,
) -> Float[Array, "S R Q heads vd"]:
    """Returns the same where rows may change their answers.

    Where every queue has one prompt, rows are its answers and nothing is looked up. As many rows
    as prompts or fewer: each looks up its prompt, a copy for one layer at a time. Of more rows the
    queries travel to the prompts, which stay where they are, and results back, a vector per head
    each way.

    Args:
      q: queries of rows.
      prompt: keys and values of all prompts.
      answer: the rows' own keys and values.
      used: True where a prompt has a token.
      seen: True where a query sees a column of its own row.
      slots: whose answers the rows decode; None: rows [B G] are the answers of their prompts.
      scale: of the scores; None: one over the root of the width of queries.
    """
    queues, rows = q.shape[:2]
    if slots is None or queues == used.shape[0]:
        return attend(q, prompt, answer, used=used, seen=seen, scale=scale)
    if queues * rows > used.shape[0]:
        return _attend_travelling(q, prompt, answer, used=used, seen=seen, slots=slots, scale=scale)
    flat = jax.tree.map(
        lambda leaf: leaf.reshape(queues * rows, *leaf.shape[2:]),
        (q, batching.gather_prompts(slots, (prompt, used)), seen),
    )
    one_each = AnswerCache(
        *(leaf.swapaxes(1, 2).reshape(-1, leaf.shape[1], 1, *leaf.shape[3:]) for leaf in answer)
    )
    q, (prompt, used), seen = flat
    out = attend(q[:, None], prompt, one_each, used=used, seen=seen[:, None], scale=scale)
    return out.reshape(queues, rows, *out.shape[2:])


def _attend_travelling(
    q: Float[Array, "S R Q heads hd"],
    prompt: PromptCache,
    answer: AnswerCache,
    *,
    used: Bool[Array, "B P"],
    seen: Bool[Array, "S R Q L"],
    slots: Slots,
    scale: float | None,
) -> Float[Array, "S R Q heads vd"]:
    """Returns the same with queries that travel to their prompts and results that travel back.

    The sums of both parts travel along, so that weights are those of one softmax, rounded once as
    in `attend`.
    """
    queues, rows, length, count, width = q.shape
    batch, kv, _, deep = prompt.v.shape
    wide = length * (count // kv)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    q = q * (width**-0.5 if scale is None else scale)
    q = q.reshape(queues, rows, length, kv, count // kv, width)
    q = q.transpose(0, 1, 3, 2, 4, 5).reshape(queues, rows, kv, wide, width)
    seen = jnp.repeat(seen, count // kv, axis=-2)
    to_own = product(q.swapaxes(1, 2), answer.k)
    to_own = jnp.where(seen[:, None], to_own, MASKED_SCORE).swapaxes(1, 2)  # S R kv wide L
    asked = batching.slots_to_answers(slots, (q, jax.nn.logsumexp(to_own, -1)), batch)
    asked, own_sum = (leaf.swapaxes(1, 2).reshape(batch, kv, -1, *leaf.shape[4:]) for leaf in asked)
    to_prompt = jnp.where(used[:, None, None], product(asked, prompt.k), MASKED_SCORE)
    total = jnp.logaddexp(jax.nn.logsumexp(to_prompt, -1), own_sum)  # B kv G*wide
    weights = jnp.exp(to_prompt - total[..., None]).astype(answer.v.dtype)
    told = weights @ prompt.v, total
    told = (leaf.reshape(batch, kv, -1, wide, *leaf.shape[3:]).swapaxes(1, 2) for leaf in told)
    from_prompt, total = batching.answers_to_slots(slots, tuple(told))  # S R kv wide ..
    weights = jnp.exp(to_own - total[..., None]).astype(answer.v.dtype)
    out = from_prompt + (weights.swapaxes(1, 2) @ answer.v).swapaxes(1, 2)
    out = out.reshape(queues, rows, kv, length, count // kv, deep).swapaxes(2, 3)
    return out.reshape(queues, rows, length, count, deep)
