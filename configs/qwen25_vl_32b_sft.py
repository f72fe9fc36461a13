"""Supervised fine-tuning of Qwen2.5-VL-32B as SimpleSeg's of the 7B.

Meant for v5p-128 (4x4x8) or v5e-256 (16x16).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/qwen25_vl_32b_sft.py --checkpoint models/qwen25-vl-32b
"""

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return paper.sft_config(paper.QWEN_32B, name="qwen25_vl_32b")
