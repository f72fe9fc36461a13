"""Outlines of 4, 6 and 10 points: where more points are worth as much as reinforcement.

All begin with the quickstart's start, which is finished at 4 points and has never seen more. So 6
and 10 points have steps enough to get there, until held-out pictures have not improved for PATIENCE
validations; each goes on from its best weights. Then it is reinforced, or fine-tuned further for as
long. Some seven minutes a row of 4 points on two cores, up to three times that with more.
seg-jax study configs/simpleseg/study_points.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments, supervised
from seg_jax.training import loop

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")
MINUTES = 3.8
"""Of the last stage of each row."""
STEPS = {4: 500, 6: 2000, 10: 3000}
"""Most steps of the fine-tuning, by the number of points."""
PATIENCE = 6
"""Validations, 100 steps apart, that may bring no new best before it ends."""


def _taught(points: int) -> supervised.Config:
    base = SFT.config(points=points)
    return dataclasses.replace(
        base,
        loop=dataclasses.replace(base.loop, steps=STEPS[points]),
        validate=dataclasses.replace(base.validate, every=100, patience=PATIENCE),
    )


def _rows(points: int) -> tuple[Variant, ...]:
    taught = _taught(points)
    more = dataclasses.replace(
        taught,
        optimizer=dataclasses.replace(taught.optimizer, lr=5e-4),
        loop=loop.Loop(steps=100_000, minutes=MINUTES),
        validate=dataclasses.replace(taught.validate, patience=None),
    )
    gspo = GSPO.config(points=points)
    gspo = dataclasses.replace(gspo, loop=dataclasses.replace(gspo.loop, minutes=MINUTES))
    return (
        Variant(name=f"{points} points, GSPO", sft=taught, gspo=gspo),
        Variant(name=f"{points} points, more SFT", sft=taught, more_sft=more),
    )


def config() -> Study:
    """Returns the rows: every number of points twice, for the same time."""
    rows = tuple(row for points in STEPS for row in _rows(points))
    return Study(title="points of an outline", variants=rows)
