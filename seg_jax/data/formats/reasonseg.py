"""Reads ReasonSeg: an image and a JSON of labelled polygons and questions side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seg_jax.data.formats import annotations
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Expression,
    PaintedShapes,
    Role,
)

SPLITS = ("train", "val", "test")
TARGET, IGNORE = 1, 255


def read(source: Path) -> Annotations:
    """Returns the images of the folders train, val and test.

    Raises:
      ValueError: there are none, or a file is none of this format.
    """
    found = Annotations([])
    for split in SPLITS:
        for place, path in enumerate(sorted((source / split).glob("*.json"))):
            found.images.append(_annotated_image(path, split, place))
    if not found.images:
        raise ValueError(
            f"{source}: expected the folders train, val and test of ReasonSeg, got no annotation "
            "in them; do: give the folder that holds them as --source"
        )
    return found


def _annotated_image(path: Path, split: str, place: int) -> AnnotatedImage:
    note = _read_annotation(path)
    where = str(path)
    shapes = []
    for shape in annotations.field(note, "shapes", list, where=where):
        label = annotations.field(shape, "label", str, where=where).lower()
        points = annotations.field(shape, "points", list, where=where)
        if label == "flag":  # Left over from annotating; means nothing.
            continue
        drawn = tuple((float(x), float(y)) for x, y in points)
        shapes.append((IGNORE if "ignore" in label else TARGET, drawn))
    texts = annotations.field(note, "text", (list, str), where=where)
    texts = [texts] if isinstance(texts, str) else texts
    labels = {label for label, _ in shapes}
    things = [AnnotatedObject(0, PaintedShapes(tuple(shapes), TARGET))] if TARGET in labels else []
    target = tuple(range(len(things)))
    if IGNORE in labels:
        things.append(AnnotatedObject(1, PaintedShapes(tuple(shapes), IGNORE), role=Role.IGNORED))
    sentence = bool(note.get("is_sentence"))
    told = [
        Expression(number, str(text), target, ref=place, sentence=sentence)
        for number, text in enumerate(texts)
    ]
    return AnnotatedImage(
        key=f"{split}/{path.stem}",
        split=split,
        image=path.with_suffix(".jpg"),
        image_id=place,
        objects=tuple(things),
        expressions=tuple(told),
        upright=True,
    )


def _read_annotation(path: Path) -> Any:
    """Returns an annotation; some are written in Windows' western code page."""
    data = path.read_bytes()
    for encoding in ("utf-8", "cp1252"):
        try:
            return json.loads(data.decode(encoding))
        except UnicodeDecodeError:
            continue
        except ValueError as error:
            raise ValueError(
                f"{path}: expected JSON, got {error}; do: correct the file or get it again"
            ) from None
    raise ValueError(
        f"{path}: expected JSON in UTF-8 or Windows-1252, got other bytes; do: save the file in "
        "UTF-8"
    )
