"""GSPO of nano for images of any shape, from the fine-tuned one.

Settings of `nano_gspo.py`; a tenth of the questions is about what is not there.
seg-jax reinforce configs/simpleseg/nano_shapes_gspo.py --checkpoint runs/nano_shapes_sft/checkpoint
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, reinforcement
from seg_jax.tasks.referring import Mixture

GSPO = experiments.sibling(__file__, "nano_gspo.py")
SFT = experiments.sibling(__file__, "nano_shapes_sft.py")


def config() -> reinforcement.Config:
    """Returns the run."""
    base = GSPO.config()
    return dataclasses.replace(
        base,
        out=Path("runs/nano_shapes_gspo"),
        task=dataclasses.replace(SFT.TASK, mixture=Mixture(absent=0.1)),
        layout=SFT.LAYOUT,
        source=SFT.mixed(seed=4000),
        sampling=dataclasses.replace(base.sampling, max_tokens=SFT.LAYOUT.max_answer),
    )
