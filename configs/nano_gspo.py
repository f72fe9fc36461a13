"""GSPO of the nano model.

seg-jax reinforce configs/nano_gspo.py --checkpoint runs/nano_sft/checkpoint
"""

from seg_jax.cli import nano
from seg_jax.runs import reinforcement


def config() -> reinforcement.Config:
    """Returns the run."""
    return nano.gspo_config()
