"""Folders of labelling tools are read as COCO's files of the same drawings, bit for bit."""

import json

import label_folders as labels
import numpy as np
import pytest
from PIL import Image

from seg_jax.data.formats import drawn, labelme, picture_paths, yaml_text, yolo
from seg_jax.geometry import bitmask


@pytest.fixture
def coco(tmp_path):
    """Returns a function (drawings) -> records of COCO's build of them."""

    def build(some):
        labels.coco(tmp_path / "coco", some)
        return labels.records("coco_instances", tmp_path / "coco")[0]

    return build


@pytest.mark.parametrize("write", [repr, "{:.6f}".format])
def test_yolo_is_read(tmp_path, coco, write):
    """Six decimals of a fraction place a point within a thousandth of a pixel of a small image."""
    some = labels.pictures()
    labels.yolo(tmp_path / "yolo", some, write=write)
    found, met = labels.records("yolo", tmp_path / "yolo")
    assert met.counts == {}
    if write is repr:
        labels.assert_same(found, coco(some))
        return
    for place, true in coco(some).items():
        for (_, mask), (_, wanted) in zip(
            labels.things(found[place])[0], labels.things(true)[0], strict=True
        ):
            assert (mask & wanted).sum() >= 0.98 * (mask | wanted).sum()


def test_labelme_is_read(tmp_path, coco):
    some = labels.pictures(parts=2)
    labels.labelme(tmp_path / "labelme", some)
    found, met = labels.records("labelme", tmp_path / "labelme")
    assert met.counts == {}
    labels.assert_same(found, coco(some))


@pytest.mark.parametrize("name", ["yolo", "labelme"])
def test_boxes_of_tools_are_outlines_where_that_is_said(tmp_path, coco, name):
    some = labels.pictures(boxes=True)
    getattr(labels, name)(tmp_path / name, some)
    found, met = labels.records(name, tmp_path / name, boxes=True)
    assert met.counts == {}
    labels.assert_same(found, coco(some))
    found, met = labels.records(name, tmp_path / name)
    assert [*met.counts.values()] == [3]
    assert "a box is no outline" in met.lines()[0]
    labels.assert_same(found, coco(labels.pictures()))


def yolo_folder(root, text, *, yaml="train: images\nnames: [cup, no]\n", **changes):
    """Writes a folder of one image with this text of labels."""
    some = labels.pictures()[:1]
    labels.draw(root, some[0]._replace(**changes), "images")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "0.txt").write_text(text)
    (root / "data.yaml").write_text(yaml)
    return yolo.read(root)


GOOD = "0 0.1 0.1 0.6 0.1 0.6 0.6\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.1 0.1 0.6 0.1 0.6", "a box is no outline"),
        ("0 0.1 0.1 0.6 0.6", "a box is no outline"),
        ("0 0.1 0.1 0.6 0.1 0.6 0.6 0.7", "a polygon has half a point"),
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


def test_two_names_of_one_split_of_yolo_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.yaml: expected val or valid, got both; do: "):
        yolo_folder(tmp_path, GOOD, yaml="val: images\nvalid: images\nnames: [cup]\n")


def test_names_of_yolo_are_texts(tmp_path):
    """Class no is no `false`; numbers as 1.0 are classes; what is not listed has no name."""
    read = yolo_folder(tmp_path, GOOD + GOOD.replace("0 ", "1.0 ", 1) + GOOD.replace("0 ", "7 ", 1))
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


def labelme_file(root, *shapes, **changes):
    """Writes a JSON of LabelMe beside its image."""
    some = labels.pictures()[:1]
    labels.labelme(root, some)
    path = root / "train" / "0.json"
    told = json.loads(path.read_text()) | changes
    told["shapes"] = [*told["shapes"][:1], *shapes]
    path.write_text(json.dumps(told))
    return labelme.read(root)


SQUARE = [[10, 10], [40, 10], [40, 30], [10, 30]]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"shape_type": "rectangle", "points": SQUARE[::2]}, "a box is no outline"),
        ({"shape_type": "point", "points": SQUARE[:1]}, "a point is no outline"),
        ({"shape_type": "linestrip"}, "a linestrip is no outline"),
        ({"shape_type": "circle"}, "a circle has another number of points"),
        ({"shape_type": "hexagon"}, "its shape_type is not known"),
        ({"points": SQUARE[:2]}, "no polygon has three points"),
        ({"points": [[0.1, 0.1], [0.4, 0.1], [0.4, 0.3]]}, "coordinates are fractions of"),
        ({"points": [[1, 2], [3]]}, "expected list of length 2 at points[]"),
        ({"points": []}, "expected list of length >= 1 at points"),
        ({"shape_type": "mask", "points": SQUARE[::2]}, "its mask is not there"),
        ({"shape_type": "mask", "points": SQUARE[::2], "mask": "%"}, "its mask is no PNG"),
        ({"shape_type": "mask", "points": SQUARE[::2], "mask": "AAAA"}, "file is no image"),
    ],
)
def test_a_bad_shape_of_labelme_costs_itself(tmp_path, shape, reason):
    read = labelme_file(tmp_path, {"label": "cup", "points": SQUARE} | shape)
    assert [len(image.objects) for image in read.images] == [1]
    ((told, count),) = read.findings.counts.items()
    assert count == 1
    assert told.startswith(f"shape left out: {reason}")
    assert "0.json, shapes[1]" in read.findings.examples[told][0]


def test_masks_circles_and_texts_of_labelme(tmp_path):
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    read = labelme_file(
        tmp_path,
        {"label": "a", "shape_type": "mask", "points": [[20, 30], [26, 34]]}
        | {"mask": labels.png(mask), "description": "the small  mask"},
        {"label": "b", "shape_type": "circle", "points": [[40, 30], [40, 42]]},
        {"label": "__ignore__", "points": SQUARE},
    )
    _, small, round_, ignored = read.images[0].objects
    wanted = np.zeros((61, 83), bool)
    wanted[31:34, 22:26] = True
    np.testing.assert_array_equal(bitmask.from_rle(small.outline.rle(61, 83)), wanted)
    area = bitmask.from_rle(round_.outline.rle(61, 83)).sum()
    assert abs(area - np.pi * 144) < 6
    assert (ignored.name, ignored.role.name) == ("", "IGNORED")
    told = {one.text: one.objects for one in read.images[0].expressions}
    assert told == {"cup": (0,), "a": (1,), "b": (2,), "the small mask": (1,)}


def test_a_mask_of_labelme_stays_within_its_image(tmp_path):
    shape = {"label": "a", "shape_type": "mask", "points": [[80, 58], [86, 62]]}
    read = labelme_file(tmp_path, shape | {"mask": labels.png(np.ones((5, 7), bool))})
    assert read.findings.counts == {"shape left out: its mask reaches beyond the image": 1}


@pytest.mark.parametrize("told", ["0.png", "..\\train\\0.png", "C:\\me\\train\\0.png", "old.png"])
def test_images_of_labelme_are_found(tmp_path, told):
    """As it stands, without the folders of another machine, or under the name of the JSON file."""
    read = labelme_file(tmp_path, imagePath=told)
    assert read.images[0].image.resolve() == tmp_path / "train" / "0.png"
    assert read.images[0].split == "train"


def test_other_json_files_beside_labelme_are_told(tmp_path):
    labelme_file(tmp_path)
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "torn.json").write_text('{"shapes": [')
    read = labelme.read(tmp_path)
    assert len(read.images) == 1
    assert sum(read.findings.counts.values()) == 2
    with pytest.raises(ValueError, match="expected JSON files of LabelMe"):
        labelme.read(tmp_path / "labels")


@pytest.mark.parametrize(
    ("name", "size", "upright", "turned"),
    [
        ("labelme", (61, 83), None, False),
        ("labelme", (83, 61), None, True),
        ("labelme", (83, 61), True, True),
        ("yolo", None, None, True),
        ("yolo", None, False, False),
    ],
)
def test_who_turned_the_image_decides(tmp_path, name, size, upright, turned):
    """Of LabelMe the annotated size tells; YOLO's outlines are of the turned image."""
    if name == "yolo":
        yolo_folder(tmp_path, GOOD)
        path = tmp_path / "images" / "0.png"
    else:
        height, width = size
        labelme_file(tmp_path, imageHeight=height, imageWidth=width)
        path = tmp_path / "train" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    found, _ = labels.records(name, tmp_path, upright=upright)
    (record,) = found.values()
    assert (record.height, record.width) == ((83, 61) if turned else (61, 83))


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("..\\a\\b.jpg", "../a/b.jpg"),
        ("https://host/data/upload/1/b%20c.jpg?x=1", "data/upload/1/b c.jpg"),
        ("/data/local-files/?d=a/b%20c.jpg", "a/b c.jpg"),
        ("s3://bucket/b.jpg", "b.jpg"),
    ],
)
def test_paths_of_tools(told, wanted):
    assert picture_paths.relative(told) == wanted
