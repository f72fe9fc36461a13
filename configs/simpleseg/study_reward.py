"""The terms of the reward: IoU, format, the centroid's distance, a penalty on length.

The paper says that a penalty on length did harm, and not how it was counted: here an answer that
takes all its room loses PENALTY, a shorter one in proportion. Answers have room for four points and
may have three. All from one fine-tuned model, some five minutes a row on two cores.
seg-jax study configs/simpleseg/study_reward.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")


PENALTY = 0.2
"""Lost by the longest answer: a point of four is worth two elevenths of it, 0.036."""


def _row(name: str, *, penalty: float = 0.0, **weights: float) -> Variant:
    gspo = GSPO.config()
    policy = dataclasses.replace(gspo.policy, length_penalty=penalty)
    gspo = dataclasses.replace(gspo, weights=weights, policy=policy)
    return Variant(name=name, sft=SFT.config(), gspo=gspo)


def config() -> Study:
    """Returns a row for each choice of terms."""
    return Study(
        title="terms of the reward",
        variants=(
            _row("IoU, distance, format", iou=1.0, distance=0.2, format=0.2),
            _row("IoU, format", iou=1.0, format=0.2),
            _row("IoU alone", iou=1.0),
            _row("with a penalty on length", penalty=PENALTY, iou=1.0, distance=0.2, format=0.2),
        ),
    )
