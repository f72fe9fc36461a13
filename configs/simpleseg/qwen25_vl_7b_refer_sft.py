"""SimpleSeg's supervised fine-tuning of Qwen2.5-VL-7B on the refer family, without leaks.

Meant for v5p-64 (4x4x4) or 32 x H100, or v5e-256 (16x16) with --mesh.fsdp 64 --mesh.context 4: a
batch is 64 rows of about four images. First, for each data set NAME of refcoco_unc,
refcocoplus_unc, refcocog_umd and refclef_unc:
seg-jax build NAME --source refer_seg --out data/NAME     (--paper keeps what the paper keeps)
seg-jax finetune configs/simpleseg/qwen25_vl_7b_refer_sft.py --checkpoint models/qwen25-vl-7b
"""

import dataclasses
from pathlib import Path

from seg_jax.data.packing import Pack
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Built
from seg_jax.runs import experiments, supervised

BASE = experiments.sibling(__file__, "qwen25_vl_7b_sft.py")
NAMES = ("refcoco_unc", "refcocoplus_unc", "refcocog_umd", "refclef_unc")
DATA = Built(folders=tuple(Path("data") / name for name in NAMES))
"""The data sets that SimpleSeg was trained on, as `seg-jax build` leaves them."""


def config() -> supervised.Config:
    """Returns the run: rows of about four images, so that a batch is about 256 of them."""
    return dataclasses.replace(
        BASE.config(),
        out=Path("runs/qwen25_vl_7b_refer_sft"),
        source=DATA,
        feed=Feed(batch=64, workers=8, pack=Pack(tokens=3072, patches=6656)),
    )
