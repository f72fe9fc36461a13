"""Fine-tuning of the quickstart's pretrained model on outlines of four points, without an end.

What came of it, twice one after the other, is the model that the quickstart starts from
(seg_jax/cli/quickstart_start): with fresh scenes all the time it is as finished as its teacher's
outlines let it be. The second time: `--checkpoint runs/quickstart_start/checkpoint --out runs/again
--loop.steps 5000 --source.seed 3001 --optimizer.lr 3e-3`. A quarter of an hour and an hour on one
core.
seg-jax finetune configs/simpleseg/quickstart_start.py --checkpoint runs/quickstart_base/checkpoint
"""

import dataclasses
from pathlib import Path

from seg_jax.runs import experiments, supervised
from seg_jax.tasks.referring import Mixture
from seg_jax.training import loop, sft

BASE = experiments.sibling(__file__, "quickstart_base.py")
POINTS = 4
"""Of an outline: on a curve they lie on the border and cut it short, as outlines do that are
simplified to a budget of tokens."""
TASK = dataclasses.replace(BASE.TASK, mixture=Mixture(), max_points=POINTS)
"""Outlines of what text tells of."""


def answer_tokens(points: int) -> int:
    """Returns the tokens of an outline of so many points with its end: room for no more."""
    return 2 * points + 3


def config() -> supervised.Config:
    """Returns the run."""
    base = BASE.config()
    return dataclasses.replace(
        base,
        out=Path("runs/quickstart_start"),
        source=BASE.scenes(seed=3000),
        task=TASK,
        layout=dataclasses.replace(BASE.LAYOUT, max_answer=answer_tokens(POINTS)),
        feed=dataclasses.replace(base.feed, questions=4, packed_tokens=48),
        objective=sft.Objective(soften_bins=1.0),
        loop=loop.Loop(steps=2000, log_every=20),
    )
