"""Holds Qwen3-VL to transformers on tiny random models, live."""

from __future__ import annotations

import jax
import numpy as np
import proofs
import pytest
import tables
import tiny_qwen3
import tiny_vlm
from flax import nnx

from seg_jax.models.nn import blocks, patches, xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import protocol, qwen3_vit, qwen3_vl

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pair():
    """Returns a model of transformers and ours with the same weights."""
    return build(tiny_qwen3.config())


def build(config, **options):
    """Returns both models."""
    torch.manual_seed(0)
    hf = transformers.Qwen3VLConfig(**config.to_hf())
    hf._attn_implementation = "eager"
    theirs = transformers.Qwen3VLForConditionalGeneration(hf).eval().float()
    proofs.amplify(theirs, **options)
    return theirs, load(theirs, config)


def load(theirs, config):
    graph = nnx.split(tiny_qwen3.blank(config))[0]
    return nnx.merge(graph, state(config, proofs.arrays(theirs.state_dict())))


def state(config, tensors):
    """Returns the state made of their tensors; a tied head is stored once."""
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    params = nnx.split(tiny_qwen3.blank(config))[1]
    return tables.fill(qwen3_vl.NAMES, params, tensors)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_logits_with_three_images_with_one_and_with_none(tie):
    theirs, ours = build(tiny_qwen3.config(tie=tie))
    assert isinstance(ours, protocol.VLM)
    assert isinstance(ours.decoder(), protocol.Decoder)
    proofs.same_logits(theirs, ours)


def test_logits_of_text_alone(pair):
    proofs.same_text(*pair)


def test_a_tower_without_deep_features():
    config = tiny_qwen3.config(vision={"deepstack_visual_indexes": (), "depth": 1})
    proofs.same_logits(*build(config))


def test_every_block_and_deep_feature_of_the_vision_tower(pair):
    theirs, ours = pair
    proofs.same_blocks(theirs.model.visual, ours, each=[None] * 4)


def test_long_rows_and_large_images_give_the_same(pair, monkeypatch):
    monkeypatch.setattr(xla_attention, "LONG_ROW", 40)
    proofs.traced_anew()
    proofs.same_logits(*pair)
    proofs.traced_anew()


@pytest.mark.slow
def test_small_activations_show_the_epsilon_of_every_norm():
    config = tiny_qwen3.config(
        text={"num_hidden_layers": 2}, vision={"depth": 2, "deepstack_visual_indexes": (0,)}
    )
    small = ("embed_tokens", "patch_embed", "pos_embed", "o_proj", "down_proj", "attn.proj")
    small += ("visual.blocks.0.mlp.linear_fc2", "visual.blocks.1.mlp.linear_fc2", "q_proj")
    small += ("k_proj", "linear_fc2.bias", "merger.linear_fc2", "merger_list.0.linear_fc2")
    proofs.same_with_small_inputs(
        build(config)[0],
        small=small,
        load=lambda theirs: load(theirs, config),
        norms=lambda ours: [
            ours.norm,
            ours.blocks.norm_attention,
            ours.blocks.norm_ffn,
            ours.blocks.q_norm,
            ours.blocks.k_norm,
            ours.vision.blocks.norm_attention,
            ours.vision.blocks.norm_ffn,
            ours.vision.merger.norm,
            ours.vision.deep.norm,
        ],
    )


def test_mistakes_are_loud(pair, monkeypatch):
    theirs, ours = pair
    row = proofs.rows()[0]
    want = proofs.reference(theirs, row, ours.config)
    tokens, images = tiny_vlm.stack([row])

    def loud() -> float:
        proofs.traced_anew()
        return np.abs(proofs.logits(ours, tokens, images)[0] - want).max()

    seen = images._replace(image=0 * images.image)
    assert np.abs(proofs.logits(ours, tokens, seen)[0] - want).max() > 1e-3
    with monkeypatch.context() as patch:  # Sections one after another, as Qwen2.5-VL has them.
        patch.setattr(qwen3_vl.Text, "axes", (0, 0, 0, 1, 1, 1, 2, 2))
        assert loud() > 1e-3
    with monkeypatch.context() as patch:  # The grid read without stretching it.
        patch.setattr(qwen3_vit.Grid, "__call__", lambda grid, place, size: _unaligned(grid, place))
        assert loud() > 1e-3
    with monkeypatch.context() as patch:
        exact = jax.nn.gelu
        patch.setattr(blocks.jax.nn, "gelu", lambda x, approximate: exact(x, approximate=False))
        assert loud() > 2 * proofs.TOLERANCE
    proofs.traced_anew()


def _unaligned(grid, place):
    return grid.embedding[...][place[..., 0] % grid.side * grid.side + place[..., 1] % grid.side]


def test_cached_decoding_step_by_step_for_several_answers(pair):
    proofs.same_steps(*pair)


def test_sixty_four_greedy_tokens_equal_transformers_generate():
    proofs.same_greedy(*build(tiny_qwen3.config(), loud=3.0))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rows", "long rows, tied", "prompts and answers"])
def test_gradients_of_every_weight_equal_transformers(way, monkeypatch):
    config = tiny_qwen3.config(tie="tied" in way)
    theirs, ours = build(config)
    remat = {"rows": "none", "prompts and answers": "dots"}.get(way, "full")
    if "long" in way:
        monkeypatch.setattr(xla_attention, "LONG_ROW", 40)
    proofs.same_gradients(
        theirs,
        ours,
        load=lambda grads: state(config, grads),
        blank=tiny_qwen3.blank(config, Compute(remat=remat)),
        by_answers="answers" in way,
    )


def test_the_learned_grid_is_read_as_in_transformers():
    vision_utils = pytest.importorskip("transformers.vision_utils")
    grid = qwen3_vit.Grid(8, 5, std=1.0, dtype="float32", rngs=nnx.Rngs(0))
    sizes = [(8, 8), (2, 4), (14, 24), (30, 2)]
    row = tiny_vlm.row(np.random.default_rng(0), sizes, texts=(1,) * 5)
    _, images = tiny_vlm.stack([row], patches=480)
    got = jax.jit(lambda p: grid(p.place, patches.image_sizes(p.place, p.image)))(images)[0]
    indices, shares = vision_utils.get_vision_interpolation_indices_and_weights(
        torch.tensor([(1, *size) for size in sizes]),
        num_grid_per_side=8,
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=2,
    )
    table = torch.tensor(np.asarray(grid.embedding[...]))
    want = (table[indices] * shares[..., None]).sum(1)
    np.testing.assert_allclose(got[: len(want)], want.numpy(), rtol=0, atol=1e-6)


def test_configs_come_and_go_and_bad_ones_are_named():
    config = tiny_qwen3.config(tie=True)
    assert qwen3_vl.Config.from_hf(config.to_hf()) == config
    hf = transformers.Qwen3VLConfig(**config.to_hf())
    assert qwen3_vl.Config.from_hf(hf.to_dict()) == config
    # As the hub has it: rope_scaling beside rope_theta.
    text = dict(config.to_hf()["text_config"])
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    assert qwen3_vl.Config.from_hf(config.to_hf() | {"text_config": text}) == config
    for where, change, words in (
        ("text_config", {"attention_bias": True}, "attention_bias: expected False"),
        ("text_config", {"head_dim": 10}, "mrope_section"),
        ("vision_config", {"num_position_embeddings": 60}, "square"),
        ("vision_config", {"deepstack_visual_indexes": [2, 9]}, "deepstack"),
        ("vision_config", {"hidden_act": "gelu"}, "hidden_act"),
    ):
        hub = config.to_hf()
        with pytest.raises(ValueError, match=words):
            qwen3_vl.Config.from_hf(hub | {where: hub[where] | change})
    with pytest.raises(ValueError, match="qwen2_5_vl"):
        qwen3_vl.Config.from_hf({"model_type": "qwen2_5_vl"})
    lost = config.to_hf()
    del lost["vision_config"]["depth"]
    with pytest.raises(ValueError, match=r"vision_config\.depth"):
        qwen3_vl.Config.from_hf(lost)
