"""Pretraining of the quickstart's model: it points, boxes and names, and has seen no outline.

It stands for the vision-language model that people start from: it finds what words mean, and it
cannot outline. A million weights, 64-pixel scenes of two things each, most of them curved, an hour
on one core. `quickstart_start.py` goes on from it.
seg-jax finetune configs/simpleseg/quickstart_base.py
"""

import dataclasses
from pathlib import Path

from seg_jax.data.sources import Scenes
from seg_jax.runs import experiments, supervised
from seg_jax.scenes.things import Kind
from seg_jax.tasks.referring import Mixture
from seg_jax.training import loop

TINY = experiments.sibling(__file__, "tiny_sft.py")
MODEL, LAYOUT, COMPUTE = TINY.MODEL, TINY.LAYOUT, TINY.COMPUTE
CURVED = (Kind.CIRCLE, Kind.ELLIPSE, Kind.CRESCENT, Kind.BLOB)
"""Kinds of thing that an outline of few points cuts short."""
KINDS = (*CURVED, Kind.SQUARE, Kind.TRIANGLE)
TASK = dataclasses.replace(
    TINY.TASK,
    mixture=Mixture(text_mask=0.0, text_box=1.0, text_point=0.5, point_name=0.4, box_name=0.4),
    max_points=4,
    max_rings=1,
)
"""Boxes and points of what text tells of, names of what is at a place; outlines, which are not
asked for here, would have four points."""


def scenes(*, seed: int, count: int | None = None) -> Scenes:
    """Returns two-object scenes, their things called by colour and kind.

    Args:
      seed: of the scenes.
      count: how many there are; None: no end of them.
    """
    base = TINY.scenes(seed=seed)
    return dataclasses.replace(
        base, world=dataclasses.replace(base.world, kinds=KINDS), count=count
    )


def config(*, seed: int = 0) -> supervised.Config:
    """Returns the run."""
    base = TINY.config(seed=seed)
    return dataclasses.replace(
        base,
        out=Path("runs/quickstart_base"),
        source=scenes(seed=1000 + seed),
        task=TASK,
        feed=dataclasses.replace(base.feed, questions=6),
        loop=loop.Loop(steps=6000, log_every=20),
    )
