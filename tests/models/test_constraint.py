"""Holds constrained answers to the grammar, and the trainer to the sampler's own distribution."""

from __future__ import annotations

import functools
import itertools
import random
import re

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
from flax import nnx

from seg_jax.grammar import automaton, outline, outline_automaton
from seg_jax.models.vlm import constraint, likelihood
from seg_jax.models.vlm import sampler as samplers
from seg_jax.records import Kind, Verdict

END = 299
RUNS = (
    b"[[",
    b"[[[",
    b"]]",
    b"]]]",
    b"],",
    b"], [",
    b"]], [[",
    b"].",
    b"]]].",
    b", 0",
    b"0.",
    b"37",
)
PIECES = [bytes([byte]) for byte in range(256)] + list(RUNS)
PIECES += [None] * (END + 1 - len(PIECES))
RINGS, POINTS = 3, 5


@functools.cache
def grammar(digits=2, rings=RINGS, points=POINTS, numbers=False, nothing=False):
    """A grammar over bytes and brackets; with all decimals as tokens of their own if `numbers`."""
    more = [b"0.%0*d" % (digits, n) for n in range(10**digits)] if numbers else []
    more += [b"1." + b"0" * digits] if numbers else []
    pieces = PIECES + more + [b", " + piece for piece in more]
    limits = {"digits": digits, "rings": rings, "points": points, "nothing": nothing}
    return automaton.table(pieces, ends=[END], machine=outline_automaton.machine(**limits))


def text_of(ids):
    assert ids[-1] == END
    return b"".join(PIECES[token] for token in ids[:-1]).decode()


def rewritten(reading, kind, digits):
    if kind == Kind.POINT:
        return outline.write_point(reading.point, digits=digits)
    if kind == Kind.BOX:
        return outline.write_box(reading.box, digits=digits)
    # A first vertex repeated at the end is the one thing that is not written again.
    rings = [ring[:-1] if (ring[0] == ring[-1]).all() else ring for ring in reading.rings]
    return outline.write_mask(rings, digits=digits)


def assert_fine(text, kind, digits, rings, points):
    reading = outline.read(text, kind, rings=rings, points=points)
    assert reading.verdict == Verdict.OK, (text, kind)
    again = rewritten(reading, kind, digits)
    closed = [f", {point}]" for ring in rings_of(text) for point in ring[:1] if ring[-1] == point]
    for end in closed:
        text = text.replace(end, "]", 1)
    assert f"{again}." == text, kind


def rings_of(text):
    return [
        re.findall(r"\[[^][]+\]", ring) for ring in re.findall(r"\[(?:\[[^][]+\](?:, )?)+\]", text)
    ]


def walking(held_to, kinds, key, scale, *, size, budget, noisy):
    """Random answers [lanes budget] of a model whose logits never change; and lanes that stuck."""
    lanes = len(kinds)
    liking = scale * jax.random.normal(jax.random.fold_in(key, budget), (lanes, 1, size))

    def step(held, column):
        noise = jax.random.gumbel(jax.random.fold_in(key, column), (lanes, 1, size))
        given = constraint.permit(held_to, held, budget - column)
        logits = constraint.mask_logits(held_to, given, liking + noisy * noise)
        ids = jnp.argmax(logits, -1)
        after = constraint.advance(held_to, held, ids)
        return after, (ids[:, 0], held.state[:, 0] > 0, jnp.max(logits, -1)[:, 0] < -1e29)

    _, out = jax.lax.scan(step, constraint.initial_progress(held_to, kinds, 1), jnp.arange(budget))
    return [leaf.T for leaf in out]


walk = jax.jit(walking, static_argnames=("size", "budget"))
LIKING = pytest.mark.parametrize(
    ("scale", "noisy"), [(0.0, True), (8.0, True), (1.0, False)], ids=["uniform", "keen", "greedy"]
)


@LIKING
@pytest.mark.parametrize(("digits", "spare"), [(1, 0), (3, 40)])  # Two digits: see below.
def test_whatever_a_model_likes_its_answers_are_fine(digits, spare, scale, noisy):
    held_to = grammar(digits)
    least = max(int(np.asarray(held_to.need)[int(s)].min()) for s in held_to.start)
    kinds = np.arange(300, dtype=np.int32) % 3
    given = walk(
        held_to,
        kinds,
        jax.random.key(spare),
        scale,
        size=END + 1,
        budget=least + spare,
        noisy=noisy,
    )
    ids, used, stuck = map(np.asarray, given)
    assert not stuck.any()
    for kind, row, keep in zip(kinds, ids, used, strict=True):
        assert_fine(text_of(row[keep]), Kind(int(kind)), digits, RINGS, POINTS)
    if spare > 1:
        assert len({text_of(row[keep]) for row, keep in zip(ids, used, strict=True)}) > 100


@LIKING
def test_a_model_may_say_that_there_is_nothing_where_it_is_switched_on(scale, noisy):
    kinds = np.arange(600, dtype=np.int32) % 3
    sizes = {"size": END + 1, "budget": 60, "noisy": noisy}
    given = walk(grammar(nothing=True), kinds, jax.random.key(1), scale, **sizes)
    ids, used, stuck = map(np.asarray, given)
    assert not stuck.any()
    met = set()
    for kind, row, keep in zip(kinds, ids, used, strict=True):
        text = text_of(row[keep])
        if says := outline.read(text, Kind(int(kind))).says_nothing:
            assert text == "[]."
        else:
            assert_fine(text, Kind(int(kind)), 2, RINGS, POINTS)
        met.add((int(kind), says))
    assert len(met) == 6


@pytest.mark.slow
def test_ten_thousand_answers_at_random_are_all_fine():
    kinds = np.arange(10_000, dtype=np.int32) % 3
    key = jax.random.key(7, impl="rbg")  # Much quicker for so many numbers.
    given = jax.jit(
        functools.partial(walking, size=END + 1, budget=70, noisy=True),
        compiler_options=compilation.as_users(),  # So many numbers are worth it.
    )(grammar(), kinds, key, 0.0)
    ids, used, stuck = map(np.asarray, given)
    assert not stuck.any()
    verdicts = [
        outline.read(text_of(row[keep]), Kind(int(kind)), rings=RINGS, points=POINTS).verdict
        for kind, row, keep in zip(kinds, ids, used, strict=True)
    ]
    assert verdicts == [Verdict.OK] * 10_000


@pytest.mark.parametrize("kind", [Kind.POINT, Kind.BOX, Kind.MASK])
def test_each_kind_ends_in_the_room_of_its_shortest_answer(kind):
    held_to = grammar(2)
    least = int(np.asarray(held_to.need)[int(held_to.start[kind])].min())
    kinds = np.full(60, kind, np.int32)
    ids, used, stuck = walk(
        held_to, kinds, jax.random.key(0), 3.0, size=END + 1, budget=least, noisy=True
    )
    assert not np.asarray(stuck).any()
    for row, keep in zip(np.asarray(ids), np.asarray(used), strict=True):
        assert_fine(text_of(row[keep]), kind, 2, RINGS, POINTS)


def answer(rng):
    """Returns an answer of the grammar but for its numbers, which are few and often equal."""
    few = ["0.00", "0.09", "0.10", "0.99", "1.00", f"0.{rng.randrange(100):02d}"]

    def point(count=2):
        return "[" + ", ".join(rng.choice(few) for _ in range(count)) + "]"

    kind = Kind(rng.choice([0, 1, 1, 2, 2]))
    if kind != Kind.MASK:
        return point(4 if kind == Kind.BOX else 2) + ".", kind
    rings = [[point() for _ in range(rng.randint(3, POINTS))] for _ in range(rng.choice([1, 1, 2]))]
    return "[" + ", ".join("[" + ", ".join(ring) + "]" for ring in rings) + "].", kind


def follows(text, kind):
    """Whether the numbers of an answer keep the rules."""
    if kind == Kind.BOX:
        x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+\d", text))
        return x0 < x1 and y0 < y1
    return all(
        ring[0] != ring[2] and all(a != b for a, b in itertools.pairwise(ring))
        for ring in rings_of(text)
    )


@pytest.mark.parametrize("cut", ["bytes", "longest", "random"])
def test_an_answer_is_permitted_if_and_only_if_its_numbers_keep_the_rules(cut):
    rng = random.Random(3)
    rows, kinds, wanted, length = [], [], [], 150
    number = {piece: token for token, piece in enumerate(PIECES) if piece}
    while len(rows) < 512:
        text, kind = answer(rng)
        ids, data = [], text.encode()
        while data:
            fitting = [n for n in range(1, 7) if data[:n] in number]
            size = {"bytes": 1, "longest": fitting[-1], "random": rng.choice(fitting)}[cut]
            # No rule says how digits of two numbers in one token would be compared.
            ids.append(number[data[:size]])
            data = data[size:]
        rows.append([*ids, END] + [0] * (length - len(ids) - 1))
        kinds.append(kind)
        wanted.append(follows(text, kind))
    assert 0.2 < np.mean(wanted) < 0.8
    ids = np.array(rows, np.int32)[:, None]
    held_to = grammar(2)

    @jax.jit
    def permitted(ids, kinds):
        given = constraint.permits_along(held_to, kinds, ids)
        may = constraint.allowed_tokens(held_to, given, END + 1)
        return jnp.take_along_axis(may, ids[..., None], -1)[..., 0].all(-1)

    got = np.asarray(permitted(ids, np.array(kinds, np.int32)))[:, 0]
    np.testing.assert_array_equal(got, wanted)


@pytest.fixture(scope="module")
def setting():
    small = {"text": {"num_hidden_layers": 2, "vocab_size": END + 5}, "vision": {"depth": 1}}
    model = tiny_vlm.model(tiny_vlm.config(tie=True, **small), amplify=6.0)
    rng = np.random.default_rng(0)
    rows = [tiny_vlm.row(rng, [(4, 4)], texts=(3, 2 + i)) for i in range(3)]
    return nnx.split(model), tiny_vlm.stack(rows), np.array(list(Kind), np.int32)


LENGTH = 52


@functools.cache
def sampled(graph, answers, sampler):
    held = grammar(2)  # Outside of jit: it is kept.

    def run(params, tokens, images, kinds, key):
        return samplers.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=answers,
            max_tokens=LENGTH,
            sampler=sampler,
            end_ids=(END,),
            key=key,
            grammar=held,
            kinds=kinds,
        )

    return jax.jit(run)


SAMPLERS = [samplers.Sample(temperature=1.4), samplers.Greedy()]
# One sampler shows that chunks change nothing, in the other all comes in chunks.
CHUNKS = [(None, 7), (7,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "chunks"), zip(SAMPLERS, CHUNKS, strict=True), ids=["warm", "greedy"]
)
def test_sampler_and_trainer_agree_on_an_untrained_model(setting, sampler, chunks):
    (graph, params), (tokens, images), kinds = setting
    answers = 1 if isinstance(sampler, samplers.Greedy) else 4
    temperature = getattr(sampler, "temperature", 1.0)
    run = sampled(graph, answers, sampler)
    rollout = run(params, tokens, images, kinds, jax.random.key(1))
    ids, used = np.asarray(rollout.ids), np.asarray(rollout.used)
    for b, kind in enumerate(Kind):
        for g in range(answers):
            assert_fine(text_of(ids[b, g][used[b, g]]), kind, 2, RINGS, POINTS)

    def loss(params, chunk):
        logp = likelihood.answer_likelihood(
            nnx.merge(graph, params),
            tokens,
            images,
            ids=rollout.ids,
            chunk=chunk,
            temperature=temperature,
            grammar=grammar(2),
            kinds=kinds,
        ).logp
        return jnp.sum(jnp.where(rollout.used, logp, 0.0)), logp

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    grads = []
    for chunk in chunks:
        (_, logp), grad = step(params, chunk)
        assert np.isfinite(logp).all()
        gap = np.abs(np.where(used, logp, 0.0) - np.asarray(rollout.logp))
        assert gap.max() < 1e-5
        grads.append(jax.tree.leaves(grad))
    assert np.asarray(rollout.logp)[used].min() < -0.5
    for a, b in zip(grads[0], grads[-1], strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert max(np.abs(leaf).max() for leaf in grads[0]) > 1e-3


def test_likelihoods_are_those_of_the_tokens_that_may_come():
    rng = np.random.default_rng(0)
    size, width = END + 1, 8
    hidden, unembed = rng.normal(size=(6, width)), rng.normal(size=(size, width))
    hidden, unembed = hidden.astype(np.float32), unembed.astype(np.float32)
    ids = np.array([PIECES.index(b) for b in (b"[", b"0", b".", b"1", b"2", b",")], np.int32)
    held_to = grammar(2)
    kinds = np.array([Kind.POINT], np.int32)
    given = jax.jit(constraint.permits_along)(held_to, kinds, np.pad(ids, (0, 40))[None, None])
    given = jax.tree.map(lambda leaf: leaf[0, 0, : len(ids)], given)
    logits = hidden.astype(np.float64) @ unembed.T.astype(np.float64) / 0.7
    may = [[b"["], [b"0", b"1", b"0."], [b"."], [*DIGITS, b"37"], DIGITS, [b",", b", 0"]]
    score = functools.partial(likelihood.token_likelihood, grammar=held_to, given=given)
    got = jax.jit(functools.partial(score, temperature=0.7))(hidden, unembed, ids)
    for t, pieces in enumerate(may):
        chosen = [PIECES.index(piece) for piece in pieces]
        p = np.exp(logits[t, chosen])
        p /= p.sum()
        assert got.logp[t] == pytest.approx(np.log(p[chosen.index(ids[t])]), abs=1e-5)
        assert got.entropy[t] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)

    slope = jax.jit(jax.grad(lambda hidden: score(hidden, unembed, ids).entropy.sum()))(hidden)
    assert np.isfinite(slope).all()


DIGITS = [b"%d" % digit for digit in range(10)]


def test_an_answer_off_the_grammar_is_impossible_and_then_free():
    held_to = grammar(2)
    ids = np.array([[[PIECES.index(b"x"), PIECES.index(b"y")]]], np.int32)
    given = jax.jit(constraint.permits_along)(
        held_to, np.array([Kind.MASK], np.int32), np.pad(ids, ((0, 0),) * 2 + ((0, 50),))
    )
    may = np.asarray(constraint.allowed_tokens(held_to, given, END + 20))[0, 0]
    assert not may[0, ids[0, 0, 0]]
    assert may[1].all()
    assert not may[0, END:].any()  # Rows of a model's table beyond its tokenizer.


def test_every_number_as_a_token_changes_no_verdict():
    held_to = grammar(2, numbers=True)
    size = len(held_to.classes)
    kinds = np.arange(300, dtype=np.int32) % 3
    pieces = PIECES + [b"0.%02d" % n for n in range(100)] + [b"1.00"]
    pieces += [b", " + piece for piece in pieces[END + 1 :]]
    ids, used, stuck = walk(
        held_to, kinds, jax.random.key(5), 0.0, size=size, budget=30, noisy=True
    )
    assert not np.asarray(stuck).any()
    for kind, row, keep in zip(kinds, np.asarray(ids), np.asarray(used), strict=True):
        text = b"".join(pieces[token] or b"" for token in row[keep]).decode()
        assert_fine(text, Kind(int(kind)), 2, RINGS, POINTS)


def test_a_model_with_fewer_tokens_than_the_grammar_is_refused():
    held_to = grammar(2)
    given = constraint.permit(
        held_to, constraint.initial_progress(held_to, np.zeros(1, np.int32), 1), 40
    )
    with pytest.raises(ValueError, match="compile it for the model's own tokenizer"):
        constraint.allowed_tokens(held_to, given, 100)


def test_decoding_without_kinds_is_refused(setting):
    (graph, params), (tokens, images), _ = setting
    with pytest.raises(ValueError, match="kinds: expected"):
        sampled(graph, 2, SAMPLERS[0])(params, tokens, images, None, jax.random.key(0))


def test_nothing_is_gathered_along_the_vocabulary():
    held_to = grammar(2)
    held = constraint.initial_progress(held_to, np.zeros(8, np.int32), 1)

    def mask(held, logits):
        return constraint.mask_logits(held_to, constraint.permit(held_to, held, 40), logits)

    text = jax.jit(mask).lower(held, jnp.zeros((8, 1, END + 1))).as_text()
    gathers = [line for line in text.splitlines() if "stablehlo.gather" in line]
    assert gathers
    assert not any(f"x{END + 1}x" in line.split("->")[1] for line in gathers)
