"""SimpleSeg's supervised fine-tuning of Kimi-VL-A3B on 800,000 samples.

Meant for v6e-64 (8x8) or v5p-64 (4x4x4).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/kimi_vl_a3b_sft.py --checkpoint models/kimi-vl-a3b
"""

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    return paper.sft_config(paper.KIMI_A3B, name="kimi_vl_a3b")
