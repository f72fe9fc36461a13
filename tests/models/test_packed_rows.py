"""Packed rows are worth what their images are alone: losses, gradients, and no leak between."""

import dataclasses

import jax
import numpy as np
import packed_images
import pytest
import random_weights
import small_run
import tiny_kimi
import tiny_qwen3
import tiny_vlm
from flax import nnx

from seg_jax.data import packing
from seg_jax.data.packing import Pack
from seg_jax.models.io import weights
from seg_jax.models.nn import xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import likelihood
from seg_jax.training import optimizers, sft, state, steps

pytestmark = pytest.mark.slow

PACK = Pack(tokens=640, patches=400)
QUESTIONS = (2, 1, 1, 2)
"""About each image, which are of different sizes."""
SHALLOW = {
    "qwen2_5_vl": {"text": {"num_hidden_layers": 2}, "vision": {"window_size": 24}},
    "qwen3_vl": {"text": {"num_hidden_layers": 2}},
    "kimi_vl": {"text": {"num_hidden_layers": 2}, "vision": {"num_hidden_layers": 2}},
}
MAKERS = {"qwen2_5_vl": tiny_vlm, "qwen3_vl": tiny_qwen3, "kimi_vl": tiny_kimi}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return packed_images.encoder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def images():
    """Questions about each of several images."""
    return [packed_images.examples(n, count) for n, count in enumerate(QUESTIONS)]


@pytest.fixture(scope="module", params=sorted(MAKERS))
def model(request, encoder):
    return drawn(request.param, encoder)


@pytest.fixture(scope="module")
def known(model, encoder, images):
    """A packed row, the loss of every target, and the gradient of their sum."""
    batch = packed(encoder, images)
    return batch, *graded(*model, batch)


def drawn(family, encoder):
    """Returns a graph and weights loud enough that every token hangs on those before it."""
    sizes = SHALLOW[family]
    table = {"vocab_size": encoder.tokenizer.vocab_size}
    config = MAKERS[family].config(**(sizes | {"text": sizes["text"] | table}))
    graph, shapes = nnx.split(weights.blank(config, Compute()))
    return graph, random_weights.drawn(shapes)


def packed(encoder, images):
    pieces = [packing.encode_item(encoder, examples) for examples in images]
    assert len({piece.grid for piece in pieces}) > 2
    return jax.tree.map(lambda leaf: leaf[None], packing.pack_row(encoder, pieces, PACK))


def alone(encoder, images):
    """Returns the same as rows of one image each, a conversation after another."""
    rows = [encoder.batch_row(examples, rows=2) for examples in images]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def losses_of(graph, params, batch):
    model = nnx.merge(graph, params)
    hidden = steps.outputs(model, batch)
    return -likelihood.token_logp(hidden, model.unembed(), batch.targets) * batch.weights


def graded(graph, params, batch):
    """Returns the loss of every target, and the gradient of their sum."""

    def summed(params):
        losses = losses_of(graph, params, batch)
        return losses.sum(), losses

    return jax.jit(jax.grad(summed, has_aux=True))(params)[::-1]


def answers(losses, segments):
    """Returns the sum of losses of each conversation of a row, by its number."""
    return [losses[segments == number].sum() for number in range(1, segments.max() + 1)]


def unpacked(losses, batch):
    """Returns the sums of losses of conversations as they stand in rows of one image."""
    found = []
    for row, segments, many in zip(losses, batch.packing.segments, QUESTIONS, strict=True):
        told = [answers(*one) for one in zip(row, segments, strict=True)]
        # Conversations were sorted by length into rows: find them again by their number.
        found.append(sorted(loss for some in told for loss in some))
        assert len(found[-1]) == many
    return found


def test_losses_and_gradients_are_those_of_rows_of_one_image(model, known, encoder, images):
    together, losses, grads = known
    apart = alone(encoder, images)
    assert together.weights.sum() == apart.weights.sum()
    wanted, others = graded(*model, apart)
    told = iter(answers(np.asarray(losses[0]), together.tokens.segments[0]))
    for some in unpacked(np.asarray(wanted), apart):
        mine = sorted(next(told) for _ in some)
        np.testing.assert_allclose(mine, some, rtol=1e-5)
    assert next(told, None) is None
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_nothing_of_an_image_reaches_another(model, encoder, images):
    graph, params = model
    value = jax.jit(lambda batch: losses_of(graph, params, batch))
    batch = packed(encoder, images)
    before = np.asarray(value(batch))
    rng = np.random.default_rng(0)
    segments, image = batch.tokens.segments[0], batch.images.image[0]
    begin = np.cumsum([0, *QUESTIONS])
    for changed in range(len(QUESTIONS)):
        own = (segments > begin[changed]) & (segments <= begin[changed + 1])
        patches, ids = batch.images.patches.copy(), batch.tokens.ids.copy()
        noise = rng.integers(0, 256, patches.shape, np.uint8)
        patches[0, image == changed] = noise[0, image == changed]
        words = own & (batch.tokens.visual_tokens[0] < 0)
        ids[0, words] = rng.integers(0, 200, np.count_nonzero(words))
        other = batch._replace(
            tokens=batch.tokens._replace(ids=ids),
            images=batch.images._replace(patches=patches),
        )
        after = np.asarray(value(other))
        np.testing.assert_array_equal(after[0, ~own], before[0, ~own])
        moved = np.abs(after - before)[0, own & (batch.weights[0] > 0)]
        assert (moved > 1e-3).all()


def test_long_rows_work_off_in_parts_are_the_same(model, known, monkeypatch):
    batch, wanted, grads = known
    # Queries in parts, and windows of images block by block.
    monkeypatch.setattr(xla_attention, "LONG_ROW", 128)
    losses, others = graded(*model, batch)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_steps_are_those_of_images_alone_and_of_pieces_added_up(encoder, images):
    graph, params = drawn("qwen2_5_vl", encoder)
    adam = optimizers.AdamW(lr=1e-3, schedule=optimizers.Schedule(warmup=0.0, final=1.0))
    actor = steps.Actor(graph, encoder.tokenizer, chunk=64)

    def told(batch, accumulate=1):
        objective = dataclasses.replace(sft.Objective(), accumulate=accumulate)
        step = steps.supervised_step(actor, objective, adam)
        copy = small_run.laid(params, small_run.alone())
        _, metrics = step(state.fresh(copy, optimizers.build(adam), horizon=10), batch)
        return {name: float(metrics[name]) for name in ("loss", "grad_norm", "answer_tokens")}

    # Two rows of the same images, in different orders.
    rows = packed(encoder, images), packed(encoder, images[::-1])
    both = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    whole, apart = told(both), told(alone(encoder, images))
    assert whole == pytest.approx(apart | {"answer_tokens": 2 * apart["answer_tokens"]}, rel=1e-5)
    assert told(both, accumulate=2) == pytest.approx(whole, rel=1e-5)
