"""Reads annotations of COCO: instances.json of polygons and run lengths, and panoptic PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seg_jax import files
from seg_jax.data.formats import annotations
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Expression,
    Outline,
    Polygons,
    Role,
    RunLengths,
)

UNLISTED = "annotation left out: its image is not listed"
"""Reason of findings."""


def read_instances(path: Path, *, images: Path, split: str) -> Annotations:
    """Returns the images of an instances_*.json; each category's name means all that show it.

    Args:
      path: of the JSON file.
      images: folder of the images.
      split: that they are of.

    Raises:
      ValueError: the file is none of this format.
    """
    sheet = CocoFile(path)
    by_image: dict[int, list[dict]] = {number: [] for number in sheet.images}
    read = Annotations([])
    for place, note in enumerate(sheet.notes):
        where = f"{path}, annotation {place}"
        number = annotations.field(note, "image_id", int, where=where)
        if number not in by_image:
            read.findings.add(UNLISTED, f"{where}: image_id {number}")
            continue
        by_image[number].append(note)
    for number, notes in by_image.items():
        things = tuple(sheet.object_of(note) for note in notes)
        if things:
            read.images.append(
                _annotated_image(sheet, number, split=split, images=images, things=things)
            )
    return read


def read_panoptic(path: Path, *, numbers: Path, images: Path, split: str) -> Annotations:
    """Returns the images of a panoptic_*.json, things and stuff alike.

    Args:
      path: of the JSON file.
      numbers: folder of the PNGs whose pixels are segment numbers.
      images: folder of the images.
      split: that they are of.

    Raises:
      ValueError: the file is none of this format.
    """
    sheet = CocoFile(path)
    read = Annotations([])
    for place, note in enumerate(sheet.notes):
        where = f"{path}, annotation {place}"
        number = annotations.field(note, "image_id", int, where=where)
        if number not in sheet.images:
            read.findings.add(UNLISTED, f"{where}: image_id {number}")
            continue
        file = numbers / annotations.field(note, "file_name", str, where=where)
        things = []
        for segment in annotations.field(note, "segments_info", list, where=where):
            outline = annotations.PngSegment(
                file, annotations.field(segment, "id", int, where=where)
            )
            things.append(sheet.object_of(segment, outline))
        if things:
            read.images.append(
                _annotated_image(sheet, number, split=split, images=images, things=tuple(things))
            )
    return read


class CocoFile:
    """A JSON file of COCO: its images, annotations and categories."""

    def __init__(self, path: Path):
        self.path = path
        data = files.read_json(path, advice="get the file from where it was published")
        self.notes: list[dict] = annotations.field(data, "annotations", list, where=str(path))
        listed = annotations.field(data, "images", list, where=str(path))
        self.images: dict[int, dict] = {
            annotations.field(one, "id", int, where=f"{path}, image {place}"): one
            for place, one in enumerate(listed)
        }
        self.names: dict[int, str] = {
            annotations.field(one, "id", int, where=f"{path}, categories"): str(one.get("name", ""))
            for one in data.get("categories", ())
        }

    def file_name(self, number: int) -> str:
        """Returns the file name of an image."""
        return annotations.field(
            self.images[number], "file_name", str, where=f"{self.path}, {number}"
        )

    def size(self, number: int) -> tuple[int, int]:
        """Returns height and width of an image."""
        where = f"{self.path}, image {number}"
        one = self.images[number]
        return annotations.field(one, "height", int, where=where), annotations.field(
            one, "width", int, where=where
        )

    def object_of(self, note: dict, drawn: Outline | None = None) -> AnnotatedObject:
        """Returns an annotated object; drawn elsewhere, or by its own segmentation."""
        where = f"{self.path}, annotation {note.get('id')}"
        return AnnotatedObject(
            id=annotations.field(note, "id", int, where=where),
            outline=drawn or read_outline(note.get("segmentation"), where),
            name=self.names.get(note.get("category_id", -1), ""),
            box_px=box_px(note.get("bbox")),
            role=Role.CROWD if note.get("iscrowd") else Role.OBJECT,
        )


def read_outline(value: Any, where: str) -> Outline:
    """Returns a `segmentation`: polygons, run lengths, or a list of run lengths (RefCLEF's).

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(value, dict):
        return RunLengths((value,))
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return RunLengths(tuple(value))
    if isinstance(value, list) and all(isinstance(one, list) for one in value):
        return Polygons(tuple(tuple(float(n) for n in ring) for ring in value))
    raise ValueError(
        f"{where}: expected a segmentation of polygons or run lengths, got {type(value).__name__}"
        "; do: correct the annotation"
    )


def box_px(box: Any) -> tuple[float, float, float, float] | None:
    """Returns x0 y0 x1 y1 of a COCO box x, y, width, height; None of none."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    x, y, width, height = (float(n) for n in box)
    return x, y, x + width, y + height


def _annotated_image(
    sheet: CocoFile, number: int, *, split: str, images: Path, things: tuple[AnnotatedObject, ...]
) -> AnnotatedImage:
    """Returns an image whose expressions are the names of its things, each meaning all of them."""
    meant: dict[str, list[int]] = {}
    for place, thing in enumerate(things):
        if thing.name:
            meant.setdefault(thing.name, []).append(place)
    told = [
        Expression(place, name, tuple(which)) for place, (name, which) in enumerate(meant.items())
    ]
    name = sheet.file_name(number)
    size = sheet.size(number)
    key = f"{split}/{Path(name).stem}"
    return AnnotatedImage(key, split, images / name, number, things, tuple(told), size)
