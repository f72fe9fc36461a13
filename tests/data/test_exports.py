"""Answers in every format: read back by our readers, pycocotools and OpenCV."""

import dataclasses
import json
import os
import sys
import urllib.parse
from xml.etree import ElementTree

import cv2
import label_folders as labels
import numpy as np
import pytest
from exported_answers import BUILDS, CATEGORIES, built_again, of_mask, written
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from seg_jax.data.exports import answers, coco_json, mask_images, overlay, svg, table, yolo_folder
from seg_jax.data.exports.answers import Answer, Category, Picture
from seg_jax.geometry import bitmask, keyholes, runlengths
from seg_jax.grammar import outline
from seg_jax.records import Kind
from seg_jax.tasks.referring import Referring, draw


def of_text(text, label, size, *, number=0, kind=Kind.MASK):
    """Returns an answer as the model wrote it."""
    task = Referring()
    example = task.ask(np.zeros((*size, 3), np.uint8), label, kind)
    told = {"number": number, "label": label, "asked": {"text": label}, "score": 0.25}
    return told | task.predict(example, text).as_json()


def as_answers(root, found):
    """Returns pictures whose answers are the masks of records."""
    pictures, number = [], 0
    for (split, name), record in sorted(found.items()):
        path = root / split / name
        objects, _ = labels.things(record)
        some = []
        for label, mask in objects:
            told = of_mask(mask, label, number=number)
            some.append(Answer(told, [one.name for one in CATEGORIES].index(label)))
            number += 1
        pictures.append(
            Picture(
                key=path.as_posix(),
                path=path,
                name=f"{split}/{name[:-4]}",
                number=len(pictures) + 1,
                answers=some,
            )
        )
    return pictures


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", BUILDS)
def test_annotations_built_exported_and_built_again_have_the_same_masks(tmp_path, name, parts):
    """Bit for bit; of VOC what lies on top: objects may cover each other."""
    labels.coco(tmp_path / "first", labels.pictures(parts=parts))
    found, _ = labels.records("coco_instances", tmp_path / "first")
    pictures = as_answers(tmp_path / "first", found)
    written(tmp_path / "out", pictures, CATEGORIES, [name])
    again = built_again(tmp_path / "out", pictures, name)
    for picture in pictures:
        wanted = [(one.label, one.mask) for one in picture.answers]
        if name == "voc":
            for place, (_, mask) in enumerate(wanted):
                for _, above in wanted[place + 1 :]:
                    mask &= ~above
        assert [label for label, _ in again[picture.name]] == [label for label, _ in wanted]
        for (_, mask), (_, true) in zip(again[picture.name], wanted, strict=True):
            np.testing.assert_array_equal(mask, true)


def odd_masks():
    """Yields masks with holes, parts, thin strokes and noise."""
    rng = np.random.default_rng(0)
    ring = np.zeros((40, 60), bool)
    ring[5:30, 5:50] = True
    ring[10:20, 12:30] = False
    ring[12:15, 15:20] = True
    yield ring
    yield rng.random((23, 31)) < 0.5
    yield np.eye(17, 29, dtype=bool)
    yield np.ones((9, 11), bool)
    one = np.zeros((8, 8), bool)
    one[7, 0] = True
    yield one


@pytest.mark.parametrize("name", BUILDS)
def test_odd_masks_are_held_bit_for_bit(tmp_path, name):
    pictures = []
    for number, mask in enumerate(odd_masks()):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(path)
        told = of_mask(mask, "cup", number=number)
        pictures.append(
            Picture(
                key=path.as_posix(),
                path=path,
                name=f"p/{number}",
                number=number + 1,
                answers=[Answer(told, 0)],
            )
        )
    written(tmp_path / "out", pictures, CATEGORIES, [name])
    again = built_again(tmp_path / "out", pictures, name)
    for picture, mask in zip(pictures, odd_masks(), strict=True):
        ((label, found),) = again[picture.name]
        assert label == "cup"
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("digits", [2, 3])
def test_outlines_of_models_are_held_bit_for_bit(tmp_path, digits):
    """What a model wrote in decimals, holes and parts too, fills what `evaluate` counts."""
    rng = np.random.default_rng(digits)
    some, texts, path = [], [], tmp_path / "one.png"
    size = (97, 141)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)
    for number in range(12):
        rings = [rng.random((rng.integers(3, 30), 2)) for _ in range(1 + number % 3)]
        texts.append(outline.write_mask(rings, digits=digits))
        some.append(Answer(of_text(texts[-1], f"n{number}", size, number=number), number))
    categories = [Category(one.label, place + 1) for place, one in enumerate(some)]
    picture = Picture(key=path.as_posix(), path=path, name="one", number=1, answers=some)
    truth = [draw(text, Kind.MASK, size).mask for text in texts]
    for name in ("coco", "folder", "yolo", "labelme"):
        written(tmp_path / "out", [picture], categories, [name])
        again = built_again(tmp_path / "out", [picture], name)["one"]
        assert [label for label, _ in again] == [one.label for one in some]
        for (_, mask), true in zip(again, truth, strict=True):
            np.testing.assert_array_equal(mask, true)
    sheet = COCO(tmp_path / "out" / coco_json.ANNOTATIONS)
    written(tmp_path / "out", [picture], categories, ["coco_results"])
    results = sheet.loadRes(str(tmp_path / "out" / coco_json.RESULTS))
    for each in (sheet, results):
        notes = each.loadAnns(each.getAnnIds())
        assert len(notes) == len(truth)
        for note, true in zip(notes, truth, strict=True):
            np.testing.assert_array_equal(each.annToMask(note), true)
            assert note["area"] == true.sum()


def test_rings_joined_by_bridges_fill_what_they_filled():
    """Of the COCO API's fill and of OpenCV's, whatever the rings."""
    rng = np.random.default_rng(3)
    for count in (1, 2, 5, 9):
        rings = [rng.integers(0, 60, (rng.integers(3, 9), 2)).astype(float) for _ in range(count)]
        flat = [ring.ravel().tolist() for ring in rings]
        one = keyholes.join_rings(rings)
        want = runlengths.fill(flat, height=64, width=64, rings="evenodd")
        assert runlengths.fill([one.ravel().tolist()], height=64, width=64) == want
        (theirs,) = coco_masks.frPyObjects([one.ravel().tolist()], 64, 64)
        np.testing.assert_array_equal(coco_masks.decode(theirs), bitmask.from_rle(want))
    square, hole = (np.array([[0, 0], [n, 0], [n, n], [0, n]], float) for n in (40, 10))
    canvas = np.zeros((64, 64), np.uint8)
    cv2.fillPoly(canvas, [keyholes.join_rings([square + 10, hole + 20]).astype(np.int32)], 1)
    assert canvas[15, 15] == canvas[45, 45] == 1
    assert canvas[25, 25] == 0
    with pytest.raises(ValueError, match="keyholes.join_rings: expected rings, got none; do: "):
        keyholes.join_rings([])


def test_vertices_on_fifths_fill_the_same():
    rng = np.random.default_rng(5)
    for _ in range(20):
        ring = rng.random((11, 2)) * 50
        moved = yolo_folder.on_fifths(ring)
        assert np.abs(moved - ring).max() <= 0.1 + 1e-9
        one, other = (
            runlengths.fill([each.ravel().tolist()], height=50, width=50) for each in (ring, moved)
        )
        assert one == other


@pytest.fixture
def picture(tmp_path):
    """Returns a picture with a mask, a box, a point, nothing, and a mask with a hole."""
    path = tmp_path / "scene.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(path)
    size, square = (40, 60), [np.array([[0.1, 0.1], [0.5, 0.1], [0.5, 0.6], [0.1, 0.6]])]
    some = [
        of_text(outline.write_mask(square, digits=2), "<b>cup</b> & \x01", size),
        of_text("[0.10, 0.20, 0.90, 0.80]", "box", size, number=1, kind=Kind.BOX),
        of_text("[0.25, 0.50]", "point", size, number=2, kind=Kind.POINT),
        of_text("[].", "nothing", size, number=3),
        of_mask(next(odd_masks()), "hole", number=4),
    ]
    found = [Answer(told, place) for place, told in enumerate(some)]
    return Picture(key="scene.png", path=path, name="scene", number=7, answers=found)


def test_what_has_no_place_in_a_format_is_left_out(picture, tmp_path):
    categories = [Category(one.label, place + 1) for place, one in enumerate(picture.answers)]
    results = coco_json.result_records(picture, categories)
    assert [one["category_id"] for one in results] == [1, 2, 5]
    assert results[1]["bbox"] == [6, 8, 48, 24]
    assert [one["id"] for one in coco_json.annotation_records(picture, categories)] == [1, 5]
    written(tmp_path / "out", [picture], categories, ["yolo", "labelme", "folder", "voc", "masks"])
    assert len((tmp_path / "out/yolo/labels/predicted/scene.txt").read_text().splitlines()) == 2
    shapes = json.loads((tmp_path / "out/labelme/scene.json").read_text())["shapes"]
    assert [one["shape_type"] for one in shapes] == ["polygon", "rectangle", "point", "mask"]
    line = json.loads((tmp_path / "out/folder/predicted.jsonl").read_text())
    assert [one["objects"] for one in line["phrases"]] == [[0], [], [1]]
    masks = [np.asarray(Image.open(one)) for one in sorted((tmp_path / "out/masks").iterdir())]
    assert [int(one.sum()) // 255 for one in masks] == [one.area_px for one in picture.answers]
    assert {one.dtype.name for one in masks} == {"uint8"}
    palette = Image.open(tmp_path / "out/voc/SegmentationObject/scene.png")
    assert palette.mode == "P"
    assert {*np.unique(np.asarray(palette)).tolist()} == {0, 1, 2}


def test_a_drawing_is_whole_xml_without_markup_of_others(picture):
    text = svg.drawing(picture.answers, picture.size, source='a"b.png')
    root = ElementTree.fromstring(text)
    kinds = [one.tag.partition("}")[2] for one in root.iter()]
    assert [kinds.count(one) for one in ("path", "rect", "circle", "title", "b")] == [2, 1, 1, 4, 0]
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[0] == "<b>cup</b> & \N{REPLACEMENT CHARACTER} 0.250"


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are texts elsewhere")
@pytest.mark.parametrize("format", [*table.WHOLE, "yolo", "labelme", "voc", "svg", "masks"])
def test_a_picture_named_in_another_encoding_is_exported(picture, tmp_path, format):
    """As archives from Windows have them; the drawing leads to the bytes of the name."""
    path = tmp_path / os.fsdecode(b"caf\xe9\x1b.png")
    path.write_bytes(picture.path.read_bytes())
    name = answers.unique_names([str(path)])[0]
    odd = dataclasses.replace(picture, key=str(path), path=path, name=name)
    categories = [Category(one.label, place + 1) for place, one in enumerate(picture.answers)]
    written(tmp_path / "out", [odd], categories, [format])
    texts = [one for one in (tmp_path / "out").rglob("*") if one.suffix in (".svg", ".json")]
    for one in texts:
        one.read_bytes().decode()
    if format == "svg":
        (image,) = ElementTree.parse(texts[0]).iter("{http://www.w3.org/2000/svg}image")
        way = os.fsdecode(urllib.parse.unquote_to_bytes(image.get("href")))
        assert (texts[0].parent / way).resolve() == path


def test_an_overlay_of_one_answer_is_that_of_one(picture):
    alone = dataclasses.replace(picture, answers=picture.answers[:1])
    image = np.full((40, 60, 3), 90, np.uint8)
    want = overlay.draw(image, alone.answers[0].rings_unit)
    np.testing.assert_array_equal(mask_images.drawn_over(alone), want)
    both = mask_images.drawn_over(picture)
    assert both.shape == want.shape
    assert (both != want).any()


def test_names_never_meet():
    keys = ["a/x.png", "a/x.jpg", "a/y.png", "a/Y.png", "a/b/x.png", "a/../z.png", "a/.h.png"]
    names = answers.unique_names(keys)
    assert len({name.casefold() for name in names}) == len(keys)
    assert names[4] == "b/x"
    assert not any(part.startswith(".") for name in names for part in name.split("/"))
    assert answers.unique_names(["web/cup.png"]) == ["cup"]
    assert answers.unique_names(["/d/a b.png", "/d/ä.png"]) == ["a_b", "ä"]
    tricky = ["x.png", "x.jpg", f"{answers.unique_names(['x.png', 'x.jpg'])[0]}.png"]
    assert len({*answers.unique_names(tricky)}) == 3
    assert answers.unique_names([]) == []
    assert answers.unique_names(["."]) == ["_"]
    assert len({*answers.unique_names(["/", "/a", ".", "_"])}) == 4


def test_more_names_than_a_palette_has_are_refused():
    many = [Category(str(n), n) for n in range(300)]
    table.check(many, ["yolo"])
    with pytest.raises(ValueError, match="expected at most 254 names of objects for voc, got 300"):
        table.check(many, ["voc"])
