"""The tolerance of outlines: tokens against gIoU, before and after GSPO (SimpleSeg, section 4).

The number of points is left open; the tolerance decides on it. All begin with the quickstart's
start, which has seen outlines of four points only: the fine-tuning has steps enough for more, and
ends when held-out pictures have not improved for long. Up to twenty minutes a row on two cores.
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


STEPS, PATIENCE = 2500, 6
"""Most steps of the fine-tuning; validations, 100 steps apart, that may bring no new best."""


def _row(epsilon: float) -> Variant:
    sft, gspo = (
        dataclasses.replace(run, task=dataclasses.replace(run.task, epsilon=epsilon))
        for run in (SFT.config(points=POINTS), GSPO.config(points=POINTS))
    )
    sft = dataclasses.replace(
        sft,
        loop=dataclasses.replace(sft.loop, steps=STEPS),
        validate=dataclasses.replace(sft.validate, every=100, patience=PATIENCE),
    )
    return Variant(name=f"epsilon {epsilon:g}", sft=sft, gspo=gspo)


def config() -> Study:
    """Returns a row for each tolerance."""
    return Study(title="tolerance of outlines", variants=tuple(map(_row, TOLERANCES)))
