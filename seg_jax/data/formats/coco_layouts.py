"""Finds COCO's files and their images, as COCO itself, Roboflow, Label Studio and others lay them.

    annotations/instances_SPLIT.json   images in SPLIT/, images/SPLIT/ or images/ (COCO, CVAT)
    SPLIT/_annotations.coco.json       images beside it (Roboflow)
    result.json                        images in images/ (Label Studio)
    train.json, annotations.json, ..   images beside it, in images/ or in a folder of the split's

The first form that is there is read. What is none of COCO's by its keys is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seg_jax import files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import drawn, foreign, picture_paths

ROBOFLOW = "_annotations.coco.json"
_KEYS = (b'"images"', b'"annotations"')
_OTHERS = re.compile(
    r"(captions|image_info|labels|person_keypoints|stuff|panoptic)_.*|.*_results|dataset_info"
)
"""Names of files beside instances that hold something else."""


class Sheet(NamedTuple):
    """A file of COCO, and where its images may lie."""

    path: Path
    split: str
    images: tuple[Path, ...]


def sheets(source: Path, kind: str, *, images: Path | None = None) -> list[Sheet]:
    """Returns the files of a data set, in order.

    Args:
      source: its folder.
      kind: instances or panoptic; panoptic is known in COCO's own form alone.
      images: folder of the images; None: where the form has them.

    Raises:
      ValueError: there is none, or the folder of the images is not where COCO has it.
    """
    own = sorted((source / "annotations").glob(f"{kind}_*.json"))
    if own:
        splits = [path.stem.removeprefix(f"{kind}_") for path in own]
        every = zip(own, splits, strict=True)
        return [Sheet(path, split, _own_images(source, split, images)) for path, split in every]
    found = [*_of_tools(source)] if kind == "instances" else []
    if not found:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected annotations/{kind}_SPLIT.json, got {what}; do: give the folder "
            f"that holds annotations and the images' folders as --source, or {advice}"
        )
    return found if images is None else [one._replace(images=(images,)) for one in found]


def _own_images(source: Path, split: str, images: Path | None) -> tuple[Path, ...]:
    if images is not None:
        return (images,)
    places = (split, f"images/{split}", "images")
    for place in places:
        if (source / place).is_dir():
            return (source / place,)
    raise ValueError(
        f"{source}: expected the images in one of {', '.join(places)}, got no such folder; do: "
        "--images DIR"
    )


def _of_tools(source: Path) -> Iterator[Sheet]:
    """Yields the files of tools other than COCO's own; Roboflow's alone if there are any."""
    every = picture_paths.files_below(source, ending=r".+\.json", met=Findings())
    exported = [path for path in every if path.name == ROBOFLOW]
    for path in exported or every:
        place = path.relative_to(source)
        if not exported and (len(place.parts) > 2 or not _is_coco(path)):
            continue
        split = _split(place)
        names = ("", "images", split, f"images/{split}")
        tops = dict.fromkeys((path.parent, source))
        yield Sheet(path, split, tuple(top / name for top in tops for name in names))


def _split(place: Path) -> str:
    """Returns the split that a file is of, by a word of its name or a folder; else train."""
    words = re.split(r"[\W_\d]+", place.stem.lower())
    return next((drawn.SPLITS[word] for word in words if word in drawn.SPLITS), None) or (
        drawn.split_of(place.parent)
    )


def _is_coco(path: Path) -> bool:
    """Returns whether a file holds images and annotations, by its name and keys."""
    if _OTHERS.fullmatch(path.stem):
        return False
    try:
        data = files.read_bytes(path)
    except ValueError:
        return False
    return all(key in data for key in _KEYS)


def find_image(told: str, folders: tuple[Path, ...]) -> Path:
    """Returns the image that a file names, where one of the folders has it.

    Tried are the name as it stands, as tools write paths of their own machines, and without the
    eight letters that Label Studio puts before the names of uploaded files.

    Args:
      told: `file_name` of the image.
      folders: where to look, in this order.
    """
    if picture_paths.is_file(plain := folders[0] / told):
        return plain
    found = picture_paths.find(told, folders=[*folders])
    if picture_paths.is_file(found):
        return found
    return picture_paths.without_hash(found, folders) or plain
