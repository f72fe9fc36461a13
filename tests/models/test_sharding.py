"""Holds a model on eight devices to the same model on one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vlm
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn import xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import mesh_axes, sharding
from seg_jax.models.vlm import likelihood
from seg_jax.models.vlm import sampler as samplers

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")

SMALL = tiny_vlm.config(text={"num_hidden_layers": 2}, vision={"depth": 2})


@pytest.fixture(scope="module")
def setting():
    graph, params = nnx.split(tiny_vlm.model(SMALL, amplify=3.0))
    rng = np.random.default_rng(0)
    rows = [tiny_vlm.row(rng, [(4, 4)], texts=(3, 2 + i)) for i in range(4)]
    return graph, params, tiny_vlm.stack(rows)


def sampler(graph, *, tokens):
    """Returns the function (weights, tokens, images) -> two answers a prompt."""

    def sample(params, prompts, images):
        return samplers.generate(
            nnx.merge(graph, params),
            prompts,
            images,
            answers=2,
            max_tokens=tokens,
            sampler=samplers.Sample(),
            end_ids=(3,),
            key=jax.random.key(0),
        )

    return sample


def test_values_gradients_and_answers_do_not_depend_on_the_mesh(setting):
    graph, params, (tokens, images) = setting

    def loss(params, tokens, images):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids, chunk=5).mean()

    step, sample = jax.value_and_grad(loss), sampler(graph, tokens=4)
    want, grads = jax.jit(step)(params, tokens, images)
    answers = jax.jit(sample)(params, tokens, images)
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    places = sharding.shardings(params, mesh)
    spread = jax.device_put(params, places)
    rows = jax.device_put((tokens, images), sharding.batch(mesh, rows=4))
    with jax.set_mesh(mesh):
        got, other = jax.jit(step, out_shardings=(None, places))(spread, *rows)
        sampled = jax.jit(sample)(spread, *rows)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(answers.ids, sampled.ids)
    np.testing.assert_allclose(answers.logp, sampled.logp, rtol=0, atol=1e-5)
    q = other["blocks"]["q"]["kernel"][...]
    assert q.sharding.spec == PartitionSpec(None, ("fsdp", "expert", "context"), "tensor")
    assert q.addressable_shards[0].data.size == q.size // 4


def test_rows_that_a_product_is_added_to_are_not_exchanged():
    """Left to divide the channels of the sum, jaxlib 0.10.2 exchanges its second and third row."""
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})

    def put(x, *axes):
        return jax.device_put(
            jnp.asarray(x, jnp.float32), NamedSharding(mesh, PartitionSpec(*axes))
        )

    rows = ("data", "fsdp")
    x = put([[0, 1], [2, 3], [4, 5], [6, 7]], rows, "tensor")
    kernel = put([[1, 2], [10, 20]], "tensor", "fsdp")
    kept = put(np.zeros((4, 2)), rows, "tensor")
    with jax.set_mesh(mesh):
        found = jax.jit(lambda *a: sharding.constrain_rows(a[0] + a[1] @ a[2]))(kept, x, kernel)
    np.testing.assert_array_equal(found, [[10, 20], [32, 64], [54, 108], [76, 152]])
    assert found.sharding.spec == PartitionSpec(rows)


@pytest.mark.parametrize("gib", [None, 0.0], ids=["whole", "divided"])
def test_answers_do_not_depend_on_how_weights_lie_meanwhile(setting, gib):
    _, params, (tokens, images) = setting
    compute = Compute(decode_gib=gib)
    graph, _ = nnx.split(tiny_vlm.model(SMALL, compute=compute, amplify=3.0))
    sample = sampler(graph, tokens=8)
    want = jax.jit(sample)(params, tokens, images)
    on = sharding.mesh({"fsdp": 4, "tensor": 2})
    spread = jax.device_put(params, sharding.shardings(params, on))
    rows = jax.device_put((tokens, images), sharding.batch(on, rows=4))
    with jax.set_mesh(on):
        got = jax.jit(sample)(spread, *rows)
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.logp, want.logp, rtol=0, atol=1e-5)


def test_weights_lie_whole_while_answers_are_decoded_where_there_is_room(setting):
    _, params, _ = setting
    block = {"q": params["blocks"]["q"], "down": params["blocks"]["down"]}
    on = sharding.mesh({"fsdp": 4, "tensor": 2})
    spread = jax.device_put(block, sharding.shardings(block, on))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(block)) / 2**30

    def lies(gib, *, divides=True):
        def move(tree):
            how = sharding.decoding_layout(tree, gib=gib, divides=divides)
            return tree if how is None else how(tree)

        with jax.set_mesh(on):
            moved = jax.jit(move)(spread)
        q, down = moved["q"]["kernel"][...], moved["down"]["kernel"][...]
        return [x.size // x.addressable_shards[0].data.size for x in (q, down)]

    assert lies(None) == lies(size) == [2, 2]  # A device of two on tensor holds its half.
    assert lies(size / 4) == [8, 8]
    assert lies(size / 4, divides=False) == lies(0.0, divides=False) == [8, 8]  # As it was.
    q = params["blocks"]["q"]["kernel"][...]
    assert mesh_axes.partition(("q", "kernel"), q.shape, mesh_axes.DIVIDED) == (
        PartitionSpec(None, None, ("tensor", "fsdp", "expert", "context", "data"))
    )


def test_every_matrix_is_divided_and_moments_lie_as_their_weights(setting):
    _, params, _ = setting
    mesh = sharding.mesh({"fsdp": 4, "tensor": 2})
    places = sharding.shardings({"moments": [params]}, mesh)
    for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(places), strict=True):
        # All but norms, biases and what is too thin to divide twice.
        if leaf.ndim > 2 or max(leaf.shape) >= 200:
            assert place.shard_shape(leaf.shape) != leaf.shape, leaf.shape


def test_by_rows_gives_each_device_its_own_rows():
    counted = jax.jit(sharding.map_rows(lambda x, y: {"rows": x + y.shape[0]}))
    zeros = np.zeros((16, 3), np.float32)
    assert (counted(zeros, zeros)["rows"] == 16).all()
    on = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(on):
        rows = counted(zeros, zeros)["rows"]
        assert (rows == 4).all()
        assert rows.sharding.is_equivalent_to(sharding.batch(on), 2)
        assert (counted(zeros[:6], zeros[:6])["rows"] == 6).all()  # what does not divide is whole


def test_one_device_and_default_mesh():
    alone = sharding.mesh(devices=jax.devices()[:1])
    assert dict(alone.shape) == dict.fromkeys(mesh_axes.AXES, 1)
    assert dict(sharding.mesh().shape)["fsdp"] == 8
    assert dict(sharding.mesh({"data": 2, "fsdp": -1}).shape)["fsdp"] == 4


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"fsdp": 2, "expert": 4}], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_eight_devices_hold_an_eighth_of_every_family(family, sizes):
    model = weights.blank(families.FAMILIES[family].config(), Compute())
    params = nnx.state(model)
    places = jax.tree.leaves(sharding.shardings(params, sharding.mesh(sizes)))
    leaves = jax.tree.leaves(params)
    pairs = zip(leaves, places, strict=True)
    here = sum(math.prod(place.shard_shape(leaf.shape)) for leaf, place in pairs)
    # Learned positions, norms and a few biases are whole; of a segmenter, a few narrow layers.
    most = 0.126 if families.FAMILIES[family].vlm is not None else 0.17
    assert here < most * sum(leaf.size for leaf in leaves)


def test_what_does_not_divide_is_named_with_what_would(setting):
    _, params, _ = setting
    with pytest.raises(ValueError, match="multiply to 8 devices .*; do: take sizes of 1, 2, 4 or"):
        sharding.mesh({"data": 3})
    with pytest.raises(ValueError, match="expected axes among"):
        sharding.mesh({"model": 8})
    with pytest.raises(ValueError) as told:
        sharding.shardings(params, sharding.mesh({"tensor": 8}))
    assert "embed/embedding (300, 64): 300 by 8 (tensor)" in str(told.value)
    advice = "do: take tensor of 1, 2 or 4; closest is --mesh.fsdp 2 --mesh.tensor 4"
    assert str(told.value).endswith(advice)
    sharding.shardings(params, sharding.mesh({"fsdp": 2, "tensor": 4}))
    many = "data x fsdp x expert = 8 divides, got 12; do: take 8 or 16 rows, or .* 1, 2, 3, 4, 6 or"
    with pytest.raises(ValueError, match=many):
        sharding.batch(sharding.mesh({"fsdp": 4, "expert": 2}), rows=12)
    sharding.batch(sharding.mesh({"fsdp": 4, "expert": 2}), rows=16)


class Chip:
    """What a mesh asks of a TPU: four slices of 2 x 2 chips."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number):
        self.id, (self.slice_index, at) = number, divmod(number, 4)
        self.process_index, self.coords = self.slice_index, (at % 2, at // 2, 0)


def test_only_data_goes_across_slices():
    chips = [Chip(i) for i in range(16)]
    on = sharding.mesh({"data": 8, "fsdp": 2}, chips)
    assert [{chip.slice_index for chip in copy.flat} for copy in on.devices] == [
        {i // 2} for i in range(8)
    ]
    assert dict(sharding.mesh(None, chips).shape)["data"] == 4
    with pytest.raises(ValueError, match="multiple of 4 slices, got 2; do: --mesh.data 4"):
        sharding.mesh({"data": 2, "fsdp": -1}, chips)


@pytest.mark.slow
def test_long_rows_are_shared_along_context(setting, monkeypatch):
    graph, params, _ = setting
    monkeypatch.setattr(xla_attention, "LONG_ROW", 64)
    rng = np.random.default_rng(1)
    row = tiny_vlm.row(rng, [(16, 16)], texts=(90, 100))
    batch = tiny_vlm.stack([row])
    assert batch[0].ids.shape == batch[1].window.shape == (1, 256)

    def loss(params, tokens, images):
        model = nnx.merge(graph, params)
        hidden = model.hidden(tokens, images)
        return -likelihood.token_logp(hidden, model.unembed(), tokens.ids, chunk=64).mean()

    step = jax.value_and_grad(loss)
    alone = jax.jit(step).lower(params, *batch).compile()
    want, grads = alone(params, *batch)
    on = sharding.mesh({"context": 8})
    places = sharding.shardings(params, on)
    with jax.set_mesh(on):
        given = jax.device_put(params, places), *jax.device_put(batch, sharding.batch(on, rows=1))
        shared = jax.jit(step, out_shardings=(None, places)).lower(*given).compile()
        got, other = shared(*given)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # Keys and values, and what the compiler gathers besides, are whole on every device.
    temporary = [program.memory_analysis().temp_size_in_bytes for program in (shared, alone)]
    assert temporary[0] < 0.4 * temporary[1]
