"""GSPO on several things at once and on what is not there, from `several_sft.py`.

The reward is that of one thing: the IoU of all that is outlined, and 1 for [] where nothing is
meant. It says nothing of single things: whether they are found, and outlined once each, is what
the evaluation tells, before and after. Without --checkpoint it begins where the fine-tuning does.
seg-jax reinforce configs/simpleseg/several_gspo.py --checkpoint runs/several_sft/checkpoint
seg-jax evaluate --checkpoint runs/several_sft/checkpoint --world several --protocol gres
  --out runs/several_before
seg-jax evaluate --checkpoint runs/several_gspo/checkpoint --world several --protocol gres
  --out runs/several_after --beside runs/several_before
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, reinforcement

SFT = experiments.sibling(__file__, "several_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")


def config() -> reinforcement.Config:
    """Returns the run: the quickstart's, on other pictures and with room for three outlines."""
    base, taught = GSPO.config(), SFT.config()
    return dataclasses.replace(
        base,
        out=Path("runs/several_gspo"),
        checkpoint=taught.checkpoint,
        source=taught.source,
        task=taught.task,
        layout=taught.layout,
        sampling=dataclasses.replace(base.sampling, max_tokens=taught.layout.max_answer),
        validate=dataclasses.replace(base.validate, samples=512),
    )
