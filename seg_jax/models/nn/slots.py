"""Seats: fewer rows than answers, where a finished answer leaves its row to the next that waits.

Prompts [B ..] with their G answers each are divided among S queues (one for the devices that hold
the same prompts), so that no row ever looks at another device's prompts: B = S * prompts of a
queue, N = answers of a queue, R = rows of a queue. Answers wait in the order of their numbers.

All rows write into one common column of their caches, which goes round: an answer of at most L
tokens sees the last columns, as many as it has tokens, whenever it sat down. So no cache is moved
or cleared when an answer leaves, and a step writes one slice per layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from seg_jax.records import Array


class Seats(NamedTuple):
    """Which answer each row decodes."""

    answer: Int[Array, "S R"]
    """Its number in the queue; no two rows have the same."""
    row: Int[Array, "S N"]
    """Row of each answer that has one; any other's is meaningless."""
    column: Int[Array, "S R"]
    """Of the answer's token that the row reads next."""


class Line(NamedTuple):
    """Answers that wait."""

    order: Int[Array, "S N"]
    """Numbers of answers: those that are not over yet, one after another, then all others."""
    count: Int[Array, " S"]
    """Answers that were not over when the line formed."""
    served: Int[Array, " S"]
    """Answers that have been given a row."""


class View(NamedTuple):
    """What the next tokens of answers see of their own."""

    at: Int[Array, ""]
    """Column of the caches that the first one is written to."""
    seen: Bool[Array, "*m Q L"]
    """True where a token sees a column, once it is written."""


def form(over: Bool[Array, "S N"], rows: int) -> tuple[Line, Seats]:
    """Returns the line of answers that are not over, and seats that nobody has taken yet."""
    queues, answers = over.shape
    order = jnp.argsort(over, axis=1, stable=True)
    count = jnp.sum(~over, 1)
    answer, zero = order[:, :rows], jnp.zeros((queues, rows), jnp.int32)
    seats = Seats(answer, jnp.zeros((queues, answers), jnp.int32), zero)
    return Line(order, count, jnp.zeros(queues, jnp.int32)), seats


def fill(
    line: Line, seats: Seats, live: Bool[Array, "S R"]
) -> tuple[Line, Seats, Bool[Array, "S R"]]:
    """Returns line and seats once free rows have been given the next answers, and which were."""
    wanted = line.served[:, None] + jnp.cumsum(~live, 1, dtype=jnp.int32) - 1
    new = ~live & (wanted < line.count[:, None])
    following = take(line.order, jnp.minimum(wanted, line.order.shape[1] - 1))
    answer = jnp.where(new, following, seats.answer)
    rows = jnp.arange(live.shape[1], dtype=jnp.int32)
    row = jax.vmap(lambda row, answer: row.at[answer].set(rows))(seats.row, answer)
    column = jnp.where(new, 0, seats.column)
    served = line.served + jnp.sum(new, 1, dtype=jnp.int32)
    return line._replace(served=served), Seats(answer, row, column), new


def take(tree: Any, at: Int[Array, "S n"]) -> Any:
    """Returns the entries of arrays [S m ..] at numbers of the same queue, [S n ..]."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda x, i: x[i])(leaf, at), tree)


def view(
    length: Int[Array, ""],
    seats: Seats | None,
    *,
    new: int,
    reach: int,
) -> View:
    """Returns what the next `new` tokens of every row see.

    Args:
      length: tokens that have been written for every row.
      seats: None: rows [B G] are the answers of their prompts.
      new: 1 with seats.
      reach: L, columns of the caches.
    """
    if seats is None:
        columns = length + jnp.arange(new)
        return View(length, columns[:, None] >= jnp.arange(reach))
    if new != 1:
        raise ValueError(f"expected one token at a time with seats, got {new}")
    at = length % reach
    age = (at - jnp.arange(reach)) % reach
    return View(at, age <= seats.column[..., None, None])


def along(x: Any, length: Int[Array, ""], seats: Seats | None, *, new: int) -> Any:
    """Returns what the next `new` columns of each prompt's answers [B L ..] hold, [*n new ..].

    Args:
      x: the same for all answers of a prompt.
      length: tokens that have been written for every row.
      seats: None: rows [B G] are the answers of their prompts.
      new: 1 with seats.
    """
    if seats is None:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, length, new, 1)[:, None], x
        )
    queues, answers = seats.row.shape
    batch, reach = jax.tree.leaves(x)[0].shape[:2]
    prompt = seats.answer // (answers * queues // batch)
    at = prompt * reach + jnp.minimum(seats.column, reach - 1)
    flat = jax.tree.map(lambda leaf: leaf.reshape(queues, -1, *leaf.shape[2:]), x)
    return jax.tree.map(lambda leaf: leaf[:, :, None], take(flat, at))


def of_prompts(seats: Seats, x: Any) -> Any:
    """Returns what the prompts [B ..] of rows hold, [S R ..]."""
    queues, answers = seats.row.shape
    own = jax.tree.map(lambda leaf: leaf.reshape(queues, -1, *leaf.shape[1:]), x)
    group = answers // jax.tree.leaves(own)[0].shape[1]
    return take(own, seats.answer // group)


def to_prompts(seats: Seats, x: Any, prompts: int) -> Any:
    """Returns what rows [S R ..] hold as their prompts' answers have it, [B G ..].

    Where no row has an answer there is something of another one.
    """
    told = take(x, seats.row)
    return jax.tree.map(lambda leaf: leaf.reshape(prompts, -1, *leaf.shape[2:]), told)


def to_rows(seats: Seats, x: Any) -> Any:
    """Returns what answers [B G ..] hold as their rows have it, [S R ..]."""
    queues = seats.row.shape[0]
    flat = jax.tree.map(lambda leaf: leaf.reshape(queues, -1, *leaf.shape[2:]), x)
    return take(flat, seats.answer)
