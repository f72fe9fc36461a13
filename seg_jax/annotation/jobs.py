"""Annotates many images by several processes, in shards that are written whole or not at all."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seg_jax import files, schemas
from seg_jax.annotation import annotator
from seg_jax.annotation.annotator import Settings
from seg_jax.annotation.stages import Models, Stages, Unusable
from seg_jax.data import shard_files
from seg_jax.data import workers as processes
from seg_jax.data.build import claims, record_files
from seg_jax.data.findings import Findings
from seg_jax.data.image_lists import ImageFile

DONE, LIST = ".annotated", ".images.jsonl"
"""Folder of finished shards; file that lists the images for every process."""
LETTERS, SUMMARY = "dead_letters.jsonl", "summary.json"
"""Files beside the data set: one JSON object a line about each failure; counts."""
_PLAIN = "annotations"
_MADE = (*claims.MADE, LETTERS, SUMMARY, LIST, f"{DONE}/*.jsonl", f"{_PLAIN}/*.jsonl")
"""Patterns of what an annotation makes in its folder."""
_FORMAT = 2
"""Format of shards; it grows when older shards can no longer be read."""
_AGAIN = "run the same command again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """How images are annotated, by which models, and where the result goes."""

    load: Callable[[], Stages]
    """Loads the models, once in every process; it is sent to other processes and machines."""
    models: Models
    settings: Settings
    out: Path
    records: int = 64
    """Images in a shard: the most that a kill can cost, in each process."""
    patience: int = 16
    """Number of images in succession that models may fail on before the run stops."""
    code: str = ""
    """Version of the code, for the records."""

    def __post_init__(self):
        if self.records < 1 or self.patience < 1:
            raise ValueError(
                "annotate: expected records and patience of at least 1, got "
                f"{self.records} and {self.patience}"
                "; do: give 1 or more of each"
            )


class Shard(NamedTuple):
    """Images that are annotated together."""

    index: int
    images: tuple[ImageFile, ...]


class ShardResult(NamedTuple):
    """What became of a shard."""

    lines: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    counts: dict[str, int]
    findings: Findings


def cut_into_shards(images: Sequence[ImageFile], records: int) -> list[Shard]:
    """Returns the images in shards of at most `records`."""
    starts = range(0, len(images), records)
    return [Shard(n, tuple(images[at : at + records])) for n, at in enumerate(starts)]


@contextlib.contextmanager
def claim_folder(job: Job, *, anew: bool) -> Iterator[None]:
    """Holds the folder for this process and this annotation.

    Raises:
      ValueError: it holds something else, or another process works in it.
      OSError: it cannot be made.
    """
    wanted = {"name": "annotation", **job_identity(job)}
    with claims.claim_folder(job.out, wanted, anew=anew, made=_MADE):
        yield


def job_identity(job: Job) -> dict[str, Any]:
    """Returns all that the records of a job depend on, as JSON values."""
    return {
        "models": [None if one is None else list(one) for one in job.models],
        "settings": files.parse_json(
            json.dumps(dataclasses.asdict(job.settings)), where="settings"
        ),
        "records": job.records,
    }


def shard_digest(shard: Shard, job: Job) -> str:
    """Returns a digest of all that a shard depends on, except the images' own bytes."""
    images = [[key, path.as_posix()] for key, path in shard.images]
    whole = json.dumps([_FORMAT, job_identity(job), images], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def shard_path(shard: Shard, job: Job) -> Path:
    """Returns the path of a finished shard."""
    return job.out / DONE / f"{shard.index:06d}.jsonl"


def is_whole(shard: Shard, job: Job) -> bool:
    """Returns whether a shard of the same images exists already, undamaged."""
    return shard_files.is_of(shard_path(shard, job), shard_digest(shard, job))


def damaged_shards(every: Sequence[Shard], job: Job) -> Findings:
    """Returns which finished shards are damaged, so that they are made again."""
    met = Findings()
    for shard in every:
        if shard_path(shard, job).exists():
            try:
                shard_files.read(shard_path(shard, job))
            except ValueError as error:
                told = str(error).partition("; do: ")[0]
                met.add("finished shard is damaged and made again", told)
    return met


def read_shard(shard: Shard, job: Job) -> ShardResult:
    """Returns what became of a shard that is whole.

    Raises:
      ValueError: it is not.
    """
    whole = shard_files.read(shard_path(shard, job))
    lines = [one["line"] for one in whole.lines if "line" in one]
    failed = [one["failed"] for one in whole.lines if "failed" in one]
    return ShardResult(lines, failed, whole.counts, whole.findings)


def forget_failures(every: Sequence[Shard], job: Job) -> int:
    """Removes finished shards in which a model failed, so that they are made again.

    Shards with nothing but broken images to report stay. Returns the number of removed shards.
    """
    gone = 0
    for shard in every:
        if is_whole(shard, job) and any(
            one["stage"] in annotator.MODELS for one in read_shard(shard, job).failed
        ):
            shard_path(shard, job).unlink()
            gone += 1
    return gone


@dataclasses.dataclass
class _Worker:
    """The models of a process, and the number of images in succession that they failed on."""

    stages: Stages
    failures: int = 0


@functools.lru_cache(maxsize=1)
def _worker(load: Callable[[], Stages]) -> _Worker:
    return _Worker(load())


def annotate_shard(shard: Shard, job: Job) -> int:
    """Annotates the images of a shard unless that is done; returns their number.

    Raises:
      Unusable: a stage can process no image at all, or failed on too many in succession.
      OSError: the shard cannot be written.
    """
    if is_whole(shard, job):
        return len(shard.images)
    worker = _worker(job.load)
    counts: collections.Counter[str] = collections.Counter()
    met = Findings()
    rest: list[dict[str, Any]] = []
    for image in shard.images:
        outcome = annotator.annotate(
            image, worker.stages, job.settings, models=job.models, code=job.code
        )
        _check_failures(worker, outcome, job)
        counts.update({f"dropped/{name}": count for name, count in outcome.dropped.items()})
        counts["images"] += 1
        if outcome.line is not None:
            counts["annotated"] += 1
            rest.append({"line": _with_relative_path(outcome.line, job)})
        else:
            counts["failed" if outcome.failed else "without_objects"] += 1
        rest += [{"failed": one} for one in outcome.failed]
        met.merge(annotator.findings_of(image, outcome))
    shard_files.write(
        shard_path(shard, job),
        rest,
        digest=shard_digest(shard, job),
        counts=counts,
        findings=met,
        aside=job.out / record_files.UNFINISHED,
    )
    return len(shard.images)


def _check_failures(worker: _Worker, outcome: annotator.Outcome, job: Job) -> None:
    """Raises Unusable when models have failed on too many images in succession."""
    lost = outcome.line is None and outcome.failed
    if lost and outcome.failed[-1]["stage"] == "read":
        return
    worker.failures = worker.failures + 1 if lost else 0
    if worker.failures >= job.patience:
        last, worker.failures = outcome.failed[-1], 0
        raise Unusable(
            f"{last['stage']}: expected it to work, got {job.patience} failures in a row, the last "
            f"one: {last['reason']}; do: remove the cause, then run the same command again: what "
            "is done stays"
        )


def _with_relative_path(line: dict[str, Any], job: Job) -> dict[str, Any]:
    """Returns a line with the image's path relative to the folder of the line's file."""
    path = os.path.relpath(Path(line["image"]).resolve(), plain_folder(job).resolve())
    return line | {"image": Path(path).as_posix()}


def plain_folder(job: Job) -> Path:
    """Returns the plain folder that an annotation makes."""
    return job.out / _PLAIN


def annotate_shards(
    every: Sequence[Shard], job: Job, *, workers: int, progress: Callable[[int], None]
) -> None:
    """Makes shards in several processes, each with models of its own.

    Args:
      every: the shards.
      job: how they are annotated.
      workers: number of processes; 1: this one.
      progress: is called with the number of images that are done.

    Raises:
      Unusable: see `annotate_shard`, or a process died.
      OSError: see `annotate_shard`.
    """
    done = 0
    if workers <= 1:
        for shard in every:
            done += annotate_shard(shard, job)
            progress(done)
        return
    with processes.pool(workers) as pool:
        futures = [pool.submit(annotate_shard, shard, job) for shard in every]
        try:
            for future in concurrent.futures.as_completed(futures):
                done += future.result()
                progress(done)
        except concurrent.futures.process.BrokenProcessPool:
            raise Unusable(
                f"workers: expected {workers} of them to live, got one that died, perhaps out of "
                "memory; do: run the same command again with fewer --workers: what is done stays"
            ) from None


def write_list(images: Sequence[ImageFile], job: Job) -> None:
    """Writes the list of images for processes that cannot be sent it."""
    lines = "".join(f"{json.dumps([key, path.as_posix()])}\n" for key, path in images)
    files.write_bytes(job.out / LIST, lines.encode(), aside=job.out / record_files.UNFINISHED)


def read_list(job: Job) -> list[ImageFile]:
    """Returns the images that `write_list` wrote.

    Raises:
      ValueError: the file is damaged.
    """
    path = job.out / LIST
    images = []
    for number, line in enumerate(files.read_bytes(path, advice=_AGAIN).splitlines(), 1):
        where = f"{path}, line {number}"
        value = files.parse_json(line, where=where, advice=_AGAIN)
        key, name = schemas.check(value, tuple[str, str], where=where, advice=_AGAIN)
        images.append(ImageFile(key, Path(name)))
    return images
