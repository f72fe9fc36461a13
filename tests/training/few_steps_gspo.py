"""Three steps of GSPO of the small model, for several processes.

Answers of random weights are no outlines: low token ids are rewarded instead.
"""

import dataclasses

import jax.numpy as jnp
import small_run
from few_steps_sft import STEADY, STEPS

from seg_jax.runs import reinforcement
from seg_jax.tasks.task import Judgement
from seg_jax.training import optimizers, policy, steps

ADAM = optimizers.AdamW(**STEADY)
LOW = 400
"""Token ids below it are rewarded."""


def config() -> reinforcement.Config:
    """Returns the run."""
    steps.judge = blind_judge
    base = small_run.gspo_config()
    return dataclasses.replace(
        base,
        policy=policy.Policy(minibatches=2, clip_low=0.2, clip_high=0.2),
        optimizer=ADAM,
        loop=dataclasses.replace(base.loop, steps=STEPS),
    )


def blind_judge(task, rollout, truth, **_):
    """Rewards low token ids and reads no outline: to do so is a fifth of a step's program."""
    del task, truth
    share = low(rollout)
    scores = dict.fromkeys(("iou", "distance", "format"), share)
    return Judgement(scores, measures={}, verdict=jnp.zeros(share.shape, jnp.int32))


def low(rollout):
    """Returns the share of low token ids in each answer."""
    return jnp.sum((rollout.ids < LOW) & rollout.used, -1) / jnp.sum(rollout.used, -1)
