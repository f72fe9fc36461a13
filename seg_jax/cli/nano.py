"""The nano setting: the model that ships with the package, three million weights, small scenes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from seg_jax.cli import tiny
from seg_jax.data.encode import Layout
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.models.vlm import qwen25_vl
from seg_jax.runs import reinforcement, supervised
from seg_jax.scenes import phrases, world
from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizers, sft, steps

SIDE = 96
VISUAL_TOKENS = (SIDE // tiny.PATCH) ** 2
HELD_OUT = (
    (Kind.STAR, Colour.RED),
    (Kind.RING, Colour.BLUE),
    (Kind.CROSS, Colour.GREEN),
    (Kind.BLOB, Texture.STRIPED),
)
"""Combinations that no thing of a training scene bears."""


def scenes(*, seed: int, mode: world.HeldOut = world.HeldOut.EXCLUDE) -> Scenes:
    """Returns standard scenes, their things called by colour, kind, texture and place.

    Args:
      seed: of the scenes.
      mode: what becomes of the held-out combinations.
    """
    standard = dataclasses.replace(world.standard(), held_out=HELD_OUT, mode=mode)
    style = phrases.Style(texture=True, place=True)
    return Scenes(world=standard, style=style, seed=seed)


def model() -> qwen25_vl.Config:
    """Returns Qwen2.5-VL at three million weights, 6.5 MB in bfloat16."""
    small = tiny.model()
    return dataclasses.replace(
        small,
        text=dataclasses.replace(
            small.text,
            vocab_size=960,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
        ),
        vision=dataclasses.replace(
            small.vision,
            depth=4,
            hidden_size=128,
            intermediate_size=256,
            fullatt_block_indexes=(1, 3),
        ),
    )


def layout() -> Layout:
    """Returns rows of one 96-pixel image, a short question and an outline of 16 points."""
    return dataclasses.replace(
        tiny.layout(),
        max_pixels=SIDE * SIDE,
        max_patches=VISUAL_TOKENS,
        max_prompt=VISUAL_TOKENS + 30,
        max_question=24,
        max_answer=36,
        canvas=(SIDE, SIDE),
    )


def task() -> Referring:
    """Returns referring with two decimals, outlines of at most sixteen points, one wording."""
    base = tiny.task()
    mixture = dataclasses.replace(base.mixture, text_box=0.1, text_point=0.1)
    return dataclasses.replace(base, mixture=mixture, epsilon=0.01, max_points=16, max_rings=3)


def sft_config() -> supervised.Config:
    """Returns supervised fine-tuning from random weights, minutes on a GPU."""
    return supervised.Config(
        out=Path("runs/nano_sft"),
        model=model(),
        compute=tiny.compute(),
        source=scenes(seed=1000),
        task=task(),
        layout=layout(),
        feed=Feed(batch=32, questions=8, packed_rows=4, packed_tokens=80, workers=8),
        objective=sft.Objective(soften_bins=1.5),
        optimizer=optimizers.Muon(lr=4e-3, schedule=optimizers.Schedule(warmup=0.03)),
        loop=loop.Loop(steps=30_000, log_every=100),
    )


def gspo_config() -> reinforcement.Config:
    """Returns GSPO from the supervised model.

    Cool sampling and small decaying steps: the start is good, and greedy answers are what counts.
    """
    tuned = tiny.gspo_config()
    return dataclasses.replace(
        tuned,
        out=Path("runs/nano_gspo"),
        model=model(),
        task=dataclasses.replace(task(), mixture=Mixture()),
        layout=layout(),
        source=scenes(seed=2000),
        feed=Feed(batch=64, workers=4),
        sampling=steps.Sampling(answers=16, temperature=0.5, max_tokens=layout().max_answer),
        optimizer=dataclasses.replace(tuned.optimizer, lr=1e-4),
        loop=loop.Loop(steps=600, log_every=5),
    )
