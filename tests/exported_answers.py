"""Writes answers in the formats of other tools, and builds data of them again (helper)."""

from pathlib import Path

import label_folders as labels

from seg_jax import files
from seg_jax.data.exports import table
from seg_jax.data.exports.answers import Category
from seg_jax.tasks.prompted import answers as pointed

CATEGORIES = [Category("cup", 1), Category("fork", 2)]


def of_mask(mask, label, *, number=0, score=0.5):
    """Returns an answer whose outline is the border of a mask, to the pixel."""
    height, width = mask.shape
    told = {"number": number, "label": label, "asked": {"text": label}, "score": score}
    told |= {"size": {"height": height, "width": width}, "verdict": "OK", "kind": "mask"}
    return told | pointed.mask_json(mask)


def written(out, pictures, categories, formats):
    """Writes pictures in some formats, as a run does."""
    every = [one for picture in pictures for one in table.of_picture(picture, formats, out)]
    every += table.of_all(categories, [one.name for one in pictures], formats)
    for name, make in every:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(out / name, make())
    for one in formats:
        if one in table.WHOLE:
            path, write = table.WHOLE[one]
            with files.open_whole(out / path) as file:
                write(file, pictures, categories)


BUILDS = {
    "coco": ("coco_instances", "coco"),
    "folder": ("folder", "folder"),
    "yolo": ("yolo", "yolo"),
    "labelme": ("labelme", "labelme"),
    "voc": ("voc", "voc"),
}
"""Formats that answers are written in and `seg-jax build` reads, by the names of the latter."""


def built_again(out, pictures, name):
    """Returns the masks of each picture after a build of an export, by label."""
    build, folder = BUILDS[name]
    options = {"images": out} if name in ("coco", "folder") else {}
    found, met = labels.records(build, out / folder, **options)
    assert not [one for one in met.counts if "left out" in one]
    by_stem = {}
    for (split, key), record in found.items():
        if (name, split) != ("yolo", "val"):  # YOLO asks for both splits: they are one.
            stem = Path(key).stem
            (whose,) = (one.name for one in pictures if Path(one.name).name == stem)
            by_stem[whose] = labels.things(record)[0]
    assert by_stem.keys() == {one.name for one in pictures}
    return by_stem
