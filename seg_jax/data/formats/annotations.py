"""What every reader of a published format returns: images with objects and expressions, by file.

An entry is small: the image is named, not read, and outlines are as the annotation has them, so
that a million of them fit into memory and travel to other processes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from seg_jax.data import image_files
from seg_jax.data.findings import Findings
from seg_jax.geometry import bitmask, runlengths


class Role(enum.IntEnum):
    """How an outlined region counts."""

    OBJECT = 0
    CROWD = 1
    """A region of many objects that were not told apart."""
    IGNORED = 2
    """What an answer may cover or not, at no gain or loss."""


@dataclasses.dataclass(frozen=True)
class Polygons:
    """Rings x, y, x, y, .. in pixels, filled one by one and united."""

    rings: tuple[tuple[float, ...], ...]

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        return runlengths.fill(self.rings, height=height, width=width)

    def overhang_px(self, height: int, width: int) -> float:
        """Returns how far it reaches beyond an image, in pixels; 0 within."""
        points = [np.asarray(ring, float).reshape(-1, 2) for ring in self.rings if len(ring) >= 6]
        if not points:
            return 0.0
        every = np.concatenate(points)
        return float(max(0.0, -every.min(), *(every.max(0) - [width, height])))


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """COCO run lengths, united; compressed or not."""

    rles: tuple[Mapping[str, Any], ...]

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        return runlengths.merge(self.rles, height=height, width=width)


@dataclasses.dataclass(frozen=True)
class PngSegment:
    """The pixels of one number in a PNG of numbers: red + 256 green + 65536 blue."""

    file: Path
    number: int

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        numbers = _png_numbers(self.file)
        if numbers.shape != (height, width):
            raise ValueError(
                f"{self.file}: expected {height}x{width} pixels as the image, got "
                f"{numbers.shape[0]}x{numbers.shape[1]}"
                "; do: get the file from where it was published"
            )
        return bitmask.to_rle(numbers == self.number)


@dataclasses.dataclass(frozen=True)
class PaintedShapes:
    """Polygons painted over each other, the largest first; those of one label remain.

    Source: the labels of ReasonSeg as LISA (Lai et al. 2023) paints them: OpenCV fills vertices
    cut to whole pixels, outline included.
    """

    shapes: tuple[tuple[int, tuple[tuple[float, float], ...]], ...]
    """Label and points of each."""
    label: int

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        return bitmask.to_rle(_paint_shapes(self.shapes, height, width) == self.label)


Outline = Polygons | RunLengths | PngSegment | PaintedShapes


@dataclasses.dataclass(frozen=True)
class AnnotatedObject:
    """An outlined object of an image."""

    id: int
    outline: Outline
    name: str = ""
    """Its category, or nothing."""
    box_px: tuple[float, float, float, float] | None = None
    """The annotated box x0 y0 x1 y1; None: the mask's own."""
    role: Role = Role.OBJECT


@dataclasses.dataclass(frozen=True)
class Expression:
    """A phrase or sentence with the objects that it means."""

    id: int
    text: str
    objects: tuple[int, ...]
    """Places in the entry's things; none: it fits nothing in the image."""
    ref: int = -1
    """Number of the annotation that it belongs to, as others may; -1: none."""
    sentence: bool = False
    """Whether it is a whole sentence, as ReasonSeg's questions are."""


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image of a split with its objects and expressions."""

    key: str
    """Names it within the data set."""
    split: str
    image: Path
    image_id: int
    objects: tuple[AnnotatedObject, ...]
    expressions: tuple[Expression, ...]
    size: tuple[int, int] | None = None
    """Height and width that the annotation tells; None: the image's own."""
    upright: bool = False
    """Whether outlines are of the image as its camera's note (EXIF) turns it."""


@dataclasses.dataclass
class Annotations:
    """What a reader found."""

    images: list[AnnotatedImage]
    refs: dict[str, int] = dataclasses.field(default_factory=dict)
    """Annotated references of each split."""
    findings: Findings = dataclasses.field(default_factory=Findings)
    """What was left out of the images, or not taken as it stood."""


def images_by_split(images: Iterable[AnnotatedImage]) -> dict[str, list[AnnotatedImage]]:
    """Returns the entries by split, in the order given."""
    found: dict[str, list[AnnotatedImage]] = {}
    for entry in images:
        found.setdefault(entry.split, []).append(entry)
    return found


def field(record: Any, name: str, kind: type | tuple[type, ...], *, where: str) -> Any:
    """Returns a field of an annotation.

    Args:
      record: the annotation, a dict.
      name: of the field.
      kind: what it must be.
      where: tells file and number of the annotation.

    Raises:
      ValueError: there is none, or it is something else.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ValueError(
            f"{where}: expected {name!r} to be {wanted}, got {_short_repr(value)}"
            "; do: correct the annotation"
        )
    return value


def _short_repr(value: Any) -> str:
    if isinstance(value, list | dict | tuple):  # Perhaps deeper than can be printed.
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.lru_cache(maxsize=2)
def _png_numbers(file: Path) -> Int[np.ndarray, "H W"]:
    """Returns the numbers of a PNG's pixels."""
    return image_files.read_numbers(file)


@functools.lru_cache(maxsize=2)
def _paint_shapes(shapes: tuple, height: int, width: int) -> Int[np.ndarray, "H W"]:
    """Returns the labels of pixels under layers; 0 where there is none."""
    import cv2

    def paint(canvas: np.ndarray, points: Any, label: int) -> None:
        outline = np.array([points], np.float64).astype(np.int32)
        cv2.polylines(canvas, outline, True, label, 1)  # pyright: ignore
        cv2.fillPoly(canvas, outline, label)  # pyright: ignore

    areas = []
    for _, points in shapes:
        canvas = np.zeros((height, width), np.uint8)
        paint(canvas, points, 1)
        areas.append(int(canvas.sum()))
    canvas = np.zeros((height, width), np.uint8)
    for place in np.argsort(areas)[::-1]:
        paint(canvas, shapes[place][1], shapes[place][0])
    return canvas.astype(np.int32)
