"""GSPO of the tiny model from a supervised one, minutes on a laptop.

seg-jax reinforce configs/tiny_gspo.py --checkpoint runs/tiny_sft/checkpoint
"""

from seg_jax.cli import tiny
from seg_jax.runs import reinforcement


def config() -> reinforcement.Config:
    """Returns the run."""
    return tiny.gspo_config()
