"""Fine-tuning of Qwen2.5-VL-7B on FCoT, as Seg-R1's of the 3B.

Meant for eight H100; pods: README.md beside.
seg-jax finetune configs/seg_r1/7b_sft.py --checkpoint models/qwen25-vl-7b

Published and ours: as 3b_sft.py; the release fine-tunes the 3B alone.
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, supervised

THREE = experiments.sibling(__file__, "3b_sft.py")
MODEL = experiments.load("simpleseg/qwen25_vl_7b_sft.py").MODEL


def config() -> supervised.Config:
    """Returns the run."""
    return dataclasses.replace(THREE.config(), out=Path("runs/seg_r1_7b_sft"), model=MODEL)
