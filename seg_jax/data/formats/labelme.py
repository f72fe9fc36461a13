"""Reads LabelMe's JSON: a file an image, with polygons, boxes, circles and masks.

Shapes of one label and group are one object. A shape's `description` is an expression that means
it. Labels named __ignore__ count for nothing.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data import image_files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, drawn, foreign, picture_paths, segmentation
from seg_jax.data.formats.annotations import Annotations, BadAnnotation, Outline, Polygons, Role
from seg_jax.data.formats.drawn import Drawing, Region

ADVICE = "correct the file or save it again"
IGNORED, BACKGROUND = "__ignore__", "_background_"
_BOXES = ("rectangle", "rotation", "oriented_rectangle")
_Points = Annotated[
    tuple[tuple[schemas.Coordinate, schemas.Coordinate], ...], Meta(min_length=1, max_length=10**6)
]


class _Shape(schemas.Record, frozen=True, kw_only=True):
    label: schemas.Text | None = None
    points: _Points
    shape_type: schemas.Text | None = None
    group_id: int | schemas.Text | None = None
    description: schemas.Text | None = None
    mask: Annotated[str, Meta(max_length=2**26)] | None = None


class _File(schemas.Record, frozen=True, kw_only=True):
    shapes: list[Any]
    imagePath: schemas.FileName
    imageHeight: schemas.Extent | None = None
    imageWidth: schemas.Extent | None = None
    imageData: Any = None


class _Place(NamedTuple):
    """Where a shape is, for messages, and on what."""

    where: str
    size: tuple[int, int] | None
    boxes: bool
    met: Findings


def read(source: Path, *, images: Path | None = None, boxes: bool = False) -> Annotations:
    """Returns the images of every JSON file of LabelMe below a folder.

    Files in a folder train, val, valid, validation or test are of that split, others of train.

    Args:
      source: the folder.
      images: folder that the paths of images are relative to; None: that of their JSON file.
      boxes: whether boxes are taken for outlines.

    Raises:
      ValueError: there is none.
    """
    found = Annotations([])
    any_ = False
    for path in picture_paths.files_below(source, ending=r".+\.json", met=found.findings):
        try:
            drawing = _drawing(path, source, images, boxes=boxes, met=found.findings)
        except ValueError as error:
            found.findings.add_error("file left out", error)
            continue
        any_ = True
        image = drawn.annotated_image(
            drawing,
            split=drawn.split_of(path.relative_to(source).parent),
            number=len(found.images),
            where=str(path),
            met=found.findings,
        )
        if image:
            found.images.append(image)
    if not any_:
        what, advice = foreign.found_instead(source)
        if found.findings.counts:
            what, advice = found.findings.commonest(), "check --source"
        raise ValueError(
            f"{source}: expected JSON files of LabelMe with shapes and imagePath, got {what}; do: "
            f"{advice}"
        )
    return found


def _drawing(
    path: Path, source: Path, images: Path | None, *, boxes: bool, met: Findings
) -> Drawing:
    """Returns the image of a file with its shapes; bad ones are told.

    Raises:
      ValueError: it is no file of LabelMe.
    """
    value = annotations.parse_json(
        files.read_bytes(path, advice=ADVICE), where=str(path), advice=ADVICE
    )
    told = annotations.check_annotation(value, _File, where=str(path), findings=met)
    size = None
    if told.imageHeight is not None and told.imageWidth is not None:
        size = told.imageHeight, told.imageWidth
    regions = []
    for number, shape in enumerate(told.shapes):
        where = f"{path}, shapes[{number}]"
        try:
            region = _region(shape, _Place(where, size, boxes, met))
        except ValueError as error:
            met.add_error("shape left out", error)
            continue
        if region is not None:
            regions.append(region)
    inside = path.parent.relative_to(source)
    folders = [path.parent] if images is None else [images / inside, images, path.parent]
    picture = picture_paths.find(told.imagePath, folders=folders)
    beside = path.with_suffix(picture.suffix)
    if not picture_paths.is_file(picture) and picture_paths.is_file(beside):
        picture = beside  # The image was renamed together with its JSON file.
    if told.imageData and not picture_paths.is_file(picture):
        raise BadAnnotation(
            f"{path}: expected an image as {schemas.short_repr(told.imagePath)}, got one within "
            "the file alone (imageData); do: write images to files (labelme_export_json)",
            "its image is in imageData alone",
        )
    name = (inside / picture_paths.name_within(picture, folders[0]).lstrip("/")).as_posix()
    return Drawing(name, picture, regions, size=size)


def _region(value: Any, place: _Place) -> Region | None:
    """Returns what a shape outlines; None of the background.

    Raises:
      ValueError: it outlines nothing.
    """
    shape = schemas.check(value, _Shape, where=place.where, advice=ADVICE)
    name = drawn.label(shape.label, place.where, place.met)
    if name == BACKGROUND:
        return None
    text = " ".join((shape.description or "").split())
    return Region(
        "" if name == IGNORED else name,
        _outline(shape, place),
        group=shape.group_id,
        texts=(text,) if text else (),
        role=Role.IGNORED if name == IGNORED else Role.OBJECT,
    )


def _outline(shape: _Shape, place: _Place) -> Outline:
    """Returns the outline of a shape."""
    kind, points = shape.shape_type or "polygon", shape.points
    flat = [number for point in points for number in point]
    if kind == "polygon":
        return segmentation.read_outline([flat], where=place.where, findings=place.met)
    if kind in _BOXES:
        drawn.check_boxes(place.where, boxes=place.boxes)
        _check_count(points, (2, 4), kind, place.where)
        ring = drawn.rectangle(flat) if len(points) == 2 else tuple(flat)
        return Polygons((ring,))
    if kind == "circle":
        _check_count(points, (2,), kind, place.where)
        (x, y), edge = points
        radius = math.hypot(edge[0] - x, edge[1] - y)
        return Polygons((drawn.ellipse(x, y, (radius, radius)),))
    if kind == "mask":
        _check_count(points, (2,), kind, place.where)
        return drawn.mask_outline(_mask(shape, place))
    if kind in ("point", "points", "line", "linestrip"):
        raise drawn.no_outline(place.where, kind)
    raise BadAnnotation(
        f"{place.where}: expected a shape of LabelMe, got {schemas.short_repr(kind)}; do: {ADVICE}",
        "its shape_type is not known",
    )


def _check_count(points: Sequence[Any], counts: Sequence[int], kind: str, where: str) -> None:
    if len(points) not in counts:
        wanted = " or ".join(map(str, counts))
        raise BadAnnotation(
            f"{where}: expected {wanted} points of a {kind}, got {len(points)}; do: {ADVICE}",
            f"a {kind} has another number of points",
        )


def _mask(shape: _Shape, place: _Place) -> np.ndarray:
    """Returns a mask of the image: a PNG in base64 of the box that the two points span."""
    where = place.where
    if place.size is None or shape.mask is None:
        got = "no mask" if shape.mask is None else "none in the file"
        raise BadAnnotation(
            f"{where}: expected a mask beside imageHeight and imageWidth, got {got}; do: {ADVICE}",
            "its mask is not there",
        )
    try:
        data = base64.b64decode(shape.mask, validate=True)
    except (binascii.Error, ValueError):
        raise BadAnnotation(
            f"{where}: expected a PNG in base64, got other text; do: {ADVICE}",
            "its mask is no PNG in base64",
        ) from None
    part = image_files.read(data, where=f"{where}, mask", upright=False).max(axis=2) > 0
    (x0, y0), _ = shape.points
    left, top = math.floor(x0 + 0.5), math.floor(y0 + 0.5)
    height, width = place.size
    if left < 0 or top < 0 or top + part.shape[0] > height or left + part.shape[1] > width:
        raise BadAnnotation(
            f"{where}: expected a mask within {height}x{width} pixels, got {part.shape[0]}x"
            f"{part.shape[1]} from row {top} and column {left}; do: {ADVICE}",
            "its mask reaches beyond the image",
        )
    whole = np.zeros((height, width), bool)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole
