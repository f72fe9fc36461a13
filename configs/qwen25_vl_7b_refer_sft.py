"""SimpleSeg's supervised fine-tuning of Qwen2.5-VL-7B on the refer family, without leaks.

Meant for v5p-64 (4x4x4) or 32 x H100, or v5e-256 (16x16) with --mesh.fsdp 64 --mesh.context 4: a
batch is 64 rows of about four images. First, for each data set NAME of refcoco_unc,
refcocoplus_unc, refcocog_umd and refclef_unc:
seg-jax build NAME --source refer_seg --out data/NAME     (--paper keeps what the paper keeps)
seg-jax finetune configs/qwen25_vl_7b_refer_sft.py --checkpoint models/qwen25-vl-7b
"""

import dataclasses

from seg_jax.cli import paper
from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    run = paper.sft_config(paper.QWEN_7B, name="qwen25_vl_7b_refer")
    return dataclasses.replace(run, source=paper.refer_data(), feed=paper.packed_feed())
