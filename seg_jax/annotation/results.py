"""Gathers annotated shards into a plain folder, its dead letters, and a built data set."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seg_jax import files
from seg_jax.annotation import jobs
from seg_jax.annotation.jobs import LETTERS, SUMMARY, Job, Shard
from seg_jax.data.build import dataset, record_files
from seg_jax.data.build.record_files import Task
from seg_jax.data.findings import Findings

COUNTS = ("images", "annotated", "repeated", "without_objects", "failed")
"""Counts of images that a summary begins with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Which images go into which split."""

    train: str = "train"
    """Name of the split for training."""
    val: str = "val"
    """Name of the split for validation."""
    share: float = 0.0
    """Share of images that go to val, chosen by their bytes: adding images moves none of them."""

    def __post_init__(self):
        names = (self.train, self.val)
        if not all(re.fullmatch(r"\w+", name) for name in names) or self.train == self.val:
            raise ValueError(
                f"splits: expected two names of letters, digits and _, got {self.train!r} and "
                f"{self.val!r}"
                "; do: give two different names of such characters"
            )
        if not 0 <= self.share < 1:
            raise ValueError(
                f"splits.share: expected 0 to 1, less than 1, got {self.share}; do: give a share, "
                "as 0.1"
            )

    def choose(self, sha256: str) -> str:
        """Returns the split of an image by the digest of its bytes."""
        return self.val if int(sha256[:8], 16) < self.share * 2**32 else self.train


def gather_shards(every: Sequence[Shard], job: Job, splits: Splits) -> dict[str, Any]:
    """Writes the plain folder, dead letters and summary of whole shards; returns the summary.

    An image with the bytes of an earlier one is left out.

    Raises:
      ValueError: no image is left.
      OSError: a file cannot be written.
    """
    names = (splits.train, splits.val) if splits.share else (splits.train,)
    for path in jobs.plain_folder(job).glob("*.jsonl"):
        if path.stem not in names:  # Left over from other names of splits.
            path.unlink()
    counts: collections.Counter[str] = collections.Counter()
    stages: collections.Counter[str] = collections.Counter()
    seen: dict[str, str] = {}
    found: collections.Counter[str] = collections.Counter()
    met = Findings()
    aside = job.out / record_files.UNFINISHED
    with contextlib.ExitStack() as stack:
        sheets = {
            name: stack.enter_context(files.open_whole(_split_file(job, name), aside=aside))
            for name in names
        }
        letters = stack.enter_context(files.open_whole(job.out / LETTERS, aside=aside))
        for shard in every:
            part = jobs.read_shard(shard, job)
            counts.update(part.counts)
            met.merge(part.findings)
            for line in part.lines:
                sha256 = line["provenance"]["image"]["sha256"]
                if sha256 in seen:
                    counts["repeated"] += 1
                    what = f"{line['key']} as {seen[sha256]}"
                    met.add("image left out, as another has its bytes", what)
                    continue
                seen[sha256] = line["key"]
                split = splits.choose(sha256)
                found.update({f"{split}/images": 1, f"{split}/objects": len(line["objects"])})
                found[f"{split}/phrases"] += len(line["phrases"])
                sheets[split].write(f"{json.dumps(line)}\n")
            for one in part.failed:
                stages[one["stage"]] += 1
                letters.write(f"{json.dumps(one)}\n")
    summary = _summary(job, counts, stages=stages, found=found, names=names)
    summary["findings"] = met.as_json()
    text = json.dumps(summary, indent=2) + "\n"
    files.write_bytes(job.out / SUMMARY, text.encode(), aside=job.out / record_files.UNFINISHED)
    if not seen:
        raise ValueError(_nothing_left(job, summary))
    return summary


def _summary(
    job: Job,
    counts: collections.Counter[str],
    *,
    stages: collections.Counter[str],
    found: collections.Counter[str],
    names: Sequence[str],
) -> dict[str, Any]:
    dropped = {
        name.removeprefix("dropped/"): count
        for name, count in sorted(counts.items())
        if name.startswith("dropped/")
    }
    return {
        **{name: counts[name] for name in COUNTS},
        "splits": {
            name: {what: found[f"{name}/{what}"] for what in ("images", "objects", "phrases")}
            for name in names
        },
        "dropped": dropped,
        "dead_letters": dict(sorted(stages.items())),
        "models": jobs.job_identity(job)["models"],
        "settings": jobs.job_identity(job)["settings"],
    }


def _nothing_left(job: Job, summary: dict[str, Any]) -> str:
    """Returns the message of an error where no image is left."""
    most = max(summary["dropped"].items(), key=lambda item: item[1], default=None)
    why = f", {summary['failed']} failed, see {job.out / LETTERS}" if summary["failed"] else ""
    if most is not None:
        why += f", {most[1]} objects were dropped for {most[0]}, see --filters"
    return (
        f"{job.out}: expected images with objects, got none of "
        f"{summary['images']}{why}; do: give other images, labels or --filters, and run again"
    )


def _split_file(job: Job, split: str) -> Path:
    return jobs.plain_folder(job) / f"{split}.jsonl"


def build_dataset(
    job: Job, make: Callable[[dataset.Plan, Sequence[Task]], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Builds the data set of a plain folder in the job's folder; returns the report.

    Args:
      job: the job whose shards were gathered.
      make: makes the files, as `dataset.make_files`.
    """
    for path in jobs.plain_folder(job).glob("*.jsonl"):
        if not path.stat().st_size:  # A split without images.
            path.unlink()
    plan = dataset.Plan(name="folder", source=jobs.plain_folder(job), out=job.out)
    planned = dataset.plan_files(plan)
    if not all(map(record_files.is_whole, planned.tasks)):
        # What makes the folder a data set comes last.
        (job.out / "dataset_info.json").unlink(missing_ok=True)
    report = dataset.finish_build(plan, planned, make(plan, planned.tasks))
    wanted = {task.file_path for task in planned.tasks} | {task.part_path for task in planned.tasks}
    for place in (job.out, job.out / record_files.PARTS):
        for path in place.glob("folder-*.array_record-*" if place == job.out else "*.json"):
            if path not in wanted:
                path.unlink()
    return report
