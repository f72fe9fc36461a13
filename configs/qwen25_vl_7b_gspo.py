"""SimpleSeg's GSPO of Qwen2.5-VL-7B on 400,000 prompts.

Meant for v5p-64 (4x4x4) or v5e-256 (16x16).
Data are drawn scenes; built data sets take their place with `source=paper.refer_data()`.
seg-jax reinforce configs/qwen25_vl_7b_gspo.py --checkpoint runs/qwen25_vl_7b_sft/checkpoint
"""

from seg_jax.cli import paper
from seg_jax.runs import reinforcement


def config() -> reinforcement.Config:
    """Returns the run."""
    return paper.gspo_config(paper.QWEN_7B, name="qwen25_vl_7b")
