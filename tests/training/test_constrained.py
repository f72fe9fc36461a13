"""The stations with answers held to the grammar: all are read, and the trainer scores as drawn."""

import dataclasses

import jax
import numpy as np
import pytest
import small_run

from seg_jax.grammar import outline
from seg_jax.models.parallel import sharding
from seg_jax.records import Kind, Verdict
from seg_jax.tasks.referring import Mixture
from seg_jax.training import optimizers, policy, steps

ADAM = optimizers.AdamW(lr=3e-3, schedule=optimizers.Schedule(warmup=0.0, final=1.0))
MIXTURE = Mixture(text_point=1.0, text_box=1.0, text_mask=2.0)
TASK = dataclasses.replace(small_run.task("prompts"), mixture=MIXTURE)
SAMPLING = steps.Sampling(answers=small_run.ANSWERS, temperature=1.3, max_tokens=14, grammar=True)


@pytest.fixture(scope="module")
def drawn():
    """Sampler, prompts of all kinds, first state and a rollout."""
    draw = steps.sampler(small_run.actor(), SAMPLING, seed=0, task=TASK)
    prompts = small_run.batch("prompts")
    kinds = np.resize(np.array(list(Kind), np.int32), small_run.BATCH)
    prompts = prompts._replace(truth=prompts.truth._replace(kind=kinds))
    state = small_run.fresh(small_run.gspo_config(optimizer=ADAM))
    return draw, prompts, state, draw(state.params, prompts, state.step)


@pytest.mark.slow
def test_random_weights_give_answers_that_are_read(drawn):
    _, prompts, _, rollout = drawn
    tokenizer = small_run.bundle().tokenizer
    limits = {"rings": TASK.max_rings, "points": TASK.max_points}
    for group, kept, kind in zip(*rollout[:2], prompts.truth.kind, strict=True):
        for ids, used in zip(np.asarray(group), np.asarray(kept), strict=True):
            text = tokenizer.decode(ids[used])
            assert outline.read(text, Kind(int(kind)), **limits).verdict == Verdict.OK
            assert ids[used][-1] == tokenizer.end_id


@pytest.mark.slow
def test_eight_devices_hold_answers_as_one_and_score_them_as_drawn(drawn):
    draw, prompts, _, rollout = drawn
    learn = steps.reinforcing_step(
        small_run.actor(chunk=5),
        TASK,
        policy=policy.Policy(minibatches=1, clip_low=0.2, clip_high=0.2),
        weights={"iou": 1.0, "distance": 1.0},
        optimizer=ADAM,
        sampling=SAMPLING,
    )
    on = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(on):
        begin = small_run.fresh(small_run.gspo_config(optimizer=ADAM), on)
        spread = jax.device_put(prompts, sharding.batch(on, small_run.BATCH))
        many = draw(begin.params, spread, begin.step)
        # On one device: test_no_target.
        _, metrics = learn(begin, spread, many, None)
    np.testing.assert_array_equal(many.ids, rollout.ids)
    np.testing.assert_allclose(many.logp, rollout.logp, atol=1e-4)
    assert float(metrics["verdicts/OK"]) == 1.0
    assert abs(float(metrics["ratio/max"]) - 1) < 1e-5
    assert float(metrics["sampler_gap/max"]) < 1e-5
    assert np.isfinite(float(metrics["grad_norm"]))
    assert float(metrics["grad_norm"]) > 0


def test_room_for_no_answer_is_refused_for_the_kinds_that_are_asked_for():
    short = dataclasses.replace(SAMPLING, max_tokens=6)
    with pytest.raises(ValueError, match="max_tokens: expected at least 7, the shortest box"):
        steps.sampler(small_run.actor(), short, seed=0, task=TASK)
    points = dataclasses.replace(TASK, mixture=Mixture(text_mask=0.0, text_point=1.0))
    assert points.kinds == (Kind.POINT,)
    steps.sampler(small_run.actor(), short, seed=0, task=points)
    with pytest.raises(ValueError, match="expected the task"):
        steps.sampler(small_run.actor(), SAMPLING, seed=0)
