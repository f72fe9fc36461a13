"""The terms of the reward: IoU, format, the centroid's distance.

The paper's penalty on length, which hurt, is not among them: answers here have room for four
points. All from one fine-tuned model, some five minutes a row on two cores.
seg-jax study configs/simpleseg/study_reward.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")


def _row(name: str, **weights: float) -> Variant:
    gspo = dataclasses.replace(GSPO.config(), weights=weights)
    return Variant(name=name, sft=SFT.config(), gspo=gspo)


def config() -> Study:
    """Returns a row for each choice of terms."""
    return Study(
        title="terms of the reward",
        variants=(
            _row("IoU, distance, format", iou=1.0, distance=0.2, format=0.2),
            _row("IoU, format", iou=1.0, format=0.2),
            _row("IoU alone", iou=1.0),
        ),
    )
