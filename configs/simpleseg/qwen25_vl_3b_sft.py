"""Supervised fine-tuning of Qwen2.5-VL-3B as SimpleSeg's of the 7B.

Meant for v5e-64 (8x8) or v6e-64 (8x8).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/simpleseg/qwen25_vl_3b_sft.py --checkpoint models/qwen25-vl-3b
"""

import dataclasses
from pathlib import Path

from seg_jax.models.vlm import qwen25_vl
from seg_jax.runs import experiments, supervised

SEVEN = experiments.sibling(__file__, "qwen25_vl_7b_sft.py")
MODEL = qwen25_vl.Config(
    text=qwen25_vl.Text(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
    ),
    tie_word_embeddings=True,
)


def config() -> supervised.Config:
    """Returns the run."""
    return dataclasses.replace(SEVEN.config(), out=Path("runs/qwen25_vl_3b_sft"), model=MODEL)
