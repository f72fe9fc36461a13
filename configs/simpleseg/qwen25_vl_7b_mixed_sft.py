"""Supervised fine-tuning of Qwen2.5-VL-7B on every question of the task set, none left out.

Text, points and boxes tell one object, several or none; data sets are mixed by weights. First build
what `qwen25_vl_7b_refer_sft.py` names, and grefcoco_unc and coco_instances beside it. Then
seg-jax finetune configs/simpleseg/qwen25_vl_7b_mixed_sft.py --checkpoint models/qwen25-vl-7b
Meant for v5e-256 (16x16), v5p-64 (4x4x4) or 32 x H100.
"""

import dataclasses
from pathlib import Path

from seg_jax.data.sources import Built, Mixed
from seg_jax.runs import experiments, supervised
from seg_jax.tasks.referring import Mixture

BASE = experiments.sibling(__file__, "qwen25_vl_7b_sft.py")
REFER = experiments.sibling(__file__, "qwen25_vl_7b_refer_sft.py")

SEVERAL = Built(folders=(Path("data/grefcoco_unc"),), absent=True)
"""Several objects, and none."""
SINGLY = Built(folders=(Path("data/coco_instances"),), split="train2017", singly=True)
"""For points and boxes."""
# Weights and shares are ours; nothing of the kind is published.
DATA = Mixed(parts=(REFER.DATA, SEVERAL, SINGLY), weights=(0.6, 0.25, 0.15))
QUESTIONS = Mixture(
    text_mask=0.5, text_box=0.1, text_point=0.1, point_mask=0.1, box_mask=0.1, absent=0.1
)


def config() -> supervised.Config:
    """Returns the run."""
    return dataclasses.replace(
        BASE.config(),
        out=Path("runs/qwen25_vl_7b_mixed_sft"),
        source=DATA,
        task=dataclasses.replace(BASE.TASK, mixture=QUESTIONS, wordings="more"),
    )
