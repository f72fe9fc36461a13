"""Continuous batching: fewer slots than answers; a finished answer leaves its slot to the next.

Prompts [B ..] with their G answers each are divided among S queues (one for the devices that hold
the same prompts), so that no slot ever looks at another device's prompts: B = S * prompts of a
queue, N = answers of a queue, R = slots of a queue. Answers wait in the order of their numbers.

All slots write into one common column of their caches, which goes round: an answer of at most L
tokens sees the last columns, as many as it has tokens, whenever it began. So no cache is moved or
cleared when an answer leaves, and a step writes one slice per layer.

Axes here: `S` queues, `R` slots of a queue, `N` answers of a queue.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from seg_jax.records import Array


class Slots(NamedTuple):
    """Which answer each slot decodes."""

    answer: Int[Array, "S R"]
    """Number of the slot's answer in the queue; no two slots have the same."""
    slot: Int[Array, "S N"]
    """Slot of each answer that has one; any other entry is meaningless."""
    column: Int[Array, "S R"]
    """Column of the answer's token that the slot reads next."""


class Queue(NamedTuple):
    """Answers that wait for a slot."""

    order: Int[Array, "S N"]
    """Numbers of answers: those that are not over yet, one after another, then all others."""
    count: Int[Array, " S"]
    """Answers that were not over when the queue formed."""
    served: Int[Array, " S"]
    """Answers that have been given a slot."""


class View(NamedTuple):
    """What the next tokens of answers see of their own."""

    at: Int[Array, ""]
    """Column of the caches that the first one is written to."""
    seen: Bool[Array, "*m Q L"]
    """True where a token sees a column, once it is written."""


def open_slots(over: Bool[Array, "S N"], count: int) -> tuple[Queue, Slots]:
    """Returns the queue of unfinished answers, and `count` slots in each queue, none taken yet."""
    queues, answers = over.shape
    order = jnp.argsort(over, axis=1, stable=True)
    waiting = jnp.sum(~over, 1)
    answer, zero = order[:, :count], jnp.zeros((queues, count), jnp.int32)
    slots = Slots(answer, jnp.zeros((queues, answers), jnp.int32), zero)
    return Queue(order, waiting, jnp.zeros(queues, jnp.int32)), slots


def fill_slots(
    queue: Queue, slots: Slots, live: Bool[Array, "S R"]
) -> tuple[Queue, Slots, Bool[Array, "S R"]]:
    """Returns queue and slots once free slots have the next answers, and which slots are new."""
    wanted = queue.served[:, None] + jnp.cumsum(~live, 1, dtype=jnp.int32) - 1
    new = ~live & (wanted < queue.count[:, None])
    following = take_entries(queue.order, jnp.minimum(wanted, queue.order.shape[1] - 1))
    answer = jnp.where(new, following, slots.answer)
    numbers = jnp.arange(live.shape[1], dtype=jnp.int32)
    slot = jax.vmap(lambda slot, answer: slot.at[answer].set(numbers))(slots.slot, answer)
    column = jnp.where(new, 0, slots.column)
    served = queue.served + jnp.sum(new, 1, dtype=jnp.int32)
    return queue._replace(served=served), Slots(answer, slot, column), new


def take_entries(tree: Any, at: Int[Array, "S n"]) -> Any:
    """Returns the entries of arrays [S m ..] at numbers of the same queue, [S n ..]."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda x, i: x[i])(leaf, at), tree)


def visible_columns(length: Int[Array, ""], slots: Slots | None, *, new: int, reach: int) -> View:
    """Returns which columns of their caches the next `new` tokens of every answer see.

    Args:
      length: tokens that have been written for every answer.
      slots: which answers are decoded; None: rows [B G] are the answers of their prompts.
      new: 1 with slots.
      reach: L, columns of the caches.
    """
    if slots is None:
        columns = length + jnp.arange(new)
        return View(length, columns[:, None] >= jnp.arange(reach))
    if new != 1:
        raise ValueError(
            f"view: expected one token at a time with slots, got {new}"
            "; do: pass the tokens one by one, or leave slots out"
        )
    at = length % reach
    age = (at - jnp.arange(reach)) % reach
    return View(at, age <= slots.column[..., None, None])


def slice_columns(x: Any, length: Int[Array, ""], slots: Slots | None, *, new: int) -> Any:
    """Returns what the next `new` columns of each prompt's answers [B L ..] hold, [*n new ..].

    Args:
      x: the same for all answers of a prompt.
      length: tokens that have been written for every answer.
      slots: which answers are decoded; None: rows [B G] are the answers of their prompts.
      new: 1 with slots.
    """
    if slots is None:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, length, new, 1)[:, None], x
        )
    queues, answers = slots.slot.shape
    batch, reach = jax.tree.leaves(x)[0].shape[:2]
    prompt = slots.answer // (answers * queues // batch)
    at = prompt * reach + jnp.minimum(slots.column, reach - 1)
    flat = jax.tree.map(lambda leaf: leaf.reshape(queues, -1, *leaf.shape[2:]), x)
    return jax.tree.map(lambda leaf: leaf[:, :, None], take_entries(flat, at))


def slice_rows(x: Any, begin: Int[Array, " B"], *, length: int, axis: int) -> Any:
    """Returns `length` entries of an axis of arrays [B ..], for each row from its own begin on."""

    def cut(leaf):
        # Few rows: XLA for CPUs gathers by numbers what it copies whole.
        rows = [
            jax.lax.dynamic_slice_in_dim(leaf[row : row + 1], begin[row], length, axis)
            for row in range(leaf.shape[0])
        ]
        return jnp.concatenate(rows)

    return jax.tree.map(cut, x)


def gather_prompts(slots: Slots, x: Any) -> Any:
    """Returns the entries of each slot's prompt, [S R ..], of arrays [B ..]."""
    queues, answers = slots.slot.shape
    own = jax.tree.map(lambda leaf: leaf.reshape(queues, -1, *leaf.shape[1:]), x)
    group = answers // jax.tree.leaves(own)[0].shape[1]
    return take_entries(own, slots.answer // group)


def slots_to_answers(slots: Slots, x: Any, prompts: int) -> Any:
    """Returns arrays of slots [S R ..] in the order of their prompts' answers, [B G ..].

    Where an answer has no slot there is an entry of another one.
    """
    entries = take_entries(x, slots.slot)
    return jax.tree.map(lambda leaf: leaf.reshape(prompts, -1, *leaf.shape[2:]), entries)


def answers_to_slots(slots: Slots, x: Any) -> Any:
    """Returns arrays of answers [B G ..] in the order of the slots, [S R ..]."""
    queues = slots.slot.shape[0]
    flat = jax.tree.map(lambda leaf: leaf.reshape(queues, -1, *leaf.shape[2:]), x)
    return take_entries(flat, slots.answer)
