"""The options of reinforcement beside plain GSPO, each alone, for the same time.

Groups that differ with further batches (DAPO), prompts by their past rewards, the true answer in
its group (ViSurf), ranks (GOPO), a KL penalty: configs/README.md has their formulas. All from one
fine-tuned model on the quickstart's pictures, paired with the first row on the same unseen scenes;
some five minutes a row on two cores.
seg-jax study configs/simpleseg/study_options.py
"""

import dataclasses
from typing import Any

from seg_jax.cli.study import Study, Variant
from seg_jax.data.priority import Priority
from seg_jax.runs import experiments
from seg_jax.training import loop

SFT = experiments.sibling(__file__, "quickstart_sft.py")
GSPO = experiments.sibling(__file__, "quickstart_gspo.py")
MINUTES = 3.6
"""Of every row: a step that draws more batches, or asks the starting weights too, takes longer."""


def _row(name: str, *, run: dict[str, Any] | None = None, **policy: Any) -> Variant:
    """Returns GSPO with changes of the run and of its policy."""
    gspo = GSPO.config()
    gspo = dataclasses.replace(
        gspo,
        policy=dataclasses.replace(gspo.policy, **policy),
        loop=loop.Loop(steps=2000, log_every=2, minutes=MINUTES),
        **(run or {}),
    )
    return Variant(name=name, sft=SFT.config(), gspo=gspo)


def config() -> Study:
    """Returns the rows, plain GSPO first."""
    return Study(
        title="options of reinforcement",
        variants=(
            _row("plain GSPO"),
            _row("groups that differ", drop_equal=True),
            _row("filled with groups that differ", drop_equal=True, run={"rounds": 3}),
            _row("by learnability", run={"priority": Priority(by="learnability")}),
            _row("by failure", run={"priority": Priority(by="failure")}),
            _row("truth in the group", truth="judged"),
            _row("truth in the group, smoothed", truth="smoothed"),
            _row("ranks", ranked=True),
            _row("KL 0.001", kl=1e-3),
            _row("KL 0.005", kl=5e-3),
        ),
    )
