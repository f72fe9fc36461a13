"""Samples answers: each prompt read once, all its answers decoded in one compiled loop.

Axes here: `S` queues, `R` slots of a queue, as in `batching`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from seg_jax.models.nn import batching
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import constraint, protocol
from seg_jax.records import Array, Automaton, Images, Rollout, Tokens

BLOCKS = 256
"""Blocks of the vocabulary, at most, between which a random token is chosen first."""


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
                f"got {self}; do: correct it, or use Greedy() for the likeliest token"
            )


Sampler = Greedy | Sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refill:
    """Fewer rows than answers: a finished answer leaves its row to the next that waits.

    A few long answers then keep a few rows busy, not as many as there are answers. Answers are
    the same whatever is chosen here, up to the rounding of sums in another order.
    """

    rows: int
    """Answers decoded at once, on all devices together."""
    chunk: int = 1
    """Tokens between looks for finished answers; an accelerator's host looks as often."""

    def __post_init__(self):
        if self.rows < 1 or self.chunk < 1:
            raise ValueError(
                f"refill: expected rows and chunk of at least 1, got {self.rows} and {self.chunk}"
                "; do: give both at least 1"
            )


class _Draw(NamedTuple):
    ids: Int[Array, "B G"]
    logp: Float[Array, "B G"]


class _Answers(NamedTuple):
    """Answers on the way, [B G ..] or [S N ..]."""

    rollout: Rollout
    done: Bool[Array, "B G"]
    held: constraint.Progress | None
    keys: Array
    most: Int[Array, "B G"]
    """Tokens that each answer may have."""


def generate(
    model: protocol.VLM,
    tokens: Tokens,
    images: Images | None,
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
    limits: Int[Array, "B G"] | None = None,
    refill: Refill | None = None,
) -> Rollout:
    """Returns `answers` answers per prompt, drawn until an end token or `max_tokens`.

    A draw depends on the key, the prompt's number, the answer's number and the column alone, not
    on the other rows of the batch. `logp` is under the distribution drawn from, so at the
    sampler's temperature: `likelihood.answer_likelihood(..., temperature=...)` gives the same.

    Args:
      model: weights; merge them inside jit.
      tokens: right-aligned prompts, one conversation per row.
      images: of the prompts.
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
      limits: most tokens of each answer, 1 to `max_tokens`; not with a grammar, which has to know
        where an answer ends.
      refill: how many answers are decoded at once; None: all, until the longest one ends.
    """
    if isinstance(sampler, Greedy) and answers != 1:
        raise ValueError(
            f"answers: expected 1 with Greedy(), got {answers}; do: draw them with a Sampler, as "
            "greedy ones would be equal"
        )
    if max_tokens < 1:
        raise ValueError(
            f"max_tokens: expected at least 1, got {max_tokens}"
            "; do: leave room for one token or more"
        )
    if grammar is not None and limits is not None:
        raise ValueError("limits: expected none with a grammar, got some; do: choose one of both")
    prefix = model.prefill(tokens, images)
    decoding = _Decoding(model.decoder(), prefix, max_tokens, sampler, end_ids, pad_id, grammar)
    begun = decoding.begin(key, answers, rows=rows, kinds=kinds, limits=limits)
    if max_tokens == 1:  # No loop in the program, so that its operations can be counted.
        return begun.rollout
    every = prefix.used.shape[0] * answers
    if refill is None or refill.rows >= every:
        return decoding.decode_all(begun)
    return decoding.decode_in_slots(begun, refill)


@dataclasses.dataclass(frozen=True)
class _Decoding:
    """What the steps of a loop have in common."""

    decoder: protocol.Decoder
    prefix: protocol.Prefix
    max_tokens: int
    sampler: Sampler
    end_ids: tuple[int, ...]
    pad_id: int
    grammar: Automaton | None

    def choose(self, hidden: Float[Array, "B _ D"], held, *, keys: Array, column) -> _Draw:
        """Returns the tokens at a column, one for all answers or each answer's own."""
        logits = self.decoder.logits(hidden)
        if self.grammar is not None and held is not None:
            given = constraint.permit(self.grammar, held, self.max_tokens - column)
            logits = constraint.mask_logits(self.grammar, given, logits)
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(keys, jnp.broadcast_to(column, keys.shape))
        return _Draw(*draw(self.sampler, logits, keys))

    def ends(self, ids: Int[Array, "B G"], column, most: Int[Array, "B G"]) -> Bool[Array, "B G"]:
        """Returns which answers end with these tokens."""
        return jnp.isin(ids, jnp.asarray(self.end_ids)) | (column + 1 >= most)

    def after(self, held, ids: Int[Array, "B G"]):
        """Returns where answers stand in the grammar after these tokens."""
        if self.grammar is None or held is None:
            return held
        return constraint.advance(self.grammar, held, ids)

    def begin(self, key: Array, answers: int, *, rows, kinds, limits) -> _Answers:
        """Returns all answers with their first token, which their prompts predict."""
        batch = self.prefix.used.shape[0]
        shape = (batch, answers, self.max_tokens)
        blank = Rollout(
            jnp.full(shape, self.pad_id, jnp.int32),
            jnp.zeros(shape, bool),
            jnp.zeros(shape, jnp.float32),
            jnp.ones(shape[:2], jnp.int32),
        )
        held = (
            None
            if self.grammar is None
            else constraint.initial_progress(self.grammar, kinds, answers)
        )
        most = jnp.full(shape[:2], self.max_tokens) if limits is None else limits
        keys = _keys(key, jnp.arange(batch) if rows is None else rows, answers)
        begun = _Answers(blank, jnp.zeros(shape[:2], bool), held, keys, most)
        alike = jax.tree.map(lambda leaf: leaf[:, :1], held)  # Answers to a prompt begin alike.
        first = self.choose(self.prefix.hidden[:, None], alike, keys=keys, column=0)
        return self.write(begun, first, jnp.int32(0))

    def write(self, answers: _Answers, drawn: _Draw, column) -> _Answers:
        """Returns the answers with a token more, all at the same column."""
        live = ~answers.done
        new = jnp.where(live, drawn.ids, self.pad_id), live, jnp.where(live, drawn.logp, 0.0)
        ids, used, logp = (
            jax.lax.dynamic_update_slice(old, x[..., None].astype(old.dtype), (0, 0, column))
            for old, x in zip(answers.rollout[:3], new, strict=True)
        )
        return answers._replace(
            rollout=answers.rollout._replace(ids=ids, used=used, logp=logp),
            done=answers.done | self.ends(drawn.ids, column, answers.most),
            held=self.after(answers.held, new[0]),
        )

    def decode_all(self, begun: _Answers) -> Rollout:
        """Returns the answers decoded all at once."""
        answers = begun.done.shape[1]
        length = self.max_tokens - 1
        suffix = self.decoder.empty(self.prefix, answers=answers, length=length)

        def body(carry):
            column, now, suffix = carry
            last = jax.lax.dynamic_slice_in_dim(now.rollout.ids, column - 1, 1, 2)
            hidden, suffix = self.decoder.extend(last, self.prefix, suffix)
            drawn = self.choose(hidden[:, :, 0], now.held, keys=now.keys, column=column)
            return column + 1, self.write(now, drawn, column), suffix

        def going(carry):
            column, now, _ = carry
            return (column < self.max_tokens) & ~jnp.all(now.done)

        columns, now, _ = jax.lax.while_loop(going, body, (jnp.int32(1), begun, suffix))
        return now.rollout._replace(computed=columns * now.rollout.computed)

    def decode_in_slots(self, begun: _Answers, refill: Refill) -> Rollout:
        """Returns the answers decoded in fewer rows than there are answers."""
        batch, answers = begun.done.shape
        queues = sharding.shards_of_rows(batch)
        waiting = jax.tree.map(
            lambda leaf: leaf.reshape(queues, batch // queues * answers, *leaf.shape[2:]), begun
        )
        rows = min(-(-refill.rows // queues), waiting.done.shape[1])
        length = self.max_tokens - 1
        suffix = self.decoder.empty(self.prefix, answers=rows, length=length, queues=queues)
        queue, slots = batching.open_slots(waiting.done, rows)
        held, last = batching.take_entries(
            (waiting.held, waiting.rollout.ids[..., 0]), slots.answer
        )
        nobody = jnp.zeros((queues, rows), bool)
        turn = _Turn(waiting.rollout, queue, slots, nobody, held, last, suffix)

        def going(turn: _Turn):
            return jnp.any(turn.live) | jnp.any(turn.queue.served < turn.queue.count)

        def body(turn: _Turn):
            turn = self._fill_slots(waiting, turn)
            return jax.lax.fori_loop(
                0, refill.chunk, lambda _, turn: self._step(waiting, turn), turn
            )

        rollout = jax.lax.while_loop(going, body, turn).rollout
        return jax.tree.map(lambda leaf: leaf.reshape(batch, answers, *leaf.shape[2:]), rollout)

    def _fill_slots(self, waiting: _Answers, turn: _Turn) -> _Turn:
        """Returns the turn with the next answers in free rows."""
        queue, slots, new = batching.fill_slots(turn.queue, turn.slots, turn.live)
        fresh = batching.take_entries((waiting.held, waiting.rollout.ids[..., 0]), slots.answer)
        held, last = jax.tree.map(
            lambda one, other: jnp.where(new, one, other), fresh, (turn.held, turn.last)
        )
        return _Turn(turn.rollout, queue, slots, turn.live | new, held, last, turn.suffix)

    def _step(self, waiting: _Answers, turn: _Turn) -> _Turn:
        """Returns the turn with a token more in every row; tokens of free rows are lost."""
        slots, suffix = turn.slots, turn.suffix._replace(slots=turn.slots)
        hidden, suffix = self.decoder.extend(turn.last[..., None], self.prefix, suffix)
        keys, most = batching.take_entries((waiting.keys, waiting.most), slots.answer)
        column, live = slots.column + 1, turn.live
        drawn = self.choose(hidden[:, :, 0], turn.held, keys=keys, column=column)
        ids = jnp.where(live, drawn.ids, self.pad_id)
        at = slots.answer, jnp.where(live, column, self.max_tokens)  # The latter is nowhere.
        write = jax.vmap(lambda to, row, column, x: to.at[row, column].set(x, mode="drop"))
        old = turn.rollout
        rollout = Rollout(
            write(old.ids, *at, ids),
            write(old.used, *at, live),
            write(old.logp, *at, drawn.logp),
            jax.vmap(lambda to, row: to.at[row].add(1))(old.computed, slots.answer),
        )
        return _Turn(
            rollout,
            turn.queue,
            slots._replace(column=jnp.where(live, column, slots.column)),
            live & ~self.ends(drawn.ids, column, most),
            self.after(turn.held, ids),
            ids,
            suffix._replace(slots=None),
        )


class _Turn(NamedTuple):
    """Answers of which some have rows."""

    rollout: Rollout
    """[S N ..]."""
    queue: batching.Queue
    slots: batching.Slots
    live: Bool[Array, "S R"]
    """True where a row has an answer that is not over."""
    held: constraint.Progress | None
    last: Int[Array, "S R"]
    """Token that each row reads next."""
    suffix: protocol.Suffix


def draw(
    sampler: Sampler, logits: Float[Array, "B _ V"], keys: Array
) -> tuple[Int[Array, "B G"], Float[Array, "B G"]]:
    """Returns a token per key and its log-probability under the distribution drawn from."""
    if isinstance(sampler, Sample):
        logits = narrow(logits / sampler.temperature, top_k=sampler.top_k, top_p=sampler.top_p)
    top = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    shares = jnp.exp(logits - top)
    ids = _pick(shares, keys) if isinstance(sampler, Sample) else jnp.argmax(logits, -1)
    hit = jnp.arange(logits.shape[-1]) == ids[..., None]
    chosen = jnp.max(jnp.where(hit, logits, -jnp.inf), -1)
    return ids.astype(jnp.int32), chosen - top[..., 0] - jnp.log(shares.sum(-1))


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


def _pick(shares: Float[Array, "B _ V"], keys: Array) -> Int[Array, "B G"]:
    """Returns a token per key, each with its share of the sum as probability; never one without.

    Two random numbers a token, of a block and of a place in it, where noise on every logit
    (Gumbel-max) needs V: a third of a small model's step on a CPU.

    Source: inverse transform sampling.
    """
    batch, lanes, size = shares.shape
    count = math.gcd(size, BLOCKS)  # Shards of the vocabulary hold whole blocks.
    shares = shares.reshape(batch, lanes, count, size // count)
    bits = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (2,))))(keys)
    # So far from both ends that no product reaches the whole, nor a share that rounds to nothing.
    unit = jnp.maximum((bits >> 9).astype(jnp.float32) * 2.0**-23, 2.0**-24)
    block = _where(shares.sum(-1), unit[..., 0])
    hit = jnp.arange(count) == block[..., None]
    within = jnp.sum(jnp.where(hit[..., None], shares, 0.0), -2)
    return block * (size // count) + _where(within, unit[..., 1])


def _where(shares: Float[Array, "B _ n"], unit: Float[Array, "B G"]) -> Int[Array, "B G"]:
    """Returns the place at which the running sum first exceeds the unit's share of the whole."""
    sums = jnp.cumsum(shares, -1)
    return jnp.sum(sums <= unit[..., None] * sums[..., -1:], -1)
