"""Holds SAM 2 to transformers' `Sam2Model` on tiny random models, in every branch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sam2
import torch
from flax import nnx

from seg_jax.models.nn import xla_attention
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import decoder, hiera
from seg_jax.models.sam2.sam2 import Sam2

CONFIG, SIDE = tiny_sam2.CONFIG, tiny_sam2.SIDE
PROMPTS, CLICKS = 12, 3


@pytest.fixture(scope="module")
def theirs():
    return tiny_sam2.theirs()


@pytest.fixture(scope="module")
def ours(theirs):
    return nnx.split(tiny_sam2.ours(theirs))


@pytest.fixture(scope="module")
def known(theirs):
    """Returns transformers' features of two images."""
    pixels = torch.from_numpy(tiny_sam2.images().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return theirs.get_image_embeddings(pixels)


@pytest.fixture(scope="module")
def features(ours):
    graph, params = ours
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda p, x: nnx.merge(graph, p).encode(x))(params, tiny_sam2.images())


@pytest.fixture(scope="module")
def decode(ours):
    """Returns the function (features, points, labels, used) -> candidates."""
    graph, params = ours
    program = jax.jit(lambda p, f, x, y, u: nnx.merge(graph, p).candidates(f, x, y, used=u))
    with jax.default_matmul_precision("highest"):
        yield lambda *inputs: program(params, *inputs)


@pytest.fixture(scope="module")
def drawn():
    """Returns random clicks, their labels, and boxes."""
    rng = np.random.default_rng(1)
    clicks = rng.uniform(0, SIDE, (2, PROMPTS, CLICKS, 2)).astype(np.float32)
    labels = rng.integers(0, 2, clicks.shape[:3])
    boxes = np.sort(rng.uniform(0, SIDE, (2, PROMPTS, 2, 2)), 2).astype(np.float32)
    return clicks, labels, boxes


def slots(clicks, labels, boxes):
    """Returns five slots of each prompt: three for clicks, two for corners; and their labels."""
    corners = np.broadcast_to([2, 3], (*clicks.shape[:2], 2))
    return np.concatenate([clicks, boxes], 2), np.concatenate([labels, corners], 2)


def ask(theirs, known, *, multimask, **inputs):
    """Returns what transformers' model answers."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    copied = [one.clone() for one in known]  # It may change its input.
    with torch.no_grad():
        return theirs(image_embeddings=copied, multimask_output=multimask, **tensors)


def iou(a, b):
    """Returns the IoU of masks as logits [.. H W], 1 where both are empty."""
    both, either = ((a > 0) & (b > 0)).sum((-2, -1)), ((a > 0) | (b > 0)).sum((-2, -1))
    return np.where(either > 0, both / np.maximum(either, 1), 1)


def test_features_are_those_of_transformers(features, known):
    """Windows of 8 and 4 are filled up; a block sees all; queries are pooled three times."""
    found = hiera.runs(CONFIG.backbone)
    assert [(run.begin, run.count, run.window, run.halves) for run in found] == [
        (0, 2, 4, False),
        (2, 1, 4, True),
        (3, 1, 8, True),
        (4, 1, 0, False),
        (5, 1, 4, False),
        (6, 1, 4, True),
    ]
    for got, want in zip((features.fine, features.middle, features.coarse), known, strict=True):
        want = want.numpy().transpose(0, 2, 3, 1)
        assert np.abs(want).max() > 1
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["clicks", "boxes", "both", "nothing"])
def test_masks_are_those_of_transformers(kind, theirs, known, features, decode, drawn):
    clicks, labels, boxes = drawn
    inputs, used = {}, np.zeros((2, PROMPTS, CLICKS + 2), bool)
    if kind in ("clicks", "both"):
        inputs |= {"input_points": clicks, "input_labels": labels}
        used[..., :CLICKS] = True
    if kind in ("boxes", "both"):
        inputs |= {"input_boxes": boxes.reshape(2, PROMPTS, 4)}
        used[..., CLICKS:] = True
    points, kinds = slots(*drawn)
    points = np.where(used[..., None], points, 1e4)  # What is not used may be anything.
    found = decode(features, points.astype(np.float32), kinds, used)
    many = ask(theirs, known, multimask=True, **inputs)
    single = ask(theirs, known, multimask=False, **inputs)
    want = many.pred_masks.numpy()
    np.testing.assert_allclose(found.logits[:, : want.shape[1], 1:], want, rtol=0, atol=1e-3)
    assert iou(np.asarray(found.logits)[:, : want.shape[1], 1:], want).min() > 0.999
    quality = many.iou_scores.numpy()
    np.testing.assert_allclose(found.quality[:, : want.shape[1], 1:], quality, rtol=0, atol=1e-5)
    presence = many.object_score_logits.numpy()[..., 0]
    np.testing.assert_allclose(found.presence[:, : want.shape[1]], presence, rtol=0, atol=1e-4)
    chosen = decoder.choose(found, CONFIG)
    want = single.pred_masks.numpy()[:, :, 0]
    np.testing.assert_allclose(chosen.logits[:, : want.shape[1]], want, rtol=0, atol=1e-3)
    assert iou(np.asarray(chosen.logits)[:, : want.shape[1]], want).min() > 0.999
    quality = single.iou_scores.numpy()[:, :, 0]
    np.testing.assert_allclose(chosen.quality[:, : want.shape[1]], quality, rtol=0, atol=1e-5)


def test_unsure_masks_give_way_to_the_best_reading(features, decode, drawn):
    points, labels = slots(*drawn)
    found = decode(features, points, labels, np.ones(labels.shape, bool))
    chosen = decoder.choose(found, CONFIG)
    single = np.asarray(found.logits)[:, :, 0]
    kept = (np.asarray(chosen.logits) == single).all((-2, -1))
    inner, outer = ((single > edge).sum((-2, -1)) for edge in (0.05, -0.05))
    np.testing.assert_array_equal(kept, inner >= 0.98 * outer)
    assert kept.any(), "no prompt is stable: the other side is not tested"
    assert not kept.all(), "every prompt is stable: the other side is not tested"
    never = dataclasses.replace(CONFIG, dynamic_multimask_via_stability=False)
    np.testing.assert_array_equal(decoder.choose(found, never).logits, single)
    nothing = decoder.Candidates(jnp.full((1, 1, 4, 8, 8), -1.0), jnp.ones((1, 1, 4)), None)
    assert (decoder.choose(nothing, CONFIG).logits == -1).all()


def test_prompts_do_not_depend_on_order_slots_or_each_other(features, decode, drawn):
    points, labels = slots(*drawn)
    used = np.ones(labels.shape, bool)
    used[:, ::2, 1] = False
    found = decode(features, points, labels, used)
    order = np.array([3, 0, 4, 2, 1])
    other = (x[:, ::-1][:, :, order] for x in (points, labels, used))
    turned = decode(features, *other)
    np.testing.assert_allclose(turned.logits[:, ::-1], found.logits, rtol=0, atol=2e-4)
    less = decode(features, *(np.delete(x[:, ::2], 1, 2) for x in (points, labels, used)))
    np.testing.assert_allclose(less.logits, found.logits[:, ::2], rtol=0, atol=2e-4)


def test_earlier_masks_are_seen_as_in_transformers(theirs, known, ours, features, drawn):
    graph, params = ours
    clicks, labels, _ = (x[:, :1] for x in drawn)
    side = CONFIG.mask_side
    earlier = np.random.default_rng(2).normal(size=(2, 1, side, side)).astype(np.float32)

    def decode(params, features):
        options = {"used": np.ones(labels.shape, bool), "earlier": earlier}
        return nnx.merge(graph, params).decode(features, clicks, labels, **options)

    with jax.default_matmul_precision("highest"):
        found = jax.jit(decode)(params, features)
    inputs = {"input_points": clicks, "input_labels": labels, "input_masks": earlier}
    want = ask(theirs, known, multimask=False, **inputs)
    np.testing.assert_allclose(found.logits, want.pred_masks[:, :, 0], rtol=0, atol=1e-3)
    plain = ask(theirs, known, multimask=False, input_points=clicks, input_labels=labels)
    assert np.abs(plain.pred_masks - want.pred_masks).max() > 1


@pytest.mark.slow
def test_gradients_of_all_weights_are_those_of_torch(theirs, ours, drawn):
    graph, params = ours
    clicks, labels, boxes = (x[:, :2] for x in drawn)
    images = tiny_sam2.images()
    points, kinds = slots(clicks, labels, boxes)
    used = np.ones(kinds.shape, bool)

    def loss(params, images):
        model = nnx.merge(graph, params)
        found = model.candidates(model.encode(images), points, kinds, used=used)
        return jnp.tanh(found.logits[:, :, 1:]).mean() + found.quality[:, :, 1:].mean()

    with jax.default_matmul_precision("highest"):
        grads, of_images = jax.jit(jax.grad(loss, (0, 1)))(params, images)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    out = theirs(
        pixel_values=pixels,
        input_points=torch.from_numpy(clicks),
        input_labels=torch.from_numpy(labels),
        input_boxes=torch.from_numpy(boxes.reshape(2, 2, 4)),
    )
    (out.pred_masks.tanh().mean() + out.iou_scores.mean()).backward()
    want = {
        name: one.grad.numpy() for name, one in theirs.named_parameters() if one.grad is not None
    }
    got = tiny_sam2.named(grads)
    assert set(want) < set(got)
    for name, value in want.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-3 * scale + 1e-7, err_msg=name)
        assert scale > 0 or "output_hypernetworks_mlps.0." in name, name
    want = pixels.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(of_images, want, rtol=0, atol=1e-3 * np.abs(want).max())
    assert (np.asarray(got["shared_image_embedding.positional_embedding"]) == 0).all()


OTHER = dataclasses.replace(
    CONFIG,
    backbone=dataclasses.replace(
        CONFIG.backbone,
        blocks_per_stage=(1, 1, 1, 3),
        global_attention_blocks=(0, 4),
        window_size_per_stage=(8, 8, 2, 2),
        window_positional_embedding_background_size=(4, 4),
    ),
    side=64,
    attention_downsample_rate=1,
    num_multimask_outputs=2,
    iou_head_depth=5,
    dynamic_multimask_via_stability=False,
)


@pytest.mark.parametrize("computing", [{}, {"remat": "full", "unroll": True, "fuse": True}])
def test_other_sizes_and_other_ways_to_compute(computing):
    """The first block sees all; deeper heads, other readings; no window is filled up."""
    theirs = tiny_sam2.theirs(OTHER, seed=1)
    compute = tiny_sam2.Compute(**computing)
    graph, params = nnx.split(tiny_sam2.ours(theirs, OTHER, compute))
    images = tiny_sam2.images(1, side=64)
    point, label = np.full((1, 1, 1, 2), 20, np.float32), np.ones((1, 1, 1), int)

    def answer(params, images):
        model = nnx.merge(graph, params)
        return model.decode(model.encode(images), point, label, used=label > 0)

    with jax.default_matmul_precision("highest"):
        found = jax.jit(answer)(params, images)
    inputs = {"input_points": torch.from_numpy(point), "input_labels": torch.from_numpy(label)}
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        want = theirs(pixel_values=pixels, multimask_output=False, **inputs)
    np.testing.assert_allclose(found.logits, want.pred_masks[:, :, 0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.quality, want.iou_scores[:, :, 0], rtol=0, atol=1e-5)


def test_long_maps_never_hold_the_scores_of_all_pairs():
    config = dataclasses.replace(CONFIG, side=1024)
    model = nnx.eval_shape(lambda: Sam2(config, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)

    def loss(params, images):
        return nnx.merge(graph, params).encode(images).coarse.sum()

    text = jax.jit(jax.grad(loss)).lower(params, images).as_text()
    assert "4096x4096" not in text
    assert "256x4096" in text


@pytest.mark.parametrize("long_row", [1024, 8])
@pytest.mark.parametrize("hidden", [False, True])
def test_attention_to_keys_is_a_softmax_whatever_the_parts(long_row, hidden, monkeypatch):
    """Of 21 queries in parts of two the last is filled up; there are fewer than keys."""
    monkeypatch.setattr(xla_attention, "LONG_ROW", long_row)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 3, 8)).astype(np.float32) for n in (21, 40, 40))
    used = rng.random((2, 40)) < 0.5 if hidden else None

    def plain(q, k, v):
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * 8**-0.5
        if used is not None:
            scores = jnp.where(used[:, None, None], scores, -jnp.inf)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v)

    def ours(q, k, v):
        return xla_attention.attend_keys(xla_attention.Heads(q, k, v), used)

    for one, other in zip(
        [*jax.vjp(ours, q, k, v)[1](v[:, :21]), ours(q, k, v)],
        [*jax.vjp(plain, q, k, v)[1](v[:, :21]), plain(q, k, v)],
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_masks_do_not_depend_on_the_mesh(theirs, features, decode, drawn):
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = tiny_sam2.ours(theirs, on=mesh)
    graph, params = nnx.split(model)
    q = params["trunk"]["runs"][0]["q"]["kernel"][...]
    assert q.addressable_shards[0].data.size == q.size // 4
    points, labels = (np.concatenate([x, x]) for x in slots(*drawn))
    images = np.concatenate([tiny_sam2.images()] * 2)
    rows = sharding.batch(mesh)
    inputs = jax.device_put((images, points, labels, np.ones(labels.shape, bool)), rows)

    def answer(params, images, points, labels, used):
        model = nnx.merge(graph, params)
        return model.candidates(model.encode(images), points, labels, used=used)

    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        found = jax.jit(answer)(params, *inputs)
    want = decode(features, points[:2], labels[:2], np.ones(labels[:2].shape, bool))
    np.testing.assert_allclose(found.logits[2:], want.logits, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.quality[:2], want.quality, rtol=0, atol=1e-5)
