"""Several things at once and what is not there: fine-tuned, then reinforced or fine-tuned further.

All from one fine-tuning that goes on until held-out pictures stop improving, then the same time for
both, and the same unseen scenes. Beside the IoU the table tells how often what is missing is denied
(N-acc) and what is there is not (T-acc), how many of several things are outlined, and how many
outlines repeat another of the same answer. Some forty minutes on two cores.
seg-jax study configs/simpleseg/study_several.py
"""

import dataclasses

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments
from seg_jax.training import loop

SFT = experiments.sibling(__file__, "several_sft.py")
GSPO = experiments.sibling(__file__, "several_gspo.py")
MINUTES = 6.0
"""Of the last stage of both."""


def config() -> Study:
    """Returns the fine-tuning, and what comes of it in two ways."""
    sft, gspo = SFT.config(), GSPO.config()
    gspo = dataclasses.replace(gspo, loop=loop.Loop(steps=2000, log_every=2, minutes=MINUTES))
    more = dataclasses.replace(
        sft,
        optimizer=dataclasses.replace(sft.optimizer, lr=5e-4),
        loop=loop.Loop(steps=100_000, minutes=MINUTES),
        validate=dataclasses.replace(sft.validate, patience=None),
    )
    return Study(
        title="several things and none",
        variants=(
            Variant(name="SFT", sft=sft),
            Variant(name="SFT, then GSPO", sft=sft, gspo=gspo),
            Variant(name="SFT, then more SFT", sft=sft, more_sft=more),
        ),
        asked=SFT.scenes(seed=0),
    )
