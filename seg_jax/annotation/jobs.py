"""Annotates many images: in shards, each written whole or not at all, by so many processes."""

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

from seg_jax import files
from seg_jax.annotation import annotator
from seg_jax.annotation.annotator import ImageFile, Settings
from seg_jax.annotation.stages import Models, Stages, Unusable
from seg_jax.data import workers as processes
from seg_jax.data.build import dataset, record_files

DONE, LIST = ".annotated", ".images.jsonl"
"""Folder of whole shards; file that lists the images for every process."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
"""Endings of what counts as an image in a folder."""
_FORMAT = 1
"""Grows when shards of an older kind can no longer be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be annotated, how, by which models."""

    load: Callable[[], Stages]
    """Loads the models, in every process once; it travels to other processes and machines."""
    models: Models
    settings: Settings
    out: Path
    records: int = 64
    """Images a shard: what a kill costs at most, in each process."""
    patience: int = 16
    """Images in a row that models may fail on before the run stops."""
    code: str = ""
    """Which code this is, for the records."""

    def __post_init__(self):
        if self.records < 1 or self.patience < 1:
            raise ValueError(
                "expected records and patience of at least 1, got "
                f"{self.records} and {self.patience}"
            )


class Shard(NamedTuple):
    """Some of the images, annotated together."""

    index: int
    images: tuple[ImageFile, ...]


class Part(NamedTuple):
    """What became of a shard."""

    lines: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    counts: dict[str, int]


def listed(source: str) -> list[ImageFile]:
    """Returns images by their keys, in order.

    Args:
      source: a folder, whose images are named by their paths in it; a pattern as `web/*/*.jpg`;
        or a text file with a path a line, relative to its folder.

    Raises:
      ValueError: there are none.
    """
    path = Path(source)
    if path.is_dir():
        found = [one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES]
        made = [ImageFile(one.relative_to(path).as_posix(), one) for one in found if one.is_file()]
    elif path.is_file():
        if path.suffix.lower() in SUFFIXES:
            made = [ImageFile(path.name, path)]
        else:
            lines = [line.strip() for line in _text(path).splitlines()]
            made = [ImageFile(one, path.parent / one) for one in dict.fromkeys(lines) if one]
    else:
        fixed, pattern = _split(path)
        found = [one for one in fixed.glob(pattern) if one.is_file()] if pattern else []
        made = [ImageFile(one.relative_to(fixed).as_posix(), one) for one in found]
    if not made:
        raise ValueError(
            f"images: expected a folder, a pattern or a list of images, got none at {source}; "
            f"images end with one of {', '.join(SUFFIXES)}"
        )
    return sorted(made)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}: expected a text file with the path of an image a line, got other bytes"
        ) from None


def _split(path: Path) -> tuple[Path, str]:
    """Returns the folder before the first wild card, and the pattern from there on."""
    parts = path.parts
    wild = next((n for n, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return Path(*parts[:wild]), "/".join(parts[wild:])


def cut(images: Sequence[ImageFile], records: int) -> list[Shard]:
    """Returns shards of so many images."""
    starts = range(0, len(images), records)
    return [Shard(n, tuple(images[at : at + records])) for n, at in enumerate(starts)]


@contextlib.contextmanager
def claimed(job: Job, *, anew: bool) -> Iterator[None]:
    """Holds the folder for this process and this annotation.

    Raises:
      ValueError: it holds something else, or another process works in it.
      OSError: it cannot be made.
    """
    with dataset.held(job.out, {"name": "annotation", **told(job)}, anew=anew):
        yield


def told(job: Job) -> dict[str, Any]:
    """Returns what tells these records from any others, in values that JSON knows."""
    return {
        "models": [None if one is None else list(one) for one in job.models],
        "settings": json.loads(json.dumps(dataclasses.asdict(job.settings))),
        "records": job.records,
    }


def digest(shard: Shard, job: Job) -> str:
    """Returns what tells a shard from any other, the images' own bytes aside."""
    images = [[key, path.as_posix()] for key, path in shard.images]
    whole = json.dumps([_FORMAT, told(job), images], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def place(shard: Shard, job: Job) -> Path:
    """Returns where a whole shard lies."""
    return job.out / DONE / f"{shard.index:06d}.jsonl"


def is_whole(shard: Shard, job: Job) -> bool:
    """Returns whether a shard is there already, of the same images."""
    try:
        with place(shard, job).open("rb") as file:
            return json.loads(file.readline())["digest"] == digest(shard, job)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read(shard: Shard, job: Job) -> Part:
    """Returns what became of a shard that is whole."""
    with place(shard, job).open("rb") as file:
        head, *rest = [json.loads(line) for line in file]
    lines = [one["line"] for one in rest if "line" in one]
    failed = [one["failed"] for one in rest if "failed" in one]
    return Part(lines, failed, head["counts"])


def forget_failures(every: Sequence[Shard], job: Job) -> int:
    """Removes whole shards in which a model failed, so that they are made again; returns how many.

    Broken images are no reason: they stay broken.
    """
    gone = 0
    for shard in every:
        if is_whole(shard, job) and any(
            one["stage"] in annotator.MODELS for one in read(shard, job).failed
        ):
            place(shard, job).unlink()
            gone += 1
    return gone


@dataclasses.dataclass
class _Worker:
    """The models of a process, and how many images in a row they have failed on."""

    stages: Stages
    failures: int = 0


@functools.lru_cache(maxsize=1)
def _worker(load: Callable[[], Stages]) -> _Worker:
    return _Worker(load())


def make(shard: Shard, job: Job) -> int:
    """Annotates the images of a shard unless that is done; returns how many there are.

    Raises:
      Unusable: a stage can do no image at all, or failed on too many in a row.
      OSError: the shard cannot be written.
    """
    if is_whole(shard, job):
        return len(shard.images)
    worker = _worker(job.load)
    counts: collections.Counter[str] = collections.Counter()
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
            rest.append({"line": _relative(outcome.line, job)})
        else:
            counts["failed" if outcome.failed else "without_objects"] += 1
        rest += [{"failed": one} for one in outcome.failed]
    head = {"digest": digest(shard, job), "counts": dict(sorted(counts.items()))}
    data = "".join(f"{json.dumps(one)}\n" for one in (head, *rest)).encode()
    path = place(shard, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data, aside=job.out / record_files.UNFINISHED)
    return len(shard.images)


def _check_failures(worker: _Worker, outcome: annotator.Outcome, job: Job) -> None:
    """Raises when models have failed on so many images in a row that more make no sense."""
    lost = outcome.line is None and outcome.failed
    if lost and outcome.failed[-1]["stage"] == "read":
        return
    worker.failures = worker.failures + 1 if lost else 0
    if worker.failures >= job.patience:
        last, worker.failures = outcome.failed[-1], 0
        raise Unusable(
            f"{last['stage']}: expected it to work, got {job.patience} failures in a row, the last "
            f"one: {last['reason']}; mend it, then run the same command again: what is done stays"
        )


def _relative(line: dict[str, Any], job: Job) -> dict[str, Any]:
    """Returns a line whose image is told from the folder that the line will lie in."""
    path = os.path.relpath(Path(line["image"]).resolve(), folder(job).resolve())
    return line | {"image": Path(path).as_posix()}


def folder(job: Job) -> Path:
    """Returns the plain folder that an annotation makes."""
    return job.out / "annotations"


def make_all(
    every: Sequence[Shard], job: Job, *, workers: int, progress: Callable[[int], None]
) -> None:
    """Makes shards in so many processes, each with models of its own.

    Args:
      every: the shards.
      job: what is to be done.
      workers: processes; 1: this one.
      progress: is told how many images are done.

    Raises:
      Unusable: as in `make`, or a process died.
      OSError: as in `make`.
    """
    done = 0
    if workers <= 1:
        for shard in every:
            done += make(shard, job)
            progress(done)
        return
    with processes.pool(workers) as pool:
        futures = [pool.submit(make, shard, job) for shard in every]
        try:
            for future in concurrent.futures.as_completed(futures):
                done += future.result()
                progress(done)
        except concurrent.futures.process.BrokenProcessPool:
            raise Unusable(
                f"expected {workers} workers to live, got one that died, perhaps out of memory; "
                "run the same command again with fewer --workers: what is done stays"
            ) from None


def write_list(images: Sequence[ImageFile], job: Job) -> None:
    """Writes down the images, for processes that cannot be told them one by one."""
    lines = "".join(f"{json.dumps([key, path.as_posix()])}\n" for key, path in images)
    files.write_bytes(job.out / LIST, lines.encode(), aside=job.out / record_files.UNFINISHED)


def read_list(job: Job) -> list[ImageFile]:
    """Returns the images that `write_list` wrote down."""
    with (job.out / LIST).open("rb") as file:
        return [ImageFile(key, Path(path)) for key, path in map(json.loads, file)]
