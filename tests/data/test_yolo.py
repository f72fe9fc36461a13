"""Folders of YOLO: lines, classes, places of images, and YAML that would do harm."""

from pathlib import Path

import label_folders as labels
import numpy as np
import pytest
from label_folders import yolo_folder

from seg_jax.data.formats import drawn, yaml_text, yolo

GOOD = labels.YOLO_LINE


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.1 0.1 0.6 0.1 0.6", "a box is no outline"),
        ("0 0.1 0.1 0.6 0.6", "a box is no outline"),
        ("0 0.1 0.1 0.6 0.1 0.6 0.6 0.7", "a polygon has half a point"),
        ("0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6 0.3", "a polygon has half a point"),
        ("0 -0.021 0.1 0.6 0.1 0.6 0.6", "coordinates are no fractions of the image"),
        ("0 0.1 0.1 1.021 0.1 0.6 0.6", "coordinates are no fractions of the image"),
        ("0 0.1 0.1 0.6 0.1 0.6 6e-1_0", "it has something else than numbers"),
        (f"0 0.1 0.1 0.6 0.1 0.6 0.{'6' * 39}", "it has something else than numbers"),
        ("0 0.1 0.1", "no polygon has three points"),
        ("0", "no polygon has three points"),
        ("0 10 10 60 10 60 60", "coordinates are no fractions of the image"),
        ("cup 0.1 0.1 0.6 0.1 0.6 0.6", "it has something else than numbers"),
        ("0 0.1 0.1 0.6 nan 0.6 0.6", "it has something else than numbers"),
        ("0.5 0.1 0.1 0.6 0.1 0.6 0.6", "it does not begin with the number of a class"),
        ("-1 0.1 0.1 0.6 0.1 0.6 0.6", "it does not begin with the number of a class"),
    ],
)
def test_a_bad_line_of_yolo_costs_itself(tmp_path, line, reason):
    read = yolo_folder(tmp_path, f"{GOOD}{line}\n\n")
    assert [len(image.objects) for image in read.images] == [1]
    assert read.findings.counts == {f"line left out: {reason}": 1}
    (example,) = read.findings.examples[f"line left out: {reason}"]
    assert "0.txt, line 2" in example


@pytest.mark.parametrize(
    ("line", "ring"),
    [
        ("0 0 0 1 0 1 1 0 1", (0, 0, 1, 0, 1, 1, 0, 1)),
        ("0 -0.02 0 1.02 0 1 1", (-0.02, 0, 1.02, 0, 1, 1)),
        ("0 -0.019 .1 1.019 +0.1 6e-1 0.6", (-0.019, 0.1, 1.019, 0.1, 0.6, 0.6)),
        (f"0 0.1 0.1 0.6 0.1 0.6 0.{'5' * 38}", (0.1, 0.1, 0.6, 0.1, 0.6, float("0." + "5" * 38))),
    ],
)
def test_an_outline_of_yolo_may_touch_and_leave_its_image_a_little(tmp_path, line, ring):
    """Fractions are as people and programs write them: with a sign, an exponent, without a 0."""
    read = yolo_folder(tmp_path, line)
    assert read.findings.counts == {}
    assert [one.outline.rings for one in read.images[0].objects] == [(ring,)]


def test_labels_of_yolo_are_in_labels_for_the_last_folder_images(tmp_path):
    assert yolo._labels(Path("/images/a/images/b/c.png")) == Path("/images/a/labels/b/c.txt")
    assert yolo._labels(Path("images/0.jpeg")) == Path("labels/0.txt")
    assert yolo._labels(Path("a/images")) == Path("a/images.txt")
    assert yolo._labels(Path("a/b.c.png")) == Path("a/b.c.txt")


@pytest.mark.parametrize("place", ["set", "../set", "nowhere"])
def test_path_of_yolo_is_looked_for_beside_its_file_and_above(tmp_path, place):
    """Elsewhere the splits are relative to the file."""
    root = {"set": "a/set", "../set": "set", "nowhere": "a"}[place]
    yolo_folder(tmp_path / root, GOOD)
    described = tmp_path / "a" / "data.yml"
    described.parent.mkdir(exist_ok=True)
    (tmp_path / root / "data.yaml").unlink()
    described.write_text(f"path: {place}\nvalid: images\nnames: [cup]\n")
    (image,) = yolo.read(tmp_path / "a").images
    assert (image.key, image.split) == ("val/images/0.png", "val")
    moved = tmp_path / "moved"
    (tmp_path / root / "images").rename(moved)
    with pytest.raises(ValueError, match="expected folders of images, got none for val"):
        yolo.read(tmp_path / "a", images=tmp_path)
    described.write_text("val: moved\nnames: [cup]\n")
    (moved / "0.txt").write_text(GOOD)
    (image,) = yolo.read(tmp_path / "a", images=tmp_path).images
    assert image.image == moved / "0.png"


def test_data_yaml_is_taken_where_there_are_several(tmp_path):
    yolo_folder(tmp_path, GOOD)
    (tmp_path / "train.yaml").write_text("lr: 1\n")
    assert len(yolo.read(tmp_path).images) == 1
    (tmp_path / "data.yaml").rename(tmp_path / "set.yaml")
    with pytest.raises(ValueError, match=r"expected data.yaml of YOLO, got 2 YAML files; do: name"):
        yolo.read(tmp_path)


def test_two_names_of_one_split_of_yolo_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.yaml: expected val or valid, got both; do: "):
        yolo_folder(tmp_path, GOOD, yaml="val: images\nvalid: images\nnames: [cup]\n")


def test_names_of_yolo_are_texts(tmp_path):
    """Class no is no `false`; numbers as 1.0 are classes; what is not listed has no name."""
    read = yolo_folder(
        tmp_path,
        GOOD + GOOD.replace("0 ", "1.0 ", 1) + GOOD.replace("0 ", "7 ", 1),
    )
    assert [one.name for one in read.images[0].objects] == ["cup", "no", ""]
    assert read.findings.counts == {"object without a name: its class is not listed": 1}
    read = yolo_folder(tmp_path, GOOD, yaml="train: images\n")
    assert read.findings.counts == {"no names of classes are listed: objects have none": 1}
    read = yolo_folder(tmp_path, GOOD, yaml="train: images\nnames: {0: a, x: b, 2: ''}\n")
    assert read.images[0].objects[0].name == "a"
    assert read.findings.counts == {"class without a name": 2}


def test_equal_lines_of_yolo_are_one_object(tmp_path):
    read = yolo_folder(tmp_path, GOOD * 3)
    assert len(read.images[0].objects) == 1
    assert read.findings.counts == {"object left out: it is there already": 2}


def test_images_of_yolo_without_labels_are_told(tmp_path):
    read = yolo_folder(tmp_path, "")
    assert read.images == []
    (tmp_path / "labels" / "0.txt").unlink()
    assert list(yolo.read(tmp_path).findings.counts) == [drawn.annotations.NONE_TAKEN]


def test_boxes_are_outlines_where_that_is_said(tmp_path):
    (tmp_path / "yolo").mkdir()
    yolo_folder(tmp_path / "yolo", "0 0.5 0.5 0.25 0.5\n", height=40, width=80)
    found, met = labels.records("yolo", tmp_path / "yolo", boxes=True)
    (((name, mask),), _) = labels.things(found["train", "0.png"])
    wanted = np.zeros((40, 80), bool)
    wanted[10:30, 30:50] = True
    np.testing.assert_array_equal(mask, wanted)
    assert (name, met.counts) == ("cup", {})


def test_keypoints_of_yolo_are_boxes_with_points(tmp_path):
    yaml = "train: images\nnames: [cup]\nkpt_shape: [2, 2]\n"
    read = yolo_folder(tmp_path, "0 0.5 0.5 0.25 0.5 0.1 0.1 0.2 0.2\n", yaml=yaml)
    assert read.findings.counts["line left out: a box is no outline"] == 1


@pytest.mark.parametrize("told", ["../images", "./images", "images/", "list.txt"])
def test_yolo_finds_images_as_ultralytics_does(tmp_path, told):
    (tmp_path / "list.txt").write_text("./images/0.png\n")
    read = yolo_folder(tmp_path, GOOD, yaml=f"train: {told}\nval: nowhere\nnames: [cup]\n")
    assert [image.image.name for image in read.images] == ["0.png"]
    assert read.findings.counts == {"split without images": 1}
    with pytest.raises(ValueError, match="expected folders of images, got none for train"):
        yolo_folder(tmp_path, GOOD, yaml="train: nowhere\nnames: [cup]\n")


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",
        "a: 1\na: 2\n",
        "- a\n",
        "a: [1\n",
        "a: " + "[" * 5000,
        "? [a]\n: b\n",
        "a: \x01\n",
    ],
)
def test_hostile_yaml_is_refused(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected a mapping in YAML, got .*; do: correct"):
        yaml_text.read(path)


def test_tags_of_yaml_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.yaml"
    path.write_text("a: !!python/object/apply:os.system [touch touched]\nb: no\nc: 1e3\n")
    assert yaml_text.read(path) == {"a": ["touch touched"], "b": "no", "c": "1e3"}
    assert not (tmp_path / "touched").exists()


def test_boxes_of_yolo_may_have_how_sure_a_model_was_behind_them(tmp_path):
    yolo_folder(tmp_path, "0 0.5 0.5 0.25 0.5 0.9\n")
    read = yolo.read(tmp_path, boxes=True)
    assert read.findings.counts == {}
    (one,) = read.images[0].objects
    assert one.outline.rings == ((0.375, 0.25, 0.625, 0.25, 0.625, 0.75, 0.375, 0.75),)


def test_labels_without_a_data_yaml_are_told_what_to_write(tmp_path):
    yolo_folder(tmp_path, GOOD)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(ValueError, match="got labels of YOLO .*do: write data.yaml with train"):
        yolo.read(tmp_path)
    (tmp_path / "labels" / "0.txt").unlink()
    with pytest.raises(ValueError, match=r"expected data.yaml of YOLO, got (?!labels of YOLO)"):
        yolo.read(tmp_path)


def test_labels_of_yolo_without_an_image_are_told(tmp_path):
    """They were passed over without a word; lists of classes beside them are none."""
    yolo_folder(tmp_path, GOOD)
    folder = next(tmp_path.rglob("0.txt")).parent
    (folder / "lost.txt").write_text(GOOD)
    (folder / "classes.txt").write_text("cup\nno\n")
    (folder / "empty.txt").write_text("\n")
    read = yolo.read(tmp_path)
    assert read.findings.counts == {"labels left out: no image has them": 1}
    (example,) = read.findings.examples["labels left out: no image has them"]
    assert example.startswith(f"{folder}/lost.txt: ")
