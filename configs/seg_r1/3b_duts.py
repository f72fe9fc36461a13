"""Seg-R1's optional last stage of the 3B: reinforcement on salient objects, DUTS.

Meant for eight H100; pods: README.md beside.
seg-jax reinforce configs/seg_r1/3b_duts.py --checkpoint runs/seg_r1_3b_rl/checkpoint
  --segmenter models/sam2-l

Published (arXiv 2506.22624 and its release): one pass, else as 3b_rl.py.
"""

import dataclasses
from pathlib import Path

from seg_jax.data.sources import Built
from seg_jax.runs import experiments, reinforcement
from seg_jax.training import loop

BASE = experiments.sibling(__file__, "3b_rl.py")


def config() -> reinforcement.Config:
    """Returns the run."""
    return dataclasses.replace(
        BASE.config(),
        out=Path("runs/seg_r1_3b_duts"),
        source=Built(folders=(Path("data/duts"),), singly=True),
        loop=loop.Loop(epochs=1, save_minutes=20.0),
    )
