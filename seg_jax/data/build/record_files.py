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
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from seg_jax import checksums, files, schemas
from seg_jax.data import findings, image_files, limits, record_schema
from seg_jax.data.findings import Findings
from seg_jax.data.formats import table_rows
from seg_jax.data.formats.annotations import (
    NONE_THERE,
    ORDINARY,
    AnnotatedImage,
    AnnotatedObject,
    GreyMask,
    LabelSegment,
    PngSegment,
    Polygons,
    Role,
    UnitPolygons,
)
from seg_jax.geometry import runlengths

UPRIGHT = 'set "upright": true if outlines are of the turned image, false if of the stored one'
"""What to do about a line of one's own data whose outlines may be of the turned image."""
UNFINISHED, PARTS = ".unfinished", ".parts"
"""Folders beside the files: for files being written, and for descriptions of finished ones."""
DAMAGED = "damaged"
"""Name in what is known about a file: whether it was made again as it was damaged or gone."""
OVERHANG_PX = 1.0
"""Outlines that reach further beyond their image are reported; less is taken for rounding."""

BOX_SLACK_PX = 3.0
"""Most that a side of an annotated box lies from that of the outline: two pixels, and rounding."""


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
    strict: bool = False
    """Whether the first thing that is left out or changed is an error."""

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
        """Digest of all that the file is made of; of each image's file its size and time."""
        seen = hashlib.sha256(
            repr((record_schema.VERSION, self.name, self.index, self.files)).encode()
        )
        for image in self.images:
            seen.update(repr(image).encode())
            for path in _image_paths(image):
                seen.update(repr(_file_state(path)).encode())
        return seen.hexdigest()


def _image_paths(image: AnnotatedImage) -> list[Path]:
    """Returns the files of pixels that a record is made of: the image, and those of masks."""
    kinds = (PngSegment, LabelSegment, GreyMask)
    masks = {one.outline.file for one in image.objects if isinstance(one.outline, kinds)}
    return [image.image, *sorted(masks)]


def _file_state(path: Path) -> tuple[int, int] | str:
    """Returns size and time of change (ns) of a file; reading all of it would cost as a build."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return "absent"
    return found.st_size, found.st_mtime_ns


class BrokenImage(ValueError):
    """An image that cannot be stored."""

    def __init__(self, reason: str, got: str, *, advice: str = ""):
        """Takes the reason, which cases are summed by, what was met here, and what to do."""
        super().__init__(f"{reason}: {got}")
        self.reason, self.got, self.advice = reason, got, advice


class _Part(schemas.Record, frozen=True):
    """What a part's file must hold to be believed; another build may have left it, or a disk."""

    digest: str
    xxh3: str
    size: int
    split: str
    records: Annotated[int, Meta(ge=0)]
    bytes: Annotated[int, Meta(ge=0)]
    skipped: Annotated[int, Meta(ge=0)]
    images: list[str]
    sizes: list[list[int]]
    counts: dict[str, int]
    findings: dict[str, Any]
    limits: dict[str, Any]


def read_part(task: Task) -> dict[str, Any] | None:
    """Returns what is known about the file of a task, None unless it is whole.

    The file must be made of the same annotations, and hold the bytes that were written.
    """
    try:
        part = files.read_json(task.part_path)
        schemas.check(part, _Part, where=str(task.part_path))
        for name in ("findings", "limits"):
            Findings.from_json(part[name])
        same = part["digest"] == task.digest and part["size"] == task.file_path.stat().st_size
        return part if same and part["xxh3"] == checksums.of_file(task.file_path).xxh3 else None
    except (OSError, ValueError, RecursionError):
        return None


def is_whole(task: Task) -> bool:
    """Returns whether the file of a task exists already, see `read_part`."""
    return read_part(task) is not None


def is_damaged(task: Task) -> bool:
    """Returns whether the file of a task was made of the same things, and is whole no more."""
    try:
        part = schemas.check(files.read_json(task.part_path), _Part, where=str(task.part_path))
    except (OSError, ValueError, RecursionError):
        return False
    return part.digest == task.digest and not is_whole(task)


def make_file(task: Task) -> dict[str, Any]:
    """Makes the file of a task unless it is there and whole; returns what is known about it.

    What is returned tells under `DAMAGED` whether it was there and not whole.

    Raises:
      ValueError: the task is strict, and something was left out or changed.
      OSError: it cannot be written, or a source cannot be read.
    """
    if part := read_part(task):
        _check_strict(task, Findings.from_json(part["findings"]))
        return part
    # Before any image is read: one that changes meanwhile makes the next build make the file anew.
    digest, damaged = task.digest, is_damaged(task)
    unfinished = task.out / UNFINISHED / f"{task.file_path.name}.{os.getpid()}"
    for folder in (unfinished.parent, task.part_path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        part = _write_records(task, unfinished)
        whole = checksums.of_file(unfinished)
        part |= {"digest": digest, "size": whole.bytes, "xxh3": whole.xxh3}
        # From here to the end of the build the folder is no data set: nobody reads a mixture.
        (task.out / record_schema.INFO).unlink(missing_ok=True)
        files.move_synced(unfinished, task.file_path)
    finally:
        unfinished.unlink(missing_ok=True)
    # Last: a file without its part is made again.
    files.write_bytes(
        task.part_path, json.dumps(part, sort_keys=True).encode(), aside=unfinished.parent
    )
    return part | {DAMAGED: damaged}


def _check_strict(task: Task, met: Findings) -> None:
    """Raises ValueError with the first finding if the task is strict."""
    if task.strict:
        check_no_findings(met)


def check_no_findings(met: Findings) -> None:
    """Raises ValueError if anything was left out or changed by mistake: it tells the first case."""
    for reason, examples in met.examples.items():
        if reason in ORDINARY:
            continue
        raise ValueError(
            f"strict: expected nothing to be left out or changed, got {reason}: {examples[0]}"
            f"; do: {met.advice.get(reason, 'correct it')}, or build without --strict"
        )


def _write_records(task: Task, path: Path) -> dict[str, Any]:
    """Writes the records of a task, and returns what is known about them."""
    from array_record.python.array_record_module import ArrayRecordWriter

    counts: collections.Counter[str] = collections.Counter()
    met, limited = Findings(), Findings()
    skipped, images, sizes, size = 0, [], [], 0
    # A record a group: any can be read without the others. Each carries a hash, which its reader
    # checks (Riegeli's).
    writer = ArrayRecordWriter(str(path), "group_size:1")
    try:
        for image in task.images:
            record = None
            try:
                record, found = build_record(image, met)
            except BrokenImage as error:
                told = f"{image.key} ({image.image}): {error.got}"
                met.add(error.reason, told, advice=error.advice)
                skipped += 1
            _check_strict(task, met)
            if record is None:
                continue
            data = record_schema.encode(record)
            writer.write(data)
            counts.update(found)
            size += len(data)
            sizes.append(record_schema.size_of(record))
            limits.tell_usual(sizes[-1], limited, where=f"{image.key} ({image.image})")
            images.append(hashlib.blake2b(record.image, digest_size=8).hexdigest())
    finally:
        _close_writer(writer, path)
    known = {"split": task.split, "records": len(images), "bytes": size, "images": images}
    known |= {"counts": dict(sorted(counts.items())), "sizes": sizes, "skipped": skipped}
    return known | {"findings": met.as_json(), "limits": limited.as_json()}


def _close_writer(writer: Any, path: Path) -> None:
    """Closes a file; a full disk becomes the OSError that it is elsewhere."""
    try:
        writer.close()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise OSError(f"{path}: {error}") from None


def build_record(
    image: AnnotatedImage, met: Findings
) -> tuple[record_schema.Record, dict[str, int]]:
    """Returns the record of an annotated image, and counts of what is in it.

    Args:
      image: with its annotations.
      met: is told what was left out or changed.

    Raises:
      BrokenImage: the file is missing, broken or of another size, or no object is left of it.
      OSError: the file cannot be read.
    """
    stored = _read_image(image, met)
    height, width = stored.height, stored.width
    objects = _objects_with_masks(image, met, height=height, width=width)
    new_places = {place: new for new, (place, _, _) in enumerate(objects)}
    expressions, repeated = _expressions_left(image, new_places, met)
    if not (image.objects or image.expressions or image.traces):
        raise BrokenImage(NONE_THERE, "0 objects and 0 expressions")
    had = f"{len(image.objects)} objects and {len(image.expressions)} expressions annotated"
    if not expressions and not objects and not image.traces:
        raise BrokenImage("image left out, as no object and no expression is left of it", had)
    meant = any(one.objects for one in expressions)
    if any(one.objects for one in image.expressions) and not meant:
        raise BrokenImage("image left out, as no object with an expression is left of it", had)
    boxes = [_box_px(image, one, rle, met) for _, one, rle in objects]
    record = record_schema.Record(
        key=image.key,
        split=image.split,
        image=stored.data,
        image_id=image.image_id,
        name=_file_name(image),
        height=height,
        width=width,
        ids=tuple(one.id for _, one, _ in objects),
        names=tuple(one.name for _, one, _ in objects),
        roles=tuple(one.role for _, one, _ in objects),
        counts=tuple(rle["counts"] for _, _, rle in objects),
        areas=tuple(runlengths.area(rle) for _, _, rle in objects),
        boxes_px=np.asarray(boxes, np.float32).reshape(-1, 4),
        expressions=tuple(expressions),
        traces=image.traces,
    )
    counts = {
        "objects": len(objects),
        "crowds": sum(one.role is Role.CROWD for _, one, _ in objects),
        "expressions": len(expressions),
        "expressions_repeated": repeated,
        "expressions_without_object": sum(not one.objects for one in expressions),
        "expressions_of_many_objects": sum(len(one.objects) > 1 for one in expressions),
        "records_with_objects": int(meant or bool(image.traces)),
        "traces": len(image.traces),
        "images_converted": int(stored.changed),
    }
    return record, {name: number for name, number in counts.items() if number}


def _file_name(image: AnnotatedImage) -> str:
    """Returns by which name an image is known in other data sets: rows of a file have no other."""
    return image.image.name if image.row is None else f"{image.image.name}#{image.row}"


def _objects_with_masks(
    image: AnnotatedImage, met: Findings, *, height: int, width: int
) -> list[tuple[int, AnnotatedObject, dict[str, Any]]]:
    """Returns the place, annotation and mask of every object that has one; tells of the others."""
    found = []
    for place, one in enumerate(image.objects):
        where = f"{image.key} ({image.image}), object {one.id}"
        try:
            rle = one.outline.rle(height, width)
        except (ValueError, OSError) as error:
            told, _, advice = str(error).partition("; do: ")
            reason = f"object left out: {findings.reason_of(error)}"
            met.add(reason, f"{where}: {told}", advice=advice)
            continue
        if not runlengths.area(rle):
            reason = "object left out, as no pixel of the image is in it"
            met.add(reason, where, advice="check that its outline is of this image, in pixels")
            continue
        if isinstance(one.outline, GreyMask):
            for remark in one.outline.remarks():
                met.add(remark, where)
        if isinstance(one.outline, Polygons | UnitPolygons):
            beyond = one.outline.overhang_px(height, width)
            if beyond > OVERHANG_PX:
                met.add(
                    "outline cut off at the border of the image",
                    f"{where}: reaches {beyond:.1f} pixels beyond {height}x{width}",
                    advice="check that outlines are of this size of the image",
                )
        found.append((place, one, rle))
    return found


def _box_px(
    image: AnnotatedImage, one: AnnotatedObject, rle: dict[str, Any], met: Findings
) -> Sequence[float]:
    """Returns an object's box x0 y0 x1 y1: the annotated one if it is that of the outline."""
    own = runlengths.box_px(rle)
    if one.box_px is None:
        return own
    if np.abs(np.subtract(own, one.box_px)).max() <= BOX_SLACK_PX:
        return one.box_px
    told = ", ".join(f"{number:g}" for number in one.box_px)
    met.add(
        "box does not fit its outline: the outline's own is taken",
        f"{image.key} ({image.image}), object {one.id}: {told} for {', '.join(map(str, own))}",
        advice="see which is right, box or outline",
    )
    return own


def _read_image(image: AnnotatedImage, met: Findings) -> image_files.Stored:
    """Returns an image as it is stored."""
    try:
        if image.row is None:
            data = image_files.read_bytes(image.image)
        else:
            data = table_rows.image_bytes(image.image, image.row, image.column)
        header = image_files.read_header(data)
        told = image.size or _size_of_mask(image)
        stored = image_files.storable(data, upright=_is_turned(image, header, told, met))
    except image_files.Unreadable as error:
        reason = f"image left out: {error.reason}"
        raise BrokenImage(reason, error.fault, advice=error.advice) from None
    size = stored.height, stored.width
    if image.size is not None and image.size != size:
        raise BrokenImage(
            "image left out, as it is of another size than annotated",
            f"expected {image.size[0]}x{image.size[1]} as annotated, got {size[0]}x{size[1]}",
            advice="give the images that were annotated (--images), or correct height and width",
        )
    return stored


def _size_of_mask(image: AnnotatedImage) -> tuple[int, int] | None:
    """Returns height and width of the grey mask of an image; None where there is none."""
    masks = [one.outline for one in image.objects if isinstance(one.outline, GreyMask)]
    return masks[0].size() if masks else None


def _is_turned(
    image: AnnotatedImage,
    header: image_files.Header,
    told: tuple[int, int] | None,
    met: Findings,
) -> bool:
    """Returns whether an image is stored as its camera's note (EXIF) turns it.

    Outlines are of the image as its file stores it, unless the annotation says otherwise: by its
    word (`upright`), or by a size that only the turned image has: its own, or its mask's. Where no
    size can tell, it is said.
    """
    if image.upright is not None or header.orientation == 1:
        return bool(image.upright)
    as_stored, turned = (header.height, header.width), header.upright_size
    where = f"{image.key} ({image.image}): orientation {header.orientation}"
    if told == turned != as_stored:
        met.add("image turned as its EXIF note says, as the annotated size is of the turned", where)
        return True
    if told is None or as_stored == turned:
        met.add("image kept as stored, though its EXIF note turns it", where, advice=UPRIGHT)
    return False


def _expressions_left(
    image: AnnotatedImage, new_places: dict[int, int], met: Findings
) -> tuple[list[record_schema.Expression], int]:
    """Returns the expressions that still mean an object, and how many of them come again.

    Args:
      image: the annotated image.
      new_places: place in the record of each object that is left, by its place in the image.
      met: is told what was left out.
    """
    left, seen, repeated = [], set(), 0
    for one in image.expressions:
        where = f"{image.key} ({image.image}), expression {one.id}"
        objects = tuple(new_places[place] for place in one.objects if place in new_places)
        text = " ".join(one.text.split())
        told = f"{where}: {schemas.short_repr(text)}"
        if not text:
            met.add("expression left out, as it has no text", where, advice="write one")
            continue
        if one.objects and not objects:
            met.add("expression left out, as none of its objects is left", told)
            continue
        if len(objects) < len(one.objects):
            met.add("expression kept without those of its objects that were left out", told)
        repeated += (text, objects) in seen
        seen.add((text, objects))
        left.append(record_schema.Expression(one.id, text, objects, one.ref, one.sentence))
    return left, repeated


def tasks_of_split(
    name: str,
    split: str,
    images: Iterable[AnnotatedImage],
    *,
    out: Path,
    records: int,
    strict: bool = False,
) -> list[Task]:
    """Returns the files of a split to make; images with objects come first.

    Args:
      name: name of the data set.
      split: name of the split.
      images: images of the split.
      out: folder of the files.
      records: number of images in each file but the last.
      strict: whether the first thing that is left out or changed is an error.
    """

    # Training on objects alone reads a split up to the first image without any.
    def has_nothing(image: AnnotatedImage) -> bool:
        return not image.traces and not any(one.objects for one in image.expressions)

    ordered = sorted(images, key=has_nothing)
    groups = [tuple(ordered[at : at + records]) for at in range(0, len(ordered), records)]
    return [
        Task(name, split, index, len(groups), one, out, strict) for index, one in enumerate(groups)
    ]
