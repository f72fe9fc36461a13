"""Supervised fine-tuning: random or given weights learn to answer as the samples' truth does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
from flax import nnx
from tyro.conf import subcommand

from seg_jax.data import packing, pipeline, sources
from seg_jax.data.encode import Encoder, Layout
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tokens
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import flops, kimi_vl, number_embedding, qwen3_vl, qwen25_vl
from seg_jax.records import Batch, PackedBatch
from seg_jax.runs import console, datasets, run_folder
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizers, processes, sft, state, steps, throughput
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Board, Log, SilentLog

# All are called Config: the names are for the parser of options.
Model = (
    Annotated[qwen25_vl.Config, subcommand("qwen2_5_vl")]
    | Annotated[qwen3_vl.Config, subcommand("qwen3_vl")]
    | Annotated[kimi_vl.Config, subcommand("kimi_vl")]
)
"""Sizes of a model of any family."""

Source = (
    Annotated[sources.Scenes, subcommand("scenes")]
    | Annotated[sources.Built, subcommand("built")]
    | Annotated[sources.Mixed, subcommand("mixed")]
)
"""Where the samples of a run come from: drawn scenes, data sets that `seg-jax build` made, or
several of these by weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(datasets.Data):
    """A run of supervised fine-tuning."""

    out: Path = Path("runs/finetune")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    checkpoint: Path | None = None
    """Model folder to start from; without one the weights are random and `model` says their size,
    and `task` and `layout` hold. A given model brings its own layout and, if it was trained here,
    its own task, of which a `task.mixture` other than the default replaces the questions."""
    seed: int = 0
    model: Model = qwen25_vl.Config()
    compute: Compute = Compute()
    mesh: steps.Mesh = steps.Mesh()
    offload: bool = False
    """Keep the optimizer's moments in the memory of the hosts between steps: slower, with more
    room on the devices."""
    processes: processes.Processes = processes.Processes()
    source: Source = dataclasses.field(default_factory=sources.Scenes)
    task: Referring = Referring()
    layout: Layout = Layout()
    feed: pipeline.Feed = pipeline.Feed()
    objective: sft.Objective = sft.Objective()
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.Muon()
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
    with processes.join(config.processes):
        task = taught(config)
        config = datasets.resolved(dataclasses.replace(config, task=task), task.mixture)
        # A wrong --checkpoint must not cost the run that --anew replaces.
        found = None if config.checkpoint is None else given(config, config.checkpoint, task)
        claim(config, reads=config.checkpoint)
        with journal(config.out) as log:
            begin = found or processes.run_first_then_others(
                lambda: start(config, config.out / "tokenizer")
            )
            trained, _ = train(config, begin, folder=config.out, stage="sft", log=log)
        finish(config.out, begin.bundle, trained)
        if processes.is_first():
            print(config.out / "checkpoint")
    return 0


def taught(config: Config) -> Referring:
    """Returns the task of a run.

    Raises:
      ValueError: the checkpoint is none, or its manifest is broken.
    """
    own = None if config.checkpoint is None else bundles.own_task(config.checkpoint)
    if own is None:
        return config.task
    asked = config.task.mixture
    return own if asked == Mixture() else dataclasses.replace(own, mixture=asked)


def claim(config: Any, *, reads: Path | None) -> None:
    """Claims the folder of a run for all of its processes."""
    processes.run_on_first(
        lambda: run_folder.claim(
            config.out, config, resume=config.resume, anew=config.anew, reads=reads
        )
    )


def journal(folder: Path, board: Board | None = None) -> Log:
    """Returns the log of a run, in all processes but the first one that writes nothing."""
    return Log(folder, board or Board()) if processes.is_first() else SilentLog()


def finish(folder: Path, bundle: Bundle, trained: state.State) -> None:
    """Saves the model of a run in FOLDER/checkpoint, by the first of its processes."""
    params = sharding.gather(trained.params)
    processes.run_on_first(
        lambda: bundles.save(dataclasses.replace(bundle, params=params), folder / "checkpoint")
    )


class Start(NamedTuple):
    """What a run begins with."""

    bundle: Bundle
    """The model, perhaps with shapes for weights."""
    weights: Callable[[], Any]
    """Gives weights in their shards on the run's mesh away: the steps of the run overwrite them.
    Called once, and not at all where the run goes on from a checkpoint of its own."""


def given(config: Any, checkpoint: Path, task: Referring | None = None) -> Start:
    """Returns a model in a folder to train further; its weights are read at once but to resume.

    Args:
      config: of the run.
      checkpoint: the folder.
      task: that it is taught; None: its own.

    Raises:
      ValueError: the folder holds no model.
    """
    mesh = config.mesh.build()

    def read() -> Bundle:
        return of_task(bundles.load(checkpoint, compute=config.compute, on=mesh))

    def of_task(bundle: Bundle) -> Bundle:
        return dataclasses.replace(bundle, task=task or bundle.task)

    if config.resume:
        blank = of_task(bundles.blank(checkpoint, compute=config.compute))
        return Start(blank, lambda: read().params)
    bundle = read()
    return Start(bundle, lambda: bundle.params)


def start(config: Config, tokenizer_folder: Path) -> Start:
    """Returns a model that is to have random weights, with a tokenizer of its own.

    Raises:
      ValueError: the configured model fits no tokenizer.
    """
    bundle = blank(config, config.model, tokenizer_folder)
    return Start(bundle, drawing(config, bundle, config.mesh.build()))


def blank(config: Any, model: Model, tokenizer_folder: Path) -> Bundle:
    """Returns the configured model with shapes for weights."""
    tokenizer = own_tokenizer(config.source, config.task, tokenizer_folder)
    graph, shapes = nnx.split(weights.blank(spoken(model, tokenizer), config.compute))
    return Bundle(graph, shapes, tokenizer, tokenizer_folder, config.layout, config.task)


def drawing(config: Config, bundle: Bundle, on: jax.sharding.Mesh) -> Any:
    """Returns the jitted function () -> random weights on a mesh.

    They are the same on any mesh; each device makes its own shards and no others.
    """
    sizes = nnx.merge(bundle.graph, bundle.params).config
    values, _ = tokens.number_table(bundle.tokenizer)

    def draw() -> Any:
        kind = families.of(sizes).model
        model = kind(sizes, compute=config.compute, rngs=nnx.Rngs(config.seed))
        if config.ordered_numbers:
            key = jax.random.key(config.seed)
            model.embed.embedding[...] = number_embedding.embed(model.embed, values, key)
        return nnx.state(model)

    return jax.jit(draw, out_shardings=sharding.shardings(bundle.params, on))


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
        image = tokenizer.image_id
        return dataclasses.replace(model, text=text, media_placeholder_token_id=image)
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
    heard = sources.corpus(source)
    if isinstance(source, sources.Scenes):
        heard += sources.corpus(sources.Scenes())  # `evaluate` asks about these by itself.
    told = chat.sentences(heard, denials=task.nothing)
    return tokens.train(told, folder=folder, numbers="whole", digits=task.digits)


def train(
    config: Config, start: Start, *, folder: Path, stage: str, log: Log
) -> tuple[state.State, float]:
    """Returns the trained state and the seconds that its steps took; resumes what it finds.

    Checkpoints of the stage lie in FOLDER/state/STAGE.
    """
    mesh, bundle = config.mesh.build(), start.bundle
    encoder = Encoder(bundle.tokenizer, bundle.layout)
    batches, put = fed(config, bundle.task, encoder, mesh, rows="sft")
    actor = steps.Actor(bundle.graph, bundle.tokenizer, chunk=config.loss_chunk)
    step = steps.supervised_step(actor, config.objective, config.optimizer)

    def body(current: state.State):
        return step(current, put(next(batches)))

    best = _best_seconds(config, bundle, encoder)
    return go(
        *(config, body, start, batches),
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
) -> tuple[pipeline.Batches | packing.PackedBatches, Callable[[Any], Any]]:
    """Returns the batches of a run as this process reads them, and what puts one on the devices."""
    count = config.feed.batch
    places = sharding.batch(mesh, count)
    held = pipeline.local_rows(places, count)
    batches = pipeline.batches(
        *(config.source, task, encoder, config.feed),
        rows=rows,
        local_rows=held,
        gather=processes.gather_from_all,
    )
    return batches, lambda batch: pipeline.to_device(batch, places, rows=count)


def parts(
    config: Config, sizes: Model, batch: Batch | PackedBatch, *, rows: int
) -> list[flops.Part]:
    """Returns the passes of a step over so many rows like those of a batch."""
    counter = flops.Counter(sizes, config.compute)
    patches = batch.images.patches.shape[1]
    if isinstance(batch, PackedBatch):
        length = batch.weights.shape[-1]
        head = counter.head(rows, length, config.loss_chunk)
        return [*counter.read(rows, length, patches), head]
    _, answers, length = batch.ids.shape
    read = batch.tokens.ids.shape[1]
    return [
        *counter.read(rows, read, patches),
        counter.extend(rows, answers, length, behind=read),
        counter.head(rows * answers, length, config.loss_chunk),
    ]


def _best_seconds(config: Config, bundle: Bundle, encoder: Encoder) -> float | None:
    """Returns the seconds of a step at the devices' peak, None where that is not known."""
    if throughput.best_seconds(1.0) is None:
        return None
    feed = dataclasses.replace(config.feed, batch=1, threads=0, prefetch=0, workers=0)
    batch = next(pipeline.batches(config.source, bundle.task, encoder, feed, rows="sft"))
    sizes = nnx.merge(bundle.graph, bundle.params).config
    done = flops.trained(parts(config, sizes, batch, rows=config.feed.batch))
    return throughput.best_seconds(sum(done.get(name, 0.0) for name in flops.NEEDED))


def go(
    config: Any,
    body: loop.Body,
    start: Start,
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
    seconds, first = 0.0, processes.is_first()
    say = console.say if first else _unsaid
    versions, transform = run_folder.versions(), optimizers.build(config.optimizer)
    where = {"on": mesh, "offload": config.offload}
    if checkpoints.latest() is None:
        current = state.fresh(start.weights(), transform, horizon=plan.steps, **where)
    else:
        like = state.shapes(start.bundle.params, transform, **where)
        current, record = checkpoints.restore(like, batches, warn=say)
        seconds = float(record["seconds"])
        say(f"{stage}: resuming after step {int(current.step)}")
        say_differing(say, stage, record.get("versions", {}), versions)
    log.forget_after(stage, int(current.step))
    record = {"config": run_folder.plain(config), "versions": versions}
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
