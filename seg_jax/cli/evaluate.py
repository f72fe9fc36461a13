"""Evaluates a model on held-out scenes: numbers with bootstrap intervals, as table and JSON."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from seg_jax.cli import console, runs
from seg_jax.cli.asked import Asked
from seg_jax.data import pipeline
from seg_jax.data.sources import Scenes
from seg_jax.inference import evaluation
from seg_jax.inference.predictor import Predictor
from seg_jax.models import decode, sharding
from seg_jax.tasks.referring import Mixture
from seg_jax.training import stations

HELD_OUT = 7
"""Seed of the held-out scenes; training refuses it nowhere, so choose others there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Asked):
    """An evaluation."""

    scenes: int = 512
    """Held-out scenes, one question each."""
    seed: int = HELD_OUT
    """Of the scenes; training uses others."""
    source: Scenes = dataclasses.field(default_factory=Scenes)
    """Kind of the scenes; `scenes` and `seed` override its count and seed."""
    mixture: Mixture = Mixture()
    """Questions that are asked."""
    batch: int = 64
    rows: int = 0
    """Answers of a batch decoded at once, on all devices together; one that ends leaves its row
    to the next. 0: all of them. With a batch of many times more the longest keep few waiting."""
    mesh: stations.Mesh = stations.Mesh()
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        self.mixture.check_judged()
        if self.scenes < 1 or self.batch < 1 or self.seed < 0 or self.rows < 0:
            raise ValueError(
                "expected scenes and batch >= 1, a seed and rows >= 0, "
                f"got {self.scenes} scenes, batch {self.batch}, seed {self.seed}, rows {self.rows}"
            )


def main(config: Config) -> int:
    """Prints the numbers as a table and, on standard output, as JSON if no file is given."""
    mesh = config.mesh.build()
    refill = decode.Refill(rows=config.rows) if config.rows else None
    predictor = config.predictor(on=mesh, refill=refill)
    runs.check_json(config.json)
    outcome = run(
        predictor,
        held_out(config),
        title="evaluate",
        mixture=config.mixture,
        batch=config.batch,
        mesh=mesh,
    )
    summary = evaluation.summarise(outcome)
    summary |= {
        "checkpoint": str(config.checkpoint),
        "seed": config.seed,
        "grammar": config.grammar,
        "devices": mesh.size,
        "versions": runs.versions(),
    }
    console.table(str(config.checkpoint), ("", "mean", "95 % interval"), lines(summary))
    runs.tell_json(summary, config.json)
    return 0


def held_out(config: Config) -> Scenes:
    """Returns the scenes of an evaluation."""
    return dataclasses.replace(config.source, seed=config.seed, count=config.scenes)


def run(
    predictor: Predictor,
    source: Scenes,
    *,
    title: str,
    mixture: Mixture,
    batch: int,
    params: Any = None,
    mesh: Mesh | None = None,
) -> evaluation.Outcome:
    """Returns the outcome of greedy answers on the source, with a progress bar.

    Args:
      predictor: the model.
      source: of the questions.
      title: of the progress bar.
      mixture: questions that are asked.
      batch: questions at once; as many more as the devices of the mesh need.
      params: other weights of the same model.
      mesh: that the weights lie on; None: the default device.
    """
    bundle = predictor.bundle
    task = dataclasses.replace(bundle.task, mixture=mixture)
    count = min(batch, len(source))
    rows = None if mesh is None else sharding.batch(mesh)
    if mesh is not None:
        count += -count % sharding.row_parts(mesh)
    prompts = pipeline.in_order(source, task, bundle.encoder, batch=count)
    within = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
    with console.progress(title, len(source)) as move, within:
        return evaluation.run(
            lambda batch: predictor.answer(
                batch if rows is None else pipeline.to_device(batch, rows, rows=count), params
            ),
            prompts,
            bundle.tokenizer.decode,
            lambda done: move(done, len(source), ""),
        )


def lines(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of a table: name, mean, interval."""
    rows = []
    for name, value in summary.items():
        if isinstance(value, dict) and "mean" in value:
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            rows.append((name, f"{value['mean']:.3f}", interval))
    verdicts = summary.get("verdicts", {})
    rows += [(f"verdict {name}", str(count), "") for name, count in verdicts.items() if count]
    return rows
