"""SimpleSeg's GSPO of Kimi-VL-A3B on 400,000 prompts.

Meant for v5p-64 (4x4x4).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax reinforce configs/simpleseg/kimi_vl_a3b_gspo.py --checkpoint runs/kimi_vl_a3b_sft/checkpoint
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, reinforcement

SFT = experiments.sibling(__file__, "kimi_vl_a3b_sft.py")
QWEN = experiments.sibling(__file__, "qwen25_vl_7b_gspo.py")


def config() -> reinforcement.Config:
    """Returns the run."""
    return dataclasses.replace(
        QWEN.config(), out=Path("runs/kimi_vl_a3b_gspo"), model=SFT.MODEL, layout=SFT.LAYOUT
    )
