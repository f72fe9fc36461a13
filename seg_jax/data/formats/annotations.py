"""What every reader of a published format returns: images with objects and expressions, by file.

An entry is small: the image is named, not read, and outlines are as the annotation has them, so
that a million of them fit into memory and travel to other processes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from jaxtyping import Int

from seg_jax import files, schemas
from seg_jax.data import grey_images, image_files
from seg_jax.data.findings import Findings
from seg_jax.geometry import bitmask, runlengths
from seg_jax.records import Trace

Value = TypeVar("Value")


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
class UnitPolygons:
    """Rings x, y, x, y, .. in fractions of the image's width and height, united.

    Products with the size are rounded to a millionth of a pixel: what a tool divided by the size
    comes back as it was, where its decimals allow for it.
    """

    rings: tuple[tuple[float, ...], ...]

    def in_pixels(self, height: int, width: int) -> Polygons:
        """Returns the same rings in pixels of an image of this size."""
        size = width, height
        return Polygons(
            tuple(
                tuple(round(number * size[place % 2], 6) for place, number in enumerate(ring))
                for ring in self.rings
            )
        )

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        return self.in_pixels(height, width).rle(height, width)

    def overhang_px(self, height: int, width: int) -> float:
        """Returns how far it reaches beyond an image, in pixels; 0 within."""
        return self.in_pixels(height, width).overhang_px(height, width)


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
class LabelSegment:
    """The pixels of one colour in an image of labels: red + 256 green + 65536 blue."""

    file: Path
    number: int

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        numbers = label_numbers(self.file)
        if numbers.shape != (height, width):
            raise BadAnnotation(
                f"{self.file}: expected {height}x{width} pixels as the image, got "
                f"{numbers.shape[0]}x{numbers.shape[1]}; do: export the masks anew",
                "mask is of another size than the image",
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


@dataclasses.dataclass(frozen=True)
class GreyMask:
    """The pixels of a grey image above a value, as masks of foreground objects are published."""

    file: Path
    above: int = 128

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """Returns the region as compressed COCO run lengths."""
        grey = _grey_image(self.file).pixels
        if grey.shape != (height, width):
            raise BadAnnotation(
                f"{self.file}: expected {height}x{width} pixels as the image, got "
                f"{grey.shape[0]}x{grey.shape[1]}; do: get the file from where it was published",
                "mask is of another size than the image",
            )
        if (most := grey.max()) <= self.above:
            some = f"mask has no grey above {self.above}, though some above 0"
            raise BadAnnotation(
                f"{self.file}: expected greys above {self.above} on the object, got none above "
                f"{most}; do: write 255 where the object is, without transparency",
                some if most else "mask is empty: black or transparent throughout",
            )
        return bitmask.to_rle(grey > self.above)

    def size(self) -> tuple[int, int] | None:
        """Returns height and width of the mask; None where it cannot be read."""
        try:
            return _grey_image(self.file).pixels.shape
        except image_files.Unreadable:
            return None

    def remarks(self) -> tuple[str, ...]:
        """Returns what is odd about a mask that can be read, fixed phrases."""
        return _grey_image(self.file).remarks


Outline = (
    Polygons | UnitPolygons | RunLengths | PngSegment | LabelSegment | PaintedShapes | GreyMask
)


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


def names_as_expressions(objects: Sequence[AnnotatedObject]) -> tuple[Expression, ...]:
    """Returns an expression for each name that objects have; it means all of that name."""
    meant: dict[str, list[int]] = {}
    for place, one in enumerate(objects):
        if one.name:
            meant.setdefault(one.name, []).append(place)
    return tuple(
        Expression(place, name, tuple(which)) for place, (name, which) in enumerate(meant.items())
    )


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """An image of a split with its objects and expressions."""

    key: str
    """Names it within the data set: the split and the image's path as the annotation gives it."""
    split: str
    image: Path
    image_id: int
    objects: tuple[AnnotatedObject, ...]
    expressions: tuple[Expression, ...]
    size: tuple[int, int] | None = None
    """Height and width that the annotation tells; None: the image's own."""
    upright: bool | None = None
    """Whether outlines are of the image as its camera's note (EXIF) turns it; None: the annotation
    does not say, and they are of the pixels as stored unless its size is of the turned image."""
    traces: tuple[Trace, ...] = ()
    """Conversations about it."""
    row: int | None = None
    """Row of the table that `image` is then, a Parquet file; None: `image` is its file."""
    column: str = "image"
    """Column of the table that holds the image."""


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


class BadAnnotation(ValueError):
    """An annotation, or a part of one, that cannot be taken; it costs itself."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason
        """A fixed phrase that cases are counted by."""


def parse_json(data: bytes, *, where: str, advice: str) -> Any:
    """Returns the value of a JSON text as `files.parse_json` does, faster.

    An object in which a name stands twice becomes `schemas.Repeated`, and what is nested deeper
    than any annotation null: both cost the annotation whose they are.

    Raises:
      ValueError: it is no JSON.
    """
    try:
        value = msgspec.json.decode(data)
        if _has_as_many_names(data, value):
            return value
    except RecursionError:
        data = _without_depths(data)
    except (ValueError, OverflowError):  # Stricter than JSON as Python writes it.
        pass
    return files.parse_json(data, where=where, advice=advice, repeated=schemas.Repeated)


def _has_as_many_names(data: bytes, value: Any) -> bool:
    """Returns whether a JSON text has as many colons as its value written anew.

    A name that stands twice in an object is written once. Other colons are those within texts, and
    stay, unless they are escaped: then nothing is known.
    """
    return rb"\u003" not in data and data.count(b":") == msgspec.json.encode(value).count(b":")


MOST_LEVELS = 100
"""Lists and objects within each other in an annotations file; formats have ten at most."""
_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def _without_depths(data: bytes) -> bytes:
    """Returns a JSON text with null for what lies deeper than `MOST_LEVELS`, in linear time."""
    pieces, level, begin = [], 0, 0
    for mark in _MARKS.finditer(data):
        if mark[0] in b"[{":
            level += 1
            if level == MOST_LEVELS + 1:
                pieces += [data[begin : mark.start()], b"null"]
        elif mark[0] in b"]}":
            if level == MOST_LEVELS + 1:
                begin = mark.end()
            level -= 1
    return b"".join([*pieces, data[begin:]]) if level == 0 else data


NO_IMAGES = "split without images"
"""Reason of a file of which no image is left."""
NO_IMAGES_ADVICE = "fill or correct the file, or remove it"
NONE_TAKEN = "image left out: none of its annotations, if any, is taken"
NONE_THERE = "image left out, as nothing is annotated in it"
ORDINARY = frozenset({NONE_TAKEN, NONE_THERE})
"""Reasons that are no mistakes: data sets have images without annotations, and annotations that are
not taken have reasons of their own."""
NUMBERS = ("id", "image_id", "category_id", "ref_id", "sent_id", "height", "width", "iscrowd")
"""Fields of integers that some programs write as "1" or 1.0."""


def check_annotation(value: Any, kind: type[Value], *, where: str, findings: Findings) -> Value:
    """Returns an annotation as a type whose every level holds; integers may be texts or floats.

    Args:
      value: as it was read.
      kind: a `schemas.Record`.
      where: tells file and annotation.
      findings: are told of integers that were written otherwise.

    Raises:
      schemas.Invalid: it is something else.
    """
    try:
        return schemas.check(value, kind, where=where)
    except schemas.Invalid:
        numbers = _numbers_in_disguise(value)
        if not numbers:
            raise
    found = schemas.check(value | numbers, kind, where=where)
    for name in numbers:
        written = schemas.short_repr(value[name])
        findings.add(f"{name} is no integer: read as one", f"{where}: {name} {written}")
    return found


def checked_list(
    values: Iterable[Any], kind: type[Value], *, where: str, left_out: str, findings: Findings
) -> Iterator[tuple[str, Value]]:
    """Yields the members of a list that hold, each after its place; the others are told.

    Args:
      values: as they were read.
      kind: as in `check_annotation`.
      where: tells file, annotation and name of the list.
      left_out: what is said of those that do not hold.
      findings: are told.
    """
    for number, value in enumerate(values):
        place = f"{where}[{number}]"
        try:
            found = check_annotation(value, kind, where=place, findings=findings)
        except ValueError as error:
            findings.add_error(left_out, error)
            continue
        yield place, found


def whole_number(value: Any) -> int | None:
    """Returns the integer that is written as one, as a text or as a float; None if it is none."""
    match value:
        case bool():
            return None
        case int():
            return value
        case str() if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value):
            return int(value)
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
    return None


def _numbers_in_disguise(value: Any) -> dict[str, int]:
    """Returns the integers that an annotation has as texts or floats."""
    fields = {name: value.get(name) for name in NUMBERS} if isinstance(value, dict) else {}
    return {
        name: number
        for name, one in fields.items()
        if isinstance(one, str | float) and (number := whole_number(one)) is not None
    }


def label_numbers(file: Path) -> Int[np.ndarray, "H W"]:
    """Returns the colours of an image of labels, red + 256 green + 65536 blue.

    The last ones are kept while their files do not change.

    Raises:
      image_files.Unreadable: see `image_files.read`.
    """
    try:
        state = file.stat()
    except (OSError, ValueError):  # The reader says what is wrong.
        return _label_numbers.__wrapped__(file, (0, 0))
    return _label_numbers(file, (state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _label_numbers(file: Path, _state: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    channels = image_files.read(file, upright=False).astype(np.int32)
    return channels[..., 0] | channels[..., 1] << 8 | channels[..., 2] << 16


@functools.lru_cache(maxsize=2)
def _png_numbers(file: Path) -> Int[np.ndarray, "H W"]:
    """Returns the numbers of a PNG's pixels."""
    return image_files.read_numbers(file)


def _grey_image(file: Path) -> grey_images.Grey:
    """Returns the greys of a mask; the last ones are kept while their files do not change."""
    try:
        state = file.stat()
    except OSError:  # The reader says what is wrong.
        return grey_images.read(file)
    return _kept_grey_image(file, (state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=2)
def _kept_grey_image(file: Path, _state: tuple[int, int]) -> grey_images.Grey:
    return grey_images.read(file)


MOST_BEYOND_PX = 32_000
"""Reach of a painted shape beyond its image: OpenCV walks all of its rows, seen or not."""
MOST_PAINT_STEPS = 2**30
"""Work of painting an image's shapes: some seconds."""


def _check_paintable(shapes: tuple, height: int, width: int) -> None:
    """Raises BadAnnotation if OpenCV would take too long over the shapes."""
    steps = 0.0
    for number, (_, points) in enumerate(shapes):
        every = np.asarray(points, float)
        beyond = max(-every.min(), *(every.max(0) - [width, height]))
        if beyond > MOST_BEYOND_PX:
            raise BadAnnotation(
                f"shape {number}: expected points at most {MOST_BEYOND_PX} pixels beyond the image "
                f"of {height}x{width}, got {beyond:.0f}; do: correct the shape",
                "a shape is too far from its image",
            )
        # In each row, the edges that cross it are sorted by exchanges: their square at worst.
        crossed = np.abs(np.diff(every[:, 1], append=every[0, 1])).sum() + len(every)
        steps += crossed**2 / (np.ptp(every[:, 1]) + 1)
    if steps > MOST_PAINT_STEPS:
        raise BadAnnotation(
            f"shapes: expected at most {MOST_PAINT_STEPS} steps to paint, got {steps:.0f}; do: "
            "outline the object with fewer points",
            "its shapes are too intricate",
        )


@functools.lru_cache(maxsize=2)
def _paint_shapes(shapes: tuple, height: int, width: int) -> Int[np.ndarray, "H W"]:
    """Returns the labels of pixels under layers; 0 where there is none.

    Raises:
      BadAnnotation: a shape is too far away, or they are too intricate, for OpenCV to fill.
    """
    import cv2

    _check_paintable(shapes, height, width)

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
