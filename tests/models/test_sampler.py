"""Holds cached decoding to the full forward pass, and the sampler to its promises."""

from __future__ import annotations

import functools
import math

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
from flax import nnx

from seg_jax.models.vlm import likelihood
from seg_jax.models.vlm import sampler as samplers
from seg_jax.records import Tokens

G, L = 3, 6
SAMPLE = samplers.Sample(temperature=1.3)


@pytest.fixture(scope="module")
def model():
    small = {"text": {"num_hidden_layers": 2}, "vision": {"depth": 1}}
    # Sharper than at birth, so that the likeliest token is far from a coin toss.
    return tiny_vlm.model(tiny_vlm.config(tie=True, **small), amplify=4.0)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    rows = [
        tiny_vlm.row(rng, [(4, 6), (4, 4)], texts=(3, 2, 4)),
        tiny_vlm.row(rng, [], texts=(7,)),
        tiny_vlm.row(rng, [(8, 6)], texts=(2, 3)),
    ]
    return rows, tiny_vlm.stack(rows, length=28, patches=48)


@functools.cache
def _compiled(graph, options):
    def run(params, tokens, images, key, rows):
        model = nnx.merge(graph, params)
        return samplers.generate(model, tokens, images, key=key, rows=rows, **dict(options))

    return jax.jit(run)


def generate(model, batch, *, seed=0, rows=None, **options):
    options = {"answers": G, "max_tokens": L, "sampler": SAMPLE, "end_ids": (5, 7)} | options
    graph, params = nnx.split(model)
    run = _compiled(graph, tuple(sorted(options.items())))
    rows = np.arange(batch[0].ids.shape[0]) if rows is None else rows
    return jax.tree.map(np.asarray, run(params, *batch, jax.random.key(seed), rows))


@functools.partial(jax.jit, static_argnums=0)
def _logp(graph, params, tokens, images, targets):
    model = nnx.merge(graph, params)
    hidden = model.hidden(tokens, images)[:, -targets.shape[1] - 1 : -1]
    return likelihood.token_logp(hidden, model.unembed(), targets, temperature=SAMPLE.temperature)


def with_answers(rows, answers):
    """Returns whole rows, prompt and answer [B L] in one, as training would lay them out."""
    tokens, images = tiny_vlm.stack(rows, length=28, patches=48)
    start = tokens.positions.max((1, 2))[:, None, None] + 1
    place = np.broadcast_to(start + np.arange(answers.shape[1]), (len(rows), 3, answers.shape[1]))
    whole = Tokens(
        np.concatenate([tokens.ids, answers], 1),
        np.concatenate([tokens.segments, np.ones_like(answers)], 1),
        np.concatenate([tokens.positions, place.astype(np.int32)], 2),
        np.concatenate([tokens.visual_tokens, np.full_like(answers, -1)], 1),
    )
    return whole, images, answers


def test_cached_decoding_equals_the_full_forward_pass(model, prompts):
    rows, batch = prompts
    rollout = generate(model, batch)
    for g in range(G):
        want = _logp(*nnx.split(model), *with_answers(rows, rollout.ids[:, g]))
        want = np.where(rollout.used[:, g], want, 0.0)
        np.testing.assert_allclose(rollout.logp[:, g], want, rtol=0, atol=1e-5)


def _score(graph, params, batch, rollout):
    logp = likelihood.answer_likelihood(
        nnx.merge(graph, params), *batch, ids=rollout.ids, temperature=SAMPLE.temperature
    ).logp
    logp = jnp.where(rollout.used, logp, 0.0)
    return jnp.sum(logp), logp


def test_scoring_whole_answers_equals_the_sampler(model, prompts):
    _, batch = prompts
    rollout = generate(model, batch)
    _, logp = jax.jit(_score, static_argnums=0)(*nnx.split(model), batch, rollout)
    np.testing.assert_allclose(logp, rollout.logp, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_gradients_through_the_shared_prompt_equal_those_of_plain_rows(model, prompts):
    rows, batch = prompts
    rollout = generate(model, batch)
    graph, params = nnx.split(model)

    def plain(params):
        total = 0.0
        for g in range(G):
            logp = _logp(graph, params, *with_answers(rows, rollout.ids[:, g]))
            total += jnp.sum(jnp.where(rollout.used[:, g], logp, 0.0))
        return total

    def shared(params):
        return _score(graph, params, batch, rollout)[0]

    one, other = (jax.jit(jax.grad(f))(params) for f in (shared, plain))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_same_key_repeats_and_another_differs(model, prompts):
    _, batch = prompts
    first, again = generate(model, batch), generate(model, batch)
    np.testing.assert_array_equal(first.ids, again.ids)
    other = generate(model, batch, seed=1)
    assert (first.ids != other.ids).any(axis=(1, 2)).all()
    # Answers of one prompt differ among themselves, columns of one answer too.
    assert all(len({tuple(answer) for answer in group}) == G for group in first.ids)


def test_a_row_does_not_depend_on_its_company(model, prompts):
    rows, batch = prompts
    together = generate(model, batch)
    turned = tiny_vlm.stack([rows[2], rows[1], rows[0]], length=28, patches=48)
    other = generate(model, turned, rows=np.array([2, 1, 0]))
    np.testing.assert_array_equal(together.ids, other.ids[::-1])
    np.testing.assert_allclose(together.logp, other.logp[::-1], rtol=0, atol=1e-5)


def test_answers_stop_at_an_end_token_and_are_padded_after_it(model, prompts):
    _, batch = prompts
    ends = tuple(range(0, 300, 3))
    rollout = generate(model, batch, end_ids=ends, pad_id=299)
    assert not rollout.used.all()
    for ids, used, logp in zip(*(leaf.reshape(-1, L) for leaf in rollout[:3]), strict=True):
        hits = np.flatnonzero(np.isin(ids[used], ends))
        count = hits[0] + 1 if hits.size else L
        np.testing.assert_array_equal(used, np.arange(L) < count)
        assert (ids[count:] == 299).all()
        assert (logp[count:] == 0).all()
        assert (logp[:count] < 0).all()


def test_the_only_likeliest_token_is_the_greedy_one(model, prompts):
    _, batch = prompts
    greedy = generate(model, batch, answers=1, sampler=samplers.Greedy())
    narrow = generate(model, batch, sampler=samplers.Sample(top_k=1))
    np.testing.assert_array_equal(np.broadcast_to(greedy.ids, narrow.ids.shape), narrow.ids)
    np.testing.assert_allclose(narrow.logp, 0.0, atol=1e-6)
    assert (greedy.logp[greedy.used] < 0).all()


def test_draws_follow_the_distribution():
    logits = np.float32([[[2.0, 1.0, 0.0, -1.0, -3.0]]])
    keys = jax.random.split(jax.random.key(0), (1, 20_000))
    for sampler, kept in (
        (samplers.Sample(temperature=2.0), 5),
        (samplers.Sample(top_k=3), 3),
        (samplers.Sample(top_p=0.8), 2),
    ):
        p = np.exp(logits[0, 0] / sampler.temperature)
        p[kept:] = 0
        p /= p.sum()
        ids, logp = samplers.draw(sampler, jnp.asarray(logits), keys)
        share = np.bincount(ids[0], minlength=5) / 20_000
        np.testing.assert_allclose(share, p, atol=0.015)
        np.testing.assert_allclose(logp[0], np.log(p[ids[0]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [300, 301, 1024])
@pytest.mark.parametrize("options", [{}, compilation.as_users()], ids=["quickly", "as users"])
def test_a_draw_lies_where_the_running_sum_meets_its_random_number(options, width):
    key, rows = jax.random.key(5), 64
    hidden = jax.random.normal(jax.random.fold_in(key, 0), (rows, 16))
    unembed = jax.random.normal(jax.random.fold_in(key, 1), (16, width))
    keys = jax.random.split(key, (rows, 4))

    @functools.partial(jax.jit, compiler_options=options)
    def drawn(hidden, unembed, keys):
        return samplers.draw(samplers.Sample(temperature=1.4), (hidden @ unembed)[:, None], keys)

    ids, logp = map(np.asarray, drawn(hidden, unembed, keys))
    logits = np.asarray(hidden, np.float64) @ np.asarray(unembed, np.float64) / 1.4
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(logp, np.take_along_axis(logits, ids, -1), atol=1e-4)

    bits = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (2,))))(keys)
    unit = np.maximum((np.asarray(bits) >> 9) * 2.0**-23, 2.0**-24)
    blocks = np.exp(logits).reshape(rows, math.gcd(width, samplers.BLOCKS), -1)
    upto = blocks.sum(-1).cumsum(-1)
    block, within = np.divmod(ids, blocks.shape[-1])
    for row, answer in np.ndindex(ids.shape):
        for sums, at, u in (
            (upto[row], block[row, answer], unit[row, answer, 0]),
            (blocks[row, block[row, answer]].cumsum(), within[row, answer], unit[row, answer, 1]),
        ):
            below = sums[at - 1] if at else 0.0
            assert below - 1e-5 <= u * sums[-1] <= sums[at] + 1e-5  # But for round-off.


def test_no_draw_falls_on_a_forbidden_token_not_even_at_the_ends_of_the_random_numbers():
    shares = jnp.float32([[[0.0, 3.0, 0.0, 1.0, 0.0]]])
    unit = jnp.float32([[2.0**-24, 0.5, 0.75, 1 - 2.0**-23]])
    assert samplers._where(shares, unit).tolist() == [[1, 1, 3, 3]]
    for total in np.random.default_rng(0).uniform(1e-30, 1e30, 1000).astype(np.float32):
        assert samplers._where(jnp.full((1, 1, 1), total), unit).max() == 0


def test_nonsense_is_refused(model, prompts):
    _, batch = prompts
    with pytest.raises(ValueError, match="expected 1 with Greedy"):
        generate(model, batch, sampler=samplers.Greedy())
    with pytest.raises(ValueError, match="temperature > 0"):
        samplers.Sample(temperature=0.0)
    with pytest.raises(ValueError, match="max_tokens: expected at least 1"):
        generate(model, batch, max_tokens=0)


def test_one_token_answers(model, prompts):
    _, batch = prompts
    one, more = generate(model, batch, max_tokens=1), generate(model, batch)
    np.testing.assert_array_equal(one.ids[..., 0], more.ids[..., 0])
