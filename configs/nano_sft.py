"""Supervised fine-tuning of the nano model from random weights, minutes on a GPU.

seg-jax finetune configs/nano_sft.py
"""

from seg_jax.cli import nano
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return nano.sft_config()
