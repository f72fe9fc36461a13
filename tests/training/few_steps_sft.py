"""Three steps of supervised fine-tuning of the small model, for several processes."""

import dataclasses

import small_run

from seg_jax.runs import supervised
from seg_jax.training import optimizers

STEPS = 3
# A gradient that is nothing but round-off would move a weight as far as any other with a small eps.
STEADY = {"lr": 3e-3, "eps": 1e-3, "schedule": optimizers.Schedule(warmup=0.0, final=1.0)}
MUON = optimizers.Muon(newton_schulz_dtype="float32", newton_schulz_steps=2, **STEADY)


def config() -> supervised.Config:
    """Returns the run."""
    base = small_run.sft_config()
    return dataclasses.replace(
        base, optimizer=MUON, loop=dataclasses.replace(base.loop, steps=STEPS)
    )
