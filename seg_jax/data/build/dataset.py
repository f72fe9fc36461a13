"""Builds a data set: reads annotations, removes leaks, makes its files, reports what was met."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from seg_jax import checksums, files, schemas
from seg_jax.data import record_schema
from seg_jax.data import workers as processes
from seg_jax.data.build import claims, leaks, readers, record_files
from seg_jax.data.build.readers import Name as Name
from seg_jax.data.build.readers import Plan
from seg_jax.data.build.record_files import Task
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, expected_sizes, mask_folders, refer
from seg_jax.data.formats.annotations import AnnotatedImage, Annotations


@dataclasses.dataclass
class FilePlan:
    """The files of a data set to make, and the report so far."""

    tasks: list[Task]
    report: dict[str, Any]
    findings: Findings
    """What of the annotations was left out or changed."""


def plan_files(plan: Plan) -> FilePlan:
    """Returns the files to make, and a report on the annotations.

    Raises:
      ValueError: a file is missing, or none of its format; nothing in it is ever run.
      OSError: a file cannot be read.
    """
    _check_known(plan)
    if plan.records < 1:
        raise ValueError(
            f"records: expected at least 1 image a file, got {plan.records}; do: raise --records"
        )
    read = readers.read(plan)
    _check_any(plan, read.images, read.findings)
    every = annotations.images_by_split(read.images)
    _check_splits(plan, every)
    wanted = {name: images for name, images in every.items() if name in (plan.splits or every)}
    _check_leak_options(plan, wanted)
    sizes = {split: _split_size(read, split, wanted[split]) for split in sorted(wanted)}
    met = read.findings
    _drop_unstorable_names(wanted, met)
    _drop_repeated_keys(wanted, met)
    removed = leaks.remove_leaks(
        wanted,
        name=plan.name,
        family=plan.family or (plan.source if plan.name in refer.FAMILY else None),
        editions=plan.held_out,
        keep=plan.paper,
        findings=met,
    )
    if plan.strict:
        record_files.check_no_findings(met)
    tasks = [
        task
        for split, some in sorted(wanted.items())
        for task in record_files.tasks_of_split(
            plan.name, split, some, out=plan.out, records=plan.records, strict=plan.strict
        )
    ]
    _check_any(plan, tasks, met)
    _check_images_exist(plan, tasks)
    report = {
        "name": plan.name,
        "annotated": {split: size._asdict() for split, size in sizes.items()},
        "leaks": removed,
        "warnings": expected_sizes.differences(plan.name, sizes),
    }
    return FilePlan(tasks, report, met)


def _check_known(plan: Plan) -> None:
    """Raises ValueError for splits that a data set of masks does not have."""
    layout = mask_folders.LAYOUTS.get(plan.name)
    if layout and (unknown := sorted({*plan.splits} - {*layout.splits})):
        raise ValueError(
            f"splits: expected some of {', '.join(layout.splits)}, got {', '.join(unknown)}"
            "; do: choose --splits among them"
        )


class NothingKept(ValueError):
    """Nothing of a data set, or of a split, can be kept; the findings tell all the reasons."""

    def __init__(self, message: str, met: Findings):
        super().__init__(message)
        self.findings = met


def _check_any(plan: Plan, some: Sequence[Any], met: Findings) -> None:
    """Raises ValueError if nothing is left, with what most of it was left out for."""
    if not some:
        why = f" but {met.commonest()}" if met.counts else ""
        raise NothingKept(
            f"{plan.source}: expected images with expressions, got none{why}; do: check --source "
            "and --splits",
            met,
        )


def _check_splits(plan: Plan, every: dict[str, list[AnnotatedImage]]) -> None:
    for split in every:
        if not re.fullmatch(r"\w+", split):
            raise ValueError(
                f"{plan.source}: expected splits named by letters, digits and _, got {split!r}; "
                "do: rename the split"
            )
    if unknown := sorted({*plan.splits} - {*every}):
        raise ValueError(
            f"splits: expected some of {', '.join(sorted(every))}, got {', '.join(unknown)}"
            "; do: choose --splits among them"
        )


def _check_leak_options(plan: Plan, splits: Iterable[str]) -> None:
    """Raises ValueError for options of the leak filter where no split is filtered."""
    if any(split.startswith("train") for split in splits):
        return
    for name in ("paper", "family", "held_out"):
        if value := getattr(plan, name):
            raise ValueError(
                f"{name}: expected a train split, from which images of val and test splits are "
                f"removed, got {value} beside {', '.join(sorted(splits))}; do: leave it out"
            )


def _split_size(read: Annotations, split: str, some: list[AnnotatedImage]) -> expected_sizes.Size:
    refs = read.refs.get(split)
    if refs is None:
        refs = sum(len(image.objects) for image in some)
    return expected_sizes.Size(refs, len(some), sum(len(image.expressions) for image in some))


def _drop_unstorable_names(wanted: dict[str, list[AnnotatedImage]], met: Findings) -> None:
    """Leaves out images whose file has a name that is no UTF-8: no record and no JSON holds it."""
    for split, some in wanted.items():
        wanted[split] = []
        for image in some:
            name = f"{image.key} {image.image.name}"
            if schemas.holds(name, schemas.Text):
                wanted[split].append(image)
                continue
            met.add(
                "image left out, as the name of its file is no UTF-8",
                f"{image.key}: {image.image}",
                advice="rename the file (convmv renames whole folders)",
            )


def _drop_repeated_keys(wanted: dict[str, list[AnnotatedImage]], met: Findings) -> None:
    """Keeps the first image of every key, and tells of the others."""
    for split, some in wanted.items():
        seen: dict[str, AnnotatedImage] = {}
        for image in some:
            first = seen.setdefault(image.key, image)
            if first is not image:
                met.add(
                    "image left out, as its key is that of one before",
                    f"{image.key}: {image.image}, which {first.image} has already",
                    advice="give each image a key of its own",
                )
        wanted[split] = list(seen.values())


def _check_images_exist(plan: Plan, tasks: list[Task]) -> None:
    """Raises ValueError if none of the images exists."""
    every = [image.image for task in tasks for image in task.images]
    if not any(image.exists() for image in every):
        advice = "--images DIR"
        if plan.name == "reasonseg":
            advice = "put the images beside their annotations"
        raise ValueError(
            f"{every[0].parent}: expected images as {every[0].name}, got none of {len(every)}; "
            f"do: {advice}"
        )


@contextlib.contextmanager
def claim_build(plan: Plan, *, anew: bool) -> Iterator[None]:
    """Holds the folder of a build for this process, and for this data set.

    Raises:
      ValueError: the folder holds something else, or what is read, or another process builds in it.
      OSError: it cannot be made.
    """
    wanted = {
        "name": plan.name,
        "splits": sorted(plan.splits),
        "paper": plan.paper,
        "held_out": sorted(plan.held_out),
        "family": None if plan.family is None else str(plan.family),
        "records": plan.records,
    }
    wanted |= readers.chosen_options(plan)
    places = plan.source, plan.images, plan.masks, plan.family
    reads = [one for one in places if one is not None]
    with claims.claim_folder(plan.out, wanted, anew=anew, reads=reads):
        yield


def make_files(
    tasks: Sequence[Task], *, workers: int, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Makes files in several processes, and returns what is known about each, in order.

    Args:
      tasks: the files.
      workers: number of processes; 1: this one.
      progress: is called with the number of images that are done.

    Raises:
      ValueError: the build is strict, and something was left out or changed; or a worker died.
      OSError: a file cannot be written, or a source cannot be read.
    """
    parts: dict[int, dict[str, Any]] = {}
    done = 0
    if workers <= 1:
        for place, task in enumerate(tasks):
            parts[place] = record_files.make_file(task)
            done += len(task.images)
            progress(done)
        return [parts[place] for place in range(len(tasks))]
    with processes.pool(workers) as pool:
        futures = {
            pool.submit(record_files.make_file, task): place for place, task in enumerate(tasks)
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                if future.exception():  # Of several errors that of the first file is told.
                    for one in futures:
                        one.result()
                place = futures[future]
                parts[place] = future.result()
                done += len(tasks[place].images)
                progress(done)
        except concurrent.futures.process.BrokenProcessPool:
            raise ValueError(
                f"workers: expected {workers} of them to live, got one that died, perhaps out of "
                "memory; do: run the same command again with fewer --workers: what is done stays"
            ) from None
    return [parts[place] for place in range(len(tasks))]


def finish_build(plan: Plan, planned: FilePlan, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes the files that describe a data set, and returns the report.

    Args:
      plan: what was built.
      planned: the planned files.
      parts: what is known about each.
    """
    by_split: dict[str, list[dict[str, Any]]] = {}
    met, limited = Findings(), Findings()
    met.merge(planned.findings)
    for part in parts:
        by_split.setdefault(part["split"], []).append(part)
        met.merge(Findings.from_json(part["findings"]))
        limited.merge(Findings.from_json(part["limits"]))
    splits = {split: _sum_counts(some) for split, some in by_split.items()}
    empty = [split for split, one in splits.items() if not one["records"]]
    if empty:
        # What the reader left out comes first: without it nothing more could be kept.
        why = planned.findings.commonest() or met.commonest()
        raise NothingKept(
            f"{plan.source}: expected images in {', '.join(empty)}, got none that can be kept: "
            f"{why}; do: check the annotations and --images",
            met,
        )
    _tell_nameless(splits, limited)
    lengths = [
        (split, [part["records"] for part in some], splits[split]["bytes"])
        for split, some in by_split.items()
    ]
    sizes = {
        split: [size for part in some for size in part["sizes"]] for split, some in by_split.items()
    }
    made = {
        task.file_path.name: {name: part[name] for name in ("records", "size", "xxh3")}
        for task, part in zip(planned.tasks, parts, strict=True)
    }
    sizes_text = json.dumps(sizes) + "\n"
    report = planned.report | {
        "splits": splits,
        "findings": met.as_json(),
        "limits": limited.as_json(),
        "images_repeated": _count_repeated(by_split),
        "files": made,
        "xxh3": checksums.of_bytes(json.dumps(made, sort_keys=True).encode()),
        "xxh3_of_sizes": checksums.of_bytes(sizes_text.encode()),
    }
    info = record_schema.info_json(plan.name, f"{plan.name} as seg-jax builds it.", lengths)
    features = record_schema.features_json(traces=any("traces" in one for one in splits.values()))
    report["xxh3_of_features"] = checksums.of_bytes(features.encode())
    aside = plan.out / record_files.UNFINISHED
    # The file that makes the folder a data set goes first and comes last.
    (plan.out / record_schema.INFO).unlink(missing_ok=True)
    _remove_stale(planned.tasks)
    for name, text in (
        (record_schema.FEATURES, features),
        (record_schema.SIZES, sizes_text),
        (record_schema.REPORT, json.dumps(report, indent=2) + "\n"),
        (record_schema.INFO, info),
    ):
        files.write_bytes(plan.out / name, text.encode(), aside=aside)
    with contextlib.suppress(OSError):
        files.remove(aside)
    return report


def _tell_nameless(splits: dict[str, dict[str, Any]], limited: Findings) -> None:
    """Tells of splits whose objects no expression means: runs refuse them."""
    for split, one in splits.items():
        if one.get("objects") and not one.get("records_with_objects"):
            limited.add(
                "split refused by runs that ask for objects: no expression means one",
                f"{split}: {one['objects']} objects",
                advice="name the objects in the annotations",
            )


def _remove_stale(tasks: Sequence[Task]) -> None:
    """Removes files of records of an earlier build that no task makes: it had more, or others."""
    kept = {path for task in tasks for path in (task.file_path, task.part_path)}
    for pattern in (claims.RECORDS, claims.DESCRIPTIONS):
        for path in sorted(tasks[0].out.glob(pattern)):
            if path not in kept:
                path.unlink()


def _sum_counts(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sums over the files of a split."""
    counts: collections.Counter[str] = collections.Counter()
    for part in parts:
        counts.update(part["counts"])
    whole = {"files": len(parts), "records": 0, "skipped": 0, "bytes": 0}
    for part in parts:
        whole["records"] += part["records"]
        whole["skipped"] += part["skipped"]
        whole["bytes"] += part["bytes"]
    return whole | dict(sorted(counts.items()))


def _count_repeated(by_split: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Returns the number of images with the bytes of another, within a split and between two."""
    seen = {
        split: collections.Counter(one for part in some for one in part["images"])
        for split, some in by_split.items()
    }
    found = {split: sum(n - 1 for n in images.values()) for split, images in seen.items()}
    names = sorted(seen)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            found[f"{one} and {other}"] = len(seen[one].keys() & seen[other].keys())
    return {name: number for name, number in found.items() if number}
