"""Moments in the memory of the hosts: the same steps, and the devices hold the weights alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.models.parallel import sharding
from seg_jax.training import hlo, optimizers, state

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices"),
]

STEPS = 2
SIZES = {("q", "kernel"): (2, 8, 16), ("embed", "embedding"): (16, 8), ("norm", "scale"): (8,)}
ADAM, MUON = optimizers.AdamW(lr=0.1), optimizers.Muon(lr=0.1, newton_schulz_steps=1)


def drawn(seed, *lead):
    rng = np.random.default_rng(seed)
    drawn = {}
    for (layer, kind), size in SIZES.items():
        drawn[layer] = {kind: jnp.asarray(rng.normal(size=(*lead, *size)), jnp.float32)}
    return drawn


def begun(config, on, *, offload):
    params = drawn(0)
    params = jax.device_put(params, sharding.shardings(params, on))
    transform = optimizers.build(config)
    return state.fresh(params, transform, horizon=STEPS, on=on, offload=offload)


def learner(config):
    """Returns the function (state, gradients of all steps) -> state, as reinforcement updates."""
    transform = optimizers.build(config)

    def learn(current, grads):
        def one(current, grads):
            sound = jnp.isfinite(grads["norm"]["scale"]).all()
            return state.advance(current, grads, optimizer=config, transform=transform, sound=sound)

        return sharding.constrain_weights(jax.lax.scan(one, current, grads)[0])

    return jax.jit(learn, donate_argnums=0)


@pytest.mark.parametrize("config", [ADAM, MUON], ids=["adamw", "muon"])
def test_steps_are_the_same(config):
    on = sharding.mesh({"fsdp": 4, "tensor": 2})
    learn, ends = learner(config), []
    for offload in (False, True):
        begin = begun(config, on, offload=offload)
        like = state.shapes(begin.params, optimizers.build(config), on, offload=offload)
        with jax.set_mesh(on):
            ends.append(learn(begin, drawn(1, STEPS)))
        for leaf, shape in zip(*map(jax.tree.leaves, (ends[-1], like)), strict=True):
            assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
            away = offload and leaf.ndim and leaf.sharding.memory_kind == sharding.HOST
            assert away or shape.sharding.memory_kind == "device"
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begin))
    near, away = ends
    for leaf, wanted in zip(*map(jax.tree.leaves, (away, near)), strict=True):
        np.testing.assert_array_equal(leaf, wanted)
    assert not np.allclose(near.params["q"]["kernel"], drawn(0)["q"]["kernel"])
    scalars = sum(leaf.nbytes for leaf in jax.tree.leaves(away.moments) if not leaf.ndim)
    assert hlo.device_bytes(away.moments) == scalars
    assert hlo.device_bytes(near.moments) > hlo.device_bytes(near.params)
