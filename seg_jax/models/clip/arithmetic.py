"""The products of a CLIP: one multiplication with one addition is two operations.

Counted are products of matrices; norms, softmax and the like are left out.
"""

from __future__ import annotations

from seg_jax.models.clip.config import Config, Text, Vision


def image(config: Config) -> float:
    """Returns the operations of encoding one image."""
    vision = config.vision
    patches = 2.0 * vision.patches * 3 * vision.patch_size**2 * vision.hidden_size
    ends = 2.0 * vision.hidden_size * config.projection_dim
    return patches + _blocks(vision, vision.patches + 1) + ends


def text(config: Config) -> float:
    """Returns the operations of encoding one text of the full length."""
    tower = config.text
    return _blocks(tower, config.length) + 2.0 * tower.hidden_size * config.projection_dim


def _blocks(tower: Vision | Text, tokens: int) -> float:
    """Returns the operations of all blocks; masked scores are computed like the others."""
    width, ffn = tower.hidden_size, tower.intermediate_size
    weights = 4 * width**2 + 2 * width * ffn
    return tower.num_hidden_layers * (2.0 * tokens * weights + 4.0 * tokens**2 * width)
