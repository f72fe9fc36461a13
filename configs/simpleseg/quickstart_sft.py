"""Supervised fine-tuning of the quickstart: a thousand labelled pictures, outlines of four points.

From the package's model until held-out pictures stop improving, which for a finished one is soon:
minutes on two cores.
seg-jax finetune configs/simpleseg/quickstart_sft.py
"""

import dataclasses
from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.runs import experiments, supervised
from seg_jax.training import loop, optimizers, sft
from seg_jax.training.validation import Validation

START = experiments.sibling(__file__, "quickstart_start.py")
BASE = START.BASE
POINTS = START.POINTS


def labelled(*, seed: int = 0, count: int = 1000) -> Scenes:
    """Returns the labelled set: always the same scenes."""
    return BASE.scenes(seed=2000 + seed, count=count)


def config(*, seed: int = 0, points: int = POINTS) -> supervised.Config:
    """Returns the run.

    Args:
      seed: of the labelled pictures and their order.
      points: most of an outline.
    """
    most = START.answer_tokens(points)
    return supervised.Config(
        out=Path("runs/quickstart_sft"),
        checkpoint=experiments.QUICKSTART_START,
        model=BASE.MODEL,
        compute=BASE.COMPUTE,
        source=labelled(seed=seed),
        task=dataclasses.replace(START.TASK, max_points=points),
        layout=dataclasses.replace(BASE.LAYOUT, max_answer=most),
        feed=Feed(batch=16, questions=4, packed_rows=2, packed_tokens=26 + 2 * most, seed=seed),
        objective=sft.Objective(soften_bins=1.0),
        optimizer=optimizers.Muon(
            lr=1e-3,
            newton_schulz_dtype="float32",
            schedule=optimizers.Schedule(warmup=0.05),
        ),
        loop=loop.Loop(steps=500, log_every=10),
        validate=Validation(samples=256, every=50, patience=3),
    )
