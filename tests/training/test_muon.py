"""Muon on eight devices against one, and one matrix after another against its formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import exact_muon
import jax
import many_processes
import numpy as np
import pytest
import small_run

from seg_jax.models.io import weights
from seg_jax.models.parallel import mesh_axes, sharding
from seg_jax.training import muon, optimizers, state

many = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")

D, F, E, LAYERS = 16, 24, 8, 3
KERNELS = {
    "blocks/q": (LAYERS, D, 2 * D),
    "blocks/k": (LAYERS, D, 8),
    "blocks/o": (LAYERS, 2 * D, D),
    "blocks/gate": (LAYERS, D, F),
    "blocks/up": (LAYERS, D, F),
    "blocks/down": (LAYERS, F, D),
    "blocks/router": (LAYERS, D, E),
    "blocks/expert_gate": (LAYERS, E, D, F),
    "blocks/expert_up": (LAYERS, E, D, F),
    "blocks/expert_down": (LAYERS, E, F, D),
    "vision/q": (5, D, D),  # Square: may be turned around, or not.
    "vision/o": (5, D, D),
    "vision/patch": (12, D),  # One matrix for all devices.
    "vision/merge_in": (4 * D, 4 * D),
}
MESHES = [
    {"fsdp": 8},
    {"fsdp": 4, "tensor": 2},
    {"data": 2, "fsdp": 4},
    {"expert": 4, "fsdp": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
]
CONFIG = optimizers.Muon(
    lr=0.02,
    newton_schulz_dtype="float32",
    newton_schulz_steps=2,
    eps=1e-4,
    schedule=optimizers.Schedule(warmup=0.0, final=1.0),
)


def drawn(seed):
    """Returns weights, or gradients, of layers of every kind, with a norm and an embedding."""
    rng = np.random.default_rng(seed)
    tree = {"embed": {"embedding": (32, D)}, "norm": {"scale": (D,)}}
    for path, shape in KERNELS.items():
        block, name = path.split("/")
        tree.setdefault(block, {})[name] = {"kernel": shape}
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def learner(config):
    transform = optimizers.build(config)

    def step(current, grads):
        return sharding.constrain_weights(
            state.advance(current, grads, optimizer=config, transform=transform)[0]
        )

    return jax.jit(step), state.fresh(drawn(0), transform, horizon=3)


@pytest.fixture(scope="module")
def alone():
    """The state after each of three steps on one device."""
    step, current = learner(CONFIG)
    states = []
    for seed in (1, 2, 3):
        current = step(current, drawn(seed))
        states.append(jax.device_get(current))
    return states


@many
@pytest.mark.parametrize(
    ("sizes", "together"),
    [
        ({"fsdp": 2, "expert": 2, "tensor": 2}, muon.MOST_NUMBERS),
        *(pytest.param(sizes, muon.MOST_NUMBERS, marks=pytest.mark.slow) for sizes in MESHES),
        pytest.param(MESHES[0], 2 * D * F, marks=pytest.mark.slow),
        pytest.param(MESHES[3], 2 * D * F, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_many_devices_step_as_one(alone, sizes, together, monkeypatch):
    monkeypatch.setattr(muon, "MOST_NUMBERS", together)
    on = sharding.mesh(sizes)
    step, begin = learner(CONFIG)
    places = sharding.shardings(begin, on)
    current = jax.device_put(begin, places)
    with jax.set_mesh(on):
        for seed, wanted in zip((1, 2, 3), alone, strict=True):
            current = step(current, jax.device_put(drawn(seed), places.params))
            for a, b in zip(jax.tree.leaves(current), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    for leaf, place in zip(jax.tree.leaves(current), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


@many
def test_devices_trade_matrices_and_gather_only_where_there_are_too_few():
    on = sharding.mesh({"fsdp": 4, "tensor": 2})
    step, begin = learner(CONFIG)
    given = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        begin,
        sharding.shardings(begin, on),
    )
    with jax.set_mesh(on):
        text = step.lower(given, given.params).as_text()
    # There and back along two axes: q with o, gate with up, down, the tower's q and o. Along one:
    # the router, the three of experts, and k, of whose three matrices four devices have one each.
    assert text.count("stablehlo.all_to_all") == 2 * 2 * 5 + 2 * 5
    # The other half of the devices has the same of k; and all have the two matrices without peers.
    assert text.count('stablehlo.all_gather"') == 1 + 1 + 2


def test_one_device_runs_the_plain_program():
    on = sharding.mesh(devices=jax.devices()[:1])
    step, begin = learner(CONFIG)
    plain = step.lower(begin, begin.params).as_text()
    with jax.set_mesh(on):
        placed = learner(CONFIG)[0].lower(begin, begin.params).as_text()
    assert "all_to_all" not in placed
    assert plain.count("dot_general") == placed.count("dot_general") > 0


@pytest.mark.parametrize("make", [small_run.model, small_run.kimi], ids=["qwen25_vl", "kimi_vl"])
def test_every_matrix_of_the_hub_gets_an_update_of_its_own(make):
    config, _, params = make()
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    alone = optimizers.Muon(**(vars(CONFIG) | {"clip": 1e9, "newton_schulz_steps": 5}))
    transform = optimizers.build(alone)
    step = jax.jit(
        lambda now, grads: state.advance(now, grads, optimizer=alone, transform=transform)[0].params
    )
    after = step(state.fresh(params, transform, horizon=1), grads)
    before, ways, got = (weights.leaves(tree) for tree in (params, grads, after))
    trained = set()
    for slot in weights.tensor_parts(config):
        # As Moonlight: all that is a matrix, but for words, places and the output head. A tensor
        # of several (q, k and v of the tower) has several slots.
        if len(slot.shape) < 2 or slot.path[-1] == "embedding":
            continue
        trained.add(slot.path)
        weight, grad = (np.asarray(tree[slot.path][slot.at]) for tree in (before, ways))
        assert weight.ndim == 2
        wanted = exact_muon.trained(weight, [grad], lr=CONFIG.lr)
        np.testing.assert_allclose(got[slot.path][slot.at], wanted, rtol=0, atol=3e-5 * CONFIG.lr)
    matrices = {
        tuple(mesh_axes.names_of(path))
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if optimizers.is_matrix(path)
    }
    assert matrices == trained


@pytest.mark.slow
def test_a_step_of_7b_on_sixteen_tpus_keeps_its_budget():
    pytest.importorskip("libtpu")
    # The compiler for TPUs runs in a process of its own.
    script = str(Path(__file__).with_name("muon_on_pod.py"))
    done = subprocess.run(
        [sys.executable, script, "ours,optax"],
        env=many_processes.for_tpus(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ours, plain = map(json.loads, done.stdout.splitlines()[-2:])
    spoken = {name: sum(told["collectives"].values()) for name, told in (("o", ours), ("p", plain))}
    # Twice there and twice back, in 16 bits, of 32 layers for 28.
    weights = 28 * (2 * 3584 * (3584 + 512) + 3 * 3584 * 18_944)
    assert spoken["o"] == 4 * 2 * weights * 32 // 28 // 16
    assert ours["collectives"]["all-to-all"] == spoken["o"]
    # A third of it are products in float32, which the error of bfloat16 asks for.
    assert ours["temporary"] < 2.5e9
    assert spoken["p"] > 6 * spoken["o"]
    assert plain["temporary"] > 5 * ours["temporary"]
