"""Supervised fine-tuning of the tiny model from random weights, minutes on a laptop.

seg-jax finetune configs/tiny_sft.py
"""

from seg_jax.cli import tiny
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return tiny.sft_config()
