"""Reads ReasonSeg: an image and a JSON of labelled polygons and questions side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.formats import foreign, segmentation
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    BadAnnotation,
    Expression,
    PaintedShapes,
    Role,
)

ADVICE = "correct the file or get it again"
SPLITS = ("train", "val", "test")
TARGET, IGNORE = 1, 255


class _Shape(schemas.Record, frozen=True):
    label: schemas.Text
    points: Any


class _Note(schemas.Record, frozen=True):
    shapes: Annotated[list[_Shape], Meta(max_length=1000)]
    text: schemas.Text | list[schemas.Text]
    is_sentence: bool | Annotated[int, Meta(ge=0, le=1)] | None = None


class _Outline(schemas.Record, frozen=True):
    points: Annotated[
        tuple[tuple[schemas.Coordinate, schemas.Coordinate], ...],
        Meta(min_length=1, max_length=100_000),
    ]


def read(source: Path) -> Annotations:
    """Returns the images of the folders train, val and test.

    Raises:
      ValueError: there are none.
      OSError: a file cannot be read.
    """
    found = Annotations([])
    every = [
        (split, place, path)
        for split in SPLITS
        for place, path in enumerate(sorted((source / split).glob("*.json")))
    ]
    if not every:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected the folders train, val and test of ReasonSeg, with a JSON file "
            f"beside each image, got {what}; do: give the folder that holds them, or {advice}"
        )
    for split, place, path in every:
        try:
            found.images.append(_annotated_image(path, split, place))
        except ValueError as error:
            found.findings.add_error("annotation left out", error)
    return found


def _annotated_image(path: Path, split: str, place: int) -> AnnotatedImage:
    """Returns an image; a bad shape costs all of it, as its outlines cover each other."""
    note = schemas.check(_read_annotation(path), _Note, where=str(path))
    shapes = []
    for number, shape in enumerate(note.shapes):
        label = shape.label.lower()
        if label == "flag":  # Left over from annotating; means nothing.
            continue
        where = f"{path}, shapes[{number}]"
        points = schemas.check({"points": shape.points}, _Outline, where=where).points
        if segmentation.are_fractions([number for point in points for number in point]):
            raise segmentation.fractions_error(where)
        shapes.append((IGNORE if "ignore" in label else TARGET, points))
    labels = {label for label, _ in shapes}
    drawn = tuple(shapes)
    objects = [AnnotatedObject(0, PaintedShapes(drawn, TARGET))] if TARGET in labels else []
    target = tuple(range(len(objects)))
    if IGNORE in labels:
        objects.append(AnnotatedObject(1, PaintedShapes(drawn, IGNORE), role=Role.IGNORED))
    return AnnotatedImage(
        key=f"{split}/{path.stem}",
        split=split,
        image=path.with_suffix(".jpg"),
        image_id=place,
        objects=tuple(objects),
        expressions=tuple(
            Expression(number, text, target, ref=place, sentence=bool(note.is_sentence))
            for number, text in enumerate([note.text] if isinstance(note.text, str) else note.text)
        ),
        upright=True,
    )


def _read_annotation(path: Path) -> Any:
    """Returns an annotation; some are written in Windows' western code page."""
    data = files.read_bytes(path, advice=ADVICE)
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        try:
            text = data.decode("cp1252")
        except UnicodeDecodeError:
            raise BadAnnotation(
                f"{path}: expected JSON in UTF-8 or Windows-1252, got other bytes; do: save the "
                "file in UTF-8",
                "it is neither in UTF-8 nor in Windows-1252",
            ) from None
    return files.parse_json(text, where=str(path), advice=ADVICE)
