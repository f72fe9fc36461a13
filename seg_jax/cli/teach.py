"""Teaches a segmenter (SAM 2) the masks of drawn scenes, asked for by boxes and clicks."""

from __future__ import annotations

import jax
from flax import nnx

from seg_jax import files
from seg_jax.models.io import model_folder
from seg_jax.models.parallel import sharding
from seg_jax.runs import console, stage, teaching
from seg_jax.runs.teaching import Config

__all__ = ["Config", "main"]


def main(config: Config) -> int:
    """Runs the stage; prints where the model is and how well it does on scenes it has not seen."""
    config = config.completed()
    plan = config.plan(jax.devices())
    _ = plan.state, plan.rows  # What the devices do not divide is refused before a folder is made.
    with stage.hold_folder(config):
        with stage.open_log(config.out) as log:
            trained = teaching.train(config, stage.Place(config.out, "teach", log))
        model = nnx.merge(plan.graph, sharding.gather(trained.state.params))
        folder = config.out / "checkpoint"
        model_folder.save(model, folder, source=config.checkpoint)
        told = {"seconds": round(trained.seconds, 1), "steps": int(trained.state.step)}
        told |= teaching.tried(config, model)
        files.write_json(config.out / "summary.json", told)
        console.say(" ".join(f"{name} {value:.4g}" for name, value in told.items()))
        console.tell(folder)
    return 0
