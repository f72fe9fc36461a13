"""Reads annotations of COCO: instances.json of polygons and run lengths, and panoptic PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seg_jax import files
from seg_jax.data.formats import annotations
from seg_jax.data.formats.annotations import (
    Entry,
    Expression,
    Outline,
    Polygons,
    Read,
    Role,
    Runs,
    Thing,
)


def instances(path: Path, images: Path, split: str) -> Read:
    """Returns the images of an instances_*.json; each category's name means all that show it.

    Args:
      path: of the JSON file.
      images: folder of the images.
      split: that they are of.

    Raises:
      ValueError: the file is none of this format.
    """
    sheet = Sheet(path)
    by_image: dict[int, list[dict]] = {number: [] for number in sheet.images}
    read = Read([])
    for place, note in enumerate(sheet.notes):
        where = f"{path}, annotation {place}"
        number = annotations.field(note, "image_id", int, where)
        if number not in by_image:
            read.faults.append(f"{where}: of an image that is not listed, {number}")
            continue
        by_image[number].append(note)
    for number, notes in by_image.items():
        things = tuple(sheet.thing(note) for note in notes)
        if things:
            read.entries.append(_entry(sheet, number, split, images, things))
    return read


def panoptic(path: Path, numbers: Path, images: Path, split: str) -> Read:
    """Returns the images of a panoptic_*.json, things and stuff alike.

    Args:
      path: of the JSON file.
      numbers: folder of the PNGs whose pixels are segment numbers.
      images: folder of the images.
      split: that they are of.

    Raises:
      ValueError: the file is none of this format.
    """
    sheet = Sheet(path)
    read = Read([])
    for place, note in enumerate(sheet.notes):
        where = f"{path}, annotation {place}"
        number = annotations.field(note, "image_id", int, where)
        if number not in sheet.images:
            read.faults.append(f"{where}: of an image that is not listed, {number}")
            continue
        file = numbers / annotations.field(note, "file_name", str, where)
        things = []
        for segment in annotations.field(note, "segments_info", list, where):
            outline = annotations.Segment(file, annotations.field(segment, "id", int, where))
            things.append(sheet.thing(segment, outline))
        if things:
            read.entries.append(_entry(sheet, number, split, images, tuple(things)))
    return read


class Sheet:
    """A JSON file of COCO: its images, annotations and categories."""

    def __init__(self, path: Path):
        self.path = path
        data = files.read_json(path, advice="get the file anew")
        self.notes: list[dict] = annotations.field(data, "annotations", list, str(path))
        listed = annotations.field(data, "images", list, str(path))
        self.images: dict[int, dict] = {
            annotations.field(one, "id", int, f"{path}, image {place}"): one
            for place, one in enumerate(listed)
        }
        self.names: dict[int, str] = {
            annotations.field(one, "id", int, f"{path}, categories"): str(one.get("name", ""))
            for one in data.get("categories", ())
        }

    def file_name(self, number: int) -> str:
        """Returns the file name of an image."""
        return annotations.field(self.images[number], "file_name", str, f"{self.path}, {number}")

    def size(self, number: int) -> tuple[int, int]:
        """Returns height and width of an image."""
        where = f"{self.path}, image {number}"
        one = self.images[number]
        return annotations.field(one, "height", int, where), annotations.field(
            one, "width", int, where
        )

    def thing(self, note: dict, drawn: Outline | None = None) -> Thing:
        """Returns an annotated object; drawn elsewhere, or by its own segmentation."""
        where = f"{self.path}, annotation {note.get('id')}"
        return Thing(
            id=annotations.field(note, "id", int, where),
            outline=drawn or outline(note.get("segmentation"), where),
            name=self.names.get(note.get("category_id", -1), ""),
            box_px=box_px(note.get("bbox")),
            role=Role.CROWD if note.get("iscrowd") else Role.OBJECT,
        )


def outline(value: Any, where: str) -> Outline:
    """Returns a `segmentation`: polygons, run lengths, or a list of run lengths (RefCLEF's).

    Raises:
      ValueError: it is none of these.
    """
    if isinstance(value, dict):
        return Runs((value,))
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return Runs(tuple(value))
    if isinstance(value, list) and all(isinstance(one, list) for one in value):
        return Polygons(tuple(tuple(float(n) for n in ring) for ring in value))
    raise ValueError(
        f"{where}: expected a segmentation of polygons or run lengths, got {type(value).__name__}"
    )


def box_px(box: Any) -> tuple[float, float, float, float] | None:
    """Returns x0 y0 x1 y1 of a COCO box x, y, width, height; None of none."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        return None
    x, y, width, height = (float(n) for n in box)
    return x, y, x + width, y + height


def _entry(sheet: Sheet, number: int, split: str, images: Path, things: tuple[Thing, ...]) -> Entry:
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
    return Entry(key, split, images / name, number, things, tuple(told), size)
