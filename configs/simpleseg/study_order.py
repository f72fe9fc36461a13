"""The order of vertices: clockwise from the top, counterclockwise, from anywhere, none at all.

Fine-tuning and GSPO each, some six minutes a row on two cores.
seg-jax study configs/simpleseg/study_order.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")


def _row(name: str, **changes: str) -> Variant:
    sft, gspo = (
        dataclasses.replace(run, task=dataclasses.replace(run.task, **changes))
        for run in (SFT.config(), GSPO.config())
    )
    return Variant(name=name, sft=sft, gspo=gspo)


def config() -> Study:
    """Returns a row for each order."""
    return Study(
        title="order of vertices",
        variants=(
            _row("clockwise from the top"),
            _row("counterclockwise from the top", order="counterclockwise"),
            _row("clockwise from anywhere", start="random"),
            _row("shuffled", order="shuffled"),
        ),
    )
