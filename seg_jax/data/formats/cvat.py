"""Reads exports of CVAT for images: XML with polygons, masks, ellipses and boxes.

Shapes of one label and group are one object. Images of a subset are of that split; without one the
name of the file or of its folder tells, else they are of train.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import (
    annotations,
    drawn,
    foreign,
    picture_paths,
    segmentation,
    xml_elements,
)
from seg_jax.data.formats.annotations import Annotations, BadAnnotation, Outline, Polygons
from seg_jax.data.formats.drawn import Drawing, Region

ADVICE = "export the task anew as CVAT for images"
_POINTLESS = {"polyline": "polyline", "points": "point", "cuboid": "cuboid", "skeleton": "skeleton"}
_SHAPES = ("polygon", "mask", "ellipse", "box", *_POINTLESS)


class _Image(schemas.Record, frozen=True, kw_only=True):
    name: schemas.FileName
    width: schemas.Extent
    height: schemas.Extent
    subset: schemas.Text | None = None


class _Shape(NamedTuple):
    """A shape of an image, for messages."""

    element: Element
    size: tuple[int, int]
    where: str
    boxes: bool
    met: Findings


def read(source: Path, *, images: Path | None = None, boxes: bool = False) -> Annotations:
    """Returns the images of every XML file of CVAT below a folder.

    Args:
      source: the folder.
      images: folder of the images; None: that of the XML file, or images in it.
      boxes: whether boxes are taken for outlines.

    Raises:
      ValueError: there is no such file.
    """
    found, any_ = Annotations([]), False
    for path in picture_paths.files_below(source, ending=r".+\.xml", met=found.findings):
        top = images or path.parent
        folders = [top, top / "images"]
        try:
            for root, element in xml_elements.children(path):
                if root != "annotations" or element.tag not in ("image", "track"):
                    continue
                any_ = True
                _add(found, element, path, folders, boxes=boxes)
        except ValueError as error:
            found.findings.add_error("file left out from there on", error)
    if not any_:
        what, advice = foreign.found_instead(source)
        raise ValueError(f"{source}: expected XML of CVAT for images, got {what}; do: {advice}")
    return found


def _add(
    found: Annotations, element: Element, path: Path, folders: list[Path], *, boxes: bool
) -> None:
    """Adds an image with its shapes; bad ones are told."""
    met = found.findings
    where = f"{path}, image {schemas.short_repr(element.get('name') or element.get('id'))}"
    if element.tag == "track":
        reason = "track left out: it is of a video"
        met.add(reason, str(path), advice="export the task as CVAT for images")
        return
    try:
        told = annotations.check_annotation(
            dict(element.attrib), _Image, where=where, findings=Findings()
        )
    except ValueError as error:
        met.add_error("image left out", error)
        return
    size = told.height, told.width
    regions = []
    for place, shape in enumerate(element):
        if shape.tag not in _SHAPES:
            continue  # Tags of the whole image, and what is not known yet.
        inside = f"{where}, {shape.tag} {place}"
        try:
            regions.append(_region(_Shape(shape, size, inside, boxes, met)))
        except ValueError as error:
            met.add_error("shape left out", error)
    subset = re.sub(r"\W", "_", told.subset or "")
    split = drawn.split_of(Path(subset)) if subset.lower() in drawn.SPLITS else subset
    split = split or drawn.split_of(path.with_suffix(""))
    beside = [folder / told.subset for folder in folders] if told.subset else []
    picture = picture_paths.find(told.name, folders=[*beside, *folders])
    name = told.name if not told.subset else f"{told.subset}/{told.name}"
    image = drawn.annotated_image(
        Drawing(name, picture, regions, size=size),
        split=split,
        number=len(found.images),
        where=where,
        met=met,
    )
    if image:
        found.images.append(image)


def _region(shape: _Shape) -> Region:
    """Returns what a shape outlines.

    Raises:
      ValueError: it outlines nothing.
    """
    kind, element = shape.element.tag, shape.element
    if kind in _POINTLESS:
        raise drawn.no_outline(shape.where, _POINTLESS[kind])
    outline = _outline(shape)
    name = drawn.label(element.get("label"), shape.where, shape.met)
    group = element.get("group_id")
    return Region(name, outline, group=None if group in (None, "", "0") else group)


def _outline(shape: _Shape) -> Outline:
    """Returns the outline of a polygon, a mask, an ellipse or a box."""
    kind = shape.element.tag
    if kind == "polygon":
        flat = _numbers(shape, "points")
        return segmentation.read_outline([flat], where=shape.where, findings=shape.met)
    if kind == "mask":
        return drawn.mask_outline(_mask(shape))
    if kind == "ellipse":
        x, y, across, down = (_number(shape, name) for name in ("cx", "cy", "rx", "ry"))
        degrees = _number(shape, "rotation", 0.0)
        return Polygons((drawn.ellipse(x, y, (across, down), degrees=degrees),))
    drawn.check_boxes(shape.where, boxes=shape.boxes)
    corners = [_number(shape, name) for name in ("xtl", "ytl", "xbr", "ybr")]
    middle = (corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2
    degrees = _number(shape, "rotation", 0.0)
    return Polygons((drawn.turned(drawn.rectangle(corners), degrees, middle),))


def _mask(shape: _Shape) -> np.ndarray:
    """Returns a mask: run lengths along the rows of its box, of what is not in it first."""
    left, top, width, height = (
        int(_number(shape, name)) for name in ("left", "top", "width", "height")
    )
    rows, columns = shape.size
    if not (left >= 0 and top >= 0 and 0 < width <= columns - left and 0 < height <= rows - top):
        raise BadAnnotation(
            f"{shape.where}: expected a mask within {rows}x{columns} pixels, got {height}x{width} "
            f"from row {top} and column {left}; do: {ADVICE}",
            "its mask reaches beyond the image",
        )
    runs = np.array(_numbers(shape, "rle"))
    if not (runs >= 0).all() or (runs != np.rint(runs)).any() or runs.sum() != width * height:
        raise BadAnnotation(
            f"{shape.where}: expected run lengths of {width * height} pixels, got {runs.sum():g}; "
            f"do: {ADVICE}",
            "its run lengths do not fill its box",
        )
    part = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64))
    whole = np.zeros((rows, columns), bool)
    whole[top : top + height, left : left + width] = part.reshape(height, width)
    return whole


def _numbers(shape: _Shape, name: str) -> list[float]:
    """Returns the numbers of an attribute."""
    text = shape.element.get(name) or ""
    found = xml_elements.numbers(text)
    if found is None:
        raise BadAnnotation(
            f"{shape.where}: expected numbers in {name}, got {schemas.short_repr(text)}; do: "
            f"{ADVICE}",
            f"its {name} are no numbers",
        )
    return found


def _number(shape: _Shape, name: str, default: float | None = None) -> float:
    """Returns the number of an attribute, or what it is without."""
    if name not in shape.element.attrib and default is not None:
        return default
    found = _numbers(shape, name)
    if len(found) != 1:
        raise BadAnnotation(
            f"{shape.where}: expected a number in {name}, got {len(found)}; do: {ADVICE}",
            f"it has no number in {name}",
        )
    return found[0]
