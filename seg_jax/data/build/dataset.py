"""Builds a data set: reads annotations, removes leaks, has its files made, tells what was found."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from seg_jax import files
from seg_jax.data import record_schema
from seg_jax.data import workers as processes
from seg_jax.data.build import record_files
from seg_jax.data.build.record_files import Task
from seg_jax.data.formats import annotations as annotated
from seg_jax.data.formats import coco, expected_sizes, folder, reasonseg, refer
from seg_jax.data.formats.annotations import AnnotatedImage, Annotations

Name = Literal[
    "refcoco_unc",
    "refcoco_google",
    "refcocoplus_unc",
    "refcocog_umd",
    "refcocog_google",
    "refclef_unc",
    "refclef_berkeley",
    "grefcoco_unc",
    "reasonseg",
    "coco_instances",
    "coco_panoptic",
    "folder",
]
"""The formats that are read; the refer family by the names that TFDS gives them."""

CLAIM = ".claim.json"
"""File of a folder that tells which build it belongs to."""
PLACES = {
    "coco": (
        "images/coco_2014/train2014",
        "images/mscoco/images/train2014",
        "images/train2014",
        "coco_train2014",
        "train2014",
    ),
    "saiapr": ("images/saiapr_tc-12", "saiapr_tc-12"),
}
"""Where images lie in folders that others use, first found."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be built, of what, where."""

    name: Name
    source: Path
    out: Path
    images: Path | None = None
    """Folder of the images; None: where others keep them below the source."""
    splits: tuple[str, ...] = ()
    """All if empty."""
    paper: bool = False
    """Keep images in train that a val or test split of the family holds."""
    family: Path | None = None
    """Folder of refcoco, refcoco+, ..; None: the source, for data sets of the family."""
    held_out: tuple[str, ...] = ()
    """Editions whose val and test images are removed; all that are there if empty."""
    records: int = 1024
    """Images a file."""


@dataclasses.dataclass
class FilePlan:
    """A data set ready to be made: its files, and what the report says already."""

    tasks: list[Task]
    report: dict[str, Any]


def plan_files(plan: Plan) -> FilePlan:
    """Returns the files to make, and what reading the annotations has shown.

    Raises:
      ValueError: a file is missing, or none of its format; nothing in it is ever run.
      OSError: a file cannot be read.
    """
    if plan.records < 1:
        raise ValueError(f"records: expected at least 1 image a file, got {plan.records}")
    read = _read_annotations(plan)
    every = annotated.images_by_split(read.images)
    _check_splits(plan, every)
    found = {split: _split_size(read, split, some) for split, some in every.items()}
    wanted = {name: some for name, some in every.items() if name in (plan.splits or every)}
    doubled = _drop_repeated_keys(wanted)
    leaks = _remove_leaks(plan, wanted)
    tasks = [
        task
        for split, some in sorted(wanted.items())
        for task in record_files.tasks_of_split(
            plan.name, split, some, out=plan.out, records=plan.records
        )
    ]
    if not tasks:
        raise ValueError(f"{plan.source}: expected images with expressions, got none")
    _check_images_exist(plan, tasks)
    warnings = expected_sizes.differences(
        plan.name, {split: size for split, size in found.items() if split in wanted}
    )
    annotation = {split: found[split]._asdict() for split in sorted(wanted)}
    report = {"name": plan.name, "annotated": annotation, "leaks": leaks, "faults": read.faults}
    return FilePlan(tasks, report | {"keys_repeated": doubled, "warnings": warnings})


def _read_annotations(asked: Plan) -> Annotations:
    """Returns the entries of a data set."""
    source = asked.source
    if not source.is_dir():
        raise ValueError(f"{source}: expected the folder of the data set, got no folder")
    if asked.name in refer.FAMILY:
        kind = refer.FAMILY[asked.name].images
        return refer.read(source, asked.name, _images_folder(asked, PLACES[kind]))
    if asked.name == "reasonseg":
        return reasonseg.read(source)
    if asked.name == "folder":
        return folder.read(source)
    prefix = asked.name.removeprefix("coco_")
    files = sorted((source / "annotations").glob(f"{prefix}_*.json"))
    if not files:
        raise ValueError(
            f"{source}: expected annotations/{prefix}_SPLIT.json, got none; do: give the folder "
            "that holds annotations and the images' folders as --source"
        )
    whole = Annotations([])
    known = [file.stem.removeprefix(f"{prefix}_") for file in files]
    if unknown := sorted({*asked.splits} - {*known}):
        raise ValueError(f"splits: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    for file in files:
        split = file.stem.removeprefix(f"{prefix}_")
        if asked.splits and split not in asked.splits:
            continue
        images = _images_folder(asked, (split, f"images/{split}"))
        if prefix == "instances":
            one = coco.read_instances(file, images=images, split=split)
        else:
            numbers = [source / "annotations" / file.stem, source / file.stem]
            numbers = next((place for place in numbers if place.is_dir()), numbers[0])
            one = coco.read_panoptic(file, numbers=numbers, images=images, split=split)
        whole.images += one.images
        whole.faults += one.faults
        whole.refs |= one.refs
    return whole


def _images_folder(asked: Plan, places: Sequence[str]) -> Path:
    if asked.images is not None:
        return asked.images
    for place in places:
        if (asked.source / place).is_dir():
            return asked.source / place
    raise ValueError(
        f"{asked.source}: expected the images in one of {', '.join(places)}, got no such "
        "folder; do: --images DIR"
    )


def _check_splits(asked: Plan, every: dict[str, list[AnnotatedImage]]) -> None:
    for split in every:
        if not re.fullmatch(r"\w+", split):
            raise ValueError(
                f"{asked.source}: expected splits named by letters, digits and _, got {split!r}; "
                "do: rename it"
            )
    if unknown := sorted({*asked.splits} - {*every}):
        raise ValueError(
            f"splits: expected some of {', '.join(sorted(every))}, got {', '.join(unknown)}"
        )


def _split_size(read: Annotations, split: str, some: list[AnnotatedImage]) -> expected_sizes.Size:
    refs = read.refs.get(split)
    if refs is None:
        refs = sum(len(entry.objects) for entry in some)
    return expected_sizes.Size(refs, len(some), sum(len(entry.expressions) for entry in some))


def _drop_repeated_keys(wanted: dict[str, list[AnnotatedImage]]) -> list[str]:
    """Leaves the first entry of every key in place, and returns the keys of the others."""
    doubled = []
    for split, some in wanted.items():
        seen: dict[str, AnnotatedImage] = {}
        for entry in some:
            if entry.key in seen:
                doubled.append(entry.key)
            seen.setdefault(entry.key, entry)
        wanted[split] = list(seen.values())
    return doubled


def _remove_leaks(asked: Plan, wanted: dict[str, list[AnnotatedImage]]) -> dict[str, Any]:
    """Removes images of val and test splits from train splits, and returns how many."""
    family = asked.family or (asked.source if asked.name in refer.FAMILY else None)
    trains = [split for split in wanted if split.startswith("train")]
    if asked.name in ("reasonseg", "folder") or not trains:
        return {"filter": "does not apply: no train split with images of the family"}
    if family is None:
        return {"filter": "off: --family DIR removes val and test images of refcoco, .. in it"}
    kind = refer.FAMILY[asked.name].images if asked.name in refer.FAMILY else "coco"
    held = refer.held_out_images(family, kind, asked.held_out or None)
    by: collections.Counter[str] = collections.Counter()
    told: dict[str, Any] = {}
    for split in trains:
        leaked = [entry for entry in wanted[split] if entry.image_id in held.images]
        for entry in leaked:
            by.update(held.images[entry.image_id])
        told[split] = {
            "images": len(leaked),
            "of": len(wanted[split]),
            "expressions": sum(len(entry.expressions) for entry in leaked),
        }
        if not asked.paper:
            gone = {entry.key for entry in leaked}
            wanted[split] = [entry for entry in wanted[split] if entry.key not in gone]
    what = "kept, as the paper does" if asked.paper else "removed"
    return {
        "filter": what,
        "train": told,
        "by": dict(sorted(by.items())),
        "looked_through": held.names,
        "not_there": held.missing,
    }


def _check_images_exist(asked: Plan, tasks: list[Task]) -> None:
    """Raises at once if the images are somewhere else altogether."""
    first = [entry.image for task in tasks for entry in task.images[:4]][:64]
    if not any(image.exists() for image in first):
        raise ValueError(
            f"{first[0].parent}: expected images as {first[0].name}, got none of the first "
            f"{len(first)}; do: --images DIR"
        )


@contextlib.contextmanager
def claim_build(asked: Plan, *, anew: bool) -> Iterator[None]:
    """Holds the folder of a build for this process, and for this data set.

    Raises:
      ValueError: the folder holds something else, or another process builds in it.
      OSError: it cannot be made.
    """
    wanted = {
        "name": asked.name,
        "splits": sorted(asked.splits),
        "paper": asked.paper,
        "held_out": sorted(asked.held_out),
        "family": None if asked.family is None else str(asked.family),
        "records": asked.records,
    }
    with claim_folder(asked.out, wanted, anew=anew):
        yield


@contextlib.contextmanager
def claim_folder(out: Path, wanted: dict[str, Any], *, anew: bool) -> Iterator[None]:
    """Holds a folder for this process, and for what it is to become.

    Args:
      out: the folder; made if there is none.
      wanted: tells what it is to become from anything else, in values that JSON knows.
      anew: whether to remove what another run of the same kind has left there.

    Raises:
      ValueError: the folder holds something else, or another process works in it.
      OSError: it cannot be made.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out}: expected to build alone, got another process at work in it; do: wait "
                "for it, or choose another --out"
            ) from None
        claim = out / CLAIM
        others = [one for one in out.iterdir() if one.name != ".lock"]
        if others and not claim.exists():
            raise ValueError(
                f"{out}: expected a new folder or an unfinished build, got other files; "
                "do: choose another --out"
            )
        if claim.exists() and anew:
            _remove_all(others)
        elif claim.exists() and (had := files.read_json(claim)) != wanted:
            differing = sorted(name for name in wanted if had.get(name) != wanted[name])
            raise ValueError(
                f"{out}: expected the same build as before, got another "
                f"{', '.join(differing)}; do: replace it with --anew, or choose another --out"
            )
        shutil.rmtree(out / record_files.UNFINISHED, ignore_errors=True)
        files.write_bytes(
            claim, json.dumps(wanted, sort_keys=True).encode(), aside=out / record_files.UNFINISHED
        )
        yield


def _remove_all(files: Iterable[Path]) -> None:
    for one in files:
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink()


def make_files(
    tasks: Sequence[Task], *, workers: int, progress: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Makes files in so many processes, and returns what is known about each, in order.

    Args:
      tasks: the files.
      workers: processes; 1: this one.
      progress: is told how many images are done.

    Raises:
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
        for future in concurrent.futures.as_completed(futures):
            place = futures[future]
            parts[place] = future.result()
            done += len(tasks[place].images)
            progress(done)
    return [parts[place] for place in range(len(tasks))]


def finish_build(asked: Plan, cut: FilePlan, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Writes the files that describe a data set, and returns the report.

    Args:
      asked: what was to be built.
      cut: its files.
      parts: what is known about each.
    """
    by_split: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        by_split.setdefault(part["split"], []).append(part)
    splits = {split: _sum_counts(some) for split, some in by_split.items()}
    skipped = [one for part in parts for one in part["skipped"]]
    report = cut.report | {
        "splits": splits,
        "skipped": [dict(zip(("key", "image", "reason"), one, strict=True)) for one in skipped],
        "images_repeated": _count_repeated(by_split),
    }
    empty = [split for split, one in splits.items() if not one["records"]]
    if empty:
        raise ValueError(
            f"{asked.source}: expected images in {', '.join(empty)}, got none that can be read: "
            f"{skipped[0][1]} is {skipped[0][2]}"
        )
    lengths = [
        (split, [part["records"] for part in some], splits[split]["bytes"])
        for split, some in by_split.items()
    ]
    aside = asked.out / record_files.UNFINISHED
    info = record_schema.info_json(asked.name, f"{asked.name} as seg-jax builds it.", lengths)
    text = json.dumps(report, indent=2) + "\n"
    # What makes the folder a data set comes last.
    for name, data in (
        ("features.json", record_schema.features_json()),
        (record_schema.REPORT, text),
        ("dataset_info.json", info),
    ):
        files.write_bytes(asked.out / name, data.encode(), aside=aside)
    shutil.rmtree(aside, ignore_errors=True)
    return report


def _sum_counts(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sums over the files of a split."""
    counts: collections.Counter[str] = collections.Counter()
    for part in parts:
        counts.update(part["counts"])
    whole = {"files": len(parts), "records": 0, "skipped": 0, "bytes": 0}
    for part in parts:
        whole["records"] += part["records"]
        whole["skipped"] += len(part["skipped"])
        whole["bytes"] += part["bytes"]
    return whole | dict(sorted(counts.items()))


def _count_repeated(by_split: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """Returns how many images have the bytes of another, within a split and between two."""
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
