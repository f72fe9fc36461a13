"""Supervised fine-tuning of Qwen2.5-VL-72B as SimpleSeg's of the 7B.

Meant for v5p-128 (4x4x8).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/simpleseg/qwen25_vl_72b_sft.py --checkpoint models/qwen25-vl-72b
"""

import dataclasses
from pathlib import Path

from seg_jax.models.vlm import qwen25_vl
from seg_jax.runs import experiments, supervised

SEVEN = experiments.sibling(__file__, "qwen25_vl_7b_sft.py")
MODEL = qwen25_vl.Config(
    text=qwen25_vl.Text(
        vocab_size=152_064,
        hidden_size=8192,
        intermediate_size=29_568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
    vision=qwen25_vl.Vision(intermediate_size=3456),
)


def config() -> supervised.Config:
    """Returns the run."""
    return dataclasses.replace(SEVEN.config(), out=Path("runs/qwen25_vl_72b_sft"), model=MODEL)
