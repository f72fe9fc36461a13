"""Seg-R1's reinforcement of the 7B: thought, boxes and clicks on COD10K and CAMO.

Meant for eight H100; pods: README.md beside.
seg-jax reinforce configs/seg_r1/7b_rl.py --checkpoint runs/seg_r1_7b_prerl/checkpoint
  --segmenter models/sam2-l

Published and ours: as 3b_rl.py.
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, reinforcement

THREE = experiments.sibling(__file__, "3b_rl.py")
MODEL = experiments.load("simpleseg/qwen25_vl_7b_sft.py").MODEL


def config() -> reinforcement.Config:
    """Returns the run."""
    return dataclasses.replace(THREE.config(), out=Path("runs/seg_r1_7b_rl"), model=MODEL)
