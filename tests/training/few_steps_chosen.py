"""Three steps of GSPO whose prompts are chosen, for several processes: see `few_steps_gspo`."""

import dataclasses

import few_steps_gspo
import jax
import jax.numpy as jnp

from seg_jax.data.priority import Priority
from seg_jax.data.sources import Scenes
from seg_jax.runs import reinforcement
from seg_jax.training import policy, steps


def config() -> reinforcement.Config:
    """Returns the run."""
    base = few_steps_gspo.config()
    steps.judge = coarse_judge
    return dataclasses.replace(
        base,
        source=Scenes(world=base.source.world, seed=5, count=20),
        sampling=dataclasses.replace(base.sampling, answers=2, max_tokens=20),
        policy=policy.Policy(
            minibatches=2, clip_low=0.2, clip_high=0.2, drop_equal=True, truth="smoothed"
        ),
        rounds=2,
        priority=Priority(by="learnability", floor=0.5),
    )


def coarse_judge(*given, **named):
    """Rewards all or nothing, so that many groups do not differ."""
    judged = few_steps_gspo.blind_judge(*given, **named)
    return judged._replace(scores=jax.tree.map(jnp.round, judged.scores))
