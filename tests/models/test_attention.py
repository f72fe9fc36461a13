"""Models attend alike by a kernel and by XLA: values, gradients, packed answers, on any mesh."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_kimi
import tiny_vlm
from flax import nnx

from seg_jax.models.nn import attention, experts
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.xla_attention import Heads
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import likelihood
from seg_jax.records import Packing

FAMILIES = {
    "qwen25_vl": (
        tiny_vlm,
        tiny_vlm.config(text={"num_hidden_layers": 2}, vision={"depth": 2}),
        3.0,
    ),
    "kimi_vl": (
        tiny_kimi,
        tiny_kimi.config(text={"num_hidden_layers": 2}, vision={"num_hidden_layers": 1}),
        5.0,
    ),
}
# Where four devices share two heads of keys, each is repeated for two heads of queries.
CASES = [
    ("qwen25_vl", {"data": 2, "tensor": 4}, "full"),
    ("kimi_vl", {"fsdp": 1}, "none"),
]
B, G, Q = 4, 2, 8


def graph_and_params(family, **compute):
    tiny, config, amplify = FAMILIES[family]
    return nnx.split(tiny.model(config, compute=Compute(**compute), amplify=amplify))


def rows(family):
    """Returns prompts of several lengths with images, and packed answers to them."""
    rng = np.random.default_rng(0)
    made = [tiny_vlm.row(rng, [(4, 4), (2, 6)], texts=(3, 1, 2 + i)) for i in range(B)]
    prompts = FAMILIES[family][0].stack(made)
    ids = rng.integers(0, 280, (B, G, Q))
    number = np.stack([np.repeat([1, 2, 0], sizes) for sizes in ([5, 3, 0], [4, 2, 2])])
    count = np.concatenate([np.arange(5), np.arange(3)]), np.r_[0:4, 0:2, 0:2]
    packing = Packing(*(np.broadcast_to(np.int32(x), (B, G, Q)) for x in (number, np.stack(count))))
    return *prompts, ids, packing


def step(graph):
    def loss(params, tokens, images, ids, packing):
        model = nnx.merge(graph, params)
        hidden = model.extend(ids, model.prefill(tokens, images), packing)
        logp = likelihood.token_logp(hidden, model.unembed(), ids)
        return -jnp.where(packing.segments > 0, logp, 0).mean()

    return jax.value_and_grad(loss)


def assert_same(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 + 1e-4 * np.abs(b).max())


@functools.cache
def plainly(family):
    """Returns weights, a batch, and the value and gradient without a kernel."""
    graph, params = graph_and_params(family)
    batch = rows(family)
    return params, batch, jax.jit(step(graph))(params, *batch)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "sizes", "remat"), CASES, ids=str)
def test_a_kernel_changes_neither_value_nor_gradient(family, sizes, remat, monkeypatch):
    # Experts know nothing of attention, and are most of a program.
    monkeypatch.setattr(experts.Mixture, "__call__", lambda self, x: x)
    devices = jax.devices()[: math.prod(sizes.values())]
    if len(devices) < math.prod(sizes.values()):
        pytest.skip("needs eight (virtual) devices")
    params, batch, want = plainly(family)
    graph, _ = graph_and_params(family, attention="splash", remat=remat)
    on = sharding.mesh(sizes, devices)
    places = sharding.shardings(params, on)
    given = jax.device_put(params, places), *jax.device_put(batch, sharding.batch(on, rows=B))
    with jax.set_mesh(on):
        got = jax.jit(step(graph), out_shardings=(None, places))(*given)
    assert_same(jax.device_get(got), jax.device_get(want))


def test_a_kernel_sees_windows_as_xla_does():
    rng = np.random.default_rng(0)
    heads = Heads(*(jnp.asarray(rng.normal(size=(2, 90, 2, 8))) for _ in range(3)))
    window = np.concatenate([np.repeat(np.arange(8), [9, 16, 3, 16, 12, 8, 6, 12]), [-1] * 8])
    segments = jnp.asarray(np.stack([window, window]), jnp.int32)
    want, got = (
        attention.attend_windows(heads, segments, reach=16, kind=kind) for kind in ("xla", "splash")
    )
    real = slice(82)
    np.testing.assert_allclose(got[:, real], want[:, real], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize(
    ("sizes", "count"), [({"fsdp": 8}, 6), ({"context": 2, "fsdp": 4}, 4), ({"fsdp": 4}, 8)]
)
def test_rows_that_do_not_divide_or_are_shared_stay_with_xla(sizes, count):
    on = sharding.mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])
    heads = Heads(*(jnp.zeros((count, 16, 2, 8)) for _ in range(3)))

    def run(heads):
        segments = jnp.zeros((count, 16), jnp.int32)
        return attention.attend(heads, segments, causal=True, kind="splash")

    with jax.set_mesh(on):
        text = str(jax.make_jaxpr(run)(heads))
    assert ("pallas_call" in text) == (sizes == {"fsdp": 4})
