"""Holds answers that take turns in few rows to the same answers decoded all at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_weights
import tiny_kimi
import tiny_qwen3
import tiny_vlm
from flax import nnx

from seg_jax.grammar import automaton, outline_automaton
from seg_jax.models.io import weights
from seg_jax.models.nn import batching
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import likelihood
from seg_jax.models.vlm import sampler as samplers
from seg_jax.records import Kind

B, G, L = 4, 3, 12
ENDS = tuple(range(0, 300, 17))
SAMPLE = samplers.Sample(temperature=1.3)
FAMILIES = {
    "qwen25_vl": (tiny_vlm, {"text": {"num_hidden_layers": 2}, "vision": {"depth": 1}}),
    "qwen3_vl": (tiny_qwen3, {"text": {"num_hidden_layers": 2}, "vision": {"depth": 3}}),
    "kimi_vl": (
        tiny_kimi,
        {"text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 1}},
    ),
}


@functools.cache
def setting(family):
    """Returns graph, weights (louder than at birth) and prompts of different lengths."""
    tiny, small = FAMILIES[family]
    config = tiny.config(tie=True, **small)
    graph, shapes = nnx.split(weights.blank(config, Compute()))
    params = random_weights.drawn(shapes)
    rng = np.random.default_rng(1)
    rows = [tiny_vlm.row(rng, [(4, 4)], texts=(3, 2 + 2 * i)) for i in range(B)]
    return graph, params, getattr(tiny, "stack", tiny_vlm.stack)(rows)


@functools.cache
def compiled(family, options):
    graph, _, _ = setting(family)
    options = {
        "answers": G,
        "max_tokens": L,
        "sampler": SAMPLE,
        "end_ids": ENDS,
        "pad_id": 299,
    } | {name: getattr(value, "value", value) for name, value in options}

    def run(params, tokens, images, key, limits):
        model = nnx.merge(graph, params)
        return samplers.generate(model, tokens, images, key=key, limits=limits, **options)

    return jax.jit(run)


def generate(family="qwen25_vl", *, rows=0, chunk=1, limits=None, seed=0, **options):
    _, params, batch = setting(family)
    if rows:
        options["refill"] = samplers.Refill(rows=rows, chunk=chunk)
    run = compiled(family, tuple(sorted(options.items())))
    return jax.tree.map(np.asarray, run(params, *batch, jax.random.key(seed), limits))


def assert_same(got, want):
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_array_equal(got.used, want.used)
    np.testing.assert_allclose(got.logp, want.logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "chunk"),
    [
        (5, 1),
        (5, 4),
        pytest.param(1, 1, marks=pytest.mark.slow),
        pytest.param(2, 3, marks=pytest.mark.slow),
        pytest.param(11, 2, marks=pytest.mark.slow),
    ],
)
def test_answers_are_the_same_whatever_the_rows_and_the_chunk(rows, chunk):
    want = generate()
    lengths = want.used.sum(-1)
    assert lengths.min() < L / 2  # Some end soon, some never.
    assert lengths.max() == L
    got = generate(rows=rows, chunk=chunk)
    assert_same(got, want)
    assert (want.computed == L).all()
    assert (got.computed >= lengths).all()
    if chunk == 1:  # Rows are lost at the end only, when nobody waits.
        assert got.computed.sum() < lengths.sum() + rows * L


# As many rows as prompts look theirs up; of more the queries travel.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rows"), [("qwen3_vl", B + 2), ("kimi_vl", B), ("kimi_vl", B + 2)]
)
def test_so_they_are_in_every_family(family, rows):
    want = generate(family)
    assert len(np.unique(want.ids)) > 20
    assert want.used.sum(-1).min() < L
    assert_same(generate(family, rows=rows, chunk=2), want)


def test_rows_that_have_nothing_to_do_change_nothing():
    limits = np.ones((B, G), np.int32)
    limits[1, 2] = 5
    want, got = generate(limits=limits), generate(limits=limits, rows=7)
    assert_same(got, want)
    limits[1, 2] = 1  # All end with their first token: no loop at all.
    over = generate(limits=limits, rows=7)
    assert_same(over, generate(limits=limits))
    assert over.computed.sum() == B * G


def test_more_rows_than_answers_are_the_plain_loop():
    assert_same(generate(rows=99), generate())
    assert (generate(rows=99).computed == L).all()


def test_the_trainer_gives_refilled_answers_the_same_log_probabilities():
    graph, params, batch = setting("qwen25_vl")
    got = generate(rows=3)

    def score(params, tokens, images, ids):
        model = nnx.merge(graph, params)
        return likelihood.answer_likelihood(
            model, tokens, images, ids=ids, temperature=SAMPLE.temperature
        ).logp

    logp = jax.jit(score)(params, *batch, got.ids)
    np.testing.assert_allclose(np.where(got.used, logp, 0), got.logp, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_limits_end_answers():
    limits = np.arange(1, 1 + B * G).reshape(B, G).astype(np.int32)
    free = generate(end_ids=(10**6,))
    got = generate(limits=limits, end_ids=(10**6,), rows=4)
    np.testing.assert_array_equal(got.used.sum(-1), limits)
    np.testing.assert_array_equal(np.where(got.used, free.ids, 299), got.ids)


def test_a_long_tail_keeps_rows_busy(capsys):
    lengths = np.full((B, 48), 4, np.int32)
    lengths[np.random.default_rng(0).random(lengths.shape) < 0.1] = 40
    options = {"answers": 48, "max_tokens": 40, "end_ids": (10**6,), "limits": lengths}
    got, plain = generate(rows=8, **options), generate(**options)
    assert_same(got, plain)
    np.testing.assert_array_equal(got.used.sum(-1), lengths)
    useful, before = (lengths.sum() / rollout.computed.sum() for rollout in (got, plain))
    with capsys.disabled():
        print(f" useful tokens {useful:.3f}, without refilling {before:.3f}", end="")
    assert before < 0.25
    assert useful >= 0.90


@functools.cache
def grammar():
    digits = [str(digit).encode() for digit in range(10)]
    pieces = [b"", *digits, *(bytes([one]) for one in b"[](),. "), b"0.", b"], [", b"]]"]
    return automaton.table(
        pieces, ends=(0,), machine=outline_automaton.machine(digits=2, rings=1, points=4)
    )


@pytest.mark.slow
def test_answers_held_to_the_grammar_are_the_same():
    options = {
        "grammar": Held(grammar()),
        "kinds": Held(np.array([Kind.MASK, Kind.POINT, Kind.BOX, Kind.MASK], np.int32)),
        "max_tokens": 90,
        "end_ids": (0,),
    }
    want = generate(**options)
    assert len(set(want.used.sum(-1).ravel())) > 3
    assert want.used.sum(-1).max() <= 90
    assert_same(generate(rows=4, chunk=2, **options), want)


class Held:
    """Something without a hash, by its identity."""

    def __init__(self, value):
        self.value = value


def test_every_draw_has_a_key_of_its_own(monkeypatch):
    seen, whole = [], samplers.draw

    def spy(sampler, logits, keys):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return whole(sampler, logits, keys)

    monkeypatch.setattr(samplers, "draw", spy)
    graph, params, batch = setting("qwen25_vl")

    def run(params, tokens, images, key):
        return samplers.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=G,
            max_tokens=L,
            sampler=SAMPLE,
            end_ids=(10**6,),
            key=key,
            refill=samplers.Refill(rows=6),
        )

    for step in range(2):
        jax.block_until_ready(
            jax.jit(run)(params, *batch, jax.random.fold_in(jax.random.key(0), step))
        )
    jax.effects_barrier()
    keys = np.concatenate([data.reshape(-1, data.shape[-1]) for data in seen])
    assert len(keys) == 2 * B * G * L  # Two rounds of six rows, none of them idle.
    assert len(np.unique(keys, axis=0)) == len(keys)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_answers_do_not_depend_on_the_devices():
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    want = generate(rows=5)
    graph, params, batch = setting("qwen25_vl")
    spread = jax.device_put(params, sharding.shardings(params, mesh))
    rows = jax.device_put(batch, sharding.batch(mesh, rows=B))

    def run(params, tokens, images, key):
        refill = samplers.Refill(rows=8)
        return samplers.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=G,
            max_tokens=L,
            sampler=SAMPLE,
            end_ids=ENDS,
            pad_id=299,
            key=key,
            refill=refill,
        )

    with jax.set_mesh(mesh):
        assert sharding.shards_of_rows(B) == 4
        got = jax.jit(run)(spread, *rows, jax.random.key(0))
    assert_same(jax.tree.map(np.asarray, got), want)


def test_the_queue_is_served_in_order_and_nobody_twice():
    rng = np.random.default_rng(0)
    over = rng.random((2, 9)) < 0.3
    waiting, slots = batching.open_slots(jnp.asarray(over), 4)
    live, served = jnp.zeros((2, 4), bool), [[], []]
    for _ in range(40):
        waiting, slots, new = batching.fill_slots(waiting, slots, live)
        live = live | new
        for queue, slot in np.argwhere(new):
            answer = int(slots.answer[queue, slot])
            assert slots.slot[queue, answer] == slot
            assert slots.column[queue, slot] == 0
            served[queue].append(answer)
        slots = slots._replace(column=jnp.where(live, slots.column + 1, slots.column))
        live = live & jnp.asarray(rng.random((2, 4)) < 0.6)
    for queue in range(2):
        assert served[queue] == np.flatnonzero(~over[queue]).tolist()


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="rows and chunk of at least 1, got 0 and 1"):
        samplers.Refill(rows=0)
    with pytest.raises(ValueError, match="limits: expected none with a grammar"):
        generate(
            grammar=Held(grammar()),
            kinds=Held(np.zeros(B, np.int32)),
            limits=np.ones((B, G), np.int32),
        )
