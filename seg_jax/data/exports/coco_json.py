"""Writes answers as COCO's files: results for its evaluators, and annotations.

Masks are those that `seg-jax evaluate` counts, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import IO, Any

from seg_jax.data.exports.answers import Answer, Category, Picture

RESULTS = "coco_results.json"
ANNOTATIONS = "coco/annotations/instances_predicted.json"
"""Where `seg-jax build coco_instances --source OUT/coco --images .` finds it."""


def result_records(picture: Picture, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Returns what `COCO.loadRes` reads: a run-length mask, or a box, with its score.

    Points have no place there, nor answers without pixels.
    """
    found = []
    for one in picture.answers:
        ids = {"image_id": picture.number, "category_id": categories[one.category].number}
        if one.is_mask:
            found.append(ids | {"segmentation": one.rle, "score": one.score})
        elif one.kind == "box" and one.box_px is not None:
            found.append(ids | {"bbox": _box(one), "score": one.score})
    return found


def image_record(picture: Picture) -> dict[str, Any]:
    """Returns what the annotations file tells of a picture, of its upright size."""
    height, width = picture.size
    return {"id": picture.number, "file_name": picture.key, "height": height, "width": width}


def annotation_records(picture: Picture, categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Returns masks as annotations: polygons where they fill the mask, else run lengths.

    Each has the number of its question as `id`, from 1.
    """
    found = []
    for one in picture.answers:
        if one.is_mask:
            found.append(
                {
                    "id": one.told["number"] + 1,
                    "image_id": picture.number,
                    "category_id": categories[one.category].number,
                    "segmentation": one.polygons_that_fill() or one.rle,
                    "area": one.area_px,
                    "bbox": _box(one),
                    "iscrowd": 0,
                    "score": one.score,
                }
            )
    return found


def write_results(
    file: IO[str], pictures: Iterable[Picture], categories: Sequence[Category]
) -> None:
    """Writes the results of pictures, one after another: only one is held in memory."""
    _write_list(file, (one for picture in pictures for one in result_records(picture, categories)))
    file.write("\n")


def write_annotations(
    file: IO[str], pictures: Iterable[Picture], categories: Sequence[Category]
) -> None:
    """Writes the annotations file of pictures; of those, small records are held in memory."""
    images: list[dict[str, Any]] = []

    def every() -> Iterable[dict[str, Any]]:
        for picture in pictures:
            images.append(image_record(picture))
            yield from annotation_records(picture, categories)

    file.write('{"annotations": ')
    _write_list(file, every())
    file.write(',\n"images": ')
    _write_list(file, images)
    file.write(',\n"categories": ')
    _write_list(file, ({"id": one.number, "name": one.name} for one in categories))
    file.write("}\n")


def _write_list(file: IO[str], values: Iterable[Any]) -> None:
    file.write("[")
    for number, one in enumerate(values):
        file.write(f"{',' if number else ''}\n{json.dumps(one)}")
    file.write("]")


def _box(answer: Answer) -> list[float]:
    """Returns x, y, width, height."""
    assert answer.box_px is not None
    x0, y0, x1, y1 = answer.box_px
    return [x0, y0, x1 - x0, y1 - y0]
