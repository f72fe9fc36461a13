"""Both routes end to end: they lower from shapes alone, and a killed run goes on bit by bit."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from seg_jax.data import pipeline
from seg_jax.models.parallel import sharding
from seg_jax.runs import experiments, stage
from seg_jax.runs import start as start_of_run
from seg_jax.training import optimizers, state, steps
from seg_jax.training.log import Log

ADAM = optimizers.AdamW(lr=3e-3)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.mark.slow
def test_the_steps_of_the_configs_lower_from_shapes_alone(tmp_path):
    supervised, reinforced = (
        experiments.load(f"simpleseg/tiny_{name}.py").config() for name in ("sft", "gspo")
    )
    bundle = start_of_run.with_random_weights(supervised, tmp_path / "tokenizer").bundle
    actor = steps.Actor(bundle.graph, bundle.tokenizer)

    def abstract(config, rows):
        feed = dataclasses.replace(config.feed, threads=0, prefetch=0)
        task = bundle.task
        if rows == "prompts":
            task = dataclasses.replace(task, mixture=config.task.mixture)
        batches = pipeline.batches(config.source, task, bundle.encoder, feed=feed, rows=rows)
        transform = optimizers.build(config.optimizer)
        begin = state.shapes(bundle.params, transform, small_run.alone())
        return shapes(begin), shapes(next(batches))

    begin, batch = abstract(supervised, "sft")
    step = steps.supervised_step(actor, supervised.objective, supervised.optimizer)
    after, metrics = step.lower(begin, batch).out_info
    assert shapes(after) == shapes(begin)
    assert metrics["loss"].shape == ()

    begin, prompts = abstract(reinforced, "prompts")
    draw = steps.sampler(actor, reinforced.sampling, seed=0)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    rollout = shapes(draw.lower(begin.params, prompts, number).out_info)
    assert rollout.ids.shape == (32, reinforced.sampling.answers, reinforced.sampling.max_tokens)
    step = steps.reinforcing_step(
        actor,
        bundle.task,
        policy=reinforced.policy,
        weights=bundle.task.reward_weights,
        optimizer=reinforced.optimizer,
        sampling=reinforced.sampling,
    )
    after, metrics = step.lower(begin, prompts, rollout, None).out_info
    assert shapes(after) == shapes(begin)
    assert {"loss", "reward", "scores/iou", "verdicts/OK"} <= set(metrics)


# Supervised fine-tuning on plain rows: test_kills.
@pytest.fixture(scope="module", params=["packed", "gspo"])
def route(request):
    """A stage: a function (folder, step to stop after or 0) -> (state, next batch, records)."""
    on = small_run.alone()
    if request.param != "gspo":
        config = small_run.sft_config(optimizer=ADAM)
        learn = steps.supervised_step(small_run.actor(), config.objective, ADAM)
    else:
        config = small_run.gspo_config(optimizer=ADAM)
        draw = small_run.sampler()
        learn = steps.reinforcing_step(
            small_run.actor(),
            small_run.task("prompts"),
            policy=config.policy,
            weights={"format": 1.0},
            optimizer=ADAM,
            sampling=config.sampling,
        )
    rows = "prompts" if request.param == "gspo" else "sft"
    changes = {} if request.param == "gspo" else {"pack": small_run.PACK}
    plan = dataclasses.replace(config.loop, steps=3, log_every=1, save_minutes=1e-9)
    config = dataclasses.replace(config, loop=plan)
    bundle = small_run.bundle()

    def go(folder, stop):
        batches = small_run.batches(rows, **changes)

        def body(current):
            if int(current.step) + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            batch = pipeline.to_device(next(batches), sharding.batch(on), rows=small_run.BATCH)
            if rows == "sft":
                return learn(current, batch)
            return learn(current, batch, draw(current.params, batch, current.step), None)

        def weights():
            return jax.device_put(
                bundle.params, sharding.shardings(bundle.params, on), may_alias=False
            )

        start = start_of_run.Start(bundle, weights)
        with Log(folder) as log:
            place = stage.Place(folder, request.param, log)
            end, *_ = stage.run_stage(config, body, start, batches=batches, place=place, mesh=on)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        unlike = dict.fromkeys(("seconds", "seconds/step", "data_wait"), 0)  # In any two runs.
        return end, next(batches), [json.loads(line) | unlike for line in lines]

    return go


@pytest.mark.slow
def test_a_killed_route_goes_on_bit_by_bit(route, tmp_path):
    wanted, following, records = route(tmp_path / "whole", 0)
    assert int(wanted.step) == 3
    assert [record["step"] for record in records] == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        route(tmp_path / "killed", 2)
    end, after, found = route(tmp_path / "killed", 0)
    small_run.assert_same(end, wanted)
    small_run.assert_same(after, following)
    assert found == records
    assert all(np.isfinite(record["loss"]) for record in records)
