"""Supervised fine-tuning of the nano model from random weights, minutes on a GPU.

seg-jax finetune configs/nano_sft.py
"""

from seg_jax.cli import finetune, nano


def config() -> finetune.Config:
    """Returns the run."""
    return nano.sft_config()
