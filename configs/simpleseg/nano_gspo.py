"""GSPO of the nano model from a supervised one.

Cool sampling and small decaying steps: the start is good, and greedy answers are what counts.
seg-jax reinforce configs/simpleseg/nano_gspo.py --checkpoint runs/nano_sft/checkpoint
"""

import dataclasses
from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.runs import experiments, reinforcement
from seg_jax.tasks.referring import Mixture
from seg_jax.training import loop, optimizers, policy, steps

SFT = experiments.sibling(__file__, "nano_sft.py")


def config() -> reinforcement.Config:
    """Returns the run."""
    return reinforcement.Config(
        out=Path("runs/nano_gspo"),
        model=SFT.MODEL,
        task=dataclasses.replace(SFT.TASK, mixture=Mixture()),
        layout=SFT.LAYOUT,
        compute=SFT.COMPUTE,
        source=SFT.scenes(seed=2000),
        feed=Feed(batch=64, workers=4),
        sampling=steps.Sampling(answers=16, temperature=0.5, max_tokens=SFT.LAYOUT.max_answer),
        policy=policy.Policy(minibatches=2, clip_low=0.08, clip_high=0.12, spread_floor=0.3),
        optimizer=optimizers.AdamW(
            lr=1e-4, schedule=optimizers.Schedule(warmup=0.05, final=0.05), weight_decay=0.0
        ),
        loop=loop.Loop(steps=600, log_every=5),
    )
