"""Reads a user's own data: SPLIT.jsonl files, an image a line, with outlines and phrases.

A line is a JSON object:

    {"image": "images/cup.jpg",
     "objects": [{"segmentation": [[10, 10, 50, 10, 50, 50]], "name": "cup"},
                 {"segmentation": {"size": [480, 640], "counts": "..."}}],
     "phrases": [{"text": "the red cup", "objects": [0]},
                 {"text": "both cups", "objects": [0, 1]},
                 {"text": "a fork", "objects": []}]}

`image` is relative to the folder of the file, or to `--images`. A segmentation is one of COCO's:
polygons x, y, x, y, .. in pixels, or run lengths, compressed or not. `key` (the line's name; else
the image's file name without its ending), `name`, `crowd` and `ignore` (true) of an object and
`sentence` (true) of a phrase may be left out. A phrase without objects is one that fits nothing in
the image. `upright` (true) says that outlines are of the image as its camera's note (EXIF) turns
it. What else stands in a line, as `seg-jax annotate` writes it, is for whoever wants to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seg_jax.data.formats import annotations, coco
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Expression,
    Role,
)


def read(source: Path, *, images: Path | None = None) -> Annotations:
    """Returns the images of every SPLIT.jsonl in a folder.

    Args:
      source: the folder.
      images: folder that the paths of images are relative to; None: that of their file.

    Raises:
      ValueError: there is none, or a line is none of this format; it tells file and line.
    """
    files = sorted(source.glob("*.jsonl"))
    if not files:
        raise ValueError(
            f"{source}: expected files SPLIT.jsonl, as train.jsonl, got none; do: write them, or "
            "give their folder as --source"
        )
    found = Annotations([])
    for file in files:
        for place, (where, line) in enumerate(_lines(file)):
            image = _annotated_image(file, images or source, place=place, where=where, line=line)
            found.images.append(image)
    return found


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if line.strip():
                try:
                    yield where, json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"{where}: expected JSON, got {error}; do: correct the line"
                    ) from None


def _annotated_image(
    file: Path, images: Path, *, place: int, where: str, line: Any
) -> AnnotatedImage:
    image = annotations.field(line, "image", str, where=where)
    key = line.get("key", Path(image).stem)
    things = []
    for number, one in enumerate(annotations.field(line, "objects", list, where=where)):
        outline = coco.read_outline(one.get("segmentation"), f"{where}, object {number}")
        role = Role.CROWD if one.get("crowd") else Role.OBJECT
        role = Role.IGNORED if one.get("ignore") else role
        things.append(AnnotatedObject(number, outline, name=str(one.get("name", "")), role=role))
    told = []
    for number, one in enumerate(annotations.field(line, "phrases", list, where=where)):
        which = annotations.field(one, "objects", list, where=f"{where}, phrase {number}")
        if not all(type(n) is int and 0 <= n < len(things) for n in which):
            raise ValueError(
                f"{where}, phrase {number}: expected places of {len(things)} objects, got {which}"
                "; do: correct the line"
            )
        text = annotations.field(one, "text", str, where=f"{where}, phrase {number}")
        told.append(Expression(number, text, tuple(which), sentence=bool(one.get("sentence"))))
    return AnnotatedImage(
        key=f"{file.stem}/{key}",
        split=file.stem,
        image=images / image,
        image_id=place,
        objects=tuple(things),
        expressions=tuple(told),
        upright=bool(line.get("upright")),
    )
