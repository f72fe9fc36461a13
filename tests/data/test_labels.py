"""Folders of labelling tools are read as COCO's files of the same drawings, bit for bit."""

import errno
import json
import math
import os
from pathlib import Path

import label_folders as labels
import numpy as np
import pytest
from PIL import Image

from seg_jax.data.formats import (
    annotations,
    cvat,
    label_studio,
    labelme,
    picture_paths,
    voc,
    xml_elements,
)
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


@pytest.mark.parametrize("name", ["labelme", "label_studio", "cvat"])
def test_labels_of_tools_are_read(tmp_path, coco, name):
    """Things of two parts are groups of LabelMe and CVAT, and a brush of Label Studio's."""
    some = labels.pictures(parts=2)
    getattr(labels, name)(tmp_path / name, some)
    found, met = labels.records(name, tmp_path / name)
    assert met.counts == {}
    labels.assert_same(found, coco(some))


@pytest.mark.parametrize("name", ["yolo", "labelme", "label_studio", "cvat"])
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


@pytest.mark.parametrize(
    ("x", "y", "fits"),
    [
        (76, 56, True),
        (77, 0, False),
        (0, 57, False),
        (-0.5, -0.4, True),
        (-0.6, 0, False),
        (0, -0.6, False),
        (75.6, 56.4, True),
        (75.4, 55.5, True),
    ],
)
def test_a_mask_of_labelme_stays_within_its_image(tmp_path, x, y, fits):
    """Its upper left corner is the nearest one of a pixel."""
    shape = {"label": "a", "shape_type": "mask", "points": [[x, y], [x + 6, y + 4]]}
    read = labelme_file(tmp_path, shape | {"mask": labels.png(np.ones((5, 7), bool))})
    if not fits:
        assert read.findings.counts == {"shape left out: its mask reaches beyond the image": 1}
        return
    assert read.findings.counts == {}
    wanted, left, top = np.zeros((61, 83), bool), math.floor(x + 0.5), math.floor(y + 0.5)
    wanted[top : top + 5, left : left + 7] = True
    found = bitmask.from_rle(read.images[0].objects[1].outline.rle(61, 83))
    np.testing.assert_array_equal(found, wanted)


def test_turned_boxes_circles_and_the_background_of_labelme(tmp_path):
    corners = [[20, 10], [30, 20], [20, 30], [10, 20]]
    shapes = [
        {"label": "a", "shape_type": "rotation", "points": corners},
        {"label": "b", "shape_type": "circle", "points": [[40, 30], [43, 34]]},
        {"label": "_background_", "points": SQUARE},
    ]
    labelme_file(tmp_path, *shapes)
    read = labelme.read(tmp_path, boxes=True)
    assert read.findings.counts == {}
    _, box, circle = read.images[0].objects
    assert box.outline.rings == ((20, 10, 30, 20, 20, 30, 10, 20),)
    (ring,) = circle.outline.rings
    np.testing.assert_allclose(np.hypot(np.array(ring[::2]) - 40, np.array(ring[1::2]) - 30), 5)
    three = {"label": "a", "shape_type": "rectangle", "points": corners[:3]}
    labelme_file(tmp_path, three)
    counts = labelme.read(tmp_path, boxes=True).findings.counts
    assert counts == {"shape left out: a rectangle has another number of points": 1}


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
        labels.yolo_folder(tmp_path, labels.YOLO_LINE)
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


def studio_task(root, *values, note=None, **changes):
    """Writes one task of Label Studio with regions of these values, and reads it."""
    some = labels.pictures()[:1]
    labels.label_studio(root, some)
    path = root / "train.json"
    (task,) = json.loads(path.read_text())
    good = task["annotations"][0]["result"][0]
    results = [good]
    for value in values:
        kind = value.pop("type", "polygonlabels")
        more = {name: value.pop(name) for name in ("id", "image_rotation") if name in value}
        results.append(good | {"type": kind, "value": value} | more)
    task["annotations"][0] |= {"result": results} | (note or {})
    path.write_text(json.dumps([task | changes]))
    return label_studio.read(root)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"x": 10, "y": 10, "width": 20, "height": 20}, "a box is no outline"),
        ({"x": 10, "y": 10, "width": 1}, "a point is no outline"),
        ({"points": SQUARE, "closed": False}, "a polyline is no outline"),
        ({"points": SQUARE[:2]}, "no polygon has three points"),
        ({"points": [[1, 2], [3]]}, "expected list of length 2 at points[]"),
        ({}, "it has no shape"),
        ({"points": SQUARE, "image_rotation": 90}, "its image was turned by hand"),
        ({"rle": [0, 0, 0, 4]}, "its brush is cut off"),
        ({"rle": [0, 0, 0, 4, 58, 0, 0, 0]}, "its brush is of another size than the image"),
        ({"rle": [0, 256]}, "expected int <= 255 at rle[]"),
        ({"rle": labels.brush(np.zeros((61, 83)))[:-1]}, "its brush is cut off"),
    ],
)
def test_a_bad_region_of_label_studio_costs_itself(tmp_path, value, reason):
    read = studio_task(tmp_path, value | {"polygonlabels": ["cup"]})
    assert [len(image.objects) for image in read.images] == [1]
    ((told, count),) = read.findings.counts.items()
    assert count == 1
    assert told.startswith(f"region left out: {reason}")
    assert "train.json, [0], result[1]" in read.findings.examples[told][0]


def test_texts_and_ellipses_of_label_studio(tmp_path):
    read = studio_task(
        tmp_path,
        {"type": "textarea", "id": "r0", "text": ["the  left cup", 5]},
        {"type": "choices", "choices": ["good"]},
        {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 0, "ellipselabels": ["plate"]}
        | {"id": "r9"},
    )
    assert read.findings.counts == {}
    (image,) = read.images
    told = {one.text: one.objects for one in image.expressions}
    assert told == {"cup": (0,), "plate": (1,), "the left cup": (0,)}
    area = bitmask.from_rle(image.objects[1].outline.rle(61, 83)).sum()
    assert abs(area - np.pi * 0.2 * 83 * 0.1 * 61) < 6


def test_annotations_of_label_studio_that_count(tmp_path):
    """The first that was not cancelled; the others are told; JSON-MIN has none of them."""
    assert studio_task(tmp_path, note={"was_cancelled": True}).images == []
    task = json.loads((tmp_path / "train.json").read_text())[0]
    note = task["annotations"][0]
    good = note | {"was_cancelled": False}
    (tmp_path / "train.json").write_text(json.dumps([task | {"annotations": [note, good, good]}]))
    read = label_studio.read(tmp_path)
    assert read.findings.counts == {"annotation left out: its task has another one before": 1}
    assert [len(image.objects) for image in read.images] == [1]
    result = good["result"][0]
    flat = result["value"] | {"original_width": 83, "original_height": 61}
    least = {"image": task["data"]["image"], "id": 1, "annotation_id": 1, "label": [flat]}
    (tmp_path / "train.json").write_text(json.dumps([least]))
    assert label_studio.read(tmp_path).images[0].objects == read.images[0].objects


def several_images(root, *targets, data):
    """Writes a task of Label Studio of these images with a region for each `to_name`."""
    labels.label_studio(root, labels.pictures()[:1])
    (task,) = json.loads((root / "train.json").read_text())
    good = task["annotations"][0]["result"][0]
    task["annotations"][0]["result"] = [good | {"to_name": name} for name in targets]
    (root / "train.json").write_text(json.dumps([task | {"data": data}]))
    read = label_studio.read(root)
    return [(one.image.name, len(one.objects)) for one in read.images], read.findings


def test_regions_of_several_images_in_a_task_are_each_of_their_own(tmp_path):
    """All of them were laid on the first image; the second was never heard of."""
    data = {"left": "a.png", "right": "b.png", "note": "no image"}
    images, met = several_images(tmp_path, "left", "right", data=data)
    assert images == [("a.png", 1), ("b.png", 1)]
    assert met.counts == {}
    images, met = several_images(tmp_path, "right", data=data)
    assert images == [("b.png", 1)]
    assert met.counts == {annotations.NONE_TAKEN: 1}
    assert met.examples[annotations.NONE_TAKEN] == [f"{tmp_path}/train.json, [0], left"]


def test_a_region_of_nobody_knows_which_image_is_left_out(tmp_path):
    data = {"left": "a.png", "right": "b.png"}
    images, met = several_images(tmp_path, "left", "other", data=data)
    assert images == [("a.png", 1)]
    reason = "region left out: its task has several images, and nothing says which is meant"
    assert met.counts == {reason: 1, annotations.NONE_TAKEN: 1}
    assert (
        "result[1]: expected to_name as one of left, right, got 'other'" in met.examples[reason][0]
    )
    images, met = several_images(tmp_path, "one", "two", data=data)
    assert (images, met.counts[reason]) == ([], 2)
    images, met = several_images(tmp_path, "tag", "tag", data={"small": "b.png", "image": "a.png"})
    assert (images, met.counts) == ([("a.png", 1)], {"object left out: it is there already": 1})


@pytest.mark.parametrize("task", [5, {}, {"data": {}}, {"data": [5]}, {"data": {"image": 5}}])
def test_a_bad_task_of_label_studio_costs_itself(tmp_path, task):
    studio_task(tmp_path)
    path = tmp_path / "train.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), task]))
    read = label_studio.read(tmp_path)
    assert len(read.images) == 1
    assert sum(read.findings.counts.values()) == 1


def cvat_file(root, shapes, *, head=""):
    """Writes XML of CVAT with one image of 61x83, and reads it."""
    labels.draw(root, labels.pictures()[0], "images")
    image = f'<image id="0" name="0.png" width="83" height="61">{shapes}</image>'
    text = f'<?xml version="1.0"?>{head}<annotations>{image}</annotations>'
    (root / "annotations.xml").write_text(text)
    return cvat.read(root)


POLYGON = '<polygon label="cup" points="10,10;40,10;40,30"/>'


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<box label="a" xtl="1" ytl="1" xbr="9" ybr="9"/>', "a box is no outline"),
        ('<polyline label="a" points="1,2;3,4;5,6"/>', "a polyline is no outline"),
        ('<points label="a" points="1,2"/>', "a point is no outline"),
        ('<skeleton label="a"/>', "a skeleton is no outline"),
        ('<polygon label="a" points="1,2;3,4"/>', "no polygon has three points"),
        ('<polygon label="a" points="1,2;3,4;5"/>', "a polygon has half a point"),
        ('<polygon label="a" points="1,x;3,4;5,6"/>', "its points are no numbers"),
        ('<polygon label="a" points="1,nan;3,4;5,6"/>', "its points are no numbers"),
        ('<polygon label="a"/>', "no polygon has three points"),
        ('<ellipse label="a" cx="1" cy="2" rx="3"/>', "it has no number in ry"),
        ('<mask label="a" rle="0, 4" left="80" top="1" width="4" height="1"/>', "its mask reaches"),
        (
            '<mask label="a" rle="0, 5" left="1" top="1" width="2" height="2"/>',
            "its run lengths do",
        ),
        (
            '<mask label="a" rle="0, -1, 5" left="1" top="1" width="2" height="2"/>',
            "its run lengths",
        ),
    ],
)
def test_a_bad_shape_of_cvat_costs_itself(tmp_path, shape, reason):
    read = cvat_file(tmp_path, POLYGON + shape)
    assert [len(image.objects) for image in read.images] == [1]
    ((told, count),) = read.findings.counts.items()
    assert count == 1
    assert told.startswith(f"shape left out: {reason}")


def test_masks_and_ellipses_of_cvat(tmp_path):
    """Run lengths go along the rows of the box; an ellipse is turned as it is seen."""
    read = cvat_file(
        tmp_path,
        '<mask label="a" rle="1, 3, 1, 1" left="20" top="30" width="3" height="2"/>'
        '<ellipse label="b" cx="40" cy="30" rx="20" ry="5" rotation="90"/><tag label="c"/>',
    )
    assert read.findings.counts == {}
    mask, turned = (bitmask.from_rle(one.outline.rle(61, 83)) for one in read.images[0].objects)
    assert np.argwhere(mask).tolist() == [[30, 21], [30, 22], [31, 20], [31, 22]]
    rows, columns = np.nonzero(turned)
    assert (np.ptp(rows), np.ptp(columns)) == (39, 9)


HOSTILE = (
    '<!DOCTYPE a [<!ENTITY b "c">]>',
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">',
)


@pytest.mark.parametrize("head", HOSTILE)
def test_document_types_are_refused(tmp_path, head):
    with pytest.raises(ValueError, match="expected XML of CVAT for images, got"):
        cvat_file(tmp_path, POLYGON, head=head)
    with pytest.raises(ValueError, match="got a document type or entities; do: export"):
        list(xml_elements.children(tmp_path / "annotations.xml"))


@pytest.mark.parametrize(
    "text", ["", "<a>", "<a><b></a></b>", "a", "<a>&b;</a>", "<a>" * 99, "\xff"]
)
def test_broken_xml_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="^[^\n]*expected XML of a labelling tool, got [^\n]*$"):
        list(xml_elements.children(path))


def test_images_before_a_torn_end_are_kept(tmp_path):
    cvat_file(tmp_path, POLYGON)
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace("</annotations>", "<image"))
    read = cvat.read(tmp_path)
    assert len(read.images) == 1
    assert [one.startswith("file left out from there on") for one in read.findings.counts] == [True]


def voc_masks(some):
    """Returns what is left of each thing where later ones and void lie on top."""
    found = []
    for picture in some:
        masks = []
        for thing in picture.things:
            mask = labels.formats.true_mask(thing.rings, picture.height, picture.width)
            masks = [one & ~mask for one in masks] + [mask]
        void = np.zeros((picture.height, picture.width), bool)
        void[:2] = True
        found.append((picture, [*masks, void]))
    return found


def test_masks_of_voc_are_read(tmp_path):
    some = labels.pictures(parts=2)
    labels.voc(tmp_path, some)
    found, met = labels.records("voc", tmp_path)
    assert met.counts == {}
    for picture, masks in voc_masks(some):
        record = found[picture.split, picture.name]
        things, texts = labels.things(record)
        assert texts == {"cup": (1, 3), "fork": (2,)}
        assert [name for name, _ in things] == ["", "cup", "fork", "cup"]
        assert record.roles[0].name == "IGNORED"
        for (_, mask), wanted in zip(things[1:], masks[:-1], strict=True):
            np.testing.assert_array_equal(mask, wanted & ~masks[-1])
        np.testing.assert_array_equal(things[0][1], masks[-1])


def test_masks_of_voc_without_objects_or_colours(tmp_path):
    """Without SegmentationObject a class is one object; grey masks have numbers of classes."""
    some = labels.pictures()[:1]
    labels.voc(tmp_path, some)
    (tmp_path / "SegmentationObject" / "0.png").unlink()
    found, met = labels.records("voc", tmp_path)
    assert [*met.counts] == [voc._NO_OBJECTS]
    assert [*found["train", "0.png"].names] == ["", "cup", "fork"]
    (tmp_path / "labelmap.txt").unlink()
    mask = np.zeros((61, 83), np.uint8)
    mask[5:9, 5:9], mask[20:30, 20:30], mask[40:50, 3:7] = 15, 8, 99
    Image.fromarray(mask).save(tmp_path / "SegmentationClass" / "0.png")
    found, met = labels.records("voc", tmp_path)
    assert [*found["train", "0.png"].names] == ["cat", "person", ""]
    assert met.counts["object without a name: its colour is no class"] == 1


def test_the_palette_of_voc():
    """As the challenge's masks have it."""
    wanted = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        255: (224, 224, 192),
    }
    for number, channels in wanted.items():
        assert voc.colour(number).to_bytes(3, "little") == bytes(channels)


def test_masks_of_voc_that_are_odd_cost_their_image(tmp_path):
    labels.voc(tmp_path, labels.pictures())
    (tmp_path / "SegmentationClass" / "0.png").write_bytes(b"\x89PNG")
    (tmp_path / "SegmentationClass" / "1.png").unlink()
    (tmp_path / "labelmap.txt").write_text("cup:224,64,0::\nfork:1,2::\n")
    found, met = labels.records("voc", tmp_path)
    assert [*found] == [("val", "2.png")]
    assert met.counts["image left out: it has no mask"] == 1
    assert met.counts["class left out: it has no colour"] == 1
    with pytest.raises(ValueError, match="expected SegmentationClass of Pascal VOC, got"):
        voc.read(tmp_path / "JPEGImages")


def test_a_long_text_beside_an_image_of_label_studio_is_none(tmp_path):
    """A pattern of names looked through a million letters from each of them on."""
    task = json.loads((studio_task(tmp_path) and (tmp_path / "train.json")).read_text())[0]
    data = {"text": "a" * 1_000_000, "picture_of_it": task["data"]["image"]}
    (tmp_path / "train.json").write_text(json.dumps([task | {"data": data}]))
    assert [one.image.name for one in label_studio.read(tmp_path).images] == ["0.png"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """What lay in it was missing without a word."""
    labels.labelme(tmp_path, labels.pictures())
    walk = os.scandir

    def locked(path):
        if Path(path).name == "train":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(
        ValueError, match="train: expected a folder that can be read, got Permission"
    ):
        labelme.read(tmp_path)


def test_a_linked_folder_is_told(tmp_path):
    """What lay behind it was missing without a word; it may lead in circles."""
    labels.labelme(tmp_path / "set", labels.pictures())
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    read = labelme.read(tmp_path / "set")
    assert read.findings.counts == {"folder left out, as it is a link": 1}
    assert read.findings.examples["folder left out, as it is a link"] == [f"{tmp_path}/set/again"]


def test_an_image_within_a_file_of_labelme_alone_is_told(tmp_path):
    """That it was missing sent people to look for a path."""
    labelme_file(tmp_path)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"imageData": "iVBORw0KGgo="}))
    assert labelme.read(tmp_path).findings.counts == {}
    for picture in tmp_path.rglob("*.png"):
        picture.unlink()
    with pytest.raises(ValueError, match="its image is in imageData alone"):
        labelme.read(tmp_path)
