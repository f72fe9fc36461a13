"""Supervised fine-tuning of the nano model from random weights, minutes on a GPU.

Three million weights, 6.5 MB in bfloat16, 96-pixel scenes: the model that comes with the package.
seg-jax finetune configs/simpleseg/nano_sft.py
"""

import dataclasses
from pathlib import Path

from seg_jax.data.encode import Layout
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import qwen25_vl
from seg_jax.runs import supervised
from seg_jax.scenes import phrases, world
from seg_jax.scenes.things import Colour, Kind, Texture
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizers, sft

SIDE = 96
PATCH = 8
VISUAL_TOKENS = (SIDE // PATCH) ** 2
HELD_OUT = (
    (Kind.STAR, Colour.RED),
    (Kind.RING, Colour.BLUE),
    (Kind.CROSS, Colour.GREEN),
    (Kind.BLOB, Texture.STRIPED),
)
"""Combinations that no thing of a training scene bears."""

MODEL = qwen25_vl.Config(
    text=qwen25_vl.Text(
        vocab_size=960,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        mrope_section=(1, 3, 12),
        rope_theta=300.0,
        max_position_embeddings=512,
    ),
    vision=qwen25_vl.Vision(
        depth=4,
        hidden_size=128,
        intermediate_size=256,
        num_heads=4,
        patch_size=PATCH,
        spatial_merge_size=1,
        window_size=4 * PATCH,
        fullatt_block_indexes=(1, 3),
    ),
    tie_word_embeddings=True,
)
LAYOUT = Layout(
    patch=PATCH,
    merge=1,
    window_tokens=4,
    min_pixels=(2 * PATCH) ** 2,
    max_pixels=SIDE * SIDE,
    max_patches=VISUAL_TOKENS,
    max_prompt=VISUAL_TOKENS + 30,
    max_question=24,
    max_answer=36,
    canvas=(SIDE, SIDE),
)
"""Rows of one 96-pixel image, a short question and an outline of 16 points."""
TASK = Referring(
    mixture=Mixture(
        text_mask=1.0,
        text_box=0.1,
        text_point=0.1,
        point_mask=0.1,
        box_mask=0.1,
        point_name=0.225,
        box_name=0.225,
    ),
    digits=2,
    epsilon=0.01,
    max_points=16,
    max_rings=3,
    wordings="one",
)
"""Two decimals, outlines of at most sixteen points, one wording."""
COMPUTE = Compute(unroll=True, fuse=True)


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
