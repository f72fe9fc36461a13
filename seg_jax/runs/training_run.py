"""What every training run is configured by, and how its checkpoint completes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from seg_jax.data.encode import Layout
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.models import families
from seg_jax.models.adapters.lora import LoRA, Parts
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import datasets
from seg_jax.runs.start import Model
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task
from seg_jax.training import optimizers, steps
from seg_jax.training.cluster import Processes
from seg_jax.training.loop import Loop
from seg_jax.training.validation import Validation

RunT = TypeVar("RunT", bound="TrainingRun")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun(datasets.Data):
    """The options that all training runs share."""

    out: Path = Path("runs/training")
    """Folder of the run; its model ends up in OUT/checkpoint."""
    checkpoint: Path | None = None
    """Model folder to start from: of a training run, or one of Hugging Face's."""
    model: Model | None = None
    """Sizes of a model with random weights; a checkpoint has its own, which these must be."""
    task: Referring | Task | None = None
    """What is asked and answered; None: as the checkpoint was taught. A configuration file may
    give a task of its own."""
    layout: Layout | None = None
    """Shapes of a row; None: those of the checkpoint."""
    compute: Compute = Compute()
    adapter: LoRA = LoRA()
    parts: Parts = Parts()
    mesh: steps.Mesh = steps.Mesh()
    offload: bool = False
    """Keep the optimizer's moments in the memory of the hosts between steps: slower, with more
    room on the devices."""
    processes: Processes = Processes()
    source: datasets.Source = dataclasses.field(default_factory=Scenes)
    feed: Feed = Feed()
    optimizer: optimizers.Muon | optimizers.AdamW = optimizers.Muon()
    loop: Loop = Loop()
    validate: Validation = Validation()
    segmenter: Path | None = None
    """Folder of a model that draws what answers point at (SAM 2), its weights frozen: for tasks
    whose scores are of masks, which are judged with it; others refuse it. To compile the name of a
    published one is enough: facebook/sam2.1-hiera-large, -base-plus, -small or -tiny."""
    loss_chunk: int | None = None
    """Tokens of a row whose logits exist at once; a large vocabulary needs 512 or fewer."""
    fit: bool = False
    """Find options with which the steps fit the memory of the devices before anything starts, by
    compiling them: scores of a few tokens at once, fewer rows at once, layers made again, moments
    in the host's memory, which leave what is learned as it is. `seg-jax compile` goes further: to
    bfloat16, adapters, smaller batches and images."""
    resume: bool = False
    """Go on with the run in OUT where it stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        super().__post_init__()
        if self.loss_chunk is not None and self.loss_chunk < 1:
            raise ValueError(
                f"loss_chunk: expected >= 1 tokens, got {self.loss_chunk}"
                "; do: give a number of tokens, or None for all at once"
            )
        if self.loop.epochs is not None and self.feed.pack is not None:
            raise ValueError(
                f"loop.epochs: expected a batch of feed.batch images, got {self.loop.epochs} "
                "passes beside feed.pack, whose rows hold as many as there is room for; do: give "
                "loop.steps"
            )
        if isinstance(self.task, Referring):
            self.task.check_tracing()
        if self.layout is not None:
            self.layout.check_areas()

    def completed(self: RunT, checkpoint: Path | None = None, *, check: bool = True) -> RunT:
        """Returns the run with what its checkpoint says wherever it says nothing itself.

        Without a checkpoint the defaults of task and layout take their place. To complete a run
        twice is to complete it once.

        Args:
          checkpoint: the folder, if it is another one than the configuration names.
          check: whether the run may not contradict it. What options are yet to be laid over is
            not checked: they may be what makes both agree.

        Raises:
          ValueError: the folder is no model's, or the run contradicts it.
        """
        folder = checkpoint or self.checkpoint
        if folder is None:
            task = self.task or self.default_task(None)
            layout = self.layout or Layout()
            run = dataclasses.replace(self, task=task, layout=layout)
            if check and run.model is not None:
                _check_token_ids(run.model, type(run.model)(), of_checkpoint=False)
                _check_layout(layout, run.model, where="the model")
            return run
        kind = None if self.task is None else type(self.task)
        own_layout, own_task = bundles.describe(folder, task_kind=kind, adapter=self.adapter.folder)
        sizes = families.read(folder)
        task, layout = self.task or self.default_task(own_task), self.layout or own_layout
        run = dataclasses.replace(
            self, checkpoint=folder, task=task, layout=layout, model=self.model or sizes
        )
        if check:
            run._check_against(folder, own_layout, sizes)
        return run

    def _check_against(self, folder: Path, own_layout: Layout, sizes: Any) -> None:
        """Raises ValueError if the completed run contradicts the model of a folder."""
        layout, task = self.layout, self.task
        assert layout is not None
        assert task is not None
        _check_model(self.model, sizes, folder)
        _check_token_ids(self.model, sizes, of_checkpoint=True)
        _check_layout(layout, sizes, where=str(folder))
        taught = bundles.own_task(folder, type(task), adapter=self.adapter.folder)
        if (layout.native is None) != (own_layout.native is None):
            raise ValueError(
                f"layout.native: expected {own_layout.native}, as {folder} has it, got "
                f"{layout.native}; do: give images as this family of models takes them"
            )
        known = None if taught is None else taught.decimals
        if None not in (known, task.decimals) and task.decimals != known:
            raise ValueError(
                f"task.digits: expected {known}, the decimals that {folder} was taught, "
                f"got {task.decimals}; do: leave it out"
            )

    @property
    def answer_tokens(self) -> int | None:
        """Columns of the true answer that prompts have with them; None: without it."""
        return None

    def unlowered(self) -> tuple[str, ...]:
        """Returns the names of the options that no step depends on.

        Of a source that is not drawn nothing is read to lower a step.
        """
        source = () if isinstance(self.source, Scenes) else ("source",)
        return (*source, *_UNLOWERED)

    def default_task(self, taught: Task | None) -> Task:
        """Returns the task of a run that names none.

        Args:
          taught: the task of its checkpoint; None without one.
        """
        return taught or Referring()


_UNLOWERED = (
    "out",
    "data",
    "data_weights",
    "split",
    "processes",
    "feed.threads",
    "feed.workers",
    "feed.prefetch",
    "loop",
    "validate",
    "resume",
    "anew",
)
"""Options of a run that decide on none of its steps' programs."""
_OF_THE_TOKENIZER = ("_token_id", "image_mean", "image_std")
"""Ends of the names of what the files beside the weights decide, whatever a configuration says."""


def _check_model(model: Any, sizes: Any, folder: Path) -> None:
    """Raises ValueError if a configured model is not the one of a folder."""
    if type(model) is not type(sizes):
        got, expected = (families.family_of(one).model_type for one in (model, sizes))
        raise ValueError(
            f"model: expected a {expected}, as {folder} holds, got a {got}; do: leave it out"
        )
    for name, ours, theirs in differences(model, sizes, "model", but=_OF_THE_TOKENIZER):
        raise ValueError(
            f"{name}: expected {theirs}, as {folder} has it, got {ours}; do: leave it out, or "
            "train a model of this size from random weights, without --checkpoint"
        )


def _check_token_ids(model: Any, sizes: Any, *, of_checkpoint: bool) -> None:
    """Raises ValueError for a special token that is neither a default nor the checkpoint's.

    The tokenizer decides on them, and statistics of images are those of the checkpoint.
    """
    defaults = dict(_leaves(type(model)(), "model"))
    known = dict(_leaves(sizes, "model"))
    for name, value in _leaves(model, "model"):
        statistic = of_checkpoint and name.endswith(("image_mean", "image_std"))
        if not (name.endswith("_token_id") or statistic):
            continue
        if value not in (defaults[name], known[name]):
            raise ValueError(
                f"{name}: expected {known[name]}, which the files beside the weights or the "
                f"tokenizer decide, got {value}; do: leave it out"
            )


def _leaves(config: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields name and value of every field of a configuration that is no configuration."""
    for field in dataclasses.fields(config):
        value, inner = getattr(config, field.name), f"{name}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, inner)
        else:
            yield inner, value


def differences(
    ours: Any, theirs: Any, name: str, *, but: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yields name and both values of every field in which two configurations differ.

    Args:
      ours: a configuration.
      theirs: one of the same class.
      name: that the names of fields begin with.
      but: ends of the names of fields that are not compared.
    """
    for field in dataclasses.fields(ours):
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        inner = f"{name}.{field.name}"
        if dataclasses.is_dataclass(mine) and type(mine) is type(other):
            yield from differences(mine, other, inner, but=but)
        elif mine != other and not field.name.endswith(but):
            yield inner, mine, other


def _check_layout(layout: Layout, model: Model, *, where: str) -> None:
    """Raises ValueError if rows are not made of the patches that a model reads."""
    vision = model.vision
    wanted = {"patch": vision.patch_size, "merge": vision.spatial_merge_size}
    if hasattr(vision, "window_tokens"):
        wanted["window_tokens"] = vision.window_tokens
    for name, expected in wanted.items():
        if (got := getattr(layout, name)) != expected:
            raise ValueError(
                f"layout.{name}: expected {expected}, as {where} has it, got {got}; "
                "do: make both the same"
            )
