"""Folders of one's own pictures, in four formats, are read alike."""

import json

import label_folders
import numpy as np
import own_pictures
import published_formats as formats
import pytest

from seg_jax.data.formats import conventions
from seg_jax.data.formats import conversations as conversations_reader

NAMES = {
    "labelme": "labelme",
    "yolo": "yolo",
    "coco": "coco_instances",
    "sharegpt": "conversations",
}
"""What `seg-jax build` calls each format."""


@pytest.mark.parametrize("form", own_pictures.FORMATS)
def test_a_folder_without_splits_is_of_train_whatever_its_format(tmp_path, form):
    drawn = own_pictures.make(tmp_path, form, count=3, seed=4)
    # Of three pictures it cannot be told whether their numbers are pixels or thousandths.
    told = {"numbers": conventions.Numbers(meaning="pixels")} if form == "sharegpt" else {}
    found, _ = label_folders.records(NAMES[form], tmp_path, **told)
    assert {split for split, _ in found} == {"train"}
    assert len(found) == 3
    for picture in drawn:
        record = found["train", picture.name]
        assert (record.height, record.width) == (picture.height, picture.width)
        some, texts = label_folders.things(record)
        assert {*texts} == {thing.label for thing in picture.things}
        for (name, mask), thing in zip(some, picture.things, strict=True):
            true = formats.true_mask(thing.rings, picture.height, picture.width)
            assert name == thing.label
            assert (mask & true).sum() / (mask | true).sum() > 0.97


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["dataset"], {"train"}),
        (["my-pictures"], {"train"}),
        (["val"], {"val"}),
        (["testA"], {"testA"}),
        (["one", "two"], {"one", "two"}),
    ],
)
def test_a_file_of_conversations_alone_is_of_train_unless_it_is_named_as_a_split(
    tmp_path, names, splits
):
    own_pictures.make(tmp_path, "sharegpt", count=2)
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").unlink()
    for name in names:
        (tmp_path / f"{name}.json").write_text(text)
    rules = conversations_reader.Rules(numbers=conventions.Numbers(meaning="pixels"))
    read = conversations_reader.read(tmp_path, rules=rules)
    assert {image.split for image in read.images} == splits


def test_pictures_differ_in_shape_and_are_the_same_every_time(tmp_path):
    first = own_pictures.make(tmp_path / "a", "labelme", count=4)
    again = own_pictures.make(tmp_path / "b", "labelme", count=4)
    assert first == again
    assert len({(one.height, one.width) for one in first}) == 4
    for one in first:
        assert (tmp_path / "a" / one.name).read_bytes() == (tmp_path / "b" / one.name).read_bytes()
        assert 1 <= len(one.things) <= 3
        assert len({thing.label for thing in one.things}) == len(one.things)
        for thing in one.things:
            ring = np.reshape(thing.rings[0], (-1, 2))
            assert (ring >= 0).all()
            assert (ring <= [one.width, one.height]).all()
    told = json.loads((tmp_path / "a" / "photo_000.json").read_text())
    assert told["imagePath"] == "photo_000.jpg"
