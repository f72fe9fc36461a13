"""GSPO of the tiny model from a supervised one, minutes on a laptop.

seg-jax reinforce configs/tiny_gspo.py --checkpoint runs/tiny_sft/checkpoint
"""

from seg_jax.cli import reinforce, tiny


def config() -> reinforce.Config:
    """Returns the run."""
    return tiny.gspo_config()
