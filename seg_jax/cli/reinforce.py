"""Reinforcement learning: a model samples answers, they are judged, the better ones gain (GSPO)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from seg_jax.cli import finetune, runs
from seg_jax.data import pipeline
from seg_jax.data.encode import Encoder, Layout
from seg_jax.data.sources import Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models import layers, sharding
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizer, policy, state, stations
from seg_jax.training.log import Log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the named scores in the reward."""

    iou: float = 1.0
    distance: float = 0.2
    format: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
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
    compute: layers.Compute = layers.Compute()
    mesh: stations.Mesh = stations.Mesh()
    source: Scenes = dataclasses.field(default_factory=lambda: Scenes(seed=1))
    mixture: Mixture = Mixture()
    """Questions that are asked."""
    feed: pipeline.Feed = pipeline.Feed(batch=32)
    """Prompts of a step."""
    sampling: stations.Sampling = stations.Sampling()
    policy: policy.Policy = policy.Policy()
    weights: Weights = Weights()
    optimizer: optimizer.Muon | optimizer.AdamW = optimizer.AdamW(
        lr=1e-6, schedule=optimizer.Schedule(final=1.0)
    )
    loop: loop.Loop = loop.Loop()
    loss_chunk: int | None = None
    """Tokens of a row whose logits exist at once; a large vocabulary needs 512 or fewer."""
    resume: bool = False
    """Go on with the run in OUT where it stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        self.mixture.check_judged()


def main(config: Config) -> int:
    """Runs the stage; prints where the model is."""
    if config.checkpoint is None:
        raise ValueError(
            "expected --checkpoint FOLDER to start from, got none; "
            "train one with: seg-jax finetune configs/tiny_sft.py"
        )
    bundle = bundles.load(config.checkpoint, compute=config.compute)
    runs.claim(config.out, config, resume=config.resume, anew=config.anew, reads=config.checkpoint)
    with Log(config.out) as log:
        trained, _ = train(config, bundle, folder=config.out, stage="gspo", log=log)
    bundles.save(dataclasses.replace(bundle, params=trained.params), config.out / "checkpoint")
    print(config.out / "checkpoint")
    return 0


def train(
    config: Config, bundle: Bundle, *, folder: Path, stage: str, log: Log
) -> tuple[state.State, float]:
    """Returns the trained state and the seconds that its steps took; resumes what it finds."""
    mesh = config.mesh.build()
    task = dataclasses.replace(bundle.task, mixture=config.mixture)
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    batches = pipeline.batches(config.source, task, encoder, config.feed, rows="prompts")
    speaker = stations.Speaker(bundle.graph, bundle.tokenizer, chunk=config.loss_chunk)
    draw = stations.sampler(speaker, config.sampling, seed=config.seed)
    learn = stations.reinforcing_step(
        speaker,
        task,
        config.policy,
        dataclasses.asdict(config.weights),
        config.optimizer,
        config.sampling,
    )
    reference = None
    if config.policy.kl > 0:
        reference = jax.device_put(bundle.params, sharding.shardings(bundle.params, mesh))
    rows = sharding.batch(mesh, config.feed.batch)

    def body(current: state.State):
        prompts = pipeline.to_device(next(batches), rows)
        rollout = draw(current.params, prompts, current.step)
        return learn(current, prompts, rollout, reference)

    fresh = state.fresh(bundle.params, optimizer.build(config.optimizer), horizon=config.loop.steps)
    return finetune.go(
        config.loop, body, fresh, batches, folder=folder, stage=stage, log=log, mesh=mesh
    )
