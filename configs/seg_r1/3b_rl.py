"""Seg-R1's reinforcement of the 3B: thought, boxes and clicks on COD10K and CAMO.

Meant for eight H100; pods: README.md beside.
seg-jax reinforce configs/seg_r1/3b_rl.py --checkpoint runs/seg_r1_3b_prerl/checkpoint
  --segmenter models/sam2-l

Published (arXiv 2506.22624 and its release): two passes over both, answers of up to 400 tokens,
else as 3b_prerl.py. The other recipe begins at --checkpoint runs/seg_r1_3b_sft/checkpoint.
"""

import dataclasses
from pathlib import Path

from seg_jax.data.sources import Built
from seg_jax.runs import experiments, reinforcement
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import loop

FIRST = experiments.sibling(__file__, "3b_prerl.py")
QUESTION = 128
LAYOUT = dataclasses.replace(
    FIRST.LAYOUT, max_prompt=FIRST.VISUAL_TOKENS + 247 + QUESTION, max_question=QUESTION
)
"""The wording takes 78 tokens behind the image and some 187 before it, where the system turn is."""


def config() -> reinforcement.Config:
    """Returns the run."""
    base = FIRST.config()
    return dataclasses.replace(
        base,
        out=Path("runs/seg_r1_3b_rl"),
        task=Prompted(stage="rl", square=True),
        layout=LAYOUT,
        source=Built(folders=(Path("data/cod10k"), Path("data/camo")), singly=True),
        sampling=dataclasses.replace(base.sampling, max_tokens=400),
        loop=loop.Loop(epochs=2, save_minutes=20.0),
    )
