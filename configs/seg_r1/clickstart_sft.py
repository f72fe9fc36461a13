"""Fine-tuning of a model that sees on random clicks: it learns how a click is written, not where.

The model is the quickstart's start, which outlines what words mean and writes places as decimals.
That it need not learn numbers anew, whole ones became tokens that begin as the decimals they mean
(`convert seg_jax/cli/quickstart_start seg_jax/cli/clickstart_start --whole-numbers 96`). Every
answer that it is taught here is a click drawn from the whole picture, whatever the picture: all
that can be learnt is the format. A minute on two cores; `clickstart_rl.py` goes on from it.
seg-jax finetune configs/seg_r1/clickstart_sft.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.grammar import clicks
from seg_jax.records import Sample
from seg_jax.runs import experiments, supervised
from seg_jax.tasks.prompted import ClicksExample, Mixture, Prompted
from seg_jax.training import loop, optimizers

BASE = experiments.load("simpleseg/quickstart_base.py")
FRAME = 96
"""Pixels of a side, and the numbers that a click is written in: all have two digits or one."""
MODEL = dataclasses.replace(BASE.MODEL, text=dataclasses.replace(BASE.MODEL.text, vocab_size=960))
TASK = Prompted(
    stage="prerl",
    frame=FRAME,
    boxes=1,
    points=1,
    clicks=1,
    brief=True,
    mixture=Mixture(whole=0.0, text=1.0),
)
"""A click on what an expression means."""
LAYOUT = dataclasses.replace(BASE.LAYOUT, max_answer=12, canvas=(FRAME, FRAME))
"""Rows of one picture, seen at 64 pixels, with a short question and room for a click."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomClicks(Prompted):
    """The same questions, answered by a click anywhere."""

    def example(self, sample: Sample, rng: np.random.Generator) -> ClicksExample:
        """Returns a question of the task with an answer that knows nothing of the picture."""
        asked = super().example(sample, rng)
        anywhere = rng.random((1, 2))
        return dataclasses.replace(asked, answer=clicks.write((), anywhere, (1,), frame=self.frame))


def scenes(*, seed: int, count: int | None = None) -> Scenes:
    """Returns the quickstart's scenes of two things, drawn smaller at the frame's size.

    Args:
      seed: of the scenes.
      count: how many there are; None: no end of them.
    """
    base = BASE.scenes(seed=seed, count=count)
    return dataclasses.replace(
        base,
        world=dataclasses.replace(base.world, height=FRAME, width=FRAME, size_unit=(0.24, 0.38)),
    )


def config(*, seed: int = 0) -> supervised.Config:
    """Returns the run.

    Args:
      seed: of the scenes, their order and the clicks.
    """
    return supervised.Config(
        out=Path("runs/clickstart_sft"),
        checkpoint=experiments.CLICKSTART_START,
        model=MODEL,
        compute=BASE.COMPUTE,
        source=scenes(seed=4000 + seed),
        task=RandomClicks(**vars(TASK)),
        layout=LAYOUT,
        feed=Feed(batch=8, questions=4, seed=seed),
        optimizer=optimizers.AdamW(
            lr=1e-3, schedule=optimizers.Schedule(warmup=0.05), weight_decay=0.0
        ),
        loop=loop.Loop(steps=120, log_every=10),
    )
