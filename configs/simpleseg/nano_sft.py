"""Supervised fine-tuning of the nano model from random weights, minutes on a GPU.

The tiny model made larger: three million weights, 6.5 MB in bfloat16, 96-pixel scenes. It is the
one that comes with the package.
seg-jax finetune configs/simpleseg/nano_sft.py
"""

import dataclasses
from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.runs import experiments, supervised
from seg_jax.scenes import phrases, world
from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.training import loop, optimizers, sft

TINY = experiments.sibling(__file__, "tiny_sft.py")
SIDE = 96
VISUAL_TOKENS = (SIDE // TINY.PATCH) ** 2
HELD_OUT = (
    (Kind.STAR, Colour.RED),
    (Kind.RING, Colour.BLUE),
    (Kind.CROSS, Colour.GREEN),
    (Kind.BLOB, Texture.STRIPED),
)
"""Combinations that no thing of a training scene bears."""

MODEL = dataclasses.replace(
    TINY.MODEL,
    text=dataclasses.replace(
        TINY.MODEL.text,
        vocab_size=960,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
    ),
    vision=dataclasses.replace(
        TINY.MODEL.vision,
        depth=4,
        hidden_size=128,
        intermediate_size=256,
        fullatt_block_indexes=(1, 3),
    ),
)
LAYOUT = dataclasses.replace(
    TINY.LAYOUT,
    max_pixels=SIDE * SIDE,
    max_patches=VISUAL_TOKENS,
    max_prompt=VISUAL_TOKENS + 30,
    max_question=24,
    max_answer=36,
    canvas=(SIDE, SIDE),
)
"""Rows of one 96-pixel image, a short question and an outline of 16 points."""
TASK = dataclasses.replace(
    TINY.TASK,
    mixture=dataclasses.replace(TINY.TASK.mixture, text_box=0.1, text_point=0.1),
    epsilon=0.01,
    max_points=16,
    max_rings=3,
)
"""Two decimals, outlines of at most sixteen points, one wording."""
COMPUTE = TINY.COMPUTE


def scenes(*, seed: int, mode: world.HeldOut = world.HeldOut.EXCLUDE) -> Scenes:
    """Returns standard scenes, their things called by colour, kind, texture and place.

    Args:
      seed: of the scenes.
      mode: what becomes of the held-out combinations.
    """
    standard = dataclasses.replace(world.standard(), held_out=HELD_OUT, mode=mode)
    style = phrases.Style(texture=True, place=True)
    return Scenes(world=standard, style=style, seed=seed)


def config() -> supervised.Config:
    """Returns the run."""
    return supervised.Config(
        out=Path("runs/nano_sft"),
        model=MODEL,
        compute=COMPUTE,
        source=scenes(seed=1000),
        task=TASK,
        layout=LAYOUT,
        feed=Feed(batch=32, questions=8, packed_rows=4, packed_tokens=80, workers=8),
        objective=sft.Objective(soften_bins=1.5),
        optimizer=optimizers.Muon(lr=4e-3, schedule=optimizers.Schedule(warmup=0.03)),
        loop=loop.Loop(steps=30_000, log_every=100),
    )
