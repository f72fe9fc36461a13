"""GSPO of the nano model.

seg-jax reinforce configs/nano_gspo.py --checkpoint runs/nano_sft/checkpoint
"""

from seg_jax.cli import nano, reinforce


def config() -> reinforce.Config:
    """Returns the run."""
    return nano.gspo_config()
