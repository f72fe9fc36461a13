"""Fine-tuning on several things at once and on what is not there, until it no longer helps.

From the package's quickstart start, which outlines one thing of two: two or three things now, "the
red circles", "both objects", and expressions of what is missing, answered by []. Outlines stay
coarse. `several_gspo.py` goes on from it; what both can do, before and after:
seg-jax finetune configs/simpleseg/several_sft.py
seg-jax evaluate --checkpoint runs/several_sft/checkpoint --world several --protocol gres
"""

import dataclasses
from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.runs import experiments, supervised
from seg_jax.scenes import phrases
from seg_jax.tasks.referring import Mixture
from seg_jax.training import loop, optimizers, sft
from seg_jax.training.validation import Validation

START = experiments.sibling(__file__, "quickstart_start.py")
BASE = START.BASE
THINGS = 3
TASK = dataclasses.replace(
    START.TASK,
    mixture=Mixture(text_mask=1.0, absent=0.3),
    epsilon=0.06,
    max_points=4 * THINGS,
    max_rings=THINGS,
)
"""Outlines of some four points a thing; of ten questions two or three are about what is missing."""
LAYOUT = dataclasses.replace(BASE.LAYOUT, max_prompt=102, max_question=28, max_answer=28)
"""Plurals are of more tokens than one thing, and answers have room for three outlines."""


def scenes(*, seed: int, count: int | None = None) -> Scenes:
    """Returns scenes of two or three things apart, with expressions of several and of none.

    Args:
      seed: of the scenes.
      count: how many there are; None: no end of them.
    """
    base = BASE.scenes(seed=seed, count=count)
    return dataclasses.replace(
        base,
        world=dataclasses.replace(
            base.world,
            count=(2, THINGS),
            size_unit=(0.25, 0.42),
            least_visible=1.0,
            distinct=False,
            distractor=0.5,
        ),
        style=phrases.Style(full=True, several=True, absent=2),
    )


def config() -> supervised.Config:
    """Returns the run."""
    return supervised.Config(
        out=Path("runs/several_sft"),
        checkpoint=experiments.QUICKSTART_START,
        model=BASE.MODEL,
        compute=BASE.COMPUTE,
        source=scenes(seed=4000, count=4000),
        task=TASK,
        layout=LAYOUT,
        feed=Feed(batch=16, questions=4, packed_rows=2, packed_tokens=96),
        objective=sft.Objective(soften_bins=1.0),
        optimizer=optimizers.Muon(
            lr=2e-3,
            newton_schulz_dtype="float32",
            schedule=optimizers.Schedule(warmup=0.05),
        ),
        loop=loop.Loop(steps=6000, log_every=20),
        validate=Validation(samples=512, every=200, patience=5),
    )
