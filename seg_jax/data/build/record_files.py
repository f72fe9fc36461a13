"""Makes the files of a data set from annotated images: each appears whole or not at all."""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax import files
from seg_jax.data import image_files, record_schema
from seg_jax.data.formats.annotations import AnnotatedImage, AnnotatedObject, Polygons, Role
from seg_jax.geometry import bitmask, contour, runlengths

UNFINISHED, PARTS = ".unfinished", ".parts"
"""Folders beside the files: for files being written, and for descriptions of finished ones."""
OVERHANG_PX = 1.0
"""Outlines that reach further beyond their image are reported; less is taken for rounding."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A file to make."""

    name: str
    """Name of the data set."""
    split: str
    index: int
    files: int
    """Number of files of the split."""
    images: tuple[AnnotatedImage, ...]
    out: Path

    @property
    def file_path(self) -> Path:
        """Path of the file."""
        return self.out / record_schema.file_name(
            self.name, self.split, index=self.index, count=self.files
        )

    @property
    def part_path(self) -> Path:
        """Path of the JSON file that describes the finished file."""
        return self.out / PARTS / f"{self.split}-{self.index:05d}.json"

    @property
    def digest(self) -> str:
        """Digest of all that the file is made of, except the images' own bytes."""
        seen = hashlib.sha256(
            repr((record_schema.VERSION, self.name, self.index, self.files)).encode()
        )
        for image in self.images:
            seen.update(repr(image).encode())
        return seen.hexdigest()


class BrokenImage(ValueError):
    """An image that cannot be stored; its text is the reason."""


def is_whole(task: Task) -> bool:
    """Returns whether the file of a task exists already, made of the same images."""
    try:
        part = json.loads(task.part_path.read_bytes())
        return part["digest"] == task.digest and part["size"] == task.file_path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make_file(task: Task) -> dict[str, Any]:
    """Makes the file of a task unless it exists, and returns what is known about it.

    Raises:
      OSError: it cannot be written, or a source cannot be read.
    """
    if is_whole(task):
        return json.loads(task.part_path.read_bytes())
    unfinished = task.out / UNFINISHED / f"{task.file_path.name}.{os.getpid()}"
    for folder in (unfinished.parent, task.part_path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        part = _write_records(task, unfinished)
        part |= {"digest": task.digest, "size": unfinished.stat().st_size}
        files.move_synced(unfinished, task.file_path)
    finally:
        unfinished.unlink(missing_ok=True)
    # Last: a file without its part is made again.
    files.write_bytes(
        task.part_path, json.dumps(part, sort_keys=True).encode(), aside=unfinished.parent
    )
    return part


def _write_records(task: Task, path: Path) -> dict[str, Any]:
    """Writes the records of a task, and returns what is known about them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    counts: collections.Counter[str] = collections.Counter()
    skipped, images, size = [], [], 0
    # A record a group: any can be read without the others.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for image in task.images:
            try:
                record, found = build_record(image)
            except BrokenImage as reason:
                skipped.append([image.key, str(image.image), str(reason)])
                continue
            data = record_schema.encode(record)
            writer.write(data)
            counts.update(found)
            size += len(data)
            images.append(hashlib.blake2b(record.image, digest_size=8).hexdigest())
    finally:
        _close_writer(writer, path)
    known = {"split": task.split, "records": len(images), "bytes": size, "images": images}
    return known | {"counts": dict(sorted(counts.items())), "skipped": skipped}


def _close_writer(writer: Any, path: Path) -> None:
    """Closes a file; a full disk becomes the OSError that it is elsewhere."""
    try:
        writer.close()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise OSError(f"{path}: {error}") from None


def build_record(image: AnnotatedImage) -> tuple[record_schema.Record, dict[str, int]]:
    """Returns the record of an annotated image, and counts of what was met in it.

    Raises:
      BrokenImage: the file is missing, broken or of another size, or no object is left of it.
      OSError: the file cannot be read.
    """
    data, (height, width), changed = _read_image(image)
    counts: collections.Counter[str] = collections.Counter(images_converted=int(changed))
    objects = _objects_with_masks(image.objects, counts, height=height, width=width)
    new_places = {place: new for new, (place, _, _) in enumerate(objects)}
    expressions = _expressions_left(image, new_places, counts)
    if not expressions and not objects:
        raise BrokenImage("no object and no expression is left of it")
    meant = any(one.objects for one in expressions)
    if any(one.objects for one in image.expressions) and not meant:
        raise BrokenImage("no object with an expression is left of it")
    boxes = [one.box_px or contour.box_px(bitmask.from_rle(rle)) for _, one, rle in objects]
    record = record_schema.Record(
        key=image.key,
        split=image.split,
        image=data,
        image_id=image.image_id,
        name=image.image.name,
        height=height,
        width=width,
        ids=tuple(one.id for _, one, _ in objects),
        names=tuple(one.name for _, one, _ in objects),
        roles=tuple(one.role for _, one, _ in objects),
        counts=tuple(rle["counts"] for _, _, rle in objects),
        areas=tuple(runlengths.area(rle) for _, _, rle in objects),
        boxes_px=np.asarray(boxes, np.float32).reshape(-1, 4),
        expressions=tuple(expressions),
    )
    counts["objects"] += len(objects)
    counts["expressions"] += len(expressions)
    counts["expressions_without_object"] += sum(not one.objects for one in expressions)
    counts["expressions_of_many_objects"] += sum(len(one.objects) > 1 for one in expressions)
    counts["records_with_objects"] += meant
    return record, {name: number for name, number in counts.items() if number}


def _objects_with_masks(
    objects: Sequence[AnnotatedObject],
    counts: collections.Counter[str],
    *,
    height: int,
    width: int,
) -> list[tuple[int, AnnotatedObject, dict[str, Any]]]:
    """Returns the place, annotation and mask of every object that has one; counts the others."""
    found = []
    for place, one in enumerate(objects):
        rle = _mask_rle(one, counts, height=height, width=width)
        if rle is None:
            continue
        if not runlengths.area(rle):
            counts["objects_without_pixels"] += 1
            continue
        found.append((place, one, rle))
    return found


def _read_image(image: AnnotatedImage) -> tuple[bytes, tuple[int, int], bool]:
    """Returns an image's bytes, its height and width, and whether the bytes are new ones."""
    try:
        data = image_files.read_bytes(image.image)
        stored = image_files.storable(data, upright=image.upright)
    except image_files.Unreadable as error:
        raise BrokenImage(error.fault) from None
    size = stored.height, stored.width
    if image.size is not None and image.size != size:
        raise BrokenImage(
            f"expected {image.size[0]}x{image.size[1]} as annotated, got {size[0]}x{size[1]}"
        )
    return stored.data, size, stored.changed


def _mask_rle(
    one: AnnotatedObject, counts: collections.Counter[str], *, height: int, width: int
) -> dict[str, Any] | None:
    """Returns the mask of an object, or None if its outline is broken; counts what is odd."""
    try:
        rle = one.outline.rle(height, width)
    except (ValueError, FileNotFoundError):
        counts["objects_with_broken_outline"] += 1
        return None
    if isinstance(one.outline, Polygons):
        counts["objects_beyond_image"] += one.outline.overhang_px(height, width) > OVERHANG_PX
    counts["crowds"] += one.role is Role.CROWD
    return rle


def _expressions_left(
    image: AnnotatedImage, new_places: dict[int, int], counts: collections.Counter[str]
) -> list[record_schema.Expression]:
    """Returns the expressions that still mean an object, with the places of objects in the record.

    Args:
      image: the annotated image.
      new_places: place in the record of each object that is left, by its place in the image.
      counts: is updated with what was dropped.
    """
    left, seen = [], set()
    for one in image.expressions:
        objects = tuple(new_places[place] for place in one.objects if place in new_places)
        text = " ".join(one.text.split())
        if not text or (one.objects and not objects):
            counts["expressions_dropped"] += 1
            continue
        counts["expressions_with_objects_missing"] += len(objects) < len(one.objects)
        counts["expressions_repeated"] += (text, objects) in seen
        seen.add((text, objects))
        left.append(record_schema.Expression(one.id, text, objects, one.ref, one.sentence))
    return left


def tasks_of_split(
    name: str, split: str, images: Iterable[AnnotatedImage], *, out: Path, records: int
) -> list[Task]:
    """Returns the files of a split to make; images with objects come first.

    Args:
      name: name of the data set.
      split: name of the split.
      images: images of the split.
      out: folder of the files.
      records: number of images in each file but the last.
    """
    # Training on objects alone reads a split up to the first image without any.
    ordered = sorted(images, key=lambda image: not any(one.objects for one in image.expressions))
    groups = [tuple(ordered[at : at + records]) for at in range(0, len(ordered), records)]
    return [Task(name, split, index, len(groups), one, out) for index, one in enumerate(groups)]
