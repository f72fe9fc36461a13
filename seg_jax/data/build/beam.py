"""Has the files of a build made by an Apache Beam pipeline: Dataflow, Flink, Spark or here."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from seg_jax.data.build import dataset, record_files
from seg_jax.data.build.record_files import Task

# Beam itself is imported where it is needed: it comes with an extra of its own.


@functools.lru_cache(maxsize=1)
def _tasks(asked: dataset.Plan) -> list[Task]:
    """Returns the files of a plan, which each worker reads for itself, once.

    So the pipeline itself stays small, whatever the data set.
    """
    return dataset.plan(asked).tasks


def make(place: int, asked: dataset.Plan) -> tuple[str, int, int]:
    """Makes a file of a plan; returns its split, images stored and images skipped."""
    from apache_beam.metrics import Metrics  # pyright: ignore[reportMissingImports]

    part = record_files.make(_tasks(asked)[place])
    for name in ("records", "bytes"):
        Metrics.counter("build", name).inc(part[name])
    return part["split"], part["records"], len(part["skipped"])


def run(
    make: Callable[[int, Any], Any],
    places: Sequence[int],
    asked: Any,
    *,
    names: tuple[str, str],
    runner: str,
    options: Sequence[str],
) -> None:
    """Calls a function with each place and what is asked by a pipeline, if there is any place.

    Args:
      make: a function of a module; workers import it.
      places: what is left to do.
      asked: given with every place.
      names: of the places and of what is done, as the engine shows them.
      runner: Beam's name of an engine, as DirectRunner or DataflowRunner.
      options: of the pipeline, as "region=europe-west4".
    """
    import apache_beam  # pyright: ignore[reportMissingImports]
    from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
        PipelineOptions,
    )

    flags = PipelineOptions([f"--runner={runner}", *(f"--{one}" for one in options)])
    if not places:
        return
    with apache_beam.Pipeline(options=flags) as pipeline:
        _ = (
            pipeline
            | names[0] >> apache_beam.Create(places)
            | "Spread" >> apache_beam.Reshuffle()
            | names[1] >> apache_beam.Map(make, asked)
        )


def make_all(
    asked: dataset.Plan, tasks: Sequence[Task], *, runner: str, options: Sequence[str] = ()
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
    # Files that are whole already need no worker.
    missing = [place for place, task in enumerate(tasks) if not record_files.is_whole(task)]
    run(make, missing, asked, names=("Files", "Make"), runner=runner, options=options)
    lost = [task.file.name for task in tasks if not record_files.is_whole(task)]
    if lost:
        raise ValueError(
            f"{asked.out}: expected the pipeline to make {len(tasks)} files, got {len(lost)} fewer;"
            f" do its workers see this folder? the first one is {lost[0]}"
        )
    return [json.loads(task.part.read_bytes()) for task in tasks]
