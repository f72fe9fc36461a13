"""The tolerance of outlines: tokens against gIoU, before and after GSPO (SimpleSeg, section 4).

The number of points is left open; the tolerance decides on it. Some six minutes a row on two cores.
seg-jax study configs/simpleseg/study_epsilon.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")
TOLERANCES = (0.16, 0.08, 0.04, 0.02, 0.01)
POINTS = 12
"""More than any tolerance of these asks for."""


def _row(epsilon: float) -> Variant:
    sft, gspo = (
        dataclasses.replace(run, task=dataclasses.replace(run.task, epsilon=epsilon))
        for run in (SFT.config(points=POINTS), GSPO.config(points=POINTS))
    )
    return Variant(name=f"epsilon {epsilon:g}", sft=sft, gspo=gspo)


def config() -> Study:
    """Returns a row for each tolerance."""
    return Study(title="tolerance of outlines", variants=tuple(map(_row, TOLERANCES)))
