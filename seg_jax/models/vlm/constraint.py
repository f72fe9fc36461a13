"""Holds answers to an automaton inside jit: which tokens may come next, and what they lead to.

An answer carries the automaton's state and the few numbers that states cannot remember: the
coordinate being written and the points that the next one is compared with. From them follows a
`Permit`: a bit for every class of tokens, and two gaps in the order of the tokens' digits. A token
may come next if its class has its bit and its digits lie in no gap. Nothing is gathered along the
vocabulary: three comparisons for each token and row beside the product that gave its logit.

Gaps: while a coordinate may still become too small for the second corner of a box, the digits that
would make it so; at the last digits of y, those that would repeat the point before or, in the
third point of a ring, the first. A whole 1 decides a coordinate as its last digit does.

Whole numbers without leading zeros have no gaps: after the same digits they may end or grow, so
each class of tokens is looked at by itself while a second corner is written.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from seg_jax.models.nn import xla_attention
from seg_jax.records import Array, Automaton, Integers

_WORD = 32
_SECOND = 2
"""Places from this one on belong to the second corner of a box."""
_FEWEST = 3
"""Points of a ring that differ."""
_NOWHERE = np.int32(2**30)
"""Above all keys."""
_TENS = tuple(10**power for power in range(9))


class Progress(NamedTuple):
    """Where answers stand."""

    state: Int[Array, "*n"]
    number: Int[Array, "*n"]
    """Digits of the coordinate so far, as a whole number."""
    x: Int[Array, "*n"]
    """x of the point being written, in steps of the last decimal; so are those that follow."""
    first: tuple[Int[Array, "*n"], Int[Array, "*n"]]
    """x and y of the first point of the ring, or the first corner of the box."""
    last: tuple[Int[Array, "*n"], Int[Array, "*n"]]
    """x and y of the point before."""


class Permit(NamedTuple):
    """Which tokens may come next."""

    words: UInt32[Array, "*n words"]
    """A bit for each class."""
    low: Int[Array, "*n 2"]
    """Lowest key of each gap."""
    size: UInt32[Array, "*n 2"]
    """Keys in each gap."""


def initial_progress(
    automaton: Automaton, kinds: Int[Array, " B"] | None, answers: int
) -> Progress:
    """Returns where `answers` answers to prompts that ask for the kinds begin, each [B G]."""
    if kinds is None:
        raise ValueError(
            "kinds: expected the kind of every answer with a grammar, got none; do: pass kinds="
        )
    state = jnp.broadcast_to(jnp.asarray(automaton.start)[kinds][:, None], (len(kinds), answers))
    zero = jnp.zeros_like(state)
    return Progress(state, zero, zero, (zero, zero), (zero, zero))


def permit(automaton: Automaton, held: Progress, left: Int[Array, "*left"] | int) -> Permit:
    """Returns what may come next such that the answer can end with the `left`-th token from here.

    `left` is one number or each answer's own.
    Some token may, as long as the shortest answer fits into all of them
    (`automaton.check_max_tokens`).
    """
    need = jnp.asarray(automaton.need)
    late = np.iinfo(need.dtype).max
    left = jnp.minimum(jnp.asarray(left), late - 1)[..., None].astype(need.dtype)
    may = need[held.state] <= left
    if automaton.integers is not None:
        may &= _keep_order(automaton, automaton.integers, held)
    bits = may.reshape(*may.shape[:-1], -1, _WORD).astype(jnp.uint32)
    words = jnp.sum(bits << jnp.arange(_WORD, dtype=jnp.uint32), -1, dtype=jnp.uint32)
    gaps = _gaps(automaton, held)
    low = jnp.stack([low for low, _ in gaps], -1)
    high = jnp.stack([high for _, high in gaps], -1)
    return Permit(words, low, jnp.maximum(high - low, 0).astype(jnp.uint32))


def _gaps(automaton: Automaton, held: Progress) -> list[tuple[Array, Array]]:
    """Returns two ranges of keys that may not come next, each from its low up to below its high."""
    nothing = jnp.full_like(held.state, _NOWHERE)
    if automaton.integers is not None:
        return [(nothing, nothing)] * 2
    written, left, place, points = _spot(automaton, held.state)
    step, rest = _tens(written), _tens(left)
    one = _tens(written + left - 1)

    # The second corner: digits below those of first + 1, as long as the ones so far are the same.
    least = jnp.where(place == _SECOND, *held.first) + 1
    tight = (place >= _SECOND) & (held.number == least // rest)
    high = jnp.where(tight, least % rest * step * 8, nothing)
    ranges: list[tuple[Array, Array]]
    ranges = [(jnp.where(tight, 1, nothing), high), (nothing, nothing)]

    # A point of a ring: the remaining digits of an earlier point, once all others are the same.
    whens = (held.first, points == _FEWEST - 1), (held.last, points > 0)
    for index, ((x, y), when) in enumerate(whens):
        same = (place == 1) & when & (held.x == x) & (held.number == y // rest)
        whole = (written == 0) & (y == one)
        key = ((y % rest + 1) * step - 1) * 8 + left
        low = jnp.where(whole, one * 8, key)
        high = jnp.where(whole, nothing, key + 1)
        before = ranges[index]
        ranges[index] = jnp.where(same, low, before[0]), jnp.where(same, high, before[1])
    return ranges


def _keep_order(
    automaton: Automaton, integers: Integers, held: Progress
) -> Bool[Array, "*n classes"]:
    """Returns after which classes the second corner of a box can still lie beyond the first."""
    written, _, place, _ = _spot(automaton, held.state)
    least = jnp.where(place == _SECOND, *held.first)[..., None] + 1
    value, count = jnp.asarray(integers.digits).T
    grown = held.number[..., None] * _tens(count) + value
    furthest = jnp.asarray(integers.furthest)
    reach = furthest[jnp.clip(grown, 0, len(furthest) - 1)]
    ends = (written == 0)[..., None] | (held.number[..., None] >= least)
    return (place < _SECOND)[..., None] | jnp.where(count > 0, reach >= least, ends)


def allowed_tokens(
    automaton: Automaton, given: Permit, vocabulary: int
) -> Bool[Array, "*n {vocabulary}"]:
    """Returns which tokens may come next."""
    spare = vocabulary - len(automaton.classes)
    if spare < 0:
        raise ValueError(
            f"grammar: expected the tokens of the model, at most {vocabulary}, got an automaton "
            "over "
            f"{len(automaton.classes)}; do: compile it for the model's own tokenizer"
        )
    classes = jnp.pad(jnp.asarray(automaton.classes), (0, spare)).astype(jnp.uint32)
    keys = jnp.pad(jnp.asarray(automaton.keys), (0, spare))
    bit = jnp.uint32(1) << (classes % _WORD)
    word = given.words[..., :1]
    for index in range(1, given.words.shape[-1]):
        word = jnp.where(classes // _WORD == index, given.words[..., index : index + 1], word)
    may = (word & bit) != 0
    for gap in range(2):
        above = (keys - given.low[..., gap : gap + 1]).astype(jnp.uint32)
        may &= above >= given.size[..., gap : gap + 1]
    return may


def mask_logits(
    automaton: Automaton, given: Permit, logits: Float[Array, "*m V"]
) -> Float[Array, "*n V"]:
    """Returns the logits with `xla_attention.MASKED_SCORE` for tokens that may not come next.

    It is finite, so that such a token adds 0 to the entropy, and no NaN.
    """
    return jnp.where(
        allowed_tokens(automaton, given, logits.shape[-1]), logits, xla_attention.MASKED_SCORE
    )


def advance(automaton: Automaton, held: Progress, ids: Int[Array, "*n"]) -> Progress:
    """Returns where answers stand after one more token each.

    After a token that was not allowed nothing is held to the grammar any more.
    """
    known = (ids >= 0) & (ids < len(automaton.classes))
    ids = jnp.where(known, ids, 0)
    klass = jnp.where(known, jnp.asarray(automaton.classes)[ids], 0).astype(jnp.int32)
    following = jnp.asarray(automaton.following)[held.state, klass].astype(jnp.int32)
    if automaton.integers is not None:
        return _advance_integers(automaton, automaton.integers, held, klass)._replace(
            state=following
        )
    key = jnp.asarray(automaton.keys)[ids]
    written, left, place, points = _spot(automaton, held.state)
    count = jnp.minimum(key % 8, left)
    number = held.number * _tens(count) + key // 8 // _tens(written + left - count)
    ends = (count > 0) & (count == left)

    def put(point: tuple[Array, Array], when: Array) -> tuple[Array, Array]:
        return jnp.where(when, held.x, point[0]), jnp.where(when, number, point[1])

    y = ends & (place == 1)
    return Progress(
        state=following,
        number=jnp.where(ends, 0, number),
        x=jnp.where(ends & (place == 0), number, held.x),
        first=put(held.first, y & (points == 0)),
        last=put(held.last, y),
    )


def _advance_integers(
    automaton: Automaton, integers: Integers, held: Progress, klass: Int[Array, "*n"]
) -> Progress:
    """Returns the numbers of answers after one more token each: one without digits ends them."""
    written, _, place, _ = _spot(automaton, held.state)
    value, count = jnp.moveaxis(jnp.asarray(integers.digits)[klass], -1, 0)
    ends = (written > 0) & (count == 0)
    x, y = (jnp.where(ends & (place == p), held.number, old) for p, old in enumerate(held.first))
    return held._replace(
        number=jnp.where(count > 0, held.number * _tens(count) + value, 0), first=(x, y)
    )


def permits_along(
    automaton: Automaton, kinds: Int[Array, " B"] | None, ids: Int[Array, "B G L"]
) -> Permit:
    """Returns what was permitted at every token of answers that had L tokens to end in."""
    length = ids.shape[-1]

    def step(held: Progress, column):
        tokens, left = column
        return advance(automaton, held, tokens), permit(automaton, held, left)

    columns = jnp.moveaxis(ids, -1, 0), length - jnp.arange(length)
    _, given = jax.lax.scan(step, initial_progress(automaton, kinds, ids.shape[1]), columns)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), given)


def _spot(automaton: Automaton, state: Int[Array, "*n"]) -> list[Int[Array, "*n"]]:
    spots = jnp.asarray(automaton.spots)[state]
    return [spots[..., column] for column in range(4)]


def _tens(power: Int[Array, "*n"]) -> Int[Array, "*n"]:
    return jnp.asarray(_TENS, jnp.int32)[power]
