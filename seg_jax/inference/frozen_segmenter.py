"""A model with frozen weights that draws, where answers are judged, what answers point at.

Its weights are arguments of the steps: closed over they would be constants of their programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh

from seg_jax.models import families, flops
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import pointed_masks
from seg_jax.tasks.task import Task

Segment = Callable[[Any, Any, Any], Any]
"""(weights, truth [B ..], what the answers say [B G ..]) -> masks [B G ..]: see `tasks.Segment`."""


class Frozen(NamedTuple):
    """What a task's answers are judged with beside the task; of a task that needs none, nothing."""

    segment: Segment | None = None
    params: Any = None
    """Weights, whole on every device, or their shapes."""

    @property
    def argument(self) -> tuple[Any, ...]:
        """The weights as the last argument of a step, which is left out where there are none."""
        return () if self.segment is None else (self.params,)

    def bound(self, params: Any) -> Callable[[Any, Any], Any] | None:
        """Returns the function (truth, answers) -> masks of some weights, if there is one."""
        return None if self.segment is None else functools.partial(self.segment, params)


NOTHING = Frozen()
"""For a task that needs no such model."""


def check(task: Task, folder: Path | None) -> None:
    """Raises ValueError if a task and the folder of a segmenter do not go together.

    Args:
      task: that judges.
      folder: of the model that draws, or the name that a published one has on the hub; None: none
        was given.
    """
    check_given(task, folder)
    if folder is None:
        return
    if not task.needs_segmenter:
        raise ValueError(
            f"segmenter: expected none for the task {task.name!r}, whose answers are judged as "
            f"they are, got {folder}; do: leave --segmenter out"
        )
    try:
        families.check_segmenter(_sizes(folder))
    except ValueError as error:
        raise ValueError(f"segmenter: {error}") from None


def check_weights(folder: Path | None) -> None:
    """Raises ValueError for the name of a published model: steps compile for it, none runs."""
    if folder is not None and _published(folder) is not None:
        raise ValueError(
            f"segmenter: expected the folder of a model with its weights, got {folder}, a name "
            f"that only compile takes; do: seg-jax convert {folder} DIR, and give --segmenter DIR"
        )


def _published(folder: Path) -> Any:
    """Returns the sizes of a published model, named as on the hub; None of any other folder."""
    return None if folder.exists() else families.published_segmenters().get(folder.as_posix())


def _sizes(folder: Path) -> Any:
    """Returns the sizes of a segmenter that has a folder, or of a published one by its name."""
    return _published(folder) or families.read(folder)


def check_given(task: Task, segmenter: object) -> None:
    """Raises ValueError where a task needs a model that draws, and None stands for it."""
    if segmenter is None and task.needs_segmenter:
        raise ValueError(
            f"segmenter: expected the folder of a model that draws for the task {task.name!r}, "
            "whose scores are of masks, got none; do: give --segmenter DIR"
        )


def load(task: Task, folder: Path | None, *, on: Mesh | None = None) -> Frozen:
    """Returns the model of a folder with its weights whole on every device of a mesh.

    Args:
      task: whose answers it draws.
      folder: of the model; None: there is none.
      on: the mesh; None: the default device.

    Raises:
      ValueError: as `check` and `check_weights`, or a file of the folder is broken.
    """
    check(task, folder)
    check_weights(folder)
    if folder is None:
        return NOTHING
    graph, params = nnx.split(weights.load(folder, compute=_compute(folder)))
    if on is not None:
        params = jax.device_put(params, sharding.replicated_sharding(on))
    return Frozen(_segment(graph, task), params)


def shapes(task: Task, folder: Path | None, *, on: Mesh) -> Frozen:
    """Returns the same from shapes alone: of a folder without weights, or of a published name.

    Raises:
      ValueError: as `check`.
    """
    check(task, folder)
    if folder is None:
        return NOTHING
    graph, params = nnx.split(weights.blank(_sizes(folder), _compute(folder)))
    whole = sharding.replicated_sharding(on)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), params
    )
    return Frozen(_segment(graph, task), params)


def work(task: Task, folder: Path | None, *, images: int, answers: int) -> flops.Flops:
    """Returns the operations of drawing what answers point at, a prompt for each.

    Args:
      task: that judges.
      folder: of the model that draws; None: there is none.
      images: of a step.
      answers: to each.
    """
    if folder is None:
        return {}
    config = _sizes(folder)
    counts = families.family_of(config).segmenter
    assert counts is not None
    each = counts.decoding(config, getattr(task, "points", 0) + 2)
    return {"segmenter": images * (counts.encoding(config) + answers * each)}


def _compute(folder: Path) -> Compute:
    """Returns how a model computes: as its file notes, published ones in float32."""
    dtype = families.noted_dtype(folder)
    return Compute(dtype=dtype, param_dtype=dtype)


def _segment(graph: Any, task: Task) -> Segment:
    """Returns the function (weights, truth, answers) -> masks in the frame of the truth."""

    def segment(params: Any, truth: Any, answer: Any) -> Any:
        model = nnx.merge(graph, params)
        return pointed_masks.masks(model, truth.view, answer, channels=task.channels)

    return segment
