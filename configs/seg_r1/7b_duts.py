"""Seg-R1's optional last stage of the 7B: reinforcement on salient objects, DUTS.

Meant for eight H100; pods: README.md beside.
seg-jax reinforce configs/seg_r1/7b_duts.py --checkpoint runs/seg_r1_7b_rl/checkpoint
  --segmenter models/sam2-l

Published and ours: as 3b_duts.py.
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, reinforcement

THREE = experiments.sibling(__file__, "3b_duts.py")
MODEL = experiments.load("simpleseg/qwen25_vl_7b_sft.py").MODEL


def config() -> reinforcement.Config:
    """Returns the run."""
    return dataclasses.replace(THREE.config(), out=Path("runs/seg_r1_7b_duts"), model=MODEL)
