"""Supervised fine-tuning of Qwen2.5-VL-72B as SimpleSeg's of the 7B.

Meant for v5p-128 (4x4x8).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/qwen25_vl_72b_sft.py --checkpoint models/qwen25-vl-72b
"""

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return paper.sft_config(paper.QWEN_72B, name="qwen25_vl_72b")
