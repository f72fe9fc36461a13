"""Holds Qwen2.5-VL to transformers on tiny random models, live."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import proofs
import pytest
import tiny_vlm
from flax import nnx
from tiny_vlm import END, IMAGE, START

from seg_jax.models.io import weights
from seg_jax.models.nn import xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import likelihood, qwen25_vl

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pair():
    """Returns a model of transformers and ours with the same weights."""
    return build(tiny_vlm.config())


def build(config, **options):
    """Returns both models."""
    torch.manual_seed(0)
    hf = transformers.Qwen2_5_VLConfig(**config.to_hf())
    hf._attn_implementation = "eager"
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(hf).eval().float()
    proofs.amplify(theirs, **options)
    return theirs, load(theirs, config)


def load(theirs, config, **options):
    return weights.load(proofs.arrays(theirs.state_dict()), config=config, **options)


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_logits_with_three_images_with_one_and_with_none(tie):
    proofs.same_logits(*build(tiny_vlm.config(tie=tie)))


def test_logits_of_text_alone(pair):
    proofs.same_text(*pair)


def test_logits_with_windows_larger_than_images():
    # 11 x 11 visual tokens a window: more than an image has, so that windowed blocks see all of it.
    config = tiny_vlm.config(vision={"window_size": 140, "depth": 2}, text={"num_hidden_layers": 1})
    theirs, ours = build(config)
    row = proofs.rows()[0]
    tokens, images = tiny_vlm.stack([row], visual_tokens=config.vision.window_tokens)
    np.testing.assert_array_equal(images.window, images.image)
    want = proofs.reference(theirs, row, config)
    got = proofs.logits(ours, tokens, images)[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=proofs.TOLERANCE)


def test_every_block_of_the_vision_tower(pair):
    theirs, ours = pair
    row, vision = proofs.rows()[0], ours.config.vision
    full = np.isin(np.arange(vision.depth), vision.fullatt_block_indexes)
    # Inside their tower the patches of a window stand together.
    _, images = tiny_vlm.stack([row])
    order = np.argsort(images.window[0], kind="stable")
    proofs.same_blocks(theirs.model.visual, ours, each=full, order=order)


def test_long_rows_and_large_images_give_the_same(pair, monkeypatch):
    monkeypatch.setattr(xla_attention, "LONG_ROW", 40)
    proofs.traced_anew()
    theirs, ours = pair
    _, images = proofs.batch()
    assert ours.vision._looks_in_windows(images)
    text = jax.make_jaxpr(lambda model, images: model.encode(images))(ours, images)
    assert f"{proofs.PATCHES},{proofs.PATCHES}]" not in str(text)
    proofs.same_logits(theirs, ours)
    proofs.traced_anew()


def test_small_activations_show_the_epsilon_of_every_norm():
    # Where the power of a norm's input is near eps, 1e-5 instead of 1e-6 changes everything.
    config = tiny_vlm.config(text={"num_hidden_layers": 2}, vision={"depth": 2})
    proofs.same_with_small_inputs(
        build(config)[0],
        small=("embed_tokens", "patch_embed", "o_proj", "down_proj", "attn.proj"),
        load=lambda theirs: load(theirs, config),
        norms=lambda ours: [
            ours.norm,
            ours.blocks.norm_attention,
            ours.blocks.norm_ffn,
            ours.vision.norm,
            ours.vision.blocks.norm_attention,
            ours.vision.blocks.norm_ffn,
        ],
    )


def test_mistakes_are_loud(pair, monkeypatch):
    theirs, ours = pair
    row = proofs.rows()[0]
    want = proofs.reference(theirs, row, ours.config)
    tokens, images = tiny_vlm.stack([row])
    flat = np.broadcast_to(np.arange(row.ids.size), tokens.positions.shape)
    raster = images.place.copy()
    raster[0, :140] = np.stack(np.divmod(np.arange(140), 14), -1)
    mistakes = {
        "1-D positions": (tokens._replace(positions=flat), images),
        "no windows": (tokens, images._replace(window=images.image)),
        "images see each other": (tokens, images._replace(image=0 * images.image)),
        "places in raster order": (tokens, images._replace(place=raster)),
        "red and blue swapped": (
            tokens,
            images._replace(
                patches=images.patches.reshape(1, -1, 3, 36)[:, :, ::-1].reshape(1, -1, 108)
            ),
        ),
    }
    for name, mistake in mistakes.items():
        assert np.abs(proofs.logits(ours, *mistake)[0] - want).max() > 1e-3, name
    exact = jax.nn.gelu
    monkeypatch.setattr(qwen25_vl.jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))
    proofs.traced_anew()
    got = proofs.logits(ours, tokens, images)[0]
    assert np.abs(got - want).max() > 3 * proofs.TOLERANCE
    proofs.traced_anew()


def test_cached_decoding_step_by_step_for_several_answers(pair):
    proofs.same_steps(*pair)


def test_sixty_four_greedy_tokens_equal_transformers_generate():
    proofs.same_greedy(*build(tiny_vlm.config(), loud=3.0))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rows", "long rows, tied", "prompts and answers"])
def test_gradients_of_every_weight_equal_transformers(way, monkeypatch):
    config = tiny_vlm.config(tie="tied" in way)
    theirs, ours = build(config)
    remat = {"rows": "none", "prompts and answers": "dots"}.get(way, "full")
    if "long" in way:
        monkeypatch.setattr(xla_attention, "LONG_ROW", 40)
    compute = Compute(remat=remat)
    proofs.same_gradients(
        theirs,
        ours,
        load=lambda grads: nnx.state(weights.load(grads, config=config)),
        blank=nnx.eval_shape(lambda: qwen25_vl.Qwen25VL(config, compute=compute, rngs=nnx.Rngs(0))),
        by_answers="answers" in way,
    )


def test_log_probabilities_equal_transformers(pair):
    theirs, ours = pair
    row = proofs.rows()[1]
    want = torch.log_softmax(torch.tensor(proofs.reference(theirs, row, ours.config)), -1)
    tokens, images = tiny_vlm.stack([row])
    hidden = jax.jit(lambda model, *given: model.hidden(*given))(ours, tokens, images)
    got = likelihood.token_logp(hidden[:, :-1], ours.unembed(), tokens.ids[:, 1:], chunk=5)[0]
    want = want[np.arange(len(row.ids) - 1), row.ids[1:]]
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=2e-5)


def test_bfloat16_stays_near_float32(pair):
    theirs, exact = pair
    half = Compute(dtype="bfloat16", param_dtype="bfloat16")
    rough = load(theirs, exact.config, compute=half)
    fine, coarse = (proofs.logits(model, *proofs.batch())[0] for model in (exact, rough))
    assert coarse.dtype == np.float32
    assert 1e-4 < np.abs(fine - coarse).max() < 0.25
    assert np.mean(fine.argmax(-1) == coarse.argmax(-1)) > 0.8


def loss_and_gradient(compute):
    shallow = {"text": {"num_hidden_layers": 2}, "vision": {"depth": 2}}
    config = tiny_vlm.config(tie=True, **shallow)
    tokens, images = tiny_vlm.stack([tiny_vlm.two_images()])
    graph, params = nnx.split(tiny_vlm.model(config, compute=compute))

    def loss(params):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
def test_how_it_computes_changes_neither_value_nor_gradient():
    want, grad = loss_and_gradient(Compute())
    for compute in (
        Compute(remat="full"),
        Compute(remat="dots", unroll=True, fuse=True),
    ):
        got, other = loss_and_gradient(compute)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
            assert jnp.isfinite(a).all()


def test_positions_equal_transformers(pair):
    theirs, _ = pair
    row = tiny_vlm.two_images()
    assert {START, END, IMAGE} <= set(row.ids)
    want, _ = theirs.model.get_rope_index(
        torch.tensor(row.ids)[None].long(),
        torch.tensor(row.ids == IMAGE)[None].int(),
        torch.tensor([(1, *grid) for grid in row.grids]),
    )
    tokens, _ = tiny_vlm.stack([row])
    np.testing.assert_array_equal(tokens.positions[0], want[:, 0].numpy())
