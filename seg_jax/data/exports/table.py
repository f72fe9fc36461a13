"""Which formats answers are exported to, and what each writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple, get_args

from seg_jax.data.exports import (
    coco_json,
    labelme_json,
    mask_images,
    plain_folder,
    svg,
    yolo_folder,
)
from seg_jax.data.exports.answers import Category, Files, Picture

Format = Literal[
    "coco_results",
    "coco",
    "folder",
    "yolo",
    "labelme",
    "voc",
    "svg",
    "masks",
    "overlays",
    "gallery",
]
"""The formats that answers are exported to."""
GALLERY: Format = "gallery"
"""The format whose files are pages of many pictures."""

Stream = Callable[[IO[str], Iterable[Picture], Sequence[Category]], None]
"""Writes the file of all pictures, one after another."""


class _Whole(NamedTuple):
    """A format that is one file."""

    path: str
    write: Stream


def _folder_lines(
    file: IO[str], pictures: Iterable[Picture], categories: Sequence[Category]
) -> None:
    del categories
    for picture in pictures:
        file.write(f"{json.dumps(plain_folder.line(picture))}\n")


WHOLE: dict[Format, _Whole] = {
    "coco_results": _Whole(coco_json.RESULTS, coco_json.write_results),
    "coco": _Whole(coco_json.ANNOTATIONS, coco_json.write_annotations),
    "folder": _Whole(plain_folder.FILE, _folder_lines),
}
"""Formats that are one file, below the folder of the run."""

_PER_PICTURE: dict[Format, Callable[[Picture, Path], Files]] = {
    "yolo": lambda picture, _: yolo_folder.of_picture(picture),
    "labelme": labelme_json.of_picture,
    "voc": lambda picture, _: mask_images.palettes(picture),
    "svg": svg.of_picture,
    "masks": lambda picture, _: mask_images.masks(picture),
    "overlays": lambda picture, _: mask_images.overlays(picture),
}

FOLDERS: tuple[Format, ...] = (*_PER_PICTURE, GALLERY)
"""Formats that are a folder of this name."""


def with_present(formats: Sequence[Format], out: Path) -> tuple[Format, ...]:
    """Returns formats with those that a folder of a run has already, so that none gets stale."""
    there = [one for one in FOLDERS if any(path.is_file() for path in (out / one).rglob("*"))]
    there += [one for one in WHOLE if (out / WHOLE[one].path).is_file()]
    return tuple(one for one in get_args(Format) if one in formats or one in there)


def of_picture(picture: Picture, formats: Sequence[Format], out: Path) -> Files:
    """Yields the files of a picture in some formats, by their paths in the folder of the run.

    Args:
      picture: with its answers.
      formats: those that are one file are passed over.
      out: folder of the run.
    """
    for one in formats:
        if one in _PER_PICTURE:
            for name, make in _PER_PICTURE[one](picture, out / one):
                yield f"{one}/{name}", make


def of_all(
    categories: Sequence[Category], names: Sequence[str], formats: Sequence[Format]
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the files that formats have beside those of single pictures."""
    if "yolo" in formats:
        yield from ((f"yolo/{name}", make) for name, make in yolo_folder.of_all(categories))
    if "voc" in formats:
        every = mask_images.palette_lists(categories, names)
        yield from ((f"voc/{name}", make) for name, make in every)


def check(categories: Sequence[Category], formats: Sequence[Format]) -> None:
    """Raises ValueError if a format cannot hold so many categories."""
    most = mask_images.MOST_COLOURS
    if "voc" in formats and len(categories) > most:
        raise ValueError(
            f"formats: expected at most {most} names of objects for voc, got {len(categories)}; "
            "do: give fewer names by --questions, or choose another format"
        )
