"""Makes the files of a build by an Apache Beam pipeline: on Dataflow, Flink, Spark or here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from seg_jax.data.build import dataset, record_files
from seg_jax.data.build.record_files import Task

# Beam itself is imported where it is needed: it comes with an extra of its own.


def check_options(runner: str | None, options: Sequence[str]) -> None:
    """Raises ValueError if there are options of an engine without an engine."""
    if runner is None and options:
        raise ValueError(
            f"runner_options: expected none without --runner, got {options[0]}; do: name an engine "
            "with --runner, or leave them out"
        )


@functools.lru_cache(maxsize=1)
def _tasks(plan: dataset.Plan) -> list[Task]:
    """Returns the files of a plan, which each worker reads for itself, once.

    So the pipeline itself stays small, whatever the data set.
    """
    return dataset.plan_files(plan).tasks


def make_file(place: int, plan: dataset.Plan) -> tuple[str, int, int]:
    """Makes a file of a plan; returns its split, images stored and images skipped."""
    from apache_beam.metrics import Metrics  # pyright: ignore[reportMissingImports]

    part = record_files.make_file(_tasks(plan)[place])
    for name in ("records", "bytes"):
        Metrics.counter("build", name).inc(part[name])
    return part["split"], part["records"], part["skipped"]


def run_pipeline(
    make: Callable[[int, Any], Any],
    places: Sequence[int],
    context: Any,
    *,
    names: tuple[str, str],
    runner: str,
    options: Sequence[str],
) -> None:
    """Calls a function with each place by a pipeline, if there is any place.

    Args:
      make: a function of a module; workers import it.
      places: numbers of the files or shards that are left to do.
      context: second argument of every call.
      names: names of the two steps, as the engine shows them.
      runner: Beam's name of an engine, as DirectRunner or DataflowRunner.
      options: options of the pipeline, as "region=europe-west4".
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
            | names[1] >> apache_beam.Map(make, context)
        )


def make_files(
    plan: dataset.Plan, tasks: Sequence[Task], *, runner: str, options: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Makes files by a pipeline, and returns what is known about each, in order.

    Args:
      plan: what is to be built; workers must see its folders under the same paths.
      tasks: the files.
      runner: Beam's name of an engine, as DirectRunner or DataflowRunner.
      options: options of the pipeline, as "region=europe-west4".

    Raises:
      ValueError: a file has not been made.
    """
    # Files that are whole already need no worker.
    missing = [place for place, task in enumerate(tasks) if not record_files.is_whole(task)]
    damaged = {place for place in missing if record_files.is_damaged(tasks[place])}
    run_pipeline(make_file, missing, plan, names=("Files", "Make"), runner=runner, options=options)
    parts = [record_files.read_part(task) for task in tasks]
    lost = [task.file_path.name for task, part in zip(tasks, parts, strict=True) if part is None]
    if lost:
        raise ValueError(
            f"{plan.out}: expected the pipeline to make {len(tasks)} files, got {len(lost)} fewer, "
            f"the first one is {lost[0]}; do: check that its workers see this folder"
        )
    return [
        part | {record_files.DAMAGED: place in damaged}
        for place, part in enumerate(parts)
        if part is not None
    ]
