"""Has the files of a build made by an Apache Beam pipeline: Dataflow, Flink, Spark or here."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from seg_jax.data import builds, shards
from seg_jax.data.shards import Task

# Beam itself is imported where it is needed: it comes with an extra of its own.


@functools.lru_cache(maxsize=1)
def _tasks(asked: builds.Plan) -> list[Task]:
    """Returns the files of a plan, which each worker reads for itself, once.

    So the pipeline itself stays small, whatever the data set.
    """
    return builds.plan(asked).tasks


def make(place: int, asked: builds.Plan) -> tuple[str, int, int]:
    """Makes a file of a plan; returns its split, pictures stored and pictures skipped."""
    from apache_beam.metrics import Metrics  # pyright: ignore[reportMissingImports]

    part = shards.make(_tasks(asked)[place])
    for name in ("records", "bytes"):
        Metrics.counter("build", name).inc(part[name])
    return part["split"], part["records"], len(part["skipped"])


def make_all(
    asked: builds.Plan, tasks: Sequence[Task], *, runner: str, options: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Makes files by a pipeline, and returns what is known about each, in order.

    Args:
      asked: what is to be built; workers must see its folders under the same paths.
      tasks: the files.
      runner: Beam's name of an engine, as DirectRunner or DataflowRunner.
      options: of the pipeline, as "region=europe-west4".

    Raises:
      ValueError: a file has not been made.
    """
    import apache_beam  # pyright: ignore[reportMissingImports]
    from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
        PipelineOptions,
    )

    # Files that are whole already need no worker.
    missing = [place for place, task in enumerate(tasks) if not shards.is_whole(task)]
    flags = PipelineOptions([f"--runner={runner}", *(f"--{one}" for one in options)])
    if missing:
        with apache_beam.Pipeline(options=flags) as pipeline:
            _ = (
                pipeline
                | "Files" >> apache_beam.Create(missing)
                | "Spread" >> apache_beam.Reshuffle()
                | "Make" >> apache_beam.Map(make, asked)
            )
    lost = [task.file.name for task in tasks if not shards.is_whole(task)]
    if lost:
        raise ValueError(
            f"{asked.out}: expected the pipeline to make {len(tasks)} files, got {len(lost)} fewer;"
            f" do its workers see this folder? the first one is {lost[0]}"
        )
    return [json.loads(task.part.read_bytes()) for task in tasks]
