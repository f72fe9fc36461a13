"""A CLIP of 0.7 million weights learns drawn cases from random weights, on two cores.

seg-jax align configs/spec/tiny.py
"""

from __future__ import annotations

from pathlib import Path

from seg_jax.models.clip.config import LEGACY_EOS, Config, Text, Vision
from seg_jax.runs import alignment
from seg_jax.training import contrastive, optimizers
from seg_jax.training.loop import Loop

WIDTH = 96
MODEL = Config(
    vision=Vision(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
    ),
    text=Text(
        vocab_size=896,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        eos_token_id=LEGACY_EOS,
    ),
    projection_dim=WIDTH,
)


def config() -> alignment.Config:
    """Returns the run: one pair each of 120 cases a step, by CLIP's own loss."""
    return alignment.Config(
        out=Path("runs/spec_tiny"),
        model=MODEL,
        feed=alignment.Feed(batch=120, whole=False),
        objective=contrastive.Objective(hard=0.0),
        optimizer=optimizers.AdamW(lr=1e-3, b2=0.98, weight_decay=0.1),
        loop=Loop(steps=440, log_every=20),
    )
