"""A toy SAM 2 of 0.85 million weights, taught on drawn scenes: the segmenter of demonstrations.

Published of SAM 2's training: focal 20, dice 1, L1 on the expected IoU, corrections by clicks
(arXiv 2408.00714, appendix D.2.2). Ours: sizes, scenes, rates, steps.
"""

from __future__ import annotations

import dataclasses

from seg_jax.models.sam2.config import Config, Hiera
from seg_jax.runs import teaching
from seg_jax.scenes import world
from seg_jax.training import optimizers
from seg_jax.training.loop import Loop

MODEL = Config(
    backbone=Hiera(
        blocks_per_stage=(1, 1, 2, 1),
        embed_dim_per_stage=(24, 48, 96, 192),
        num_attention_heads_per_stage=(1, 2, 4, 8),
        window_size_per_stage=(8, 4, 4, 4),
        global_attention_blocks=(3,),
        window_positional_embedding_background_size=(4, 4),
    ),
    side=128,
    width=64,
    mask_input_channels=8,
    mlp_dim=128,
    num_attention_heads=4,
    iou_head_hidden_dim=64,
)


def config() -> teaching.Config:
    """Returns the run: about half an hour on two cores."""
    scenes = dataclasses.replace(
        world.varied(), height=128, width=128, aspect=None, scale=(1.0, 1.0), least_pixels=60
    )
    return teaching.Config(
        model=MODEL,
        world=scenes,
        feed=teaching.Feed(batch=16, objects=2, ground=0.15),
        optimizer=optimizers.AdamW(
            lr=1e-3,
            b2=0.99,
            weight_decay=0.01,
            schedule=optimizers.Schedule(warmup=0.05, final=0.01),
        ),
        loop=Loop(steps=6000, log_every=50),
    )
