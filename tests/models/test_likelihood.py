"""Holds chunked likelihoods to plain ones, in value, gradient and memory."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.models.vlm import likelihood

B, T, D, V = 3, 22, 8, 509


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    unembed = rng.normal(size=(V, D)).astype(np.float32)
    return hidden, unembed, rng.integers(0, V, (B, T)).astype(np.int32)


def oracle(hidden, unembed, targets, temperature=1.0):
    logits = hidden.astype(np.float64) @ unembed.astype(np.float64).T / temperature
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(np.exp(logp) * logp).sum(-1)
    return np.take_along_axis(logp, targets[..., None], -1)[..., 0], entropy


@pytest.mark.parametrize("chunk", [None, 1, 5, 22, 64])
def test_any_chunk_gives_the_plain_log_softmax(case, chunk):
    logp, entropy = oracle(*case, temperature=0.7)
    got = likelihood.token_likelihood(*case, chunk=chunk, temperature=0.7)
    np.testing.assert_allclose(got.logp, logp, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got.entropy, entropy, rtol=0, atol=3e-5)
    hidden, unembed, targets = case
    single = likelihood.token_logp(hidden[0], unembed, targets[0], chunk=chunk)
    np.testing.assert_allclose(single, oracle(*case)[0][0], rtol=0, atol=1e-5)


def test_gradients_do_not_depend_on_the_chunk(case):
    hidden, unembed, targets = case

    def loss(hidden, unembed, chunk):
        return jnp.sum(jnp.sin(likelihood.token_logp(hidden, unembed, targets, chunk=chunk)))

    want = jax.grad(loss, (0, 1))(hidden, unembed, None)
    for a, b in zip(want, jax.grad(loss, (0, 1))(hidden, unembed, 5), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_neither_pass_holds_the_logits_of_a_row(case, soft):
    hidden, unembed, targets = case
    near, shares = np.zeros((V, 2), np.int32), np.full((V, 2), 0.5, np.float32)

    def loss(hidden, unembed):
        if soft:
            return likelihood.soft_cross_entropy(
                hidden, unembed, targets, neighbours=near, shares=shares, chunk=2
            ).sum()
        return likelihood.token_logp(hidden, unembed, targets, chunk=2).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, unembed).compile().as_text()
    sizes = {
        int(np.prod([int(n) for n in dims.split(",")]))
        for dims in re.findall(r"f32\[([\d,]+)\]", text)
        if str(V) in dims.split(",")
    }
    # A chunk's logits, the head and its gradient may exist; the logits of all rows may not.
    assert max(sizes) < B * T * V / 2
    assert B * 2 * V in sizes


def test_soft_targets_spread_over_neighbours(case):
    hidden, unembed, targets = case
    rng = np.random.default_rng(1)
    near = rng.integers(0, V, (V, 4)).astype(np.int32)
    shares = rng.dirichlet(np.ones(4), V).astype(np.float32)
    want = np.zeros((B, T))
    for j in range(4):
        want -= shares[targets, j] * oracle(hidden, unembed, near[targets, j])[0]
    for chunk in (None, 5):
        got = likelihood.soft_cross_entropy(
            hidden, unembed, targets, neighbours=near, shares=shares, chunk=chunk
        )
        np.testing.assert_allclose(got, want, rtol=1e-5)
    alone = np.arange(V, dtype=np.int32)[:, None]
    hard = likelihood.soft_cross_entropy(
        hidden, unembed, targets, neighbours=alone, shares=np.ones((V, 1), np.float32)
    )
    np.testing.assert_allclose(hard, -likelihood.token_logp(hidden, unembed, targets), rtol=1e-5)


def test_a_chunk_of_nothing_is_refused(case):
    with pytest.raises(ValueError, match="chunk: expected at least 1"):
        likelihood.token_logp(*case, chunk=0)
