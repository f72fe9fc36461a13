"""Makes objects of what people draw in labelling tools: polygons, boxes, ellipses and brushes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    BadAnnotation,
    Expression,
    Outline,
    Polygons,
    Role,
    RunLengths,
    UnitPolygons,
)
from seg_jax.geometry import bitmask

ELLIPSE_POINTS = 180
"""Vertices of the polygon that an ellipse becomes: it is within 0.02 % of its radius."""
NAMELESS = "object without a name: it has no label"
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders and files of splits, and what the splits are called."""

Ring = tuple[float, ...]


class Region(NamedTuple):
    """What was drawn of an object."""

    name: str
    outline: Outline
    group: Any = None
    """Regions of one name and group are one object; None: it is one by itself."""
    texts: tuple[str, ...] = ()
    """Expressions that mean the object."""
    role: Role = Role.OBJECT


class Drawing(NamedTuple):
    """An image with what was drawn on it, as a tool's file tells."""

    told: str
    """Path of the image as the file gives it: names it within its split."""
    image: Path
    regions: Sequence[Region]
    size: tuple[int, int] | None = None
    """Height and width as the file tells them."""
    upright: bool | None = None
    """As in `annotations.AnnotatedImage`."""


def rectangle(corners: Sequence[float]) -> Ring:
    """Returns the ring of the box of two opposite corners x, y, x, y, from the upper left one."""
    x0, y0, x1, y1 = corners
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def turned(ring: Sequence[float], degrees: float, about: tuple[float, float]) -> Ring:
    """Returns a ring turned clockwise, as it is seen, about a point."""
    if not degrees:
        return tuple(ring)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    found: list[float] = []
    for x, y in zip(ring[::2], ring[1::2], strict=True):
        across, down = x - about[0], y - about[1]
        found += (
            about[0] + cosine * across - sine * down,
            about[1] + sine * across + cosine * down,
        )
    return tuple(found)


def ellipse(x: float, y: float, radii: tuple[float, float], *, degrees: float = 0.0) -> Ring:
    """Returns the ring of an ellipse about x, y, turned clockwise as it is seen."""
    found: list[float] = []
    for number in range(ELLIPSE_POINTS):
        angle = 2 * math.pi * number / ELLIPSE_POINTS
        found += (x + radii[0] * math.cos(angle), y + radii[1] * math.sin(angle))
    return turned(found, degrees, (x, y))


def no_outline(where: str, kind: str) -> BadAnnotation:
    """Returns the error of a shape that has no inside, as a point or a line."""
    return BadAnnotation(
        f"{where}: expected a polygon, a mask or an ellipse, got a {kind}; do: outline the object",
        f"a {kind} is no outline",
    )


def check_boxes(where: str, *, boxes: bool) -> None:
    """Raises BadAnnotation unless boxes are to be taken for outlines."""
    if not boxes:
        raise BadAnnotation(
            f"{where}: expected an outline, got a box; do: outline the object, or give --boxes, "
            "which takes boxes for outlines",
            "a box is no outline",
        )


def label(text: str | None, where: str, met: Findings) -> str:
    """Returns the name that a label gives an object; none is told.

    Raises:
      BadAnnotation: no file can hold it.
    """
    if not schemas.holds(text or "", schemas.Text):
        raise BadAnnotation(
            f"{where}: expected a label without lone surrogates, got {schemas.short_repr(text)}; "
            "do: name it anew",
            "its label has lone surrogates or is too long",
        )
    name = " ".join((text or "").split())
    if not name:
        met.add(NAMELESS, where, advice="give it a label")
    return name


def split_of(place: PurePosixPath | Path) -> str:
    """Returns the split of a file by the first folder that is named as one; else train."""
    return next((SPLITS[part.lower()] for part in place.parts if part.lower() in SPLITS), "train")


def annotated_image(
    drawing: Drawing, *, split: str, number: int, where: str, met: Findings
) -> AnnotatedImage | None:
    """Returns an image with its objects, and expressions for their names and texts.

    Args:
      drawing: the image and its regions.
      split: that it is of.
      number: of the image.
      where: tells file and image.
      met: are told of an image without regions, for which None is returned.
    """
    if not drawing.regions:
        met.add(annotations.NONE_TAKEN, where)
        return None
    objects, texts = _objects(drawing, where, met)
    named = annotations.names_as_expressions(objects)
    described = [
        Expression(len(named) + place, text, tuple(which))
        for place, (text, which) in enumerate(texts.items())
        if text not in {one.text for one in named}
    ]
    return AnnotatedImage(
        key=f"{split}/{drawing.told}",
        split=split,
        image=drawing.image,
        image_id=number,
        objects=tuple(objects),
        expressions=(*named, *described),
        size=drawing.size,
        upright=drawing.upright,
    )


def _objects(
    drawing: Drawing, where: str, met: Findings
) -> tuple[list[AnnotatedObject], dict[str, list[int]]]:
    """Returns the objects of an image, and what texts mean; equal regions are one, and told."""
    groups: dict[Any, list[Region]] = {}
    for place, region in enumerate(drawing.regions):
        own = ("alone", place) if region.group is None else (region.name, region.group, region.role)
        groups.setdefault(own, []).append(region)
    objects: list[AnnotatedObject] = []
    texts: dict[str, list[int]] = {}
    seen: set[Any] = set()
    for number, parts in enumerate(groups.values()):
        outline = _union([part.outline for part in parts], drawing.size)
        one = AnnotatedObject(number, outline, name=parts[0].name, role=parts[0].role)
        said = {text: None for part in parts for text in part.texts}
        identity = repr((one.outline, one.name, one.role))
        if identity in seen and not said:
            met.add("object left out: it is there already", f"{where}: {one.name!r}")
            continue
        seen.add(identity)
        for text in said:
            texts.setdefault(text, []).append(len(objects))
        objects.append(one)
    return objects, texts


def _union(outlines: Sequence[Outline], size: tuple[int, int] | None) -> Outline:
    """Returns an outline of all of some; masks and polygons together need the image's size."""
    if len(outlines) == 1:
        return outlines[0]
    for kind in (Polygons, UnitPolygons):
        some = [one for one in outlines if isinstance(one, kind)]
        if len(some) == len(outlines):
            return kind(tuple(ring for one in some for ring in one.rings))
    if size is None:
        raise BadAnnotation(
            "group: expected the image's size beside a mask in it, got none; do: tell the size",
            "its group has a mask, and the size of the image is not told",
        )
    return RunLengths(tuple(as_text(one.rle(*size)) for one in outlines))


def as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """Returns run lengths whose counts are a text, as annotations have them."""
    counts = rle["counts"]
    return {
        "size": [*rle["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def mask_outline(mask: Any) -> RunLengths:
    """Returns the outline that a mask [H, W] is."""
    return RunLengths((as_text(bitmask.to_rle(mask)),))
