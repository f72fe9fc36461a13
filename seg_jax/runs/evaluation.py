"""Greedy answers of a model to questions about a source, on the devices of a mesh."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from seg_jax.data import pipeline
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.evaluation import task_metrics
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.predictor import Predictor
from seg_jax.models.parallel import sharding
from seg_jax.records import Prompts, Sample
from seg_jax.runs import console
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.tasks.task import Task

HELD_OUT = 7
"""Seed of the held-out scenes; training refuses it nowhere, so choose others there."""


def answer_greedily(
    predictor: Predictor,
    source: Source | Sequence[Sample],
    *,
    title: str,
    task: Task,
    batch: int,
    params: Any = None,
    mesh: Mesh | None = None,
    findings: Findings | None = None,
) -> task_metrics.Outcome:
    """Returns the outcome of greedy answers on the source, with a progress bar.

    Args:
      predictor: the model.
      source: of the questions.
      title: of the progress bar.
      task: of the model, with the questions that are asked.
      batch: questions at once; as many more as the devices of the mesh need.
      params: other weights of the same model.
      mesh: that the weights lie on; None: the default device.
      findings: is told which samples were passed over; None: the first one is an error.

    Raises:
      ValueError: no question is left, where the line says why the first one was passed over; or
        the task's scores are of masks, and the predictor has no model that draws.
    """
    frozen_segmenter.check_given(task, predictor.frozen.segment)
    bundle = predictor.bundle
    count = whole_rows(min(batch, len(source)), mesh)
    prompts = pipeline.batches_in_order(
        source, task, bundle.encoder, batch=count, findings=findings
    )
    try:
        with console.progress(title, len(source)) as move:
            return task_metrics.run(
                answer_on(predictor, count, mesh=mesh, params=params),
                prompts,
                bundle.tokenizer.decode,
                progress=lambda done: move(done, len(source), ""),
            )
    except task_metrics.NoQuestions:
        if findings is None or not findings.counts:
            raise
        raise ValueError(
            f"evaluation: expected at least one question, got none that fits: {findings.lines()[0]}"
            "; do: take smaller images or a model trained with more room, or name a --protocol"
        ) from None


def with_mixture(task: Task, mixture: Mixture) -> Task:
    """Returns a task that asks the questions of a mixture, if it is one that has mixtures.

    Raises:
      ValueError: it has none, and the mixture is not the default one.
    """
    if isinstance(task, Referring):
        return dataclasses.replace(task, mixture=mixture)
    if mixture != Mixture():
        raise ValueError(
            f"mixture: expected none for the task {task.name!r}, got {mixture}; do: leave it out"
        )
    return task


def whole_rows(batch: int, mesh: Mesh | None) -> int:
    """Returns the rows of a batch, as many more as the devices need."""
    return batch if mesh is None else batch + -batch % sharding.row_parts(mesh)


def answer_on(
    predictor: Predictor, count: int, *, mesh: Mesh | None, params: Any = None
) -> Callable[[Prompts], Any]:
    """Returns a function that puts prompts on the devices of the mesh and answers them."""
    rows = None if mesh is None else sharding.batch(mesh)

    def answer(batch: Prompts) -> Any:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            if rows is not None:
                batch = pipeline.to_device(batch, rows, rows=count)
            return predictor.answer(batch, params)

    return answer
