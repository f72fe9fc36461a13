"""Holds Qwen2.5-VL to transformers on tiny random models, live."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
from flax import nnx
from tiny_vlm import END, IMAGE, START

from seg_jax.models import decode, layers, likelihood, weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pair():
    """Returns a model of transformers and ours with the same weights."""
    return build(tiny_vlm.config())


def build(config):
    """Returns both models; amplified matrices, drawn norms and biases make every mistake show."""
    torch.manual_seed(0)
    hf = transformers.Qwen2_5_VLConfig(**config.to_hf())
    hf._attn_implementation = "eager"
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(hf).eval().float()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
            else:
                weight.mul_(3.0)
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return theirs, weights.load(arrays, config=config)


def frames(row, config) -> torch.Tensor:
    """Returns a row's patches as transformers takes them: normalised, each frame twice."""
    side = config.vision.patch_size
    raw = row.patches.reshape(-1, 3, 1, side, side).astype(np.float32) / 255
    mean, std = (
        np.float32(values)[:, None, None, None]
        for values in (config.vision.image_mean, config.vision.image_std)
    )
    return torch.tensor(np.repeat((raw - mean) / std, 2, 2).reshape(len(raw), -1))


def inputs(row, config) -> dict:
    """Returns the arguments of transformers' forward for one row."""
    found = {
        "input_ids": torch.tensor(row.ids)[None].long(),
        "mm_token_type_ids": torch.tensor(row.ids == IMAGE)[None].int(),
    }
    if row.grids:
        found["pixel_values"] = frames(row, config)
        found["image_grid_thw"] = torch.tensor([(1, *grid) for grid in row.grids])
    return found


def reference(theirs, row, config) -> np.ndarray:
    """Returns transformers' logits [T V] of one row."""
    with torch.no_grad():
        return theirs(**inputs(row, config)).logits[0].numpy()


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, tokens, pictures):
    model = nnx.merge(graph, params)
    return model.logits(model.hidden(tokens, pictures))


def logits(model, tokens, pictures) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(_logits(*nnx.split(model), tokens, pictures))


def rows() -> list[tiny_vlm.Row]:
    """Returns rows with two ragged pictures, with one, with none."""
    rng = np.random.default_rng(1)
    return [
        tiny_vlm.two_pictures(),
        tiny_vlm.row(rng, [(8, 16)], texts=(3, 11)),
        tiny_vlm.row(rng, [], texts=(17,)),
    ]


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
def test_logits_equal_transformers_row_by_row_and_padded_together(tie):
    theirs, ours = build(tiny_vlm.config(tie=tie))
    wanted = [reference(theirs, row, ours.config) for row in rows()]
    together = logits(ours, *tiny_vlm.stack(rows(), patches=200))
    for row, want, got in zip(rows(), wanted, together, strict=True):
        np.testing.assert_allclose(got[-row.ids.size :], want, rtol=0, atol=TOLERANCE)
        assert np.abs(want).max() > 0.5
    tokens, pictures = tiny_vlm.stack([rows()[0]])
    np.testing.assert_allclose(logits(ours, tokens, pictures)[0], wanted[0], rtol=0, atol=TOLERANCE)
    only_text, _ = tiny_vlm.stack([rows()[2]], left=False, length=30)
    got = logits(ours, only_text, None)[0, :17]
    np.testing.assert_allclose(got, wanted[2], rtol=0, atol=TOLERANCE)


def test_vision_tower_alone(pair):
    theirs, ours = pair
    row = rows()[0]
    _, pictures = tiny_vlm.stack([row])
    found = inputs(row, ours.config)
    with torch.no_grad():
        want = theirs.model.visual(found["pixel_values"], found["image_grid_thw"]).pooler_output
    with jax.default_matmul_precision("highest"):
        got = nnx.jit(lambda model, p: model.encode(p))(ours, pictures)[0]
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=TOLERANCE)


def test_small_activations_show_the_epsilon_of_every_norm():
    # Where the power of a norm's input is near eps, 1e-5 instead of 1e-6 changes everything.
    config = tiny_vlm.config()
    theirs, _ = build(config)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            small = ("embed_tokens", "patch_embed", "o_proj", "down_proj", "attn.proj")
            if any(part in name for part in small):
                weight.mul_(1e-2)
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours = weights.load(arrays, config=config)
    row = rows()[0]
    want = reference(theirs, row, config)
    got = logits(ours, *tiny_vlm.stack([row]))[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    for norm in (ours.norm, ours.blocks.norm_ffn, ours.vision.norm, ours.vision.blocks.norm_ffn):
        kept, norm.eps = norm.eps, 1e-5
        loud = np.abs(logits(ours, *tiny_vlm.stack([row]))[0] - want).max()
        norm.eps = kept
        assert loud > 20 * TOLERANCE


def test_mistakes_are_loud():
    config = tiny_vlm.config()
    theirs, ours = build(config)
    row = rows()[0]
    want = reference(theirs, row, config)
    tokens, pictures = tiny_vlm.stack([row])
    flat = np.broadcast_to(np.arange(row.ids.size), tokens.positions.shape)
    raster = pictures.place.copy()
    raster[0, :140] = np.stack(np.divmod(np.arange(140), 14), -1)
    mistakes = {
        "1-D positions": (tokens._replace(positions=flat), pictures),
        "no windows": (tokens, pictures._replace(window=pictures.picture)),
        "pictures see each other": (tokens, pictures._replace(picture=0 * pictures.picture)),
        "places in raster order": (tokens, pictures._replace(place=raster)),
        "red and blue swapped": (
            tokens,
            pictures._replace(
                patches=pictures.patches.reshape(1, -1, 3, 36)[:, :, ::-1].reshape(1, -1, 108)
            ),
        ),
    }
    for name, mistake in mistakes.items():
        assert np.abs(logits(ours, *mistake)[0] - want).max() > 1e-3, name


def test_greedy_decoding_equals_transformers_generate(pair):
    theirs, ours = pair
    config = ours.config
    answers = 9
    tokens, pictures = tiny_vlm.stack(rows())
    theirs.generation_config.pad_token_id = 0
    got = generate(ours, tokens, pictures, max_tokens=answers, end_ids=(10**6,))
    for i, row in enumerate(rows()):
        with torch.no_grad():
            want = theirs.generate(
                **inputs(row, config), max_new_tokens=answers, do_sample=False, eos_token_id=None
            )[0, row.ids.size :]
        np.testing.assert_array_equal(got.ids[i, 0], want.numpy())


def generate(model, tokens, pictures, **options):
    graph, params = nnx.split(model)
    options = {"answers": 1, "sampler": decode.Greedy(), "key": jax.random.key(0)} | options

    def run(params, tokens, pictures):
        return decode.generate(nnx.merge(graph, params), tokens, pictures, **options)

    return jax.jit(run)(params, tokens, pictures)


def test_log_probabilities_equal_transformers(pair):
    theirs, ours = pair
    row = rows()[1]
    want = torch.log_softmax(torch.tensor(reference(theirs, row, ours.config)), -1)
    tokens, pictures = tiny_vlm.stack([row])
    hidden = ours.hidden(tokens, pictures)
    got = likelihood.token_logp(hidden[:, :-1], ours.unembed(), tokens.ids[:, 1:], chunk=5)[0]
    want = want[np.arange(len(row.ids) - 1), row.ids[1:]]
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=2e-5)


def test_bfloat16_stays_near_float32():
    config = tiny_vlm.config()
    theirs, exact = build(config)
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    rough = weights.load(
        arrays, config=config, compute=layers.Compute(dtype="bfloat16", param_dtype="bfloat16")
    )
    batch = tiny_vlm.stack(rows(), patches=200)
    fine, coarse = logits(exact, *batch)[0], logits(rough, *batch)[0]
    assert coarse.dtype == np.float32
    assert 1e-4 < np.abs(fine - coarse).max() < 0.25
    assert np.mean(fine.argmax(-1) == coarse.argmax(-1)) > 0.8


def loss_and_gradient(compute):
    shallow = {"text": {"num_hidden_layers": 2}, "vision": {"depth": 2}}
    config = tiny_vlm.config(tie=True, **shallow)
    tokens, pictures = tiny_vlm.stack([rows()[0]])
    graph, params = nnx.split(tiny_vlm.model(config, compute=compute))

    def loss(params):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, pictures)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.slow
def test_how_it_computes_changes_neither_value_nor_gradient():
    want, grad = loss_and_gradient(layers.Compute())
    for compute in (
        layers.Compute(remat="full"),
        layers.Compute(remat="dots", unroll=True, fuse=True),
    ):
        got, other = loss_and_gradient(compute)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
            assert jnp.isfinite(a).all()


def test_positions_equal_transformers(pair):
    theirs, _ = pair
    row = tiny_vlm.two_pictures()
    assert {START, END, IMAGE} <= set(row.ids)
    want, _ = theirs.model.get_rope_index(
        torch.tensor(row.ids)[None].long(),
        torch.tensor(row.ids == IMAGE)[None].int(),
        torch.tensor([(1, *grid) for grid in row.grids]),
    )
    tokens, _ = tiny_vlm.stack([row])
    np.testing.assert_array_equal(tokens.positions[0], want[:, 0].numpy())
