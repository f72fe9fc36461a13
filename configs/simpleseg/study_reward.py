"""The terms of the reward: IoU, with the centroid's distance, with a penalty on length.

The length penalty is the paper's ablation; here every answer has room for ten points while the
teacher has four. All from one fine-tuned model, some five minutes a row on two cores.
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
