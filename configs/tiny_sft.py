"""Supervised fine-tuning of the tiny model from random weights, minutes on a laptop.

seg-jax finetune configs/tiny_sft.py
"""

from seg_jax.cli import finetune, tiny


def config() -> finetune.Config:
    """Returns the run."""
    return tiny.sft_config()
