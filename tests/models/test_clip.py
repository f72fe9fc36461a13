"""Holds CLIP to transformers' `CLIPModel` on tiny random models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clip
import torch
from flax import nnx

from seg_jax.models.clip.config import Config
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding

KINDS = {
    "published": ("quick_gelu", 2, tiny_clip.END),
    "named end": ("gelu", tiny_clip.MIDDLE_END, tiny_clip.MIDDLE_END),
}
"""Activation, end token of the config, end token of the texts."""


def both(kind: str, compute: Compute | None = None):
    """Returns config, transformers' model, ours, and the texts that go with them."""
    activation, named, end = KINDS[kind]
    config = tiny_clip.config(activation, named)
    model = tiny_clip.theirs(config)
    # The end token fills up what is behind it, as transformers' tokenizer pads.
    texts = tiny_clip.texts(end, pad=0 if named == 2 else end)
    return config, model, tiny_clip.ours(model, config, compute), texts


def features(model, images, texts, used=None):
    """Returns unit vectors of images and of texts, and the scale."""
    graph, params = nnx.split(model)

    def run(params, images, texts):
        model = nnx.merge(graph, params)
        return model.image(images), model.text(texts, used), model.scale()

    with jax.default_matmul_precision("highest"):
        return jax.jit(run)(params, images, texts)


def ask(model, config: Config, images, texts, mask=None):
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(texts).long(),
            pixel_values=tiny_clip.pixel_values(images, config),
            attention_mask=None if mask is None else torch.from_numpy(mask).long(),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_logits_are_those_of_transformers(kind):
    config, theirs, ours, texts = both(kind)
    images = tiny_clip.images()
    found = ask(theirs, config, images, texts)
    image, text, scale = features(ours, images, texts)
    np.testing.assert_allclose(image, found.image_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, found.text_embeds, rtol=0, atol=1e-5)
    logits = scale * image @ text.T
    want = found.logits_per_image.numpy()
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert want.std() > 0.5
    assert np.abs(np.asarray(text[0] - text[1])).max() > 0.01


def test_both_ends_and_both_activations_are_told_apart():
    """The same weights and texts: what the other config would read off is seen."""
    images, texts = tiny_clip.images(1), tiny_clip.texts(tiny_clip.MIDDLE_END)
    model = tiny_clip.theirs()
    found = {}
    for activation in ("quick_gelu", "gelu"):
        for end in (2, tiny_clip.MIDDLE_END):
            ours = tiny_clip.ours(model, tiny_clip.config(activation, end))
            found[activation, end] = np.concatenate(features(ours, images, texts)[:2])
    kept = list(found.values())
    for number, one in enumerate(kept):
        assert all(np.abs(one - other).max() > 1e-4 for other in kept[:number])


def test_padding_before_texts_is_not_seen():
    config, theirs, ours, _ = both("named end")
    texts = tiny_clip.texts(tiny_clip.MIDDLE_END, left=True)
    used = np.cumsum(texts == tiny_clip.START, 1) > 0
    found = ask(theirs, config, tiny_clip.images(), texts, used.astype(np.int64))
    _, text, _ = features(ours, tiny_clip.images(), texts, used)
    np.testing.assert_allclose(text, found.text_embeds, rtol=0, atol=1e-5)
    _, without, _ = features(ours, tiny_clip.images(), texts)
    assert np.abs(np.asarray(without - text)).max() > 1e-3


def test_what_stands_behind_the_end_changes_nothing():
    _, _, ours, texts = both("published")
    _, want, _ = features(ours, tiny_clip.images(), texts)
    noisy = texts.copy()
    noisy[0, 3:] = np.random.default_rng(3).integers(0, tiny_clip.END, tiny_clip.LENGTH - 3)
    _, text, _ = features(ours, tiny_clip.images(), noisy)
    np.testing.assert_allclose(text, want, rtol=0, atol=1e-6)


def contrastive(image, text, scale):
    logits = scale * image @ text.T
    each = [-jnp.diag(jax.nn.log_softmax(logits, axis)).mean() for axis in (0, 1)]
    return (each[0] + each[1]) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_weights_are_those_of_torch(kind):
    computing = {} if kind == "published" else {"remat": "full", "unroll": True, "fuse": True}
    config, theirs, ours, texts = both(kind, Compute(**computing))
    images = tiny_clip.images(4)
    graph, params = nnx.split(ours)

    def loss(params):
        model = nnx.merge(graph, params)
        return contrastive(model.image(images), model.text(texts), model.scale())

    with jax.default_matmul_precision("highest"):
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
    out = theirs(
        input_ids=torch.from_numpy(texts).long(),
        pixel_values=tiny_clip.pixel_values(images, config),
        return_loss=True,
    )
    out.loss.backward()
    np.testing.assert_allclose(value, out.loss.item(), rtol=0, atol=1e-5)
    tensors = weights.ModelTensors(config, grads)
    got = {entry.name: tensors.read(entry.name) for entry in tensors.entries()}
    want = {name: one.grad.numpy() for name, one in theirs.named_parameters()}
    assert got.keys() == want.keys()
    for name, value in want.items():
        scale = np.abs(value).max()
        # No key's bias changes a softmax: its gradient is what roundings leave.
        assert scale > 1e-6 or name.endswith("k_proj.bias"), name
        atol = 1e-4 * scale + 1e-7
        np.testing.assert_allclose(got[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_features_do_not_depend_on_the_mesh():
    config, theirs, ours, texts = both("published")
    images = tiny_clip.images(4)
    want = features(ours, images, texts)
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = tiny_clip.ours(theirs, config, on=mesh)
    q = nnx.split(model)[1]["vision"]["blocks"]["q"]["kernel"][...]
    assert q.addressable_shards[0].data.size == q.size // 4
    rows = jax.device_put((images, texts), sharding.batch(mesh))
    with jax.set_mesh(mesh):
        found = features(model, *rows)
    for got, one in zip(found, want, strict=True):
        np.testing.assert_allclose(got, one, rtol=0, atol=1e-5)


def test_bfloat16_stays_near():
    _, theirs, ours, texts = both("published")
    half = Compute(dtype="bfloat16", param_dtype="bfloat16")
    config, images = tiny_clip.CONFIG, tiny_clip.images()
    found = features(tiny_clip.ours(theirs, config, half), images, texts)
    assert found[0].dtype == found[2].dtype == jnp.float32
    for got, want in zip(found, features(ours, images, texts), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=0.1)
