"""Seg-R1's first reinforcement of Qwen2.5-VL-7B: clicks alone on DIS5K.

Meant for eight H100; pods: README.md beside.
seg-jax reinforce configs/seg_r1/7b_prerl.py --checkpoint models/qwen25-vl-7b
  --segmenter models/sam2-l

Published and ours: as 3b_prerl.py.
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, reinforcement

THREE = experiments.sibling(__file__, "3b_prerl.py")
MODEL = experiments.load("simpleseg/qwen25_vl_7b_sft.py").MODEL


def config() -> reinforcement.Config:
    """Returns the run."""
    return dataclasses.replace(THREE.config(), out=Path("runs/seg_r1_7b_prerl"), model=MODEL)
