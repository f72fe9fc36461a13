"""Makes the files of a data set from entries: each file appears whole or not at all."""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax import files
from seg_jax.data import record_schema
from seg_jax.data.formats.annotations import Entry, Polygons, Role, Thing
from seg_jax.geometry import bitmask, contour, runlengths

UNFINISHED, PARTS = ".unfinished", ".parts"
"""Folders beside the files: of files being written, and of what is known about whole ones."""
OVERHANG_PX = 1.0
"""An outline that reaches further beyond its image is reported; annotators round."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One file to make."""

    name: str
    """Of the data set."""
    split: str
    index: int
    of: int
    entries: tuple[Entry, ...]
    out: Path

    @property
    def file(self) -> Path:
        """Where the file belongs."""
        return self.out / record_schema.file_name(self.name, self.split, self.index, self.of)

    @property
    def part(self) -> Path:
        """Where what is known about the file belongs."""
        return self.out / PARTS / f"{self.split}-{self.index:05d}.json"

    @property
    def digest(self) -> str:
        """Tells this file's contents from any other's, the images' own bytes aside."""
        seen = hashlib.sha256(
            repr((record_schema.VERSION, self.name, self.index, self.of)).encode()
        )
        for entry in self.entries:
            seen.update(repr(entry).encode())
        return seen.hexdigest()


class Broken(ValueError):
    """An image that cannot be stored; the text is the reason."""


def is_whole(task: Task) -> bool:
    """Returns whether the file of a task is there already, made of the same entries."""
    try:
        part = json.loads(task.part.read_bytes())
        return part["digest"] == task.digest and part["size"] == task.file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(task: Task) -> dict[str, Any]:
    """Makes the file of a task unless it is there, and returns what is known about it.

    Raises:
      OSError: it cannot be written, or a source cannot be read.
    """
    if is_whole(task):
        return json.loads(task.part.read_bytes())
    unfinished = task.out / UNFINISHED / f"{task.file.name}.{os.getpid()}"
    for folder in (unfinished.parent, task.part.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        part = _write(task, unfinished)
        part |= {"digest": task.digest, "size": unfinished.stat().st_size}
        files.move_synced(unfinished, task.file)
    finally:
        unfinished.unlink(missing_ok=True)
    # Last: a file without its part is made again.
    files.write_bytes(task.part, json.dumps(part, sort_keys=True).encode(), aside=unfinished.parent)
    return part


def _write(task: Task, path: Path) -> dict[str, Any]:
    """Writes the records of a task, and returns what is known about them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    counts: collections.Counter[str] = collections.Counter()
    skipped, images, size = [], [], 0
    # A record a group: any can be read without the others.
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for entry in task.entries:
            try:
                record, found = made(entry)
            except Broken as reason:
                skipped.append([entry.key, str(entry.image), str(reason)])
                continue
            data = record_schema.encode(record)
            writer.write(data)
            counts.update(found)
            size += len(data)
            images.append(hashlib.blake2b(record.image, digest_size=8).hexdigest())
    finally:
        _close(writer, path)
    known = {"split": task.split, "records": len(images), "bytes": size, "images": images}
    return known | {"counts": dict(sorted(counts.items())), "skipped": skipped}


def _close(writer: Any, path: Path) -> None:
    """Closes a file; what a full disk keeps it from is told as everything else tells it."""
    try:
        writer.close()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise OSError(f"{path}: {error}") from None


def made(entry: Entry) -> tuple[record_schema.Record, dict[str, int]]:
    """Returns the record of an entry, and counts of what was found in it.

    Raises:
      Broken: the image is missing, broken or of another size, or no object is left of it.
      OSError: the image cannot be read.
    """
    image, (height, width), changed = _image(entry)
    found: collections.Counter[str] = collections.Counter(images_converted=int(changed))
    kept: dict[int, int] = {}
    things, rles, areas = [], [], []
    for place, thing in enumerate(entry.things):
        rle = _mask(thing, height, width, found)
        if rle is None:
            continue
        area = runlengths.area(rle)
        if not area:
            found["objects_without_pixels"] += 1
            continue
        kept[place] = len(things)
        things.append(thing)
        rles.append(rle)
        areas.append(area)
    told = _told(entry, kept, found)
    if not told and not things:
        raise Broken("no object and no expression is left of it")
    if any(one.things for one in entry.expressions) and not any(one.objects for one in told):
        raise Broken("no object with an expression is left of it")
    boxes = [
        thing.box_px or contour.box_px(bitmask.from_rle(rle))
        for thing, rle in zip(things, rles, strict=True)
    ]
    record = record_schema.Record(
        key=entry.key,
        split=entry.split,
        image=image,
        image_id=entry.image_id,
        name=entry.image.name,
        height=height,
        width=width,
        ids=tuple(thing.id for thing in things),
        names=tuple(thing.name for thing in things),
        roles=tuple(thing.role for thing in things),
        counts=tuple(rle["counts"] for rle in rles),
        areas=tuple(areas),
        boxes_px=np.asarray(boxes, np.float32).reshape(-1, 4),
        expressions=tuple(told),
    )
    found["objects"] += len(things)
    found["expressions"] += len(told)
    found["expressions_without_object"] += sum(not one.objects for one in told)
    found["expressions_of_many_objects"] += sum(len(one.objects) > 1 for one in told)
    found["records_with_objects"] += any(one.objects for one in told)
    return record, {name: number for name, number in found.items() if number}


def _image(entry: Entry) -> tuple[bytes, tuple[int, int], bool]:
    """Returns an image's bytes, its height and width, and whether the bytes are new ones."""
    try:
        data = entry.image.read_bytes()
    except FileNotFoundError:
        raise Broken("missing") from None
    data, size, changed = plain(data, upright=entry.upright)
    if entry.size is not None and entry.size != size:
        raise Broken(
            f"expected {entry.size[0]}x{entry.size[1]} as annotated, got {size[0]}x{size[1]}"
        )
    return data, size, changed


def plain(data: bytes, *, upright: bool) -> tuple[bytes, tuple[int, int], bool]:
    """Returns an image's bytes as they are stored, its height and width, and whether they changed.

    Args:
      data: of the file.
      upright: whether the image is turned as its camera's note (EXIF) says.

    Raises:
      Broken: it is no image, or a damaged one.
    """
    from PIL import ExifTags, Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1 and upright
            kept = image.format in ("JPEG", "PNG") and image.mode == "RGB" and not turned
            # The 25th byte of a PNG tells the bits of a channel.
            kept = kept and (image.format != "PNG" or data[24] == 8)
            if turned:
                ImageOps.exif_transpose(image, in_place=True)
            size = (image.height, image.width)
            if not kept:
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                data = buffer.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Broken(f"broken: {' '.join(str(error).split())[:120]}") from None
    return data, size, not kept


def _mask(
    thing: Thing, height: int, width: int, found: collections.Counter[str]
) -> dict[str, Any] | None:
    """Returns the mask of a thing, None if its outline is broken; counts what is odd."""
    try:
        rle = thing.outline.rle(height, width)
    except (ValueError, FileNotFoundError):
        found["objects_with_broken_outline"] += 1
        return None
    if isinstance(thing.outline, Polygons):
        found["objects_beyond_image"] += thing.outline.overhang_px(height, width) > OVERHANG_PX
    found["crowds"] += thing.role is Role.CROWD
    return rle


def _told(
    entry: Entry, kept: dict[int, int], found: collections.Counter[str]
) -> list[record_schema.Expression]:
    """Returns the expressions whose objects are left."""
    told, seen = [], set()
    for one in entry.expressions:
        objects = tuple(kept[place] for place in one.things if place in kept)
        text = " ".join(one.text.split())
        if not text or (one.things and not objects):
            found["expressions_dropped"] += 1
            continue
        found["expressions_with_objects_missing"] += len(objects) < len(one.things)
        found["expressions_repeated"] += (text, objects) in seen
        seen.add((text, objects))
        told.append(record_schema.Expression(one.id, text, objects, one.ref, one.sentence))
    return told


def cut(name: str, split: str, entries: Iterable[Entry], *, out: Path, records: int) -> list[Task]:
    """Returns the files of a split: images with objects first, so many a file.

    Args:
      name: of the data set.
      split: of the entries.
      entries: of the split.
      out: folder of the files.
      records: of each file but the last.
    """
    # Who trains on objects only reads a split up to the first image without.
    ordered = sorted(entries, key=lambda entry: not any(one.things for one in entry.expressions))
    groups = [tuple(ordered[at : at + records]) for at in range(0, len(ordered), records)]
    return [Task(name, split, index, len(groups), one, out) for index, one in enumerate(groups)]
