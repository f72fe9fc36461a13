"""Outlines of 4, 6 and 10 points: where more points are worth as much as reinforcement.

Each is fine-tuned until held-out pictures stop improving, then reinforced, or fine-tuned further
for as long. Some seven minutes a row on two cores.
seg-jax study configs/simpleseg/study_points.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments
from seg_jax.training import loop

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")
MINUTES = 3.8
"""Of the last stage of each row."""


def _rows(points: int) -> tuple[Variant, ...]:
    taught = SFT.config(points=points)
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
    rows = tuple(row for points in (4, 6, 10) for row in _rows(points))
    return Study(title="points of an outline", variants=rows)
