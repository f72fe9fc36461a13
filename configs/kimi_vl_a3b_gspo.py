"""SimpleSeg's GSPO of Kimi-VL-A3B on 400,000 prompts.

Meant for v5p-64 (4x4x4).
Data are drawn scenes; built data sets take their place with `source=paper.refer_data()`.
seg-jax reinforce configs/kimi_vl_a3b_gspo.py --checkpoint runs/kimi_vl_a3b_sft/checkpoint
"""

from seg_jax.cli import paper
from seg_jax.runs import reinforcement


def config() -> reinforcement.Config:
    """Returns the run."""
    return paper.gspo_config(paper.KIMI_A3B, name="kimi_vl_a3b")
