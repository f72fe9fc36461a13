"""Lowers the steps of a model of seven billion weights from shapes alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import likelihood, qwen25_vl, sampler
from seg_jax.records import Images, Tokens

B, T, S = 2, 512, 1024


@pytest.fixture(scope="module")
def shapes():
    compute = Compute(dtype="bfloat16", param_dtype="bfloat16", remat="full")
    model = nnx.eval_shape(
        lambda: qwen25_vl.Qwen25VL(qwen25_vl.Config(), compute=compute, rngs=nnx.Rngs(0))
    )
    graph, params = nnx.split(model)

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    tokens = Tokens(ints(B, T), ints(B, T), ints(B, 3, T), ints(B, T))
    patches = jax.ShapeDtypeStruct((B, S, 3 * 14 * 14), jnp.uint8)
    return graph, params, tokens, Images(patches, ints(B, S, 2), ints(B, S), ints(B, S))


def test_the_default_config_is_the_7b_model(shapes):
    _, params, *_ = shapes
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 8_292_166_656  # As `num_parameters()` of transformers.


def test_training_lowers(shapes):
    graph, params, tokens, images = shapes

    def loss(params, tokens, images):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids, chunk=64).mean()

    text = jax.jit(jax.grad(loss)).lower(params, tokens, images).as_text()
    assert "bf16" in text
    # One text for all layers; never the logits of all tokens.
    assert f"{B}x{T}x152064" not in text
    assert len(text) < 600_000


def test_sampling_lowers_and_never_copies_the_prompt(shapes):
    graph, params, tokens, images = shapes

    def sample(params, tokens, images, key):
        return sampler.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=8,
            max_tokens=64,
            sampler=sampler.Sample(),
            end_ids=(151_645,),
            key=key,
        )

    text = jax.jit(sample).lower(params, tokens, images, jax.random.key(0)).as_text()
    # Keys of the prompt are B x kv x hd x T; with an axis of 8 answers they would be copied.
    assert f"{B}x4x128x{T}xbf16" in text
    assert f"{B}x4x8x128x{T}xbf16" not in text
    assert f"{B}x8x4x128x{T}xbf16" not in text
