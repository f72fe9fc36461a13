"""Reinforcement learning: a model samples answers, they are judged, the better ones gain (GSPO)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seg_jax.cli import arguments
from seg_jax.data import image_files
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.records import Prompts, Rollout
from seg_jax.report import exhibits, html_page, metrics_log, panels
from seg_jax.runs import (
    console,
    datasets,
    memory_fitting,
    own_rewards,
    reinforcement,
    run_folder,
    stage,
    start,
    validation,
)
from seg_jax.runs.reinforcement import Config
from seg_jax.training import processes

__all__ = ["Config", "main"]


def main(config: Config) -> int:
    """Runs the stage; prints where the model is."""
    if config.checkpoint is None:
        raise arguments.UsageError(
            "checkpoint: expected --checkpoint FOLDER to start from, got none; "
            "do: train one with: seg-jax finetune configs/simpleseg/tiny_sft.py"
        )
    config.log.check()
    config = config.completed()
    frozen_segmenter.check_weights(config.segmenter)
    with processes.join(config.processes):
        start.check_divisions(config)
        config = memory_fitting.for_devices(
            config, ("sample", *["gather"][: config.gathers], "update")
        )
        config = datasets.with_source(config)
        config.check_finite()
        blank = start.blank_from_checkpoint(config) if config.reward else None
        rewarded = own_rewards.of_run(config, blank)
        config = rewarded.run
        validation.check(config)
        begin = start.from_checkpoint(config)
        with stage.hold_folder(
            config, reads=datasets.folders_read(config), rewards=rewarded.functions
        ):
            task, mesh = begin.bundle.task, config.mesh.build()
            frozen = frozen_segmenter.load(task, config.segmenter, on=mesh)
            gallery = Gallery(config, begin.bundle, frozen)
            with stage.open_log(config.out, config.log) as log:
                place = stage.Place(config.out, "gspo", log)
                trained = reinforcement.train(
                    config,
                    begin,
                    place,
                    show=gallery.show,
                    frozen=frozen,
                    rewarded=rewarded,
                )
            task = reinforcement.task_to_save(config)
            stage.save_model(config, begin, trained.state, task=task)
            best = stage.tell_best(config.out, "gspo", trained)
            if processes.is_first():
                _report(config, gallery, best)
                console.tell(config.out / "checkpoint")
    return 0


class Gallery:
    """Draws sampled answers every few steps into OUT/panels, and keeps the latest."""

    def __init__(self, config: Config, bundle: Bundle, frozen: Frozen):
        self.exhibits: tuple[exhibits.Exhibit, ...] = ()
        self._every, self._folder = config.panel_every, config.out / "panels"
        self._viewer = panels.Viewer(bundle, bundle.task, frozen=frozen) if self._every else None

    def show(self, step: int, prompts: Prompts, rollout: Rollout) -> None:
        """Draws the answers of a step whose turn it is."""
        if self._viewer is None or step % self._every or jax.process_index():
            return
        self.exhibits = self._viewer.exhibits(prompts, rollout)
        self._folder.mkdir(exist_ok=True)
        image_files.write(self._folder / f"{step:06d}.png", panels.sheet(self.exhibits))


_REPORTED = {
    "reward": "mean reward",
    "scores/iou": "mean IoU",
    "verdicts/OK": "answers that parse",
    "length/mean": "tokens of an answer",
    "truncated": "answers cut off",
    "entropy": "entropy, nats per token",
    "clip_fraction": "clipped answers",
    "sampler_gap/max": "sampler against trainer, nats at most",
    "truth/reward": "mean reward of the true answers",
    "truth/reached": "groups with an answer as good as the true one",
    "rounds": "batches drawn for a step",
    "rounds/kept": "groups kept of those drawn",
    "rounds/reward": "mean reward of all that was drawn",
    "priority/taken": "prompts taken of those whose turn came",
    "useful_tokens": "useful share of decoded tokens",
    "useful_tokens_unfilled": "the same, were rows not refilled",
    "seconds/sampling": "seconds of sampling",
    "seconds/learning": "seconds of learning",
}
"""Metrics in the table of the report."""


def _report(config: Config, gallery: Gallery, best: str) -> None:
    """Writes the report of the run from its log, with a sentence about its best validation."""
    path = config.out / "metrics.jsonl"
    html_page.write(
        config.out / "report.html",
        html_page.Report(
            title="seg-jax reinforce",
            summary_rows=_rows(path, config.weights),
            curves=metrics_log.read(path),
            exhibits=gallery.exhibits,
            config=run_folder.plain(config),
            versions=run_folder.versions() | {"seed": config.seed},
            notes=(
                "Numbers are of sampled answers to training prompts, before each update.",
                *([best] if best else []),
            ),
        ),
    )


def _rows(path: Path, scores: Iterable[str]) -> list[dict[str, Any]]:
    """Returns how the metrics of a log began and ended."""
    records = [record for _, record in metrics_log.records(path)]
    rows = []
    titles = {f"scores/{name}": f"mean {name}" for name in scores}
    titles |= {f"invalid/{name}": f"answers whose {name} is no number in 0..1" for name in scores}
    for name, words in ({"reward": ""} | titles | _REPORTED).items():
        values = metrics_log.numbers(records, name)
        if values:
            tenth = -(-len(values) // 10)
            begin, end = float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))
            rows.append({"": words, "first tenth": begin, "last tenth": end})
    return rows
