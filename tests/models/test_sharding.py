"""Holds a model on eight devices to the same model on one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny_vlm
from flax import nnx
from jax.sharding import PartitionSpec

from seg_jax.models import decode, likelihood, sharding

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")


@pytest.fixture(scope="module")
def setting():
    small = {"text": {"num_hidden_layers": 2}, "vision": {"depth": 2}}
    graph, params = nnx.split(tiny_vlm.model(tiny_vlm.config(**small), amplify=3.0))
    rng = np.random.default_rng(0)
    rows = [tiny_vlm.row(rng, [(4, 4)], texts=(3, 2 + i)) for i in range(4)]
    return graph, params, tiny_vlm.stack(rows)


def test_values_gradients_and_answers_do_not_depend_on_the_mesh(setting):
    graph, params, (tokens, pictures) = setting

    def loss(params, tokens, pictures):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, pictures)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids, chunk=5).mean()

    def sample(params, tokens, pictures):
        return decode.generate(
            nnx.merge(graph, params),
            tokens,
            pictures,
            answers=2,
            max_tokens=4,
            sampler=decode.Sample(),
            end_ids=(3,),
            key=jax.random.key(0),
        )

    step = jax.value_and_grad(loss)
    want, grads = jax.jit(step)(params, tokens, pictures)
    answers = jax.jit(sample)(params, tokens, pictures)
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    places = sharding.shardings(params, mesh)
    spread = jax.device_put(params, places)
    rows = jax.device_put((tokens, pictures), sharding.batch(mesh, rows=4))
    with jax.set_mesh(mesh):
        got, other = jax.jit(step, out_shardings=(None, places))(spread, *rows)
        sampled = jax.jit(sample)(spread, *rows)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(answers.ids, sampled.ids)
    np.testing.assert_allclose(answers.logp, sampled.logp, rtol=0, atol=1e-5)
    q = other["blocks"]["q"]["kernel"][...]
    assert q.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert q.addressable_shards[0].data.size == q.size // 4


def test_every_matrix_is_divided_and_moments_lie_as_their_weights(setting):
    _, params, _ = setting
    mesh = sharding.mesh({"fsdp": 4, "tensor": 2})
    places = sharding.shardings({"moments": [params]}, mesh)
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True):
        # All but norms, biases and what is too thin to divide twice.
        if leaf.ndim > 2 or max(leaf.shape) >= 200:
            assert place.shard_shape(leaf.shape) != leaf.shape, leaf.shape


def test_by_rows_gives_each_device_its_own_rows():
    counted = jax.jit(sharding.by_rows(lambda x, y: {"rows": x + y.shape[0]}))
    zeros = np.zeros((16, 3), np.float32)
    assert (counted(zeros, zeros)["rows"] == 16).all()
    with jax.set_mesh(sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        rows = counted(zeros, zeros)["rows"]
        assert (rows == 4).all()
        assert rows.sharding.spec == PartitionSpec(("data", "fsdp"))
        assert (counted(zeros[:6], zeros[:6])["rows"] == 6).all()  # what does not divide is whole


def test_one_device_and_default_mesh():
    alone = sharding.mesh(devices=jax.devices()[:1])
    assert dict(alone.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert dict(sharding.mesh().shape)["fsdp"] == 8
    assert dict(sharding.mesh({"data": 2, "fsdp": -1}).shape)["fsdp"] == 4


def test_what_does_not_divide_is_named(setting):
    _, params, _ = setting
    with pytest.raises(ValueError, match="expected sizes that multiply to 8 devices"):
        sharding.mesh({"data": 3})
    with pytest.raises(ValueError, match="expected axes among"):
        sharding.mesh({"model": 8})
    with pytest.raises(ValueError, match=r"embed/embedding \(300, 64\): 300 by 8"):
        sharding.shardings(params, sharding.mesh({"tensor": 8}))
    with pytest.raises(ValueError, match="data x fsdp = 8 divides, got 6"):
        sharding.batch(sharding.mesh(), rows=6)
