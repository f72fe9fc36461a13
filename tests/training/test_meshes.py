"""Three steps of both stages on every kind of mesh: the same losses, gradients and weights."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from few_steps_gspo import ADAM, blind_judge
from few_steps_sft import MUON, STEPS

from seg_jax.models.parallel import sharding
from seg_jax.training import optimizers, policy, state, steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices"),
]

MODELS = {"qwen25_vl": small_run.model, "kimi_vl": small_run.kimi}
SUPERVISED = [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "context": 2}]
REINFORCED = [
    ("qwen25_vl", {"data": 2, "fsdp": 2, "tensor": 2}),
    ("kimi_vl", {"expert": 2, "context": 2, "tensor": 2}),
]


def fresh(family, rule, on):
    """Returns the first state, laid over a mesh; it may be donated."""
    params = small_run.laid(MODELS[family]()[2], on)
    return state.fresh(params, optimizers.build(rule), horizon=STEPS, on=on)


def three_steps(family, rule, step, given, on):
    """Returns state and metrics after each step, on the host; no weight is moved, none kept."""
    begin, told = fresh(family, rule, on), []
    places = jax.tree.map(lambda leaf: leaf.sharding, begin)
    current = begin
    with jax.set_mesh(on):
        for batch in given:
            placed = jax.device_put(batch, sharding.batch(on, small_run.BATCH))
            current, metrics = step(current, *placed)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begin.params))
            for leaf, place in zip(jax.tree.leaves(current), jax.tree.leaves(places), strict=True):
                assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
            told.append(jax.device_get((current, metrics)))
    return told


def assert_same_steps(many, alone):
    for (after, metrics), (wanted, told) in zip(many, alone, strict=True):
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(metrics[name], told[name], rtol=1e-4, atol=1e-6)
        # The first momentum is the first gradient.
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 + 1e-4 * np.abs(b).max())


@pytest.fixture(scope="module")
def supervised():
    """The compiled step, its batches, and its states on one device."""
    feed = small_run.batches("sft")
    batches = [(next(feed),) for _ in range(STEPS)]
    actor = steps.Actor(small_run.model()[1], small_run.bundle().tokenizer)
    step = steps.supervised_step(actor, small_run.sft_config().objective, MUON)
    on = small_run.alone()
    return step, batches, three_steps("qwen25_vl", MUON, step, batches, on)


@pytest.mark.parametrize("sizes", SUPERVISED, ids=str)
def test_supervised_steps_do_not_depend_on_the_mesh(supervised, sizes):
    step, batches, alone = supervised
    assert alone[-1][1]["loss"] < alone[0][1]["loss"]
    assert_same_steps(three_steps("qwen25_vl", MUON, step, batches, sharding.mesh(sizes)), alone)


@pytest.fixture(scope="module")
def reinforced():
    """For a model the compiled step, prompts with answers, and its states on one device."""
    config = small_run.gspo_config()
    plan = policy.Policy(minibatches=2, clip_low=0.2, clip_high=0.2)
    feed = small_run.batches("prompts")
    prompts = [next(feed) for _ in range(STEPS)]
    known = {}

    def of(family):
        if family in known:
            return known[family]
        actor = steps.Actor(MODELS[family]()[1], small_run.bundle().tokenizer)
        draw = steps.sampler(actor, config.sampling, seed=0)
        learn = steps.reinforcing_step(
            actor,
            small_run.task("prompts"),
            policy=plan,
            weights={"iou": 1.0},
            optimizer=ADAM,
            sampling=config.sampling,
        )

        def step(current, prompts, rollout):
            # Answers are read on many devices in test_constrained.
            with mock.patch.object(steps, "judge", blind_judge):
                return learn(current, prompts, rollout, None)

        params = MODELS[family]()[2]
        given = [(p, jax.device_get(draw(params, p, jnp.int32(i)))) for i, p in enumerate(prompts)]
        on = small_run.alone()
        known[family] = step, given, three_steps(family, ADAM, step, given, on)
        return known[family]

    return of


@pytest.mark.parametrize(("family", "sizes"), REINFORCED, ids=str)
def test_reinforcing_steps_do_not_depend_on_the_mesh(reinforced, family, sizes):
    step, given, alone = reinforced(family)
    assert all(metrics["grad_norm"] > 1e-3 for _, metrics in alone)
    assert_same_steps(three_steps(family, ADAM, step, given, sharding.mesh(sizes)), alone)
