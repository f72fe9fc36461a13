"""Supervised fine-tuning: random or given weights learn to answer as the samples' truth does."""

from __future__ import annotations

from seg_jax.runs import console, datasets, memory_fitting, stage, start, supervised, validation
from seg_jax.runs.supervised import Config
from seg_jax.training import processes

__all__ = ["Config", "main"]


def main(config: Config) -> int:
    """Runs the stage; prints where the model is."""
    config = config.completed()
    with processes.join(config.processes):
        start.check_divisions(config)
        config = memory_fitting.for_devices(config, ("sft",))
        config = datasets.with_source(config)
        validation.check(config)
        # A wrong --checkpoint must not cost the run that --anew replaces.
        begin = None if config.checkpoint is None else start.from_checkpoint(config)
        with stage.hold_folder(config, reads=datasets.folders_read(config)):
            with stage.open_log(config.out) as log:
                begin = begin or processes.run_first_then_others(
                    lambda: start.with_random_weights(config, config.out / "tokenizer")
                )
                place = stage.Place(config.out, "sft", log)
                trained = supervised.train(config, begin, place)
            stage.save_model(config, begin, trained.state)
            stage.tell_best(config.out, "sft", trained)
            if processes.is_first():
                console.tell(config.out / "checkpoint")
    return 0
