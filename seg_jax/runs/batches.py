"""The batches of a run: read by each process for its own devices, put in shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from seg_jax.data import fitting, held_out, packed_batches, pipeline, priority, sources
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.models.parallel import sharding
from seg_jax.tasks.task import Task
from seg_jax.training import processes


class ShardedBatches(NamedTuple):
    """Batches on the host, and the function that puts one onto the devices."""

    iterator: pipeline.Batches | packed_batches.PackedBatches
    """Gives the rows that this process reads; it knows its position."""
    to_device: Callable[[Any], Any]
    """Puts a batch on the devices of the mesh."""
    samples: int | None
    """Samples of a pass over the source; None: it has no end."""
    asked: Source | None
    """Images that are held out for validation, if the run has one."""


class Divided(NamedTuple):
    """The source of a run in two, and what is in neither."""

    source: Source
    """What is learnt from."""
    asked: Source | None
    """Images that are held out for validation, if the run has one."""
    left_out: Findings
    """What rows cannot hold."""


def divided_source(run: Any, encoder: Encoder, *, rows: Literal["sft", "prompts"]) -> Divided:
    """Returns the source of a run without what rows cannot hold and what is held out of it.

    Args:
      run: a configuration with `source`, `feed` and `validate`.
      encoder: that makes rows of the questions.
      rows: questions with their answers, or prompts alone.
    """
    source, left_out = fitting.fitting_source(run.source, encoder, rows=rows, pack=run.feed.pack)
    if not run.validate.samples:
        return Divided(source, None, left_out)
    source, asked = held_out.hold_out(
        source,
        run.validate.samples,
        split=run.validate.split,
        fit=lambda source: fitting.fitting_source(source, encoder, rows="prompts")[0],
    )
    return Divided(source, asked, left_out)


def sharded_batches(
    run: Any,
    task: Task,
    encoder: Encoder,
    *,
    mesh: jax.sharding.Mesh,
    rows: Literal["sft", "prompts"],
    first: priority.Priority | None = None,
) -> ShardedBatches:
    """Returns the batches of a run as this process reads them, and what puts one on the devices.

    What rows cannot hold is left out before the first one; the iterator's findings tell. What is
    held out for validation is in no batch.

    Args:
      run: a configuration with `source`, `feed`, `validate` and `answer_tokens`.
      task: that asks about the samples.
      encoder: that makes rows of the questions.
      mesh: of the devices.
      rows: questions with their answers, or prompts alone.
      first: which prompts come up rather than others; None: all alike.
    """
    count = run.feed.batch
    places = sharding.batch(mesh, count)
    source, asked, left_out = divided_source(run, encoder, rows=rows)
    batches = pipeline.batches(
        source,
        task,
        encoder,
        feed=run.feed,
        rows=rows,
        local_rows=pipeline.local_rows(places, count),
        gather=processes.gather_from_all,
        left_out=left_out,
        answer_tokens=run.answer_tokens,
        first=first,
    )
    return ShardedBatches(
        batches,
        lambda batch: pipeline.to_device(batch, places, rows=count),
        sources.pass_length(source),
        asked,
    )
