"""Holds Kimi-VL to itself: configs, sampling, packing, meshes, ways to compute, the full size."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_kimi
import tiny_vlm
from flax import nnx
from jax.sharding import PartitionSpec
from published_configs import KIMI

from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import kimi_vl, likelihood, protocol, sampler
from seg_jax.records import Images, Packing, Tokens

TOLERANCE = 2e-5

SHALLOW = {"text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 1}}


@pytest.fixture(scope="module")
def setting():
    graph, params = nnx.split(tiny_kimi.model(tiny_kimi.config(**SHALLOW), amplify=5.0))
    rng = np.random.default_rng(0)
    rows = [tiny_vlm.row(rng, [(4, 4), (2, 6)], texts=(3, 1, 2 + i)) for i in range(4)]
    return graph, params, tiny_kimi.stack(rows)


def sample(graph, *, answers: int = 2, tokens: int = 4):
    def run(params, prompts, images):
        return sampler.generate(
            nnx.merge(graph, params),
            prompts,
            images,
            answers=answers,
            max_tokens=tokens,
            sampler=sampler.Sample(temperature=1.3),
            end_ids=(3,),
            key=jax.random.key(0),
        )

    return run


def test_it_is_what_the_protocol_asks(setting):
    graph, params, _ = setting
    model = nnx.merge(graph, params)
    assert isinstance(model, protocol.VLM)
    assert isinstance(model.decoder(), protocol.Decoder)


def test_sampled_answers_score_as_they_were_sampled(setting):
    graph, params, batch = setting
    rollout = jax.jit(sample(graph, answers=3, tokens=6))(params, *batch)
    assert len(np.unique(rollout.ids)) > 20

    def score(params, tokens, images, ids):
        model = nnx.merge(graph, params)
        return likelihood.answer_likelihood(model, tokens, images, ids=ids, temperature=1.3).logp

    logp = jax.jit(score)(params, *batch, rollout.ids)
    np.testing.assert_allclose(
        jnp.where(rollout.used, logp, 0), rollout.logp, rtol=0, atol=TOLERANCE
    )


def test_packed_answers_do_not_see_each_other(setting):
    graph, params, (tokens, images) = setting
    rng = np.random.default_rng(1)
    long, short = rng.integers(0, 280, (4, 1, 5)), rng.integers(0, 280, (4, 1, 3))
    count = np.broadcast_to(np.concatenate([np.arange(5), np.arange(3)]), (4, 1, 8))
    number = np.broadcast_to(np.repeat([1, 2], [5, 3]), (4, 1, 8))

    @jax.jit
    def run(params, tokens, images):
        model = nnx.merge(graph, params)
        prefix = model.prefill(tokens, images)
        both = jnp.concatenate([long, short], 2)
        packed = model.extend(both, prefix, Packing(jnp.asarray(number), jnp.asarray(count)))
        return packed, model.extend(jnp.asarray(long), prefix), model.extend(short, prefix)

    packed, first, second = run(params, tokens, images)
    np.testing.assert_allclose(packed[..., :5, :], first, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(packed[..., 5:, :], second, rtol=0, atol=TOLERANCE)


def test_it_counts_tokens_whatever_positions_rows_tell(setting):
    """Rows are laid out for Qwen, whose visual tokens share a position; here each has its own."""
    graph, params, (tokens, images) = setting

    @jax.jit
    def run(params, tokens):
        model = nnx.merge(graph, params)
        prefix = model.prefill(tokens, images)
        return model.hidden(tokens, images), prefix.hidden, prefix.following

    wanted = run(params, tokens)
    for a, b in zip(
        run(params, tokens._replace(positions=tokens.positions * 0)), wanted, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(wanted[2], (tokens.segments > 0).sum(1))


def loss_of(graph):
    def loss(params, tokens, images):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids, chunk=5).mean()

    return jax.value_and_grad(loss)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_answers_do_not_depend_on_the_mesh(setting):  # Gradients: test_meshes.
    graph, params, batch = setting
    answers = jax.jit(sample(graph))(params, *batch)
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spread = jax.device_put(params, sharding.shardings(params, mesh))
    rows = jax.device_put(batch, sharding.batch(mesh, rows=4))
    with jax.set_mesh(mesh):
        sampled = jax.jit(sample(graph))(spread, *rows)
    np.testing.assert_array_equal(answers.ids, sampled.ids)
    np.testing.assert_allclose(answers.logp, sampled.logp, rtol=0, atol=1e-5)
    down = spread["blocks"]["ffn"]["expert_down"]["kernel"][...]
    spec = PartitionSpec(None, ("expert", "tensor"), None, ("fsdp", "context"))
    assert down.sharding.spec == spec
    assert down.addressable_shards[0].data.size == down.size // 4


@pytest.mark.slow
def test_how_it_computes_changes_neither_value_nor_gradient(setting):
    _, params, batch = setting
    found = []
    for compute in (
        Compute(),
        Compute(remat="full", fuse=True),
        Compute(remat="dots", unroll=True),
    ):
        graph, _ = nnx.split(tiny_kimi.blank(tiny_kimi.config(**SHALLOW), compute))
        found.append(jax.jit(loss_of(graph))(params, *batch))
    for other in found[1:]:
        np.testing.assert_allclose(other[0], found[0][0], rtol=1e-5)
        for a, b in zip(jax.tree.leaves(found[0][1]), jax.tree.leaves(other[1]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_bfloat16_stays_near_float32(setting):
    _, params, batch = setting
    config, found = tiny_kimi.config(**SHALLOW), []
    for dtype in ("float32", "bfloat16"):
        graph, _ = nnx.split(tiny_kimi.blank(config, Compute(dtype=dtype)))

        def run(params, graph=graph):
            model = nnx.merge(graph, params)
            return model.logits(model.hidden(*batch))

        found.append(jax.jit(run)(params))
    assert found[1].dtype == np.float32
    assert 1e-4 < np.abs(found[0] - found[1]).mean() < 0.05


def test_the_published_config_is_the_default_and_goes_back():
    config = kimi_vl.Config.from_hf(KIMI)
    assert config == kimi_vl.Config()
    written = json.loads(json.dumps(config.to_hf()))
    assert kimi_vl.Config.from_hf(written) == config
    untold = {"ignore_index", "ep_size", "pad_token_id"}
    for part in ("text_config", "vision_config"):
        for name, value in KIMI[part].items():
            assert name in untold or written[part][name] == value, name
    other = tiny_kimi.config(tie=True, text={"n_group": 2, "norm_topk_prob": False})
    assert kimi_vl.Config.from_hf(json.loads(json.dumps(other.to_hf()))) == other


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (None, {"model_type": "kimi_k25"}, "expected 'kimi_vl', got 'kimi_k25'"),
        ("text_config", {"q_lora_rank": 1536}, "q_lora_rank: expected None, got 1536"),
        ("text_config", {"scoring_func": "softmax"}, "expected 'sigmoid', got 'softmax'"),
        ("text_config", {"first_k_dense_replace": 3}, "expected 1, got 3"),
        ("text_config", {"rope_scaling": {"type": "yarn"}}, "expected none, got 'yarn'"),
        ("text_config", {"n_group": 7}, "groups that divide 64 experts"),
        ("text_config", {"num_experts_per_tok": 65}, "expected 1 to 64, got 65"),
        ("text_config", {"num_hidden_layers": 1}, "expected 2 or more"),
        ("text_config", {"qk_rope_head_dim": 63}, "expected an even number, got 63"),
        ("vision_config", {"num_attention_heads": 7}, "four times a multiple of the heads"),
        ("vision_config", {"merge_kernel_size": [2, 1]}, "expected two equal sides"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_it_cannot_be_is_said(part, change, message):
    found = json.loads(json.dumps(KIMI))
    (found[part] if part else found).update(change)
    with pytest.raises(ValueError, match=message):
        kimi_vl.Config.from_hf(found)


def test_a_config_without_sizes_is_refused():
    found = json.loads(json.dumps(KIMI))
    del found["text_config"]["kv_lora_rank"], found["vision_config"]["hidden_size"]
    with pytest.raises(
        ValueError, match=r"'text_config.kv_lora_rank', 'vision_config.hidden_size'"
    ):
        kimi_vl.Config.from_hf(found)


B, T, S = 2, 512, 1024


@pytest.fixture(scope="module")
def full():
    compute = Compute(dtype="bfloat16", param_dtype="bfloat16", remat="full")
    graph, params = nnx.split(tiny_kimi.blank(kimi_vl.Config(), compute))

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    tokens = Tokens(ints(B, T), ints(B, T), ints(B, 3, T), ints(B, T))
    patches = jax.ShapeDtypeStruct((B, S, 3 * 14 * 14), jnp.uint8)
    return graph, params, tokens, Images(patches, ints(B, S, 2), ints(B, S), ints(B, S))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_training_at_full_size_lowers_to_grouped_products(full, platform):
    graph, params, *batch = full
    traced = jax.jit(loss_of(graph)).trace(params, *batch)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Three products, made once more and differentiated twice in the backward pass, for all layers
    # and experts together.
    assert text.count('"chlo.ragged_dot"(') == 12


def test_sampling_at_full_size_never_copies_the_prompt(full):
    graph, params, *batch = full
    text = jax.jit(sample(graph, answers=8, tokens=64)).lower(params, *batch).as_text()
    # The prompt is kept as latents of 512 + 64 numbers, never spread to heads outside prefill,
    # never with an axis of 8 answers.
    assert f"26x{B}x{T}x576xbf16" in text
    assert f"{B}x{T}x16x192" in text  # keys spread out in prefill: what is looked for can be found
    for copied in (f"{B}x8x{T}x576", f"{B}x8x1x{T}x576", f"{B}x8x576x{T}", f"{B}x1x8x576x{T}"):
        assert copied not in text
