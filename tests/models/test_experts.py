"""Holds the grouped products of experts to a loop over tokens, on one device and on eight."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from seg_jax.models.nn import experts
from seg_jax.models.parallel import mesh_axes, sharding

N, D, F, E, K = 24, 6, 10, 8, 3


def drawn(rng):
    """Returns tokens [4 6 D], their experts and weights, and kernels; expert 5 gets no visit."""
    chosen = np.stack([rng.permutation([0, 1, 2, 3, 4, 6, 7])[:K] for _ in range(N)])
    shape = (4, N // 4)
    return (
        rng.normal(size=(*shape, D)).astype(np.float32),
        chosen.reshape(*shape, K).astype(np.int32),
        rng.uniform(0.1, 1, (*shape, K)).astype(np.float32),
        rng.normal(size=(E, D, F)).astype(np.float32),
        rng.normal(size=(E, D, F)).astype(np.float32),
        rng.normal(size=(E, F, D)).astype(np.float32),
    )


def one_by_one(x, chosen, weights, gate, up, down):
    """Returns the outputs, expert by expert and token by token."""
    out = np.zeros_like(x, np.float64)
    for at in np.ndindex(x.shape[:-1]):
        for expert, weight in zip(chosen[at], weights[at], strict=True):
            a = x[at] @ gate[expert]
            inner = a / (1 + np.exp(-a)) * (x[at] @ up[expert])
            out[at] += weight * (inner @ down[expert])
    return out


def visit(x, chosen, weights, *kernels):
    gate, up, down = map(experts.Factors, kernels)
    return experts.visit(x, chosen, weights, gate=gate, up=up, down=down)


def loss(x, weights, gate, up, down, chosen, target):
    return ((visit(x, chosen, weights, gate, up, down) - target) ** 2).sum()


def test_grouped_products_equal_a_loop_over_experts():
    x, chosen, weights, *kernels = drawn(np.random.default_rng(0))
    with jax.default_matmul_precision("highest"):
        got = jax.jit(visit)(x, chosen, weights, *kernels)
    np.testing.assert_allclose(got, one_by_one(x, chosen, weights, *kernels), rtol=0, atol=1e-4)


def test_gradients_are_differences():
    x, chosen, weights, *kernels = drawn(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    target = rng.normal(size=x.shape)

    def exact(*given):
        return ((one_by_one(given[0], chosen, *given[1:]) - target) ** 2).sum()

    given = [part.astype(np.float64) for part in (x, weights, *kernels)]
    with jax.default_matmul_precision("highest"):
        grads = jax.jit(jax.grad(loss, argnums=range(5)))(x, weights, *kernels, chosen, target)
    assert not np.any(grads[2][5])
    for i, grad in enumerate(grads):
        way = rng.normal(size=given[i].shape)
        ahead, behind = (
            exact(*given[:i], given[i] + step * way, *given[i + 1 :]) for step in (1e-5, -1e-5)
        )
        np.testing.assert_allclose((grad * way).sum(), (ahead - behind) / 2e-5, rtol=1e-4)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"tensor": 8},
        {"fsdp": 8},
        {"expert": 4, "tensor": 2},  # rows of their own, which they show each other
        {"fsdp": 2, "expert": 4},  # four rows are not for eight
        {"expert": 2, "context": 2, "tensor": 2},
    ],
    ids=str,
)
def test_experts_on_many_devices_are_the_same_experts(sizes):
    x, chosen, weights, *kernels = drawn(np.random.default_rng(3))
    target = np.random.default_rng(4).normal(size=x.shape).astype(np.float32)
    step = jax.value_and_grad(loss, argnums=range(5))
    mesh = sharding.mesh(sizes)
    names = ("expert_gate", "expert_up", "expert_down")
    places = [
        jax.NamedSharding(mesh, mesh_axes.partition((name, "kernel"), (E, D, F))) for name in names
    ]
    if sizes != {"data": 2, "fsdp": 2, "tensor": 2}:  # 6 and 10 are not widths for 8
        places = [jax.NamedSharding(mesh, PartitionSpec(place.spec[0])) for place in places]
    spread = [jax.device_put(k, place) for k, place in zip(kernels, places, strict=True)]
    with jax.default_matmul_precision("highest"):
        want = jax.jit(step)(x, weights, *kernels, chosen, target)
        with jax.set_mesh(mesh):
            got = jax.jit(step)(x, weights, *spread, chosen, target)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    here = spread[0].addressable_shards[0].data.shape
    assert here[0] == E // (sizes.get("tensor", 1) * sizes.get("expert", 1))
