"""SAM 2.1 large at work, one image a device: what `compile` says of its encoder and decoder.

Published by Meta: the sizes. Ours: bfloat16, weights whole on every device, 16 prompts an image.
"""

from __future__ import annotations

from seg_jax.models.sam2 import meta_names
from seg_jax.models.sam2.config import Config
from seg_jax.runs import segmentation
from seg_jax.training import steps


def config() -> segmentation.Config:
    """Returns the run for eight devices; --images has to be a multiple of the devices."""
    return segmentation.Config(
        model=Config(backbone=meta_names.LARGE),
        mesh=steps.Mesh(data=-1, fsdp=1),
        images=8,
        prompts=16,
        points=16,
    )
