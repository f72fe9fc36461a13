"""Fine-tuning of the package's nano for images of any shape, for several things and for none.

A third of the scenes is varied (1:3 to 3:1, one to five things of 0.1 to 0.7 of the side, any
plain or noisy ground), a seventh asks about several things at once, half is what nano knew. An hour
and a quarter of one CPU core; the card of the packaged model says what came of it.
seg-jax finetune configs/simpleseg/nano_shapes_sft.py
"""

import dataclasses
from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Mixed, Scenes
from seg_jax.runs import experiments, supervised
from seg_jax.scenes import phrases, world
from seg_jax.training import loop, optimizers

NANO = experiments.sibling(__file__, "nano_sft.py")
LAYOUT = dataclasses.replace(
    NANO.LAYOUT,
    max_prompt=NANO.VISUAL_TOKENS + 38,
    max_question=32,
    max_answer=50,
    canvas=(224, 224),
)
"""Rows of an image of as many patches as one of 96 x 96 pixels has, of a short question and of an
outline of 20 points; the canvas has room for the longest side of a training image."""
TASK = dataclasses.replace(
    NANO.TASK,
    mixture=dataclasses.replace(NANO.TASK.mixture, absent=0.5),
    max_points=20,
    max_rings=5,
)
"""Two decimals, outlines of at most twenty points in five rings, one wording."""


def varied(
    *, seed: int, several: bool = False, mode: world.HeldOut = world.HeldOut.EXCLUDE
) -> Scenes:
    """Returns one to five things of any size on any ground, in images of many shapes.

    Args:
      seed: of the scenes.
      several: whether expressions also mean several things at once.
      mode: what becomes of the held-out combinations.
    """
    any_shape = dataclasses.replace(world.varied(), held_out=NANO.HELD_OUT, mode=mode)
    style = phrases.Style(texture=True, place=True, absent=3, several=several)
    return Scenes(world=any_shape, style=style, seed=seed)


def mixed(*, seed: int) -> Mixed:
    """Returns what the model is trained on."""
    parts = (varied(seed=seed), varied(seed=seed + 1, several=True), NANO.scenes(seed=seed + 2))
    return Mixed(parts=parts, weights=(0.35, 0.15, 0.5))


def config() -> supervised.Config:
    """Returns the run."""
    return dataclasses.replace(
        NANO.config(),
        out=Path("runs/nano_shapes_sft"),
        checkpoint=experiments.NANO,
        source=mixed(seed=3000),
        task=TASK,
        layout=LAYOUT,
        feed=Feed(batch=16, questions=8, packed_rows=1, packed_tokens=320),
        optimizer=optimizers.Muon(lr=1.2e-3, schedule=optimizers.Schedule(warmup=0.03)),
        loop=loop.Loop(steps=2280, log_every=25),
    )
