"""Annotates by an Apache Beam pipeline: on Dataflow, Flink, Spark or here."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from seg_jax.annotation import jobs
from seg_jax.annotation.jobs import Job, Shard
from seg_jax.data.build import beam

# Beam itself is imported where it is needed: it comes with an extra of its own.


@functools.lru_cache(maxsize=1)
def _shards(job: Job) -> list[Shard]:
    """Returns the shards of a job; each worker reads them itself, once."""
    return jobs.cut_into_shards(jobs.read_list(job), job.records)


def annotate_shard(place: int, job: Job) -> int:
    """Annotates a shard of a job; returns how many images it has."""
    from apache_beam.metrics import Metrics  # pyright: ignore[reportMissingImports]

    shard = _shards(job)[place]
    done = jobs.annotate_shard(shard, job)
    for name, count in jobs.read_shard(shard, job).counts.items():
        Metrics.counter("annotate", name).inc(count)
    return done


def annotate_shards(
    every: Sequence[Shard], job: Job, *, runner: str, options: Sequence[str] = ()
) -> None:
    """Annotates shards by a pipeline: each worker loads the models once.

    The stages of an image stay in one step: apart they would send images and masks over the
    network, and a shard that is written whole is what makes the work restartable.

    Args:
      every: the shards, of the list that `jobs.write_list` wrote.
      job: what is to be done; workers must see its folder, images and models under these paths.
      runner: Beam's name of an engine, as DirectRunner or DataflowRunner.
      options: of the pipeline, as "region=europe-west4".

    Raises:
      ValueError: a shard has not been made.
    """
    _shards.cache_clear()
    missing = [shard.index for shard in every if not jobs.is_whole(shard, job)]
    beam.run_pipeline(
        annotate_shard, missing, job, names=("Shards", "Annotate"), runner=runner, options=options
    )
    lost = [shard.index for shard in every if not jobs.is_whole(shard, job)]
    if lost:
        raise ValueError(
            f"{job.out}: expected the pipeline to annotate {len(every)} shards, got {len(lost)} "
            f"fewer, the first one is {lost[0]}; do: check that its workers see this folder"
        )
