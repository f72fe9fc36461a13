"""Annotations in every format that is read: built, written as answers are, and built again.

The table of what comes back stands in the README of seg_jax/data/exports; this test computes it.
"""

from pathlib import Path

import label_folders as labels
import numpy as np
import published_formats as formats
import pytest
from exported_answers import BUILDS, CATEGORIES, built_again, of_mask, written

import seg_jax
from seg_jax.data.exports.answers import Answer, Picture

README = Path(seg_jax.__file__).parent / "data" / "exports" / "README.md"
SOURCES = {
    "coco_instances": labels.coco,
    "yolo": labels.yolo,
    "labelme": labels.labelme,
    "label_studio": labels.label_studio,
    "cvat": labels.cvat,
    "voc": labels.voc,
    "conversations": labels.conversations,
}


def true_things(picture, source):
    """Returns labels and masks as an annotation holds them."""
    size = picture.height, picture.width
    masks = [formats.true_mask(thing.rings, *size) for thing in picture.things]
    if source == "voc":  # Later things lie on top, and nobody knows of the rows of void.
        masks = [
            mask & ~np.any([np.zeros(size, bool), *masks[place + 1 :]], axis=0)
            for place, mask in enumerate(masks)
        ]
        for mask in masks:
            mask[:2] = False
    return [(thing.label, mask) for thing, mask in zip(picture.things, masks, strict=True)]


def pictures_of(root, drawn, built):
    """Returns the pictures of built annotations, their masks as answers."""
    names, found, number = [one.name for one in CATEGORIES], [], 0
    for place, picture in enumerate(drawn):
        path = root / "pictures" / picture.split / picture.name
        labels.draw(root / "pictures", picture, picture.split)
        some = []
        for label, mask in built[picture.name]:
            some.append(Answer(of_mask(mask, label, number=number), names.index(label)))
            number += 1
        stem = f"{picture.split}/{picture.name[:-4]}"
        told = {"key": path.as_posix(), "path": path, "name": stem, "number": place + 1}
        found.append(Picture(answers=some, **told))
    return found


def likeness(found, wanted):
    """Returns how like masks of equal labels are, in their order: "=" to the bit, or mean IoU."""
    assert found.keys() == wanted.keys()
    pairs = [
        (mask, true)
        for key in wanted
        for (label, mask), (name, true) in zip(found[key], wanted[key], strict=True)
        if label == name or pytest.fail(f"{label} became {name}")
    ]
    if all(np.array_equal(mask, true) for mask, true in pairs):
        return "="
    ious = [np.sum(mask & true) / np.sum(mask | true) for mask, true in pairs]
    return f"{np.mean(ious):.3f}"


@pytest.mark.parametrize("source", SOURCES)
def test_what_comes_back_of_annotations_is_what_the_readme_says(tmp_path, source):
    drawn = labels.pictures(parts=1 if source == "yolo" else 3)
    SOURCES[source](tmp_path / source, drawn)
    records, _ = labels.records(source, tmp_path / source)
    built = {
        name: [one for one in labels.things(record)[0] if one[0]]  # Void has no name.
        for (_, name), record in records.items()
    }
    cells = [likeness(built, {one.name: true_things(one, source) for one in drawn})]
    pictures = pictures_of(tmp_path, drawn, built)
    for name in BUILDS:
        written(tmp_path / "out" / name, pictures, CATEGORIES, [name])
        again = built_again(tmp_path / "out" / name, pictures, name)
        known = {f"{one.split}/{one.name[:-4]}": built[one.name] for one in drawn}
        cells.append(likeness(again, known))
    row = f"| `{source}` | {' | '.join(cells)} |"
    print(row)
    assert row in README.read_text().splitlines()
