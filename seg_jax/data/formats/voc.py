"""Reads Pascal VOC's masks: SegmentationClass and SegmentationObject, a colour a class or object.

Folders are VOC's: JPEGImages, ImageSets/Segmentation/SPLIT.txt, and labelmap.txt where the classes
are not VOC's own. Colours are those of the PNG, palette or not; a grey PNG has numbers of classes.
What is void (255, or its colour) counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, drawn, foreign, picture_paths
from seg_jax.data.formats.annotations import Annotations, LabelSegment, Role
from seg_jax.data.formats.drawn import Drawing, Region

CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow dining_table dog horse "
    "motorbike person potted_plant sheep sofa train tv_monitor"
)
"""Classes of the challenge, by number. Source: Everingham et al. 2010."""
BACKGROUND, VOID = 0, 255
MOST_OBJECTS = 10_000
_NO_OBJECTS = "objects of a class are one: there is no SegmentationObject"
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif")


class _Labels(NamedTuple):
    """What colours mean."""

    names: Mapping[int, str]
    """Names of classes by colour, red + 256 green + 65536 blue."""
    grey_names: Mapping[int, str]
    """Names of classes by number, as grey PNGs have them."""


def colour(number: int) -> int:
    """Returns the colour of a class, red + 256 green + 65536 blue, in VOC's palette.

    Source: VOClabelcolormap of the challenge's development kit.
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for place in range(3):
            channels[place] |= ((number >> (3 * bit + place)) & 1) << (7 - bit)
    return channels[0] | channels[1] << 8 | channels[2] << 16


def read(source: Path, *, images: Path | None = None) -> Annotations:
    """Returns the images of the splits in ImageSets/Segmentation, or all that have masks.

    Args:
      source: the folder of SegmentationClass.
      images: folder of the images; None: JPEGImages in the source.

    Raises:
      ValueError: there are no masks.
    """
    classes, objects = source / "SegmentationClass", source / "SegmentationObject"
    if not classes.is_dir():
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected SegmentationClass of Pascal VOC, got {what}; do: {advice}"
        )
    found = Annotations([])
    labels = _labels(source / "labelmap.txt", found.findings)
    for split, stem in _stems(source, classes, found.findings):
        where = f"{split}/{stem}"
        mask = classes / f"{stem}.png"
        if not picture_paths.is_file(mask):
            found.findings.add("image left out: it has no mask", f"{where}: no {mask}")
            continue
        single = objects / f"{stem}.png"
        single = single if picture_paths.is_file(single) else None
        try:
            regions = list(_regions(mask, single, labels, where=where, met=found.findings))
        except ValueError as error:
            found.findings.add_error("image left out", error)
            continue
        picture = _picture(images or source / "JPEGImages", stem)
        image = drawn.annotated_image(
            Drawing(
                picture.name if "/" not in stem else f"{stem}{picture.suffix}", picture, regions
            ),
            split=split,
            number=len(found.images),
            where=where,
            met=found.findings,
        )
        if image:
            found.images.append(image)
    return found


def _labels(path: Path, met: Findings) -> _Labels:
    """Returns what colours mean: by labelmap.txt, or as in the challenge."""
    if not picture_paths.is_file(path):
        every = {number: name.replace("_", " ") for number, name in enumerate(CLASSES.split())}
        return _Labels({colour(number): name for number, name in every.items()}, every)
    names: dict[int, str] = {}
    for number, line in enumerate(picture_paths.read_lines(path), start=1):
        name, _, rest = line.partition(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        channels = [annotations.whole_number(one) for one in rest.partition(":")[0].split(",")]
        whole = [one for one in channels if one is not None and 0 <= one <= 255]
        if len(whole) != 3 or len(channels) != 3:
            where = f"{path}, line {number}: {schemas.short_repr(line)}"
            met.add("class left out: it has no colour", where, advice="write name:red,green,blue::")
            continue
        names[whole[0] | whole[1] << 8 | whole[2] << 16] = " ".join(name.split())
    return _Labels(names, dict(enumerate(names.values())))


def _stems(source: Path, classes: Path, met: Findings) -> Iterator[tuple[str, str]]:
    """Yields split and name of each image."""
    lists = {path.stem: path for path in sorted((source / "ImageSets/Segmentation").glob("*.txt"))}
    if {"train", "val"} & {*lists}:
        lists.pop("trainval", None)  # It holds them again.
    for split, path in lists.items():
        for line in picture_paths.read_lines(path):
            if stem := " ".join(line.split()[:1]):
                yield split, stem.strip('"')
    if not lists:
        for path in picture_paths.files_below(classes, ending=r".+\.png", met=met):
            yield "train", path.relative_to(classes).with_suffix("").as_posix()


def _picture(folder: Path, stem: str) -> Path:
    """Returns the image of a name without its ending."""
    every = [folder / f"{stem}{ending}" for ending in _ENDINGS]
    return next((path for path in every if picture_paths.is_file(path)), every[0])


def _regions(
    mask: Path, single: Path | None, labels: _Labels, *, where: str, met: Findings
) -> Iterator[Region]:
    """Yields the objects of an image, and what is void in it."""
    classes = annotations.label_numbers(mask)
    grey = _is_grey(classes, labels)
    names, void = (labels.grey_names, _of_grey(VOID)) if grey else (labels.names, colour(VOID))
    if (classes == void).any():
        yield Region("", LabelSegment(mask, void), role=Role.IGNORED)
    if single is None:
        met.add(
            _NO_OBJECTS, where, advice="give SegmentationObject, if objects are to be told apart"
        )
        for number in _numbers(classes, void, where):
            yield Region(_name(number, names, grey, where, met), LabelSegment(mask, number))
        return
    objects = annotations.label_numbers(single)
    if objects.shape != classes.shape:
        raise annotations.BadAnnotation(
            f"{where}: expected two masks of one size, got {classes.shape[0]}x{classes.shape[1]} "
            f"and {objects.shape[0]}x{objects.shape[1]}; do: export them anew",
            "its masks are of different sizes",
        )
    edge = _of_grey(VOID) if _is_grey(objects, labels) else colour(VOID)
    for number in _numbers(objects, edge, where):
        seen, counts = np.unique(classes[objects == number], return_counts=True)
        counts = counts * ~np.isin(seen, (BACKGROUND, void))
        which = int(seen[counts.argmax()]) if counts.any() else BACKGROUND
        yield Region(_name(which, names, grey, where, met), LabelSegment(single, number))


def _numbers(labels: Int[np.ndarray, "H W"], void: int, where: str) -> list[int]:
    found = [int(one) for one in np.unique(labels) if one not in (BACKGROUND, void)]
    if len(found) > MOST_OBJECTS:
        raise annotations.BadAnnotation(
            f"{where}: expected at most {MOST_OBJECTS} objects, got {len(found)}; do: give a mask "
            "of one colour an object, without soft edges",
            "its mask has too many colours",
        )
    return found


def _of_grey(number: int) -> int:
    return number | number << 8 | number << 16


def _is_grey(labels: Int[np.ndarray, "H W"], known: _Labels) -> bool:
    """Returns whether a mask has numbers as greys: all are, and none is the colour of a class."""
    found = np.unique(labels)
    found = found[found != BACKGROUND]
    greys = all(int(one) == _of_grey(int(one) & 255) for one in found)
    return bool(found.size) and greys and not any(int(one) in known.names for one in found)


def _name(number: int, names: Mapping[int, str], grey: bool, where: str, met: Findings) -> str:
    """Returns the name of a class; of an unknown one nothing, and it is told."""
    name = names.get(number & 255 if grey else number, "") if number != BACKGROUND else ""
    if not name:
        told = [number & 255, number >> 8 & 255, number >> 16]
        met.add(
            "object without a name: its colour is no class",
            f"{where}: {', '.join(map(str, told))}",
            advice="list it in labelmap.txt, name:red,green,blue::",
        )
    return name
