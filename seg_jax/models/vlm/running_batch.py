"""A running batch: answers join its slots at any time and leave them when they are done.

Four programs, all compiled before the first answer: `look` reads prompts of one length up to the
end of their pictures, `read` the words behind these, `place` gives an answer the slot that it is
decoded in, `decode` takes the first slots some tokens further. State stays on the device from call
to call. Each slot has a queue of its own with one prompt in it (`batching`), so that prompts lie
where their answers are decoded. The latest pictures stay read: who asks about one of them again
waits for the words alone.

Axes here: `R` slots, `W` words of a prompt (tokens).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from seg_jax.models.nn import batching
from seg_jax.models.vlm import constraint, protocol, sampler
from seg_jax.records import Array, Automaton, Images, Tokens

FREE = -1
"""Stands for the kind of an answer that is held to no grammar."""


class Wanted(NamedTuple):
    """How one answer is to be drawn."""

    max_tokens: int
    """An answer that has not ended by then is cut."""
    temperature: float = 0.0
    """0: the likeliest token always."""
    seed: int = 0
    """0 to 2^31 - 1; decides the random tokens, whatever else is in the batch."""
    number: int = 0
    """Number of the answer among those to one question; each draws tokens of its own."""
    kind: int = FREE
    """The kind of answer that it is held to, where there is a grammar."""


class Drawn(NamedTuple):
    """What a call has drawn for the first slots (host)."""

    ids: Int[np.ndarray, "R L"]
    logp: Float[np.ndarray, "R L"]
    """That of each token as the model has it, at temperature 1 and under the grammar if any."""
    count: Int[np.ndarray, " R"]
    """Tokens drawn for each slot."""
    live: Bool[np.ndarray, " R"]
    """Whether the slot's answer goes on."""


class _Standing(NamedTuple):
    """Where the answers in the slots stand."""

    last: Int[Array, " R"]
    """Token that each slot reads next."""
    column: Int[Array, " R"]
    """Its column in the answer."""
    live: Bool[Array, " R"]
    most: Int[Array, " R"]
    temperature: Float[Array, " R"]
    keys: Array
    held: constraint.Progress | None


class _Divided(NamedTuple):
    """A prompt in two (host)."""

    key: bytes
    """Tells the first part from all others by what it holds, however it is padded."""
    head: tuple[Tokens, Images]
    """All up to the end of its picture, right-aligned like the whole; the batch axis is 1."""
    words: Int[np.ndarray, "1 W"]
    """What comes behind, left-aligned."""
    count: int
    """Words that are some."""


class _State(NamedTuple):
    """What a running batch keeps on the device; a prompt and a cache for each slot."""

    prefix: protocol.Prefix
    suffix: protocol.Suffix
    standing: _Standing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a running batch has room for."""

    slots: int = 16
    """Answers that are decoded at once."""
    chunk: int = 8
    """Tokens between looks for answers that have come, ended or been given up."""
    together: int = 4
    """Most prompts that are read in one call."""
    pictures: int = 16
    """Pictures that stay read, the latest ones: each takes the memory of a slot."""

    def __post_init__(self):
        if self.pictures < 0:
            raise ValueError(
                f"running_batch: expected 0 pictures or more, got {self.pictures}; do: give 0 for "
                "none"
            )
        if min(self.slots, self.chunk, self.together) < 1:
            raise ValueError(
                "running_batch: expected slots, chunk and together of at least 1, got "
                f"{self.slots}, {self.chunk} and {self.together}; do: give each at least 1"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of slots that are decoded: few answers do not wait for empty slots."""
        return tuple(sorted({min(4**power, self.slots) for power in range(8)}))

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of prompts that are read in one call."""
        return tuple(sorted({1, self.together}))


class RunningBatch:
    """The programs of a model for a running batch, and what lies on the device between them."""

    def __init__(
        self,
        graph: nnx.GraphDef,
        params: Any,
        *,
        max_tokens: int,
        end_ids: tuple[int, ...],
        words: int,
        sizes: Sizes,
        pad_id: int = 0,
        grammar: Automaton | None = None,
    ):
        """Lays the weights out for decoding; `compile_for` makes the programs.

        Args:
          graph: the model without its weights.
          params: the weights.
          max_tokens: most tokens of an answer.
          end_ids: tokens that end an answer (and belong to it).
          words: most tokens of a question that are read behind a picture; those of a longer one
            that come first are read with the picture.
          sizes: what there is room for.
          pad_id: stands where a slot has no token.
          grammar: what answers can be held to.
        """
        self.sizes, self.max_tokens = sizes, max_tokens
        self._graph, self._params, self._grammar = graph, params, grammar
        self._ends, self._pad_id, self._words = end_ids, pad_id, words
        self._seen: collections.OrderedDict[bytes, protocol.Prefix] = collections.OrderedDict()
        self._reach = max(1, max_tokens - 1)
        lay = jax.jit(lambda params: nnx.split(nnx.merge(graph, params).decoder()))
        self._decoder_graph, self._weights = lay(params)
        self._programs: dict[tuple[Any, ...], Any] = {}
        self._state: _State | None = None

    def compile_for(self, rows: Sequence[tuple[Tokens, Images]]) -> Iterator[str]:
        """Makes every program and an empty state; yields the name of each once it is there.

        Args:
          rows: a prompt (batch axis 1) of every shape that will be read, the longest last.
        """
        longest = rows[-1]
        shapes = jax.eval_shape(lambda: self._empty_state(longest))
        one = jax.eval_shape(self._prefill, self._params, *longest)
        for batch in self.sizes.batches:
            for row in rows:
                some = _stacked([row] * batch)
                look = jax.jit(functools.partial(self._look, one))
                self._make(("look", *_shape_of(some)), look, self._params, *some)
                yield f"look {batch} x {row[0].ids.shape[1]} tokens"
            words = np.zeros((batch, self._words), np.int32), np.ones(batch, np.int32)
            self._make(("read", batch), jax.jit(self._read), self._weights, (one,) * batch, *words)
            yield f"read {batch} x {self._words} tokens"
            wide = jax.eval_shape(self._read, self._weights, (one,) * batch, *words)
            place, wanted = jax.jit(self._place, donate_argnums=1), _scalars(Wanted(1))
            where = np.int32(0), np.int32(0)
            self._make(("place", batch), place, self._weights, shapes, wide, *where, wanted)
            yield f"place 1 of {batch}"
        for width in self.sizes.widths:
            decode = jax.jit(functools.partial(self._decode, width), donate_argnums=1)
            keep = np.ones(self.sizes.slots, bool)
            self._make(("decode", width), decode, self._weights, shapes, keep)
            yield f"decode {width}"
        self._make(("empty",), jax.jit(lambda: _zeros(shapes)))
        self.clear()

    def clear(self) -> None:
        """Empties all slots, whatever became of them, and forgets all pictures."""
        self._seen.clear()
        self._state = None  # Freed before there is another.
        self._state = self._programs[("empty",)]()

    def read(self, rows: Sequence[tuple[Tokens, Images]]) -> protocol.Prefix:
        """Returns prompts of one shape (batch axis 1 each) as read, at most `sizes.together`.

        Where there are fewer than are read together the first stands in the places that are left.
        """
        parts = [_divide(row, self._words, self._pad_id) for row in rows]
        self._look_at({part.key: part.head for part in parts if part.key not in self._seen})
        full = [*parts, *[parts[0]] * (self._batch_of(len(parts)) - len(parts))]
        words = np.concatenate([part.words for part in full])
        count = np.array([part.count for part in full], np.int32)
        heads = tuple(self._seen[part.key] for part in full)
        for part in parts:
            self._seen.move_to_end(part.key)
        while len(self._seen) > self.sizes.pictures:
            self._seen.popitem(last=False)
        return self._programs["read", len(full)](self._weights, heads, words, count)

    def _look_at(self, heads: Mapping[bytes, tuple[Tokens, Images]]) -> None:
        """Reads first parts of prompts, and keeps them."""
        if heads:
            batch = self._batch_of(len(heads))
            full = [*heads.values()]
            some = _stacked([*full, *full[:1] * (batch - len(full))])
            found = self._programs["look", *_shape_of(some)](self._params, *some)
            self._seen |= zip(heads, found, strict=False)

    def _batch_of(self, count: int) -> int:
        return next(size for size in self.sizes.batches if size >= count)

    def place(self, prefix: protocol.Prefix, which: int, *, slot: int, wanted: Wanted) -> Drawn:
        """Puts an answer to prompt `which` of those read into a slot; returns its first token."""
        batch = prefix.used.shape[0]
        self._state, drawn = self._programs["place", batch](
            self._weights, self._state, prefix, np.int32(which), np.int32(slot), _scalars(wanted)
        )
        return Drawn(*(np.asarray(leaf) for leaf in drawn))

    def decode(self, keep: Bool[np.ndarray, " R"]) -> Drawn:
        """Returns up to `sizes.chunk` further tokens of each answer that is kept.

        Args:
          keep: False for slots without an answer, and for answers that were given up.
        """
        taken = int(np.flatnonzero(keep).max(initial=0)) + 1
        width = next(width for width in self.sizes.widths if width >= taken)
        self._state, drawn = self._programs["decode", width](self._weights, self._state, keep)
        return Drawn(*(np.asarray(leaf) for leaf in drawn))

    def _make(self, name: tuple[Any, ...], program: Any, *arguments: Any) -> None:
        self._programs[name] = program.lower(*arguments).compile()

    def _prefill(self, params: Any, tokens: Tokens, images: Images) -> protocol.Prefix:
        prefix = nnx.merge(self._graph, params).prefill(tokens, images)
        # A layer each: XLA for CPUs would cut them out of their stack again for every token.
        return prefix._replace(cache=jax.tree.map(tuple, prefix.cache))

    def _look(
        self, wide: protocol.Prefix, params: Any, tokens: Tokens, images: Images
    ) -> tuple[protocol.Prefix, ...]:
        """Returns prompts as read, one by one, right-aligned in the shapes of the longest."""

        def align(leaf, to):
            lacking = [long - short for short, long in zip(leaf.shape, to.shape, strict=True)]
            return jnp.pad(leaf, [(count, 0) for count in lacking])

        read = self._prefill(params, tokens, images)
        numbers = range(tokens.ids.shape[0])
        return tuple(
            jax.tree.map(align, _entry(read, jnp.int32(number)), wide) for number in numbers
        )

    def _read(
        self,
        weights: Any,
        heads: tuple[protocol.Prefix, ...],
        words: Int[Array, "B W"],
        count: Int[Array, " B"],
    ) -> protocol.Prefix:
        """Returns prompts of which the words are read too; they end where the heads did."""
        decoder = nnx.merge(self._decoder_graph, weights)
        head = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *heads)
        suffix = decoder.empty(head, answers=1, length=self._words)
        hidden, suffix = decoder.extend(words[:, None], head, suffix)
        columns = jnp.arange(self._words)
        used = jnp.concatenate([head.used, columns < count[:, None]], 1)
        last = jnp.take_along_axis(hidden[:, 0], (count - 1)[:, None, None], 1)[:, 0]
        return protocol.Prefix(
            decoder.prolonged(head, suffix, count),
            batching.slice_rows(used, count, length=head.used.shape[1], axis=1),
            head.following + count,
            last,
        )

    def _empty_state(self, longest: tuple[Tokens, Images]) -> _State:
        slots = self.sizes.slots
        prefix = self._prefill(self._params, *_stacked([longest] * slots))
        decoder = nnx.merge(self._decoder_graph, self._weights)
        suffix = decoder.empty(prefix, answers=1, length=self._reach)
        held, zero = None, jnp.zeros(slots, jnp.int32)
        if self._grammar is not None:
            held = jax.tree.map(
                lambda leaf: leaf[:, 0], constraint.initial_progress(self._grammar, zero, 1)
            )
        never = jnp.zeros(slots, bool)
        heat = jnp.zeros(slots, jnp.float32)
        keys = jax.vmap(jax.random.key)(zero)
        return _State(prefix, suffix, _Standing(zero, zero, never, zero, heat, keys, held))

    def _place(
        self,
        weights: Any,
        state: _State,
        read: protocol.Prefix,
        which: Int[Array, ""],
        slot: Int[Array, ""],
        wanted: Any,
    ) -> tuple[_State, tuple[Array, ...]]:
        """Returns the state with an answer in a slot, and its first token: see `place`."""
        decoder = nnx.merge(self._decoder_graph, weights)
        prefix = _entry(read, which)
        # All of the slot is written: an answer sees nothing of those before it.
        suffix = decoder.empty(prefix, answers=1, length=self._reach)
        key = jax.random.fold_in(jax.random.key(wanted.seed), wanted.number)
        held = None
        if self._grammar is not None:
            kind = jnp.maximum(wanted.kind, 0)[None]
            held = jax.tree.map(
                lambda leaf: leaf[:, 0], constraint.initial_progress(self._grammar, kind, 1)
            )
            held = held._replace(state=jnp.where(wanted.kind == FREE, 0, held.state))
        standing = _Standing(
            *(jnp.zeros(1, kind) for kind in (jnp.int32, jnp.int32, bool)),
            most=wanted.max_tokens[None],
            temperature=wanted.temperature[None],
            keys=key[None],
            held=held,
        )
        standing, ids, logp = self._choose(
            decoder, prefix.hidden[:, None], standing, column=jnp.zeros(1, jnp.int32)
        )
        standing = standing._replace(column=jnp.zeros(1, jnp.int32))
        put = functools.partial(_write_entries, slot=slot)
        placed = _State(
            put(state.prefix, prefix),
            state.suffix._replace(
                own=put(state.suffix.own, suffix.own), turn=put(state.suffix.turn, suffix.turn)
            ),
            put(state.standing, standing),
        )
        return placed, (ids[:, None], logp[:, None], jnp.ones(1, jnp.int32), standing.live)

    def _choose(
        self,
        decoder: Any,
        hidden: Float[Array, "R 1 D"],
        standing: _Standing,
        *,
        column: Int[Array, " R"],
    ) -> tuple[_Standing, Int[Array, " R"], Float[Array, " R"]]:
        """Returns where answers stand after the tokens at their columns, and these."""
        logits = decoder.logits(hidden)
        if self._grammar is not None and standing.held is not None:
            given = constraint.permit(self._grammar, standing.held, standing.most - column)
            given = jax.tree.map(lambda leaf: leaf[:, None], given)
            logits = constraint.mask_logits(self._grammar, given, logits)
        keys = jax.vmap(jax.random.fold_in)(standing.keys, column)[:, None]
        ids = _draw(logits, keys, standing.temperature[:, None])[:, 0]
        scores = jax.nn.log_softmax(logits[:, 0])
        logp = jnp.take_along_axis(scores, ids[:, None], 1)[:, 0]
        held = standing.held
        if self._grammar is not None and held is not None:
            held = constraint.advance(self._grammar, held, ids)
        ends = jnp.isin(ids, jnp.asarray(self._ends)) | (column + 1 >= standing.most)
        return standing._replace(last=ids, column=column, live=~ends, held=held), ids, logp

    def _decode(
        self, width: int, weights: Any, state: _State, keep: Bool[Array, " R"]
    ) -> tuple[_State, tuple[Array, ...]]:
        """Returns the state some tokens on, and these: see `decode`."""
        decoder = nnx.merge(self._decoder_graph, weights)
        standing = state.standing._replace(live=state.standing.live & keep)
        first = _first(state._replace(standing=standing), width)
        steps = self.sizes.chunk
        ids = jnp.full((width, steps), self._pad_id, jnp.int32)
        logp, count = jnp.zeros((width, steps), jnp.float32), jnp.zeros(width, jnp.int32)
        nought = jnp.zeros((width, 1), jnp.int32)

        def going(carry):
            step, standing, *_ = carry
            return (step < steps) & jnp.any(standing.live)

        def body(carry):
            step, old, suffix, ids, logp, count = carry
            slots = batching.Slots(nought, nought, old.column[:, None])
            hidden, suffix = decoder.extend(
                old.last[:, None, None], first.prefix, suffix._replace(slots=slots)
            )
            new, token, score = self._choose(decoder, hidden[:, :, 0], old, column=old.column + 1)
            ids = ids.at[:, step].set(jnp.where(old.live, token, self._pad_id))
            logp = logp.at[:, step].set(jnp.where(old.live, score, 0.0))
            kept = _where(old.live, new, old)
            return step + 1, kept, suffix._replace(slots=None), ids, logp, count + old.live

        carry = (jnp.int32(0), first.standing, first.suffix, ids, logp, count)
        _, standing_, suffix, ids, logp, count = jax.lax.while_loop(going, body, carry)
        put = functools.partial(_write_entries, slot=jnp.int32(0))
        moved = state.suffix._replace(
            own=put(state.suffix.own, suffix.own), length=suffix.length % self._reach
        )
        state = _State(state.prefix, moved, put(standing, standing_))
        return state, (ids, logp, count, standing_.live)


def _draw(
    logits: Float[Array, "R 1 V"], keys: Array, temperature: Float[Array, "R 1"]
) -> Int[Array, "R 1"]:
    """Returns a token per slot, the likeliest where its temperature is 0."""
    warm = temperature > 0
    likeliest, _ = sampler.draw(sampler.Greedy(), logits, keys)

    def random() -> Array:
        scaled = logits / jnp.where(warm, temperature, 1.0)[..., None]
        return jnp.where(warm, sampler.draw(sampler.Sample(), scaled, keys)[0], likeliest)

    return jax.lax.cond(jnp.any(warm), random, lambda: likeliest)


def _stacked(rows: Sequence[tuple[Tokens, Images]]) -> tuple[Tokens, Images]:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def _divide(row: tuple[Tokens, Images], words: int, pad_id: int) -> _Divided:
    """Returns a prompt (batch axis 1) in two: its last words go apart, without visual tokens."""
    tokens, images = row
    length = tokens.ids.shape[-1]
    visual = np.flatnonzero(np.asarray(tokens.visual_tokens)[0] >= 0)
    split = max(int(visual.max(initial=-1)) + 1, length - words)
    count = length - split

    def moved(leaf: np.ndarray, fill: int) -> np.ndarray:
        pad = [(0, 0)] * (leaf.ndim - 1) + [(count, 0)]
        return np.pad(leaf[..., :split], pad, constant_values=fill)

    head = Tokens(*map(moved, map(np.asarray, tokens), (pad_id, 0, 0, -1)))
    ids = np.full((1, words), pad_id, np.int32)
    ids[:, :count] = tokens.ids[:, split:]
    told, patches = np.asarray(head.segments[0]) > 0, np.asarray(images.image)[0] >= 0
    digest = hashlib.blake2b(digest_size=16)
    for leaf in (*(leaf[0][..., told] for leaf in head), *(leaf[0][patches] for leaf in images)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return _Divided(digest.digest(), (head, images), ids, count)


def _shape_of(some: tuple[Tokens, Images]) -> tuple[int, ...]:
    """Returns what tells the programs apart that read: prompts, tokens, patches."""
    tokens, images = some
    return (*tokens.ids.shape, images.image.shape[1])


def _scalars(wanted: Wanted) -> Any:
    """Returns a `Wanted` whose numbers are arrays of one type each."""
    numbers: list[Any] = [np.int32(value) for value in wanted]
    heat: Any = np.float32(wanted.temperature)
    return Wanted(*numbers)._replace(temperature=heat)


def _zeros(shapes: Any) -> Any:
    def zeros(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.vmap(jax.random.key)(jnp.zeros(leaf.shape, jnp.int32))
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(zeros, shapes)


def _entry(tree: Any, which: Int[Array, ""]) -> Any:
    """Returns one entry of a tree with a batch axis, which stays."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, which, 1, 0), tree)


def _write_entries(tree: Any, new: Any, slot: Int[Array, ""]) -> Any:
    """Returns a tree with new entries from a slot on."""

    def put(leaf, more):
        return jax.lax.dynamic_update_slice_in_dim(leaf, more.astype(leaf.dtype), slot, 0)

    return jax.tree.map(put, tree, new)


def _first(state: _State, width: int) -> _State:
    """Returns the first slots of a state."""

    def take(tree):
        return jax.tree.map(lambda leaf: leaf[:width], tree)

    suffix = state.suffix._replace(own=take(state.suffix.own), turn=take(state.suffix.turn))
    return _State(take(state.prefix), suffix, take(state.standing))


def _where(live: Bool[Array, " R"], new: _Standing, old: _Standing) -> _Standing:
    """Returns where answers stand: those that are over stay."""
    return jax.tree.map(lambda one, other: jnp.where(live, one, other), new, old)
