"""Supervised fine-tuning of Qwen2.5-VL-7B on every question of the task set, none left out.

Text, points and boxes tell one object, several or none; data sets are mixed by weights. First build
what `qwen25_vl_7b_refer_sft.py` names, and grefcoco_unc and coco_instances beside it. Then
seg-jax finetune configs/qwen25_vl_7b_mixed_sft.py --checkpoint models/qwen25-vl-7b
Meant for v5e-256 (16x16), v5p-64 (4x4x4) or 32 x H100.
"""

import dataclasses

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    run = paper.sft_config(paper.QWEN_7B, name="qwen25_vl_7b_mixed")
    task = dataclasses.replace(run.task, mixture=paper.all_questions(), wordings="more")
    return dataclasses.replace(run, source=paper.mixed_data(), task=task)
