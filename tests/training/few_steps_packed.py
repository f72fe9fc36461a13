"""Three steps of supervised fine-tuning on packed rows, for several processes."""

import dataclasses

import few_steps_sft
import small_run

from seg_jax.runs import supervised


def config() -> supervised.Config:
    """Returns the run."""
    base = few_steps_sft.config()
    return dataclasses.replace(base, feed=dataclasses.replace(base.feed, pack=small_run.PACK))
