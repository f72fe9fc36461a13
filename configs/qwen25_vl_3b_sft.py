"""Supervised fine-tuning of Qwen2.5-VL-3B as SimpleSeg's of the 7B.

Meant for v5e-64 (8x8) or v6e-64 (8x8).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/qwen25_vl_3b_sft.py --checkpoint models/qwen25-vl-3b
"""

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return paper.sft_config(paper.QWEN_3B, name="qwen25_vl_3b")
