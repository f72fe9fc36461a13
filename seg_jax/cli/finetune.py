"""Supervised fine-tuning: random or given weights learn to answer as the samples' truth does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from tyro.conf import subcommand

from seg_jax.cli import console, runs
from seg_jax.data import pipeline, sources
from seg_jax.data.encode import Encoder, Layout
from seg_jax.grammar import chat, tokens
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models import families, kimi_vl, layers, numbers, qwen3_vl, qwen25_vl, sharding, work
from seg_jax.records import Batch
from seg_jax.tasks.referring import Referring
from seg_jax.training import loop, optimizer, processes, pulse, sft, state, stations
from seg_jax.training.checkpoint import Checkpoints
from seg_jax.training.log import Board, Log, Silent

# All are called Config: the names are for the parser of options.
Model = (
    Annotated[qwen25_vl.Config, subcommand("qwen2_5_vl")]
    | Annotated[qwen3_vl.Config, subcommand("qwen3_vl")]
    | Annotated[kimi_vl.Config, subcommand("kimi_vl")]
)
"""Sizes of a model of any family."""

Source = (
    Annotated[sources.Scenes, subcommand("scenes")] | Annotated[sources.Built, subcommand("built")]
)
"""Where the samples of a run come from: drawn scenes, or data sets that `seg-jax build` made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run of supervised fine-tuning."""

    out: Path = Path("runs/finetune")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    checkpoint: Path | None = None
    """Model folder to start from; without one the weights are random and `model` says their size,
    and `task` and `layout` hold. A given model brings its own task and layout."""
    seed: int = 0
    model: Model = qwen25_vl.Config()
    compute: layers.Compute = layers.Compute()
    mesh: stations.Mesh = stations.Mesh()
    processes: processes.Processes = processes.Processes()
    source: Source = dataclasses.field(default_factory=sources.Scenes)
    task: Referring = Referring()
    layout: Layout = Layout()
    feed: pipeline.Feed = pipeline.Feed()
    objective: sft.Objective = sft.Objective()
    optimizer: optimizer.Muon | optimizer.AdamW = optimizer.Muon()
    loop: loop.Loop = loop.Loop()
    ordered_numbers: bool = True
    """Random weights only: number tokens begin close to those of close values."""
    loss_chunk: int | None = None
    """Tokens of a row whose logits exist at once; a large vocabulary needs 512 or fewer."""
    resume: bool = False
    """Go on with the run in OUT where it stopped."""
    anew: bool = False
    """Replace the run in OUT."""


def main(config: Config) -> int:
    """Runs the stage; prints where the model is."""
    with processes.together(config.processes):
        # A wrong --checkpoint must not cost the run that --anew replaces.
        given = None if config.checkpoint is None else start(config, config.out)
        claim(config, reads=config.checkpoint)
        with journal(config.out) as log:
            bundle = given or processes.in_turn(lambda: start(config, config.out / "tokenizer"))
            trained, _ = train(config, bundle, folder=config.out, stage="sft", log=log)
        finish(config.out, bundle, trained)
        if processes.is_first():
            print(config.out / "checkpoint")
    return 0


def claim(config: Any, *, reads: Path | None) -> None:
    """Claims the folder of a run for all of its processes."""
    processes.by_first(
        lambda: runs.claim(config.out, config, resume=config.resume, anew=config.anew, reads=reads)
    )


def journal(folder: Path, board: Board | None = None) -> Log:
    """Returns the log of a run, in all processes but the first one that writes nothing."""
    return Log(folder, board or Board()) if processes.is_first() else Silent()


def finish(folder: Path, bundle: Bundle, trained: state.State) -> None:
    """Saves the model of a run in FOLDER/checkpoint, by the first of its processes."""
    params = sharding.gather(trained.params)
    processes.by_first(
        lambda: bundles.save(dataclasses.replace(bundle, params=params), folder / "checkpoint")
    )


def start(config: Config, tokenizer_folder: Path) -> Bundle:
    """Returns the model to train: the given one, or random weights with a tokenizer of its own.

    Raises:
      ValueError: the given folder holds no model, or the configured one fits no tokenizer.
    """
    if config.checkpoint is not None:
        return bundles.load(config.checkpoint, compute=config.compute)
    tokenizer = own_tokenizer(config.source, config.task, tokenizer_folder)
    sizes = spoken(config.model, tokenizer)
    kind = families.of(sizes).model
    model = kind(sizes, compute=config.compute, rngs=nnx.Rngs(config.seed))
    if config.ordered_numbers:
        values, _ = tokens.number_table(tokenizer)
        key = jax.random.key(config.seed)
        model.embed.embedding[...] = numbers.embed(model.embed, values, key)
    graph, params = nnx.split(model)
    return Bundle(graph, params, tokenizer, tokenizer_folder, config.layout, config.task)


def spoken(model: Model, tokenizer: tokens.Tokenizer) -> Model:
    """Returns the sizes with a tokenizer's special tokens.

    Raises:
      ValueError: the model's table is too small for the tokenizer.
    """
    vocab = model.text.vocab_size
    if tokenizer.vocab_size > vocab:
        raise ValueError(
            f"model.text.vocab_size: expected at least the tokenizer's {tokenizer.vocab_size}, "
            f"got {vocab}"
        )
    ends = {"bos_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.end_id}
    if isinstance(model, kimi_vl.Config):
        text = dataclasses.replace(model.text, **ends)
        picture = tokenizer.image_id
        return dataclasses.replace(model, text=text, media_placeholder_token_id=picture)
    return dataclasses.replace(
        model,
        text=dataclasses.replace(model.text, **ends),
        image_token_id=tokenizer.image_id,
        video_token_id=tokenizer.id("<|video_pad|>"),
        vision_start_token_id=tokenizer.id("<|vision_start|>"),
        vision_end_token_id=tokenizer.id("<|vision_end|>"),
    )


def own_tokenizer(source: Source, task: Referring, folder: Path) -> tokens.Tokenizer:
    """Returns a small tokenizer of the source's phrases and the task's numbers; made once."""
    if (folder / "tokenizer.json").exists():
        return tokens.Tokenizer.load(folder)
    told = chat.sentences(sources.corpus(source))
    return tokens.train(told, folder=folder, numbers="whole", digits=task.digits)


def train(
    config: Config, bundle: Bundle, *, folder: Path, stage: str, log: Log
) -> tuple[state.State, float]:
    """Returns the trained state and the seconds that its steps took; resumes what it finds.

    Checkpoints of the stage lie in FOLDER/state/STAGE.
    """
    mesh = config.mesh.build()
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    batches, put = fed(config, bundle.task, encoder, mesh, rows="sft")
    speaker = stations.Speaker(bundle.graph, bundle.tokenizer, chunk=config.loss_chunk)
    step = stations.supervised_step(speaker, config.objective, config.optimizer)

    def body(current: state.State):
        return step(current, put(next(batches)))

    fresh = state.fresh(bundle.params, optimizer.build(config.optimizer), horizon=config.loop.steps)
    best = _best_seconds(config, bundle, encoder)
    return go(
        *(config, body, fresh, batches),
        folder=folder,
        stage=stage,
        log=log,
        mesh=mesh,
        best_seconds=best,
    )


def fed(
    config: Any,
    task: Referring,
    encoder: Encoder,
    mesh: jax.sharding.Mesh,
    *,
    rows: Literal["sft", "prompts"],
) -> tuple[pipeline.Batches, Callable[[Any], Any]]:
    """Returns the batches of a run as this process reads them, and what puts one on the devices."""
    count = config.feed.batch
    places = sharding.batch(mesh, count)
    held = pipeline.held(places, count)
    batches = pipeline.batches(config.source, task, encoder, config.feed, rows=rows, held=held)
    return batches, lambda batch: pipeline.to_device(batch, places, rows=count)


def parts(config: Config, sizes: Model, batch: Batch, *, rows: int) -> list[work.Part]:
    """Returns the passes of a step over so many rows like those of a batch."""
    counter = work.Counter(sizes, config.compute)
    _, answers, length = batch.ids.shape
    read = batch.tokens.ids.shape[1]
    return [
        *counter.read(rows, read, batch.pictures.patches.shape[1]),
        counter.extend(rows, answers, length, behind=read),
        counter.head(rows * answers, length, config.loss_chunk),
    ]


def _best_seconds(config: Config, bundle: Bundle, encoder: Encoder) -> float | None:
    """Returns the seconds of a step at the devices' peak, None where that is not known."""
    if pulse.best_seconds(1.0) is None:
        return None
    feed = dataclasses.replace(config.feed, batch=1, threads=0, prefetch=0, workers=0)
    batch = next(pipeline.batches(config.source, bundle.task, encoder, feed, rows="sft"))
    sizes = nnx.merge(bundle.graph, bundle.params).config
    done = work.trained(parts(config, sizes, batch, rows=config.feed.batch))
    return pulse.best_seconds(sum(done.get(name, 0.0) for name in work.NEEDED))


def go(
    config: Any,
    body: loop.Body,
    fresh: state.State,
    batches: Any,
    *,
    folder: Path,
    stage: str,
    log: Log,
    mesh: jax.sharding.Mesh,
    best_seconds: float | None = None,
) -> tuple[state.State, float]:
    """Runs a stage from its newest checkpoint, or afresh; returns its state and seconds."""
    plan: loop.Loop = config.loop
    checkpoints = Checkpoints(folder / "state" / stage, keep=plan.keep, keep_best=plan.keep_best)
    # Steps donate their state, and the weights of `fresh` may be needed again.
    current = sharding.place(jax.tree.map(jnp.array, fresh), sharding.shardings(fresh, mesh))
    seconds, first = 0.0, processes.is_first()
    say = console.say if first else _unsaid
    versions = runs.versions()
    if checkpoints.latest() is not None:
        current, record = checkpoints.restore(current, batches, warn=say)
        seconds = float(record["seconds"])
        say(f"{stage}: resuming after step {int(current.step)}")
        say_differing(say, stage, record.get("versions", {}), versions)
    log.forget_after(stage, int(current.step))
    record = {"config": runs.plain(config), "versions": versions}
    with console.progress(stage, plan.steps, shown=first) as move, jax.set_mesh(mesh):
        try:
            return loop.run(
                plan,
                body,
                current,
                stage=stage,
                log=log,
                checkpoints=checkpoints,
                iterator=batches,
                record=record,
                progress=move,
                seconds_before=seconds,
                traces=folder / "profile" / stage,
                best_seconds=best_seconds,
            )
        finally:
            checkpoints.close()


def say_differing(
    say: Callable[[str], None], stage: str, before: dict[str, str], now: dict[str, str]
) -> None:
    """Says which versions a run has changed since its checkpoint: its numbers may change too."""
    told = [
        f"{name} {before[name]} -> {now[name]}"
        for name in ("seg-jax", "commit", "jax", "device")
        if name in before and before[name] != now[name]
    ]
    if told:
        say(f"{stage}: goes on with other versions or devices: {', '.join(told)}")


def _unsaid(text: str) -> None:
    """Says nothing: the first process does."""
