"""SFT only, reinforcement only, both: what each stage is for.

Some five minutes a row on two cores.
seg-jax study configs/simpleseg/study_stages.py
"""

from seg_jax.cli.study import Study, Variant
from seg_jax.runs import experiments

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")


def config() -> Study:
    """Returns a row for each choice of stages."""
    sft, gspo = SFT.config(), GSPO.config()
    return Study(
        title="stages",
        variants=(
            Variant(name="SFT only", sft=sft),
            Variant(name="GSPO only", gspo=gspo),
            Variant(name="SFT, then GSPO", sft=sft, gspo=gspo),
        ),
    )
