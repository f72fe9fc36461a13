"""Reads a user's own data: SPLIT.jsonl files, an image a line, with outlines and phrases.

A line is a JSON object:

    {"image": "images/cup.jpg",
     "objects": [{"segmentation": [[10, 10, 50, 10, 50, 50]], "name": "cup"},
                 {"segmentation": {"size": [480, 640], "counts": "..."}}],
     "phrases": [{"text": "the red cup", "objects": [0]},
                 {"text": "both cups", "objects": [0, 1]},
                 {"text": "a fork", "objects": []}]}

`image` is relative to the folder of the file, or to `--images`. A segmentation is one of COCO's:
polygons x, y, x, y, .. in pixels, or run lengths, compressed or not. `name`, `crowd` and `ignore`
(true) of an object and `sentence` (true) of a phrase may be left out. A phrase without objects is
one that fits nothing in the image. Lines of one image are joined: an object that stands in several
of them is one. `key` names a line otherwise than by its image, so that it stays apart.

`upright` (true) says that outlines are of the image as its camera's note (EXIF) turns it, false
that they are of the pixels as they are stored. What else stands in a line, as `seg-jax annotate`
writes it, is for whoever wants to know. A line, object or phrase that is wrong costs itself, with
the phrases that mean it, and is told.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.formats import annotations, foreign, segmentation
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    BadAnnotation,
    Expression,
    Role,
)

ADVICE = "correct the line"
_Flag = bool | Annotated[int, Meta(ge=0, le=1)] | None


class _Line(schemas.Record, frozen=True):
    image: schemas.FileName
    objects: list[Any]
    phrases: list[Any]
    key: schemas.FileName | None = None
    upright: _Flag = None


class _Object(schemas.Record, frozen=True):
    segmentation: Any = None
    name: schemas.Text | None = None
    crowd: _Flag = None
    ignore: _Flag = None


class _Phrase(schemas.Record, frozen=True):
    text: schemas.Text
    objects: list[Annotated[int, Meta(ge=0)]]
    sentence: _Flag = None


def read(source: Path, *, images: Path | None = None) -> Annotations:
    """Returns the images of every SPLIT.jsonl in a folder.

    Args:
      source: the folder.
      images: folder that the paths of images are relative to; None: that of their file.

    Raises:
      ValueError: there is none, or one is no file of lines.
    """
    every = sorted(source.glob("*.jsonl"))
    if not every:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected files SPLIT.jsonl, as train.jsonl, got {what}; do: {advice}"
        )
    found = Annotations([])
    for file in every:
        by_key: dict[str, _Lines] = {}
        for number, data in enumerate(_texts(file), start=1):
            if data.strip():
                try:
                    _add_line(by_key, data, where=f"{file}, line {number}", read=found)
                except ValueError as error:
                    found.findings.add_error("line left out", error)
        if not by_key:
            found.findings.add(
                annotations.NO_IMAGES, str(file), advice=annotations.NO_IMAGES_ADVICE
            )
        found.images += [
            AnnotatedImage(
                key=f"{file.stem}/{key}",
                split=file.stem,
                image=(images or source) / lines.first.image,
                image_id=place,
                objects=tuple(lines.objects),
                expressions=tuple(lines.expressions),
                upright=None if lines.first.upright is None else bool(lines.first.upright),
            )
            for place, (key, lines) in enumerate(by_key.items())
        ]
    return found


def _texts(file: Path) -> Iterator[bytes]:
    """Yields the lines of a file, in UTF-8, or in UTF-16 or UTF-32 with a mark, as on Windows.

    Raises:
      ValueError: it cannot be read, or is one JSON value over several lines.
    """
    data = files.read_bytes(file, advice=ADVICE)
    # The marks of UTF-32 begin as those of UTF-16 do.
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        data = data.decode("utf-32", errors="replace").encode()
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode("utf-16", errors="replace").encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    if b"\n" not in data:  # Old programs of Macs end lines so; within JSON it is only space.
        data = data.replace(b"\r", b"\n")
    first = data[:100].lstrip()
    if first.startswith(b"[") or first.split(b"\n")[0].strip() == b"{":
        raise ValueError(
            f"{file}: expected a JSON object a line, got one JSON value over several lines; do: "
            "write each image's object on a line of its own"
        )
    at = 0
    while at < len(data):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        yield data[at:end]
        at = end + 1


class _Lines:
    """The lines of an image, joined."""

    def __init__(self, first: _Line):
        self.first = first
        self.told_objects, self.told_phrases = 0, 0
        """Numbers of objects and phrases in the lines so far, those left out too: ids go on there,
        so that in the one line of an image they are the annotations' own places."""
        self.objects: list[AnnotatedObject] = []
        self.expressions: list[Expression] = []

    @functools.cached_property
    def places(self) -> dict[Any, int]:
        """Places of objects by what they are; made when a second line comes."""
        return {_identity(one): place for place, one in enumerate(self.objects)}


def _identity(one: AnnotatedObject) -> Any:
    return repr((one.outline, one.name, one.role))


def _add_line(by_key: dict[str, _Lines], data: bytes, *, where: str, read: Annotations) -> None:
    """Adds the objects and phrases of a line to its image; bad ones are told.

    Raises:
      ValueError: the line cannot be taken.
    """
    line = schemas.check(
        annotations.parse_json(data, where=where, advice=ADVICE), _Line, where=where, advice=ADVICE
    )
    key = line.image if line.key is None else line.key
    lines = by_key.get(key)
    joined = lines is not None
    if lines is None:
        lines = by_key[key] = _Lines(line)
    for name in ("image", "upright"):
        if (got := getattr(line, name)) != (had := getattr(lines.first, name)):
            raise BadAnnotation(
                f"{where}: expected {name} {had!r} as in another line of the key {key!r}, got "
                f"{got!r}; do: give the line a key of its own",
                f"another line of its key has another {name}",
            )
    placed = [
        _place(lines, value, number, where=where, read=read, joined=joined)
        for number, value in enumerate(line.objects)
    ]
    for number, value in enumerate(line.phrases):
        try:
            told = _expression(value, placed, where=f"{where}, phrases[{number}]")
        except ValueError as error:
            read.findings.add_error("phrase left out", error)
            continue
        lines.expressions.append(dataclasses.replace(told, id=lines.told_phrases + number))
    lines.told_objects += len(line.objects)
    lines.told_phrases += len(line.phrases)


def _place(
    lines: _Lines, value: Any, number: int, *, where: str, read: Annotations, joined: bool
) -> int | None:
    """Returns the place of a line's object among those of its image; None of a bad one."""
    where = f"{where}, objects[{number}]"
    try:
        told = schemas.check(value, _Object, where=where, advice=ADVICE)
        outline = segmentation.read_outline(told.segmentation, where=where, findings=read.findings)
    except ValueError as error:
        read.findings.add_error("object left out", error)
        return None
    role = Role.IGNORED if told.ignore else Role.CROWD if told.crowd else Role.OBJECT
    place = len(lines.objects)
    name = " ".join((told.name or "").split())
    one = AnnotatedObject(lines.told_objects + number, outline, name=name, role=role)
    if joined and (before := lines.places.setdefault(_identity(one), place)) != place:
        return before
    lines.objects.append(one)
    return place


def _expression(value: Any, placed: list[int | None], *, where: str) -> Expression:
    """Returns a phrase whose objects are all there.

    Args:
      value: as it was read.
      placed: places of the line's objects among those of the image.
      where: tells file, line and phrase.

    Raises:
      ValueError: it is none, or means an object that is not there.
    """
    told = schemas.check(value, _Phrase, where=where, advice=ADVICE)
    which: dict[int, None] = {}
    for place in told.objects:
        if place >= len(placed):
            raise BadAnnotation(
                f"{where}: expected places of {len(placed)} objects, got {place}; do: {ADVICE}",
                "it means objects that are not there",
            )
        if (found := placed[place]) is None:
            raise BadAnnotation(
                f"{where}: expected objects that can be taken, got {place}, which was left out"
                "; do: correct the object",
                "it means an object that was left out",
            )
        which[found] = None
    return Expression(0, told.text, tuple(which), sentence=bool(told.sentence))
