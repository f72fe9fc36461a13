"""SimpleSeg's supervised fine-tuning of Kimi-VL-A3B on 800,000 samples.

Meant for v6e-64 (8x8) or v5p-64 (4x4x4).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/simpleseg/kimi_vl_a3b_sft.py --checkpoint models/kimi-vl-a3b
"""

import dataclasses
from pathlib import Path

from seg_jax.data.encode import Layout, Native
from seg_jax.models.vlm import kimi_vl
from seg_jax.runs import experiments, supervised
from seg_jax.training import steps

QWEN = experiments.sibling(__file__, "qwen25_vl_7b_sft.py")
MODEL = kimi_vl.Config()
LAYOUT = dataclasses.replace(QWEN.LAYOUT, native=Native(limit=1780), max_pixels=Layout.max_pixels)
"""Images at their own size, as Kimi reads them; framed, whatever their shape, these patches fit."""


def config() -> supervised.Config:
    """Returns the run."""
    return dataclasses.replace(
        QWEN.config(),
        out=Path("runs/kimi_vl_a3b_sft"),
        model=MODEL,
        layout=LAYOUT,
        # MoonViT is 1152 wide, which no more chips divide: copies of 64 shards.
        mesh=steps.Mesh(data=-1, fsdp=64),
    )
