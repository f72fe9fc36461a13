"""Supervised fine-tuning of the tiny model from random weights, about six minutes on two cores.

A million weights, 64-pixel scenes of two things each.
seg-jax finetune configs/simpleseg/tiny_sft.py
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
from seg_jax.scenes.things import Colour, Kind
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizers, sft

SIDE = 64
PATCH = 8

# Positions here run to tens: the base is small, and the slow half of each head, which hardly
# turns, is left to compare what is seen.
MODEL = qwen25_vl.Config(
    text=qwen25_vl.Text(
        vocab_size=864,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(1, 3, 12),
        rope_theta=300.0,
        max_position_embeddings=512,
    ),
    vision=qwen25_vl.Vision(
        depth=3,
        hidden_size=96,
        intermediate_size=192,
        num_heads=4,
        patch_size=PATCH,
        spatial_merge_size=1,
        window_size=4 * PATCH,
        fullatt_block_indexes=(1,),
    ),
    tie_word_embeddings=True,
)
LAYOUT = Layout(
    patch=PATCH,
    merge=1,
    window_tokens=4,
    min_pixels=(2 * PATCH) ** 2,
    max_pixels=SIDE * SIDE,
    max_patches=(SIDE // PATCH) ** 2,
    max_prompt=92,
    max_question=18,
    max_answer=24,
    canvas=(SIDE, SIDE),
)
"""Rows of one 64-pixel image, a short question and a short answer."""
TASK = Referring(
    # Without naming, outlines bind words to objects late: colours do not matter to a shape.
    mixture=Mixture(
        text_mask=1.0,
        text_box=0.2,
        text_point=0.3,
        point_mask=0.1,
        box_mask=0.1,
        point_name=0.225,
        box_name=0.225,
    ),
    digits=2,
    epsilon=0.02,
    max_points=10,
    max_rings=2,
    wordings="one",
)
"""Two decimals, outlines of at most ten points, one wording."""
COMPUTE = Compute(unroll=True, fuse=True)
"""Float32 with unrolled layers: fastest where matrices are small."""


def scenes(*, seed: int) -> Scenes:
    """Returns two-object scenes, their things called by colour and kind."""
    simple = dataclasses.replace(
        world.easy(),
        kinds=(Kind.CIRCLE, Kind.SQUARE, Kind.TRIANGLE),
        colours=(Colour.RED, Colour.GREEN, Colour.BLUE, Colour.YELLOW),
        size_unit=(0.38, 0.58),
    )
    return Scenes(world=simple, style=phrases.Style(full=True), seed=seed)


def config(*, seed: int = 0) -> supervised.Config:
    """Returns the run."""
    return supervised.Config(
        out=Path("runs/tiny_sft"),
        seed=seed,
        model=MODEL,
        compute=COMPUTE,
        source=scenes(seed=1000 + seed),
        task=TASK,
        layout=LAYOUT,
        feed=Feed(batch=16, questions=4, packed_rows=2, packed_tokens=60, seed=seed),
        objective=sft.Objective(soften_bins=2.0),
        optimizer=optimizers.Muon(
            lr=4e-3,
            newton_schulz_dtype="float32",
            schedule=optimizers.Schedule(warmup=0.05),
        ),
        loop=loop.Loop(steps=1600, log_every=10),
    )
