"""Reinforcement learning: a model samples answers, they are judged, the better ones gain (GSPO)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.cli import finetune
from seg_jax.data import image_files, pipeline
from seg_jax.data.encode import Encoder, Layout
from seg_jax.data.sources import Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models.nn.compute import Compute
from seg_jax.records import Prompts, Rollout
from seg_jax.report import html_page, panels
from seg_jax.runs import datasets, run_folder
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizers, policy, processes, state, steps
from seg_jax.training.clock import Clock
from seg_jax.training.log import Board, Log

Show = Callable[[int, Prompts, Rollout], None]
"""Told (number of the step, this process's prompts on the host, answers) after each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the named scores in the reward."""

    iou: float = 1.0
    distance: float = 0.2
    format: float = 0.1

    def __post_init__(self):
        if not all(map(math.isfinite, vars(self).values())):
            raise ValueError(f"weights: expected finite numbers, got {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(datasets.Data):
    """A run of reinforcement learning."""

    out: Path = Path("runs/reinforce")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    checkpoint: Path | None = None
    """Model folder to start from."""
    seed: int = 0
    model: finetune.Model | None = None
    """What the model to start from is, for `compile`: a given one brings its own sizes, task and
    layout."""
    task: Referring = Referring()
    layout: Layout = Layout()
    compute: Compute = Compute()
    mesh: steps.Mesh = steps.Mesh()
    offload: bool = False
    """Keep the optimizer's moments in the memory of the hosts between steps: slower, with more
    room on the devices."""
    processes: processes.Processes = processes.Processes()
    source: finetune.Source = dataclasses.field(default_factory=lambda: Scenes(seed=1))
    mixture: Mixture = Mixture()
    """Questions that are asked."""
    feed: pipeline.Feed = pipeline.Feed(batch=32)
    """Prompts of a step."""
    sampling: steps.Sampling = steps.Sampling()
    policy: policy.Policy = policy.Policy()
    weights: Weights = Weights()
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.AdamW(
        lr=1e-6, schedule=optimizers.Schedule(final=1.0)
    )
    loop: loop.Loop = loop.Loop()
    log: Board = Board()
    panel_every: int = 0
    """Steps between images of sampled answers in OUT/panels; 0 draws none."""
    loss_chunk: int | None = None
    """Tokens of a row whose logits exist at once; a large vocabulary needs 512 or fewer."""
    resume: bool = False
    """Go on with the run in OUT where it stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        super().__post_init__()
        self.mixture.check_judged()
        if self.panel_every < 0:
            raise ValueError(f"panel_every: expected >= 0 steps, got {self.panel_every}")


def main(config: Config) -> int:
    """Runs the stage; prints where the model is."""
    if config.checkpoint is None:
        raise ValueError(
            "expected --checkpoint FOLDER to start from, got none; "
            "train one with: seg-jax finetune configs/tiny_sft.py"
        )
    config.log.check()
    checkpoint = config.checkpoint
    with processes.join(config.processes):
        config = datasets.resolved(config, config.mixture)
        start = finetune.given(config, checkpoint, _taught(checkpoint, config.mixture))
        finetune.claim(config, reads=checkpoint)
        gallery = Gallery(config, start.bundle)
        with finetune.journal(config.out, config.log) as log:
            trained, _ = train(
                config, start, folder=config.out, stage="gspo", log=log, show=gallery.show
            )
        finetune.finish(config.out, start.bundle, trained)
        if processes.is_first():
            _report(config, gallery)
            print(config.out / "checkpoint")
    return 0


def _taught(checkpoint: Path, asked: Mixture) -> Referring:
    """Returns the task of the model afterwards: its own, and whether things may be absent."""
    own = bundles.own_task(checkpoint) or Referring()
    if own.nothing or not asked.absent:
        return own
    mixture = own.mixture if any(own.mixture.told) else asked
    return dataclasses.replace(own, mixture=dataclasses.replace(mixture, absent=asked.absent))


class Gallery:
    """Draws sampled answers every few steps into OUT/panels, and keeps the latest."""

    def __init__(self, config: Config, bundle: Bundle):
        self.exhibits: tuple[html_page.Exhibit, ...] = ()
        self._every, self._folder = config.panel_every, config.out / "panels"
        task = dataclasses.replace(bundle.task, mixture=config.mixture)
        self._viewer = panels.Viewer(bundle, task) if self._every else None

    def show(self, step: int, prompts: Prompts, rollout: Rollout) -> None:
        """Draws the answers of a step whose turn it is."""
        if self._viewer is None or step % self._every or jax.process_index():
            return
        self.exhibits = self._viewer.exhibits(prompts, rollout)
        self._folder.mkdir(exist_ok=True)
        image_files.write(self._folder / f"{step:06d}.png", panels.sheet(self.exhibits))


_TOLD = {
    "reward": "mean reward",
    "scores/iou": "mean IoU",
    "verdicts/OK": "answers that parse",
    "length/mean": "tokens of an answer",
    "truncated": "answers cut off",
    "entropy": "entropy, nats per token",
    "clip_fraction": "clipped answers",
    "sampler_gap/max": "sampler against trainer, nats at most",
    "useful_tokens": "useful share of decoded tokens",
    "useful_tokens_unfilled": "the same, were rows not refilled",
    "seconds/sampling": "seconds of sampling",
    "seconds/learning": "seconds of learning",
}
"""Metrics in the table of the report."""


def _report(config: Config, gallery: Gallery) -> None:
    """Writes the report of the run from its log."""
    path = config.out / "metrics.jsonl"
    html_page.write(
        config.out / "report.html",
        html_page.Report(
            title="seg-jax reinforce",
            summary_rows=_rows(path),
            curves=html_page.curves_from(path),
            exhibits=gallery.exhibits,
            config=run_folder.plain(config),
            versions=run_folder.versions() | {"seed": config.seed},
            notes=("Numbers are of sampled answers to training prompts, before each update.",),
        ),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Returns how the metrics of a log began and ended."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = []
    for name, words in _TOLD.items():
        values = [record[name] for record in records if record.get(name) is not None]
        if values:
            tenth = -(-len(values) // 10)
            begin, end = float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))
            rows.append({"": words, "first tenth": begin, "last tenth": end})
    return rows


def train(
    config: Config,
    start: finetune.Start,
    *,
    folder: Path,
    stage: str,
    log: Log,
    show: Show = lambda step, prompts, rollout: None,
) -> tuple[state.State, float]:
    """Returns the trained state and the seconds that its steps took; resumes what it finds."""
    mesh, bundle = config.mesh.build(), start.bundle
    task = dataclasses.replace(bundle.task, mixture=config.mixture)
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    batches, put = finetune.fed(config, task, encoder, mesh, rows="prompts")
    actor = steps.Actor(
        bundle.graph, bundle.tokenizer, chunk=config.loss_chunk, ends=bundle.end_ids
    )
    draw = steps.sampler(actor, config.sampling, seed=config.seed, task=task)
    learn = steps.reinforcing_step(
        actor,
        task,
        policy=config.policy,
        weights=dataclasses.asdict(config.weights),
        optimizer=config.optimizer,
        sampling=config.sampling,
    )
    reference = None
    if config.policy.kl > 0:
        reference = start.weights()
        start = start._replace(weights=lambda: jax.tree.map(jnp.copy, reference))
    clock, answers = Clock(config.loop.log_every), config.feed.batch * config.sampling.answers

    def body(current: state.State):
        step = clock.start(current)
        batch = next(batches)
        prompts = clock.lap("data", put(batch))
        rollout = clock.lap("sampling", draw(current.params, prompts, current.step))
        current, metrics = clock.lap("learning", learn(current, prompts, rollout, reference))
        show(step, batch, rollout)
        if clock.seconds:
            metrics |= clock.step_metrics(float(metrics["length/mean"]) * answers)
        return current, metrics

    return finetune.go(config, body, start, batches, folder=folder, stage=stage, log=log, mesh=mesh)
