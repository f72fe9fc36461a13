"""Teaches a model (CLIP) which text fits which image where one attribute differs."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from seg_jax import files
from seg_jax.models.io import model_folder
from seg_jax.models.parallel import sharding
from seg_jax.runs import alignment, console, matching, stage
from seg_jax.runs.alignment import Config

__all__ = ["Config", "main"]


def main(config: Config) -> int:
    """Runs the stage; prints where the model is, and how well it does before and after."""
    config = config.completed()
    plan = config.plan(jax.devices())
    _ = plan.state, plan.rows  # What the devices do not divide is refused before a folder is made.
    with stage.hold_folder(config):
        words, source = alignment.tokenizer(config)
        told: dict[str, Any] = {}
        if config.held_out:
            first = sharding.gather(plan.first_weights())
            told["before"] = alignment.tried(config, nnx.merge(plan.graph, first), words)
        with stage.open_log(config.out) as log:
            trained = alignment.train(config, words, stage.Place(config.out, "align", log))
        model = nnx.merge(plan.graph, sharding.gather(trained.state.params))
        folder = config.out / "checkpoint"
        model_folder.save(model, folder, source=source)
        told |= {"seconds": round(trained.seconds, 1), "steps": int(trained.state.step)}
        if config.held_out:
            told["after"] = alignment.tried(config, model, words)
        files.write_json(config.out / "summary.json", told)
        if config.held_out:
            matching.show(told["after"]["cases"])
            for when in ("before", "after"):
                names, cases = told[when]["names"], told[when]["cases"]
                console.say(
                    f"{when}: mean of right choices {cases['mean']:.3f} (chance "
                    f"{cases['chance']:.3f}), names {names['mean']:.3f} "
                    f"[{names['low']:.3f}, {names['high']:.3f}]"
                )
        console.tell(folder)
    return 0
