"""Steps with adapters: on meshes, packed and in pieces as on one device, on whole rows, at once."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from few_steps_gspo import ADAM, blind_judge
from few_steps_sft import MUON

from seg_jax.models.adapters import lora
from seg_jax.models.adapters.lora import LoRA, Parts
from seg_jax.models.parallel import sharding
from seg_jax.training import optimizers, policy, state, steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices"),
]

STEPS = 2
MODELS = {"qwen25_vl": small_run.model, "kimi_vl": small_run.kimi}
RULES = {"qwen25_vl": MUON, "kimi_vl": ADAM}
"""B is the same everywhere, which norms of Kimi's tower take away: of such gradients of A nothing
but round-off is left, and Muon, which knows no scale, would take it for a direction."""
MESHES = [
    ("qwen25_vl", {"data": 2, "fsdp": 2, "tensor": 2}),
    ("kimi_vl", {"expert": 2, "context": 2, "tensor": 2}),
]


@functools.cache
def adapted(family):
    """Returns graph, all weights and what learns; B is no longer zero, so that A learns too."""
    config, graph, params = MODELS[family]()
    learning = lora.plan(config, LoRA(rank=4), Parts(vision="adapted", merger="trained"))
    graph, shapes = lora.attach(graph, params, learning)
    drawn = lora.draw(lora.only_adapters(shapes), seed=0)
    return graph, lora.all_weights(params, jax.tree.map(lambda leaf: leaf + 0.02, drawn)), learning


def begin(family, rule, on):
    """Returns the first state and the frozen weights on a mesh; both may be donated."""
    _, params, learning = adapted(family)
    learned, frozen = learning.split(small_run.laid(params, on))
    transform = optimizers.build(rule)
    return state.fresh(learned, transform, horizon=STEPS, on=on), frozen


@functools.cache
def batches(pack=False):
    feed = small_run.batches("sft", **({"pack": small_run.PACK} if pack else {}))
    return [next(feed) for _ in range(STEPS)]


@functools.cache
def supervised(family, sizes, *, accumulate=1, pack=False):
    """Returns state and metrics after each step, on the host; what is frozen was not given away."""
    on = sharding.mesh(dict(sizes)) if sizes else small_run.alone()
    rule = RULES[family]
    current, frozen = begin(family, rule, on)
    actor = steps.Actor(adapted(family)[0], small_run.bundle().tokenizer)
    objective = dataclasses.replace(small_run.sft_config().objective, accumulate=accumulate)
    step, told = steps.supervised_step(actor, objective, rule), []
    with jax.set_mesh(on):
        for batch in batches(pack):
            placed = jax.device_put(batch, sharding.batch(on, small_run.BATCH))
            current, metrics = step(current, placed, frozen)
            told.append(jax.device_get((current, metrics)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    return told


def assert_same(many, alone):
    for (after, metrics), (wanted, told) in zip(many, alone, strict=True):
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(metrics[name], told[name], rtol=1e-4, atol=1e-6)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 + 1e-4 * np.abs(b).max())


@pytest.mark.parametrize(("family", "sizes"), MESHES, ids=str)
def test_supervised_steps_do_not_depend_on_the_mesh(family, sizes):
    alone = supervised(family, ())
    assert alone[0][1]["grad_norm"] > 1e-3
    assert_same(supervised(family, tuple(sizes.items())), alone)


def test_pieces_of_packed_rows_on_a_mesh_are_as_whole_ones_on_one_device():
    whole = supervised("qwen25_vl", (), pack=True)
    in_pieces = supervised("qwen25_vl", (("fsdp", 4), ("data", 2)), pack=True, accumulate=1)
    assert_same(in_pieces, whole)
    assert_same(supervised("qwen25_vl", (), pack=True, accumulate=2), whole)


def test_a_policy_with_adapters_is_held_to_their_start_beside_the_same_base(monkeypatch):
    monkeypatch.setattr(steps, "judge", blind_judge)
    graph, params, _ = adapted("qwen25_vl")
    actor = steps.Actor(graph, small_run.bundle().tokenizer)
    config = small_run.gspo_config()
    draw = steps.sampler(actor, config.sampling, seed=0)
    learn = steps.reinforcing_step(
        actor,
        small_run.task("prompts"),
        policy=policy.Policy(minibatches=2, kl=0.1, clip_low=0.2, clip_high=0.2),
        weights={"iou": 1.0},
        optimizer=ADAM,
        sampling=config.sampling,
    )
    prompts = small_run.batch("prompts")
    current, frozen = begin("qwen25_vl", ADAM, small_run.alone())
    reference = jax.tree.map(jnp.copy, current.params)
    rollout = draw(lora.all_weights(current.params, frozen), prompts, jnp.int32(0))
    told = []
    for _ in range(2):
        current, metrics = learn(current, prompts, rollout, reference, None, frozen)
        told.append(jax.device_get(metrics))
    assert told[0]["sampler_gap/max"] < 1e-4
    # The first minibatch is the start itself; what the second adds is of one update.
    assert 0 <= told[0]["reference_kl"] < told[1]["reference_kl"]
    other = small_run.laid(params, small_run.alone())
    assert jax.tree.structure(reference) != jax.tree.structure(other)
