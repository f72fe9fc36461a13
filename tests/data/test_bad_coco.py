"""Outlines and annotations of COCO that are wrong: each costs itself, and is told by its reason.

Names of tests and their docstrings give the cases that they stand for.
"""

import json
import math
import pickle
import resource
import time

import annotation_texts as texts
import numpy as np
import published_formats as formats
import pytest

from seg_jax.data.findings import Findings
from seg_jax.data.formats import coco, segmentation
from seg_jax.data.formats.annotations import BadAnnotation, PngSegment, Polygons, RunLengths
from seg_jax.geometry import bitmask

OUTLINES = {
    "none": (None, "it has no segmentation"),
    "empty": ([], "it has no segmentation"),
    "no ring": ([[]], "no polygon has three points"),
    "two points": ([[1, 2, 3, 4]], "no polygon has three points"),
    "half a point": ([[*texts.RING, 5]], "a polygon has half a point"),
    "flat": (texts.RING, "segmentation is a flat list of numbers"),
    "bare counts": ([0, 48 * 64], "segmentation is a flat list of numbers"),
    "bare text": ("Qd1", "segmentation is neither polygons nor run lengths"),
    "number": (5, "segmentation is neither polygons nor run lengths"),
    "mixed": ([texts.RING, texts.FULL], "segmentation mixes kinds"),
    "numbers and rings": ([texts.RING, 5], "segmentation mixes kinds"),
    "texts": (["10", "10"], "segmentation mixes kinds"),
    "not a number": (
        [[*texts.RING[:7], math.nan]],
        "expected float >= -10000000.0 at segmentation[][]",
    ),
    "infinite": ([[*texts.RING[:7], math.inf]], "expected float <= 10000000.0 at segmentation[][]"),
    "far": ([[*texts.RING[:7], 1e300]], "expected float <= 10000000.0 at segmentation[][]"),
    "text in a ring": ([[*texts.RING[:7], "30"]], "expected float at segmentation[][]"),
    "null in a ring": ([[*texts.RING[:7], None]], "expected float at segmentation[][]"),
    "deep": ([[[[texts.RING]]]], "expected float at segmentation[][]"),
    "fractions": (
        [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6, 0.1, 0.6]],
        "coordinates are fractions of the image, not pixels",
    ),
    "ends of fractions": (
        [[0, 0, 1, 0, 1, 1, 0, 1]],
        "coordinates are fractions of the image, not pixels",
    ),
    "fractions a little beyond": (
        [[-0.01, 0.1, 1.01, 0.1, 0.6, 0.6]],
        "coordinates are fractions of the image, not pixels",
    ),
    "no counts": ({"size": [48, 64]}, "run lengths are not COCO's"),
    "null counts": ({"size": [48, 64], "counts": None}, "run lengths are not COCO's"),
    "brush": ({"format": "rle", "rle": [0, 1, 2], "brushlabels": ["a"]}, "run lengths are not"),
    "bitmap": ({"bitmap": {"data": "eJw", "origin": [0, 0]}}, "run lengths are not COCO's"),
    "bytes": ({"size": [48, 64], "counts": "b'Qd1'"}, "counts are Python's spelling of bytes"),
    "letters": ({"size": [48, 64], "counts": "Qd~"}, "counts are no compressed run lengths"),
    "unicode": ({"size": [48, 64], "counts": "Qdé"}, "counts are no compressed run lengths"),
    "overfull": ({"size": [48, 64], "counts": [0, 9999]}, "run lengths do not fill the image"),
    "infinite counts": ({"size": [48, 64], "counts": [math.inf]}, "expected int at counts[]"),
    "negative counts": ({"size": [48, 64], "counts": [-1, 3073]}, "expected int >= 0 at counts[]"),
    "size of one": ({"size": [48], "counts": [0]}, "expected list of length 2 at size"),
    "size of nothing": ({"size": [0, 64], "counts": [0]}, "expected int >= 1 at size[]"),
    "huge size": ({"size": [2**60, 2**60], "counts": "0"}, "expected int <= 1000000 at size[]"),
    "size as text": ({"size": ["48", "64"], "counts": [3072]}, "expected int at size[]"),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_a_bad_outline_costs_its_object(tmp_path, name):
    """flat-1, unit-1, why-1, top-1: in COCO and in lines alike, with its own reason."""
    outline, reason = OUTLINES[name]
    read = texts.read_coco(tmp_path, {"segmentation": outline})
    assert [len(image.objects) for image in read.images] == [1, 1]
    ((told, count),) = read.findings.counts.items()
    assert count == 1
    assert told.startswith(f"annotation left out: {reason}")
    (example,) = read.findings.examples[told]
    assert "instances_val.json, annotations[2]" in example
    assert " got " in example
    lines = texts.read_folder(
        tmp_path, texts.line([texts.RING], outline), texts.line([texts.RING], image="b.jpg")
    )
    assert [[one.text for one in image.expressions] for image in lines.images] == [["thing 0"]] * 2
    assert {told.partition(":")[0] for told in lines.findings.counts} == {
        "object left out",
        "phrase left out",
    }
    (example,) = next(iter(lines.findings.examples.values()))
    assert "train.jsonl, line 1, objects[1]" in example


@pytest.mark.parametrize(
    "outline",
    [
        [[[10, 10], [40, 10], [40, 30], [10, 30]]],
        [[10, 10], [40, 10], [40, 30], [10, 30]],
        [[10, 10], [40, 10], [40, 30]],
    ],
)
def test_points_in_pairs_are_rings(tmp_path, outline):
    """pairs-1: plain to everybody, so they are read, and it is told."""
    count = len(outline) if len(outline) > 1 else 4
    wanted = Polygons((tuple(map(float, texts.RING[: 2 * count])),))
    for read in (
        texts.read_coco(tmp_path, {"segmentation": outline}),
        texts.read_folder(tmp_path, texts.line(outline)),
    ):
        assert read.images[0].objects[-1].outline == wanted
        assert read.findings.counts == {"points are pairs: read as polygons": 1}


def test_a_ring_of_two_points_costs_itself(tmp_path):
    read = texts.read_coco(tmp_path, {"segmentation": [texts.RING, [1, 2, 3, 4]]})
    assert read.images[0].objects[1].outline == read.images[0].objects[0].outline
    assert read.findings.counts == {"polygon left out: it has fewer than three points": 1}


def test_a_ring_of_fractions_beside_one_of_pixels_costs_itself(tmp_path):
    """unit-1: each ring is judged by itself; the picture's one pixel may be what is meant."""
    read = texts.read_coco(tmp_path, {"segmentation": [texts.RING, [0, 0, 0.5, 0, 0.5, 1]]})
    assert read.images[0].objects[1].outline == read.images[0].objects[0].outline
    assert read.findings.counts == {
        "polygon left out: its coordinates are fractions of the image, not pixels": 1
    }
    ring = [0, 0, 1, 0, 1, 1, 0, 1]
    found = segmentation.read_outline([ring], where="here", findings=Findings(), size=(1, 1))
    assert found == Polygons((tuple(map(float, ring)),))


def test_run_lengths_of_another_size_are_told(tmp_path):
    """why-1: height and width in the wrong order are the usual fault."""
    read = texts.read_coco(tmp_path, {"segmentation": {"size": [64, 48], "counts": [0, 3072]}})
    (lines,) = read.findings.lines()
    assert lines.startswith("1 x annotation left out: run lengths are of another size than the im")
    assert "expected run lengths of 48x64 as the image, got 64x48; do: check that size is" in lines


def test_run_lengths_stay_as_they_are():
    """Only what is more than size and counts is dropped from them."""
    rle = bitmask.to_rle(formats.rectangle(3, 4, 20, 30))
    counts = rle["counts"].decode()
    told = Findings()
    value = {"size": [48, 64], "counts": counts, "note": 5}
    found = segmentation.read_outline(value, where="a", findings=told)
    assert found == RunLengths(({"size": [48, 64], "counts": counts},))
    np.testing.assert_array_equal(
        bitmask.from_rle(found.rle(48, 64)), formats.rectangle(3, 4, 20, 30)
    )
    assert told.counts == {}


NOTES = {
    "no object": (5, "expected object"),
    "null": (None, "expected object"),
    "a list": ([1, 2], "expected object"),
    "no image": ({"image_id": None}, "expected int at image_id"),
    "unlisted image": ({"image_id": 77}, "its image is not listed"),
    "huge image": ({"image_id": 2**70}, f"expected int <= {2**63 - 1} at image_id"),
    "named image": ({"image_id": "p0"}, "expected int at image_id"),
    "true image": ({"image_id": True}, "expected int at image_id"),
    "huge id": ({"id": 10**400}, f"expected int <= {2**63 - 1} at id"),
    "broken id": ({"id": 1.5}, "expected int | null at id"),
    "category of text": ({"category_id": "cup"}, "expected int | null at category_id"),
    "crowd of text": ({"iscrowd": "no"}, "expected "),
    "crowd of five": ({"iscrowd": 5}, "expected int <= 1 at iscrowd"),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_bad_annotation_costs_itself(tmp_path, name):
    """top-1: ids of another kind, beyond 64 bits, of no image."""
    note, reason = NOTES[name]
    data = texts.coco_data(*([note] if isinstance(note, dict) else []))
    if not isinstance(note, dict):
        data["annotations"].append(note)
    read = texts.coco_text(tmp_path, json.dumps(data))
    assert [len(image.objects) for image in read.images] == [1, 1]
    ((told, count),) = read.findings.counts.items()
    assert (count, told[: 21 + len(reason)]) == (1, f"annotation left out: {reason}")
    assert "instances_val.json, annotations[2]" in read.findings.examples[told][0]


def test_numbers_written_as_texts_are_read(tmp_path):
    """cat-1: "1" where an integer is meant, and 1.0, are the integer, and it is told."""
    note = {"image_id": "0", "category_id": "1", "id": 12.0, "iscrowd": "0"}
    read = texts.read_coco(tmp_path, note)
    one = read.images[0].objects[1]
    assert (one.id, one.name, int(one.role)) == (12, "cup", 0)
    assert read.findings.counts == {
        f"{name} is no integer: read as one": 1
        for name in ("image_id", "category_id", "id", "iscrowd")
    }


def test_objects_without_a_category_are_told(tmp_path):
    """cat-1: they are kept without a name, and somebody who gets no expression knows why."""
    read = texts.read_coco(tmp_path, {"category_id": 7}, {"category_id": None})
    assert [one.name for one in read.images[0].objects] == ["cup", "", ""]
    assert read.findings.counts == {
        "object without a name: its category is not listed": 1,
        "object without a name: it has no category_id": 1,
    }
    for categories in (None, []):
        read = texts.read_coco(tmp_path, categories=categories)
        assert read.findings.counts == {"no categories are listed: objects have no names": 1}
        assert not any(image.expressions for image in read.images)
    data = texts.coco_data()
    del data["categories"]
    assert texts.coco_text(tmp_path, json.dumps(data)).findings == read.findings


@pytest.mark.parametrize(
    ("listed", "names", "reasons"),
    [
        ([{"id": 1, "name": None}], [""], {"category without a name"}),  # null-1
        ([{"id": 1, "name": "  "}], [""], {"category without a name"}),
        ([{"id": 1}], [""], {"category without a name"}),
        ([{"id": 1, "name": "cup"}, {"id": 1, "name": "cup"}], ["cup"], set()),
        (
            [{"id": 1, "name": "cup"}, {"id": 1, "name": "fork"}, {"id": 1, "name": "cup"}],
            [""],
            {"category id of several names: its objects have none"},
        ),
        (
            [{"id": 1, "name": "cup"}, 5, {"name": "fork"}, {"id": 2, "name": ["x"]}],
            ["cup"],
            {
                "category left out: expected object",
                "category left out: expected a field 'id'",
                "category left out: expected str | null at name",
            },
        ),
        ([{"id": "1", "name": "cup"}], ["cup"], {"id is no integer: read as one"}),
        (
            [{"id": 1, "name": "a\ud800"}, {"id": 1, "name": "cup"}],
            ["cup"],
            {"category left out: expected str without lone surrogates at name"},
        ),
    ],
)
def test_categories_are_what_is_plain(tmp_path, listed, names, reasons):
    """null-1, cat-1: no name is no name, and nobody guesses which of two is meant."""
    read = texts.read_coco(tmp_path, categories=listed)
    assert {one.name for image in read.images for one in image.objects} == {*names}
    assert {*read.findings.counts} == reasons


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": None}, "images: expected list, got None"),
        ({"annotations": {"0": 1}}, "annotations: expected list, got a dict of 1"),
        ({"categories": {"1": "cup"}}, "categories: expected list | null, got a dict of 1"),
    ],
)
def test_only_a_wrong_outermost_shape_refuses_the_file(tmp_path, change, told):
    with pytest.raises(ValueError, match=r"instances_val\.json, .*; do: get the file") as caught:
        texts.read_coco(tmp_path, **change)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "expected an object with images, annotations and categories, got a list, as res"),
        ("5", "expected object, got 5"),
        ("", "expected JSON"),
        (
            texts.nested(200_000),
            "expected an object with images, annotations and categories, got a",
        ),
        ("[" * 200_000, "expected JSON, got lists or objects nested too deep"),
        ('{"images": ' + texts.nested(200_000), "expected JSON, got "),
        ('{"images": [], "images": []}', "got an object with the name 'images' twice"),
    ],
)
def test_what_is_no_file_of_coco_is_one_line(tmp_path, text, told):
    """top-1."""
    with pytest.raises(ValueError, match="; do: ") as caught:
        texts.coco_text(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_beyond_all_bounds_cost_their_annotation(tmp_path):
    """top-1: 1e999, NaN and integers of thousands of digits are no end of the file."""
    text = json.dumps(
        texts.coco_data({"segmentation": [["A"] * 6]}, {"id": "B"}, {"bbox": ["C"] * 4})
    )
    for letter, number in (("A", "1e999"), ("B", "9" * 5000), ("C", "NaN")):
        text = text.replace(f'"{letter}"', number)
    read = texts.coco_text(tmp_path, text)
    assert [len(image.objects) for image in read.images] == [2, 1]
    assert {*read.findings.counts} == {
        "annotation left out: expected float <= 10000000.0 at segmentation[][]",
        "annotation left out: expected int | null at id",
        "box is odd: that of the mask is taken",
    }


def test_names_that_stand_twice_in_an_object_cost_that_object(tmp_path):
    """The last would win in silence; a text with colons, escaped or not, is no name."""
    note = json.dumps(texts.coco_data()["annotations"][0] | {"id": 9, "note": '": \\u003a, "a":'})
    doubled = note.replace('"id": 9', '"id": 8, "id": 9')
    text = json.dumps(texts.coco_data()).replace('"annotations": [', f'"annotations": [{doubled}, ')
    text = text.replace('{"id": 1, "name": "cup"}', '{"id": 1, "name": "cup", "name": "mug"}')
    read = texts.coco_text(tmp_path, text)
    assert [len(image.objects) for image in read.images] == [1, 1]
    place = "expected object, got an object with the name"
    assert read.findings.examples["annotation left out: expected object"] == [
        f"{tmp_path}/instances_val.json, annotations[0]: {place} 'id' twice"
    ]
    assert read.findings.examples["category left out: expected object"] == [
        f"{tmp_path}/instances_val.json, categories[0]: {place} 'name' twice"
    ]
    (tmp_path / "good").mkdir()
    text = json.dumps(texts.coco_data()).replace('"annotations": [', f'"annotations": [{note}, ')
    read = texts.coco_text(tmp_path / "good", text)
    assert ([len(image.objects) for image in read.images], read.findings.counts) == ([2, 1], {})


def test_an_annotation_nested_deeper_than_parsers_go_costs_itself(tmp_path):
    """top-1: 2,000 levels, of lists or of objects, and brackets within texts are none."""
    text = json.dumps(texts.coco_data({"segmentation": "A"}, {"note": "B"}, {"name": r'"\][{'}))
    text = text.replace('"A"', texts.nested(2000))
    text = text.replace('"B"', '{"a": ' * 2000 + "1" + "}" * 2000)
    read = texts.coco_text(tmp_path, text)
    assert [len(image.objects) for image in read.images] == [3, 1]
    ((reason, count),) = read.findings.counts.items()
    assert (reason.startswith("annotation left out: "), count) == (True, 1)


def test_images_without_annotations_are_counted(tmp_path):
    """As a hundredth of COCO's are: they were left out without a word."""
    more = [{"id": n, "file_name": f"q{n}.jpg", "height": 48, "width": 64} for n in (7, 8)]
    data = texts.coco_data({"image_id": 8, "segmentation": []})
    read = texts.coco_text(tmp_path, json.dumps(data | {"images": [*data["images"], *more]}))
    assert len(read.images) == 2
    assert read.findings.examples.pop(
        "image left out: none of its annotations, if any, is taken"
    ) == [f"{tmp_path}/instances_val.json: image {n}, 'q{n}.jpg'" for n in (7, 8)]
    assert len(read.findings.counts) == 2


def test_images_that_cannot_be_told_apart_are_left_out(tmp_path):
    """One id of two files, or of two sizes: nobody knows whose the annotations are."""
    good = {"id": 5, "file_name": "e.jpg", "height": 48, "width": 64}
    listed = texts.coco_data()["images"]
    for other in ({"file_name": "f.jpg"}, {"height": 64}):
        images = [*listed, good, good | other]
        read = texts.read_coco(tmp_path, {"image_id": 5}, images=images)
        assert [image.image_id for image in read.images] == [0, 1]
        assert read.findings.counts == {
            "image left out: its id is listed with different values": 2,
            "annotation left out: its image is ambiguous": 1,
        }


def test_images_listed_twice_are_joined(tmp_path):
    """name-1: an image is its file; a second id of it, or the same entry again, is the same one."""
    listed = texts.coco_data()["images"]
    images = [*listed, listed[0], listed[0] | {"id": 9}]
    read = texts.read_coco(tmp_path, {"image_id": 9}, images=images)
    assert [(image.image_id, len(image.objects)) for image in read.images] == [(0, 2), (1, 1)]
    assert read.findings.counts == {
        "image listed twice: joined": 1,
        "image listed under several ids: joined": 1,
    }


@pytest.mark.parametrize(
    ("listed", "kept"),
    [
        ([(1, "p0.jpg", 64), (2, "p0.jpg", 64), (2, "p1.jpg", 64)], {1: (1, "p0.jpg")}),
        ([(2, "p1.jpg", 64), (1, "p0.jpg", 64), (2, "p0.jpg", 64)], {1: (1, "p0.jpg")}),
        ([(1, "p0.jpg", 64), (2, "p0.jpg", 64), (1, "p1.jpg", 64)], {2: (2, "p0.jpg")}),
        ([(1, "p0.jpg", 64), (2, "p0.jpg", 48)], {}),
        ([(1, "p0.jpg", 64), (2, "p0.jpg", None)], {1: (1, "p0.jpg"), 2: (1, "p0.jpg")}),
    ],
)
def test_no_outline_comes_upon_another_picture(tmp_path, listed, kept):
    """What an id means does not hang on the order of the list, nor on what was joined before."""
    images = [{"id": n, "file_name": name, "height": 48, "width": w} for n, name, w in listed]
    (tmp_path / "it.json").write_text(json.dumps({"images": images, "annotations": []}))
    sheet = coco.CocoFile(tmp_path / "it.json", Findings())
    for number in (1, 2):
        if number in kept:
            image = sheet.image_of(number, "here")
            assert (image.id, image.file_name) == kept[number]
        else:
            with pytest.raises(BadAnnotation) as error:
                sheet.image_of(number, "here")
            assert error.value.reason == "its image is ambiguous"
    assert any("image left out" in told or "joined" in told for told in sheet.findings.counts)


@pytest.mark.parametrize("names", [("a/1.jpg", "b/1.jpg"), ("p.jpg", "p.png"), ("P.jpg", "p.jpg")])
def test_an_image_is_its_path(tmp_path, names):
    """name-1: files of one stem are different images."""
    listed = [
        one | {"file_name": name}
        for one, name in zip(texts.coco_data()["images"], names, strict=True)
    ]
    read = texts.read_coco(tmp_path, images=listed)
    assert [image.key for image in read.images] == [f"val/{name}" for name in names]
    assert read.findings.counts == {}
    lines = texts.read_folder(tmp_path, *(texts.line([texts.RING], image=name) for name in names))
    assert [image.key for image in lines.images] == [f"train/{name}" for name in names]
    assert [image.image for image in lines.images] == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_name": None}, "image left out: expected str at file_name"),
        ({"file_name": ""}, "image left out: expected str of length >= 1 at file_name"),
        ({"file_name": "a\x00b"}, "image left out: expected str without the character 0 and"),
        ({"file_name": "a\ud800"}, "image left out: expected str without the character 0 and"),
        ({"height": 0}, "image left out: expected int >= 1 at height"),
        ({"height": 2**40}, "image left out: expected int <= 1000000 at height"),
        ({"id": [1]}, "image left out: expected int at id"),
    ],
)
def test_a_bad_image_costs_itself(tmp_path, change, reason):
    images = texts.coco_data()["images"]
    read = texts.read_coco(tmp_path, images=[images[0] | change, images[1]])
    assert [image.image_id for image in read.images] == [1]
    told = sorted(read.findings.counts)
    assert told[0] == "annotation left out: its image is not listed"
    assert told[1].startswith(reason)


def test_an_image_without_a_size_is_told(tmp_path):
    images = [one | {"height": None} for one in texts.coco_data()["images"]]
    read = texts.read_coco(tmp_path, images=images)
    assert [image.size for image in read.images] == [None, None]
    assert read.findings.counts == {"image without height and width: its file's count": 2}


@pytest.mark.parametrize(
    "box",
    [[1, 2, 3], [1, 2, -3, 4], ["1", 2, 3, 4], {"x": 1}, [0.1, 0.1, 0.5, 0.5], [1e300] * 4, 5],
)
def test_an_odd_box_is_not_taken(tmp_path, box):
    read = texts.read_coco(tmp_path, {"bbox": box})
    assert read.images[0].objects[1].box_px is None
    assert read.findings.counts == {"box is odd: that of the mask is taken": 1}


def test_ids_of_annotations_may_be_missing_or_repeated(tmp_path):
    data = texts.coco_data({"id": 1}, {})
    del data["annotations"][3]["id"]
    read = texts.coco_text(tmp_path, json.dumps(data))
    assert [one.id for one in read.images[0].objects] == [0, 1, 3]
    assert read.findings.counts == {
        "annotation id listed twice: both are kept": 1,
        "annotation without id: numbered by its place": 1,
    }


def panoptic(root, change):
    data, _ = formats.panoptic(root)
    change(data)
    path = root / "annotations" / "panoptic_val2017.json"
    path.write_text(json.dumps(data))
    return coco.read_panoptic(path, numbers=path.with_suffix(""), images=root, split="val2017")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: d["annotations"][0].pop("file_name"),
            "annotation left out: expected a field 'fi",
        ),
        (
            lambda d: d["annotations"][0].update(segments_info=None),
            "annotation left out: expected l",
        ),
        (
            lambda d: d["annotations"][0].update(image_id=99),
            "annotation left out: its image is not",
        ),
        (
            lambda d: d["annotations"][0].update(segments_info=[5]),
            "segment left out: expected object",
        ),
    ],
)
def test_a_bad_panoptic_annotation_costs_itself(tmp_path, change, reason):
    read = panoptic(tmp_path, change)
    assert [image.image_id for image in read.images] == [2]
    counts = dict(read.findings.counts)
    # Its image has no other.
    assert counts.pop("image left out: none of its annotations, if any, is taken") == 1
    ((told, count),) = counts.items()
    assert (count, told.startswith(reason)) == (1, True)


@pytest.mark.parametrize("number", [0, -1, 2**24, "x", None])
def test_a_bad_segment_costs_itself(tmp_path, number):
    """0 is what panoptic PNGs have where there is nothing."""
    read = panoptic(tmp_path, lambda d: d["annotations"][0]["segments_info"][0].update(id=number))
    assert [len(image.objects) for image in read.images] == [2, 3]
    assert sum(read.findings.counts.values()) == 1


def test_an_image_with_two_panoptic_annotations_keeps_the_first(tmp_path):
    read = panoptic(tmp_path, lambda d: d["annotations"].append(d["annotations"][0]))
    assert [len(image.objects) for image in read.images] == [3, 3]
    assert read.findings.counts == {"annotation left out: its image has one already": 1}


def test_a_segment_listed_twice_is_one(tmp_path):
    def change(data):
        told = data["annotations"][0]["segments_info"]
        told.append(told[0])

    read = panoptic(tmp_path, change)
    assert [len(image.objects) for image in read.images] == [3, 3]
    assert read.findings.counts == {"segment left out: its number is another one's": 1}


def test_a_panoptic_png_of_another_size_says_so(tmp_path):
    """why-1."""
    read = panoptic(tmp_path, lambda data: None)
    with pytest.raises(ValueError, match="expected 9x9 pixels as the image, got 48x64"):
        read.images[0].objects[0].outline.rle(9, 9)
    outline = read.images[1].objects[0].outline
    assert isinstance(outline, PngSegment)
    outline.file.unlink()
    with pytest.raises(ValueError, match="expected an image, got no file"):
        outline.rle(48, 64)


def test_reading_takes_time_and_memory_by_the_size_of_the_file(tmp_path):
    """top-1: sizes in run lengths cost nothing until the image has them."""
    huge = {"size": [10**6, 10**6], "counts": "0" * 10}
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = texts.read_folder(
        tmp_path, *(texts.line(*[huge] * 100, image=f"{n}.jpg") for n in range(50))
    )
    for image in read.images[:3]:
        for one in image.objects:
            with pytest.raises(ValueError, match="expected"):
                one.outline.rle(48, 64)
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_errors_of_outlines_come_back_from_other_processes():
    with pytest.raises(BadAnnotation) as caught:
        segmentation.read_outline([], where="a", findings=Findings())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), "it has no segmentation")
