"""CLIP ViT-B/32 taught by SPEC's loss with hard negatives, from the published weights.

Published (arXiv 2312.00081 and its poster): the model and the loss. Its rate, batch, weight of the
hard terms and length are not known; ours are of the range that NegCLIP documents: AdamW 1e-6, b2
0.98, decay 0.2, 50 steps of warm-up of 5,000, hard 1, cases drawn here.
seg-jax align configs/spec/clip_b32.py --checkpoint models/clip-b32
"""

from __future__ import annotations

from pathlib import Path

from seg_jax.models.clip.config import LEGACY_EOS, Config, Text
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import alignment
from seg_jax.scenes import contrasts
from seg_jax.training import optimizers, steps
from seg_jax.training.loop import Loop

MODEL = Config(text=Text(eos_token_id=LEGACY_EOS))
"""As `openai/clip-vit-base-patch32` has it."""


def config() -> alignment.Config:
    """Returns the run: 240 pairs a step, weights whole on every device."""
    return alignment.Config(
        out=Path("runs/spec_clip_b32"),
        model=MODEL,
        compute=Compute(dtype="bfloat16"),
        mesh=steps.Mesh(data=-1, fsdp=1),
        cases=contrasts.Config(side=224),
        feed=alignment.Feed(batch=240),
        optimizer=optimizers.AdamW(
            lr=1e-6,
            b2=0.98,
            weight_decay=0.2,
            schedule=optimizers.Schedule(warmup=0.01, final=0.0),
        ),
        loop=Loop(steps=5000, log_every=50),
    )
