"""Tells what a folder holds where the annotations that were asked for are not there."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seg_jax import files

MOST_NAMES = 5000
"""Names of files that are looked at."""
_CONVERT = (
    "convert it to annotations/instances_SPLIT.json of COCO, or write SPLIT.jsonl as "
    "seg_jax/data/formats/folder.py says"
)
_BUILD = "build {}, with the folder that holds it as --source"
_NO_OUTLINES = "annotate objects with outlines; seg-jax annotate makes them of bare images"
_COCO = "put it into DIR/annotations as {}_SPLIT.json, the images into DIR/SPLIT, and build {}"
_SIGNS = (
    (
        r"(^|/)(dataset_dict|state)\.json$",
        "a data set of Hugging Face's datasets",
        _BUILD.format("huggingface"),
    ),
    (r"(^|/)dataset_info\.json$", "a data set that is built", "train on it by --data"),
    (
        r"(^|/)_annotations\.coco\.json$",
        "COCO as Roboflow writes it",
        _BUILD.format("coco_instances"),
    ),
    (r"(^|/)[^/]*_results\.json$", "results of a detector", "get instances_SPLIT.json of COCO"),
    (
        r"(^|/)g?refs\([^/]*\)\.(p|json)$",
        "references of the refer family",
        "build the data set of this name, with the folder above it as --source",
    ),
    (
        r"(^|/)instances_?[^/]*\.json$",
        "instances of COCO",
        _COCO.format("instances", "coco_instances"),
    ),
    (r"(^|/)panoptic_[^/]*\.json$", "panoptic COCO", _COCO.format("panoptic", "coco_panoptic")),
    (r"\.jsonl$", "lines of data of your own", "build folder, with its folder as --source"),
    (
        r"(^|/)stuff_[^/]*\.json$",
        "stuff of COCO",
        _COCO.format("instances", "coco_instances"),
    ),
    (
        r"(^|/)(captions|image_info|labels|person_keypoints)_[^/]*\.json$",
        "COCO without outlines",
        "get instances_SPLIT.json from the same place",
    ),
    (r"(^|/)data\.ya?ml$", "labels of YOLO", _BUILD.format("yolo")),
    (
        r"(^|/)(obj\.(names|data)|labels/(.*/)?[^/]*\.txt)$",
        "labels of YOLO",
        "write data.yaml, and build yolo",
    ),
    (r"(^|/)_annotations\.createml\.json$", "boxes of CreateML", _NO_OUTLINES),
    (r"(^|/)_classes\.csv$", "classes of images", _NO_OUTLINES),
    (r"(^|/)SegmentationClass/[^/]*$", "masks of Pascal VOC", _BUILD.format("voc")),
    (
        r"\.xml$",
        "XML, as CVAT, LabelMe and Pascal VOC write it",
        "build cvat, if it is CVAT's, or convert it",
    ),
    (r"\.(parquet|arrow)$", "tables of Hugging Face's hub", _BUILD.format("huggingface")),
    (r"\.(tfrecord|parquet|arrow|lmdb)([-.][^/]*)?$", "records of another program", _CONVERT),
    (r"\.(zip|tar|tgz|tar\.gz|7z|rar)$", "an archive", "unpack it"),
)
"""Names that tell a format, what it is called, and what to do; the first one counts."""
_KEYS = (
    ((b'"shapes"', b'"imagePath"'), "JSON of LabelMe", _BUILD.format("labelme")),
    ((b'"annotations"', b'"segmentation"', b'"counts"'), "masks as Segment Anything's", _CONVERT),
    ((b'"completions"',), "JSON of Label Studio", _BUILD.format("label_studio")),
    ((b'"original_width"',), "JSON of Label Studio", _BUILD.format("label_studio")),
    ((b'"conversations"',), "conversations", _BUILD.format("conversations")),
    ((b'"messages"',), "conversations", _BUILD.format("conversations")),
    ((), "JSON of another format", _CONVERT),
)
"""Words in a JSON file that tell its format."""
_IMAGES = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|ppm)$", re.IGNORECASE)


class Found(NamedTuple):
    """What a folder holds instead."""

    what: str
    advice: str
    """What to do about it."""


def found_instead(source: Path) -> Found:
    """Returns what a folder seems to hold, by the names of its files; nothing in them is trusted.

    Args:
      source: the folder in which annotations were looked for.
    """
    names = [*itertools.islice(_names(source), MOST_NAMES)]
    for sign, what, advice in _SIGNS:
        for name in names:
            if re.search(sign, name):
                return Found(f"{what} ({name})", advice)
    for name in names:
        if name.endswith(".json"):
            what, advice = _kind_of_json(source / name)
            return Found(f"{what} ({name})", advice)
    for name in names:
        if _IMAGES.search(name):
            return Found(f"images alone ({name})", "seg-jax annotate, or write their annotations")
    if not names:
        return Found("an empty folder", "check --source")
    return Found(f"other files ({names[0]})", "check --source")


def _names(source: Path) -> Iterator[str]:
    """Yields the paths of files up to three folders deep, in order."""
    for folder, inner, found in os.walk(source):
        depth = len(Path(folder).relative_to(source).parts)
        inner[:] = sorted(inner) if depth < 3 else []
        for name in sorted(found):
            yield (Path(folder) / name).relative_to(source).as_posix()


def _kind_of_json(path: Path) -> tuple[str, str]:
    """Returns the name of a JSON file's format, and what to do."""
    try:
        data = files.read_bytes(path, most=2**26)
    except ValueError:
        data = b""
    return next((what, do) for words, what, do in _KEYS if all(word in data for word in words))
