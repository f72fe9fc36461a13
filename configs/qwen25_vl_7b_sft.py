"""SimpleSeg's supervised fine-tuning of Qwen2.5-VL-7B on 800,000 samples.

Meant for v5e-256 (16x16), v5p-64 (4x4x4) or 32 x H100.
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/qwen25_vl_7b_sft.py --checkpoint models/qwen25-vl-7b
"""

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return paper.sft_config(paper.QWEN_7B, name="qwen25_vl_7b")
