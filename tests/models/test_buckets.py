"""Prompts of several lengths: a batch takes the least bucket, and its answers stay the same."""

import dataclasses
import functools

import jax
import numpy as np
import packed_images
import pytest
import tiny_vlm
from flax import nnx

from seg_jax.data import buckets, pipeline
from seg_jax.data.encode import Encoder
from seg_jax.models.vlm import sampler

BUCKETS = 5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    whole = packed_images.encoder(tmp_path_factory.mktemp("tokenizer"))
    layout = dataclasses.replace(whole.layout, buckets=BUCKETS, max_prompt=123)
    return Encoder(whole.tokenizer, layout)


def batches(encoder, count, **changes):
    feed = pipeline.Feed(batch=4, seed=2, threads=0, prefetch=0)
    source, task = packed_images.Crops(), packed_images.TASK
    drawn = pipeline.batches(source, task, encoder, feed=feed, rows="prompts", **changes)
    return [next(drawn) for _ in range(count)]


def whole(encoder):
    return Encoder(encoder.tokenizer, dataclasses.replace(encoder.layout, buckets=1))


def test_a_batch_takes_the_least_length_that_holds_it(encoder):
    shapes = set()
    for short, full in zip(batches(encoder, 12), batches(whole(encoder), 12), strict=True):
        columns, patches = short.tokens.ids.shape[1], short.images.image.shape[1]
        shapes.add((columns, patches))
        cut = full.tokens.ids.shape[1] - columns
        assert not full.tokens.segments[:, :cut].any()
        assert (full.images.image[:, patches:] < 0).all()
        for ours, theirs in zip(short.tokens, full.tokens, strict=True):
            np.testing.assert_array_equal(ours, theirs[..., cut:])
        for ours, theirs in zip(short.images, full.images, strict=True):
            np.testing.assert_array_equal(ours, theirs[:, :patches])
        jax.tree.map(np.testing.assert_array_equal, short.truth, full.truth)
        used = full.tokens.segments.any(0).sum(), (full.images.image >= 0).sum(1).max()
        allowed = [(-(-123 * k // BUCKETS), 4 * -(-20 * k // BUCKETS)) for k in range(1, 6)]
        least = next(one for one in allowed if np.greater_equal(one, used).all())
        assert (columns, patches) == least
    assert 1 < len(shapes) <= BUCKETS


def test_all_processes_take_the_length_of_the_longest(encoder):
    whole_batch = batches(encoder, 1)[0]
    alone = [batches(encoder, 1, local_rows=[row])[0].tokens.ids.shape[1] for row in range(4)]
    assert min(alone) < max(alone) == whole_batch.tokens.ids.shape[1]
    parts = [
        batches(encoder, 1, local_rows=[row], gather=functools.partial(_both, encoder))[0]
        for row in range(4)
    ]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    jax.tree.map(np.testing.assert_array_equal, together, whole_batch)


def _both(encoder, mine):
    """Returns what this process needs and what the whole batch needs."""
    full = batches(whole(encoder), 1)[0]
    told = []
    buckets.trim_padding(full, encoder.layout, gather=lambda all_: told.append(all_) or [all_])
    return [mine, *told]


def test_answers_are_those_of_the_longest_length(encoder):
    sizes = {"num_hidden_layers": 2, "vocab_size": encoder.tokenizer.vocab_size}
    config = tiny_vlm.config(text=sizes, vision={"window_size": 24, "depth": 2})
    graph, params = nnx.split(tiny_vlm.model(config))

    @jax.jit
    def run(params, tokens, images):
        return sampler.generate(
            nnx.merge(graph, params),
            tokens,
            images,
            answers=2,
            max_tokens=8,
            sampler=sampler.Sample(),
            end_ids=(encoder.tokenizer.end_id,),
            key=jax.random.key(0),
        )

    found = []
    for one in (encoder, whole(encoder)):
        prompts = batches(one, 1)[0]
        found.append(run(params, prompts.tokens, prompts.images))
    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    np.testing.assert_allclose(found[0].logp, found[1].logp, atol=1e-5)
