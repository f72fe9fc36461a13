"""Holds builds to telling all that they leave out or change, each time alike."""

import dataclasses
import json
import math
import os

import published_formats as formats
import pytest
from built_data import build, records, tree
from PIL import Image

from seg_jax.data import sources
from seg_jax.data.build import dataset, record_files
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations
from seg_jax.data.formats.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Expression,
    PngSegment,
    Polygons,
    RunLengths,
)

POLYGON = [10.0, 10.0, 40.0, 10.0, 40.0, 30.0, 10.0, 30.0]


def own_data(root, *, pictures, missing=()):
    """Makes data of one's own: a line a picture, an object in each; some pictures are missing."""
    lines = []
    for number, name in enumerate((*missing, *pictures)):
        if name in pictures:
            formats.image(root / name, number)
        thing = {"segmentation": [POLYGON], "name": "cup"}
        phrases = [{"text": f"cup {number}", "objects": [0]}]
        lines.append({"image": name, "objects": [thing], "phrases": phrases})
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return dataset.Plan(name="folder", source=root, out=root / "out", records=4)


def test_missing_pictures_are_skipped_and_counted(tmp_path):
    """missing-1: six that are missing before one that exists."""
    asked = own_data(tmp_path, pictures=["6.jpg"], missing=[f"{n}.jpg" for n in range(6)])
    report = build(asked)
    found = report["findings"]["image left out: image is missing"]
    assert found["count"] == 6
    assert found["examples"][0] == f"train/0.jpg ({tmp_path}/0.jpg): expected an image, got no file"
    assert report["splits"]["train"]["records"] == 1
    assert len(records(asked.out, "folder", "train")) == 1


def test_a_set_without_any_picture_is_refused_with_an_option_that_exists(tmp_path):
    """missing-1: the option of the advice is read."""
    asked = own_data(tmp_path / "lines", pictures=["a.jpg", "b.jpg"])
    (tmp_path / "lines" / "a.jpg").rename(tmp_path / "a.jpg")
    (tmp_path / "lines" / "b.jpg").unlink()
    with pytest.raises(ValueError, match="got none of 2; do: --images DIR"):
        build(asked)
    assert build(dataclasses.replace(asked, images=tmp_path))["splits"]["train"]["records"] == 1


def test_ten_examples_of_a_reason_are_kept(tmp_path):
    asked = own_data(tmp_path, pictures=["z.jpg"], missing=[f"{n:02d}.jpg" for n in range(15)])
    report = build(asked)
    found = report["findings"]["image left out: image is missing"]
    assert found["count"] == 15
    assert [one.split()[0] for one in found["examples"]] == [
        f"train/{n:02d}.jpg" for n in range(10)
    ]


def test_two_builds_of_a_text_named_jpg_are_the_same_bytes(tmp_path):
    """text-1, key-1: whatever the number of processes."""
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"])
    (tmp_path / "b.jpg").write_text("no picture")
    (tmp_path / "e.jpg").write_text("another")
    first = build(asked)
    found = first["findings"]["image left out: file is no image that is read"]
    assert found["count"] == 2
    assert " at 0x" not in json.dumps(first)
    again = dataclasses.replace(asked, out=tmp_path / "again", records=4)
    build(again, workers=2)
    assert tree(again.out) == tree(asked.out)


def annotated(tmp_path, *outlines, texts=("it",)):
    """Returns an image with an object a outline and expressions that mean the first one."""
    formats.image(tmp_path / "a.jpg", 1)
    things = tuple(AnnotatedObject(n, outline) for n, outline in enumerate(outlines))
    told = tuple(Expression(n, text, (0,)) for n, text in enumerate(texts))
    return AnnotatedImage("train/a", "train", tmp_path / "a.jpg", 1, things, told)


@pytest.mark.parametrize(
    ("outline", "told"),
    [
        (RunLengths(({"size": [9, 9], "counts": [81]},)), "masks of the image's size"),
        (RunLengths(({"size": [48, 64], "counts": "b'abc'"},)), "object left out: "),
        (Polygons(((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),)), "x and y of each point"),
        (Polygons(((math.nan, 2.0, 3.0, 4.0, 5.0, 6.0),)), "polygons of finite pixels"),
        (Polygons(((1.0, 2.0, 3.0, 4.0),)), "no pixel of the image is in it"),
        (Polygons(((100.0, 100.0, 120.0, 100.0, 120.0, 120.0),)), "no pixel of the image is in it"),
    ],
)
def test_every_broken_outline_has_its_own_reason(tmp_path, outline, told):
    """why-1: and the reasons of an image that is left out are not lost with it."""
    met = Findings()
    with pytest.raises(record_files.BrokenImage, match="no object and no expression is left"):
        record_files.build_record(annotated(tmp_path, outline), met)
    reasons = [reason for reason in met.counts if reason.startswith("object left out")]
    assert len(reasons) == 1
    assert told in reasons[0]
    (example,) = met.examples[reasons[0]]
    assert example.startswith(f"train/a ({tmp_path}/a.jpg), object 0")


def test_a_missing_or_odd_png_of_segments_is_told(tmp_path):
    """why-1: the file of the panoptic segments is named."""
    met = Findings()
    image = annotated(tmp_path, PngSegment(tmp_path / "absent.png", 7))
    with pytest.raises(record_files.BrokenImage):
        record_files.build_record(image, met)
    (example,) = next(iter(met.examples.values()))
    assert "absent.png" in example


def test_outlines_cut_off_and_expressions_dropped_are_told(tmp_path):
    met = Findings()
    image = annotated(
        tmp_path, Polygons(((-20.0, 5.0, 30.0, 5.0, 30.0, 30.0),)), texts=(" ", "a", "a")
    )
    record, counts = record_files.build_record(image, met)
    assert [one.text for one in record.expressions] == ["a", "a"]
    assert counts["expressions_repeated"] == 1
    assert met.counts == {
        "outline cut off at the border of the image": 1,
        "expression left out, as it has no text": 1,
    }
    (example,) = met.examples["outline cut off at the border of the image"]
    assert example.endswith("object 0: reaches 20.0 pixels beyond 48x64")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_strict_build_ends_with_its_first_finding(tmp_path, workers):
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg"], missing=["x.jpg", "y.jpg", "z.jpg"])
    strict = dataclasses.replace(asked, strict=True, records=2)
    line = (
        r"strict: expected nothing .*, got image left out: image is missing: .*/x.jpg \(.*x.jpg\)"
    )
    with pytest.raises(ValueError, match=line):
        build(strict, workers=workers)
    assert not (asked.out / "dataset_info.json").exists()
    build(dataclasses.replace(strict, strict=False))
    with pytest.raises(ValueError, match=line):  # What was made before is no way around it.
        build(strict)


def test_a_strict_build_takes_images_without_annotations_for_what_they_are(tmp_path):
    """They are no mistake; an annotation that is not taken is one."""
    asked = coco_files(tmp_path / "coco", NAMES)
    path = tmp_path / "coco" / "annotations" / "instances_val.json"
    data = json.loads(path.read_text())
    data["images"].append({"id": 77, "file_name": "empty.jpg", "height": 48, "width": 64})
    path.write_text(json.dumps(data))
    strict = dataclasses.replace(asked, strict=True)
    assert build(strict)["findings"][annotations.NONE_TAKEN]["count"] == 1
    data["annotations"].append({"id": 999, "image_id": 77, "segmentation": []})
    path.write_text(json.dumps(data))
    with pytest.raises(
        ValueError,
        match=r"strict: expected nothing .* got annotation left out: it has no .*; do: outline",
    ):
        build(strict)


def test_a_strict_build_takes_lines_without_objects_for_what_they_are(tmp_path):
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg"])
    path = tmp_path / "train.jsonl"
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second | {'objects': [], 'phrases': []})}")
    report = build(dataclasses.replace(asked, strict=True))
    assert report["splits"]["train"]["records"] == 1
    assert report["findings"][annotations.NONE_THERE]["count"] == 1


def test_what_can_be_done_stands_behind_every_reason(tmp_path):
    """Once a reason, in the report and in its line."""
    asked = own_data(tmp_path, pictures=["a.jpg"], missing=["x.jpg", "y.jpg"])
    flat = {"image": "a.jpg", "objects": [{"segmentation": [[1, 1, 2, 2]]}], "phrases": []}
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(f"{json.dumps(flat)}\n{{\n")
    met = Findings.from_json(build(asked)["findings"])
    assert len(met.counts) == 3
    for line in met.lines():
        assert line.count("; do: ") == 1, line


def die(task):
    os.kill(os.getpid(), 9)


def test_a_worker_that_dies_is_told_and_what_is_done_stays(tmp_path, monkeypatch):
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg"])
    with monkeypatch.context() as patch:
        patch.setattr(record_files, "make_file", die)
        with pytest.raises(ValueError, match=r"got one that died, .*; do: run the same command"):
            build(asked, workers=2)
    assert build(asked)["splits"]["train"]["records"] == 2


def test_a_strict_build_of_good_data_is_a_build(tmp_path):
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg"])
    report = build(dataclasses.replace(asked, strict=True))
    assert report["findings"] == {}
    assert report["splits"]["train"]["records"] == 2


def test_what_runs_will_pass_over_is_told_when_data_are_built(tmp_path):
    """ratio-1: a picture of 900 x 3."""
    asked = own_data(tmp_path, pictures=["a.jpg"])
    formats.image(tmp_path / "a.jpg", 1, height=3, width=900)
    (tmp_path / "train.jsonl").write_text(
        (tmp_path / "train.jsonl").read_text().replace("10.0", "0.0")
    )
    report = build(asked)
    assert report["splits"]["train"]["records"] == 1
    (reason,) = report["limits"]
    assert reason == (
        "passed over by models of scaled images (Qwen): expected an aspect ratio of at most 200"
    )
    assert report["limits"][reason]["examples"] == [
        f"train/a.jpg ({tmp_path}/a.jpg): 3 x 900 pixels, 1 masks"
    ]


def test_objects_that_nothing_names_are_told_when_data_are_built(tmp_path):
    """The build looked well, and every run said that there were no objects."""
    asked = own_data(tmp_path, pictures=["a.jpg"])
    line = json.loads((tmp_path / "train.jsonl").read_text())
    (tmp_path / "train.jsonl").write_text(
        json.dumps(line | {"phrases": [], "objects": [{"segmentation": [POLYGON]}]})
    )
    limits = build(asked)["limits"]
    (told,) = limits.values()
    assert [*limits] == ["split refused by runs that ask for objects: no expression means one"]
    assert told["examples"] == ["train: 1 objects"]
    with pytest.raises(ValueError, match=r"got none for 1 objects; do: name them .*build\.json"):
        len(sources.Built(folders=(asked.out,), split="train"))


def turned(tmp_path, orientation, *, height, width, **fields):
    """Returns an annotated JPEG whose camera was held in some way."""
    image = annotated(tmp_path, Polygons(((1.0, 1.0, 20.0, 1.0, 20.0, 20.0),)))
    formats.image(tmp_path / "a.jpg", 1, height=height, width=width)
    with Image.open(tmp_path / "a.jpg") as file:
        exif = file.getexif()
        exif[0x0112] = orientation
        file.save(tmp_path / "a.jpg", exif=exif)
    return dataclasses.replace(image, **fields)


@pytest.mark.parametrize(
    ("orientation", "shape", "size", "stored", "told"),
    [
        (6, (64, 64), None, (64, 64), "kept as stored"),
        (6, (48, 64), None, (48, 64), "kept as stored"),
        (6, (48, 64), (48, 64), (48, 64), ""),
        (6, (48, 64), (64, 48), (64, 48), "turned as its EXIF note says"),
        (6, (64, 64), (64, 64), (64, 64), "kept as stored"),
        (3, (48, 64), (48, 64), (48, 64), "kept as stored"),
        (1, (48, 64), None, (48, 64), ""),
    ],
)
def test_one_rule_turns_images_and_a_doubt_is_told(
    tmp_path, orientation, shape, size, stored, told
):
    """exif-1: outlines are of the stored pixels unless the annotation tells otherwise."""
    met = Findings()
    image = turned(tmp_path, orientation, height=shape[0], width=shape[1], size=size)
    record, _ = record_files.build_record(image, met)
    assert (record.height, record.width) == record.pixels().shape[:2] == stored
    assert [told in reason for reason in met.counts] == [True] * bool(told)
    if orientation != 1 and size is None:
        upright = dataclasses.replace(image, upright=True)
        record, _ = record_files.build_record(upright, met := Findings())
        assert (record.height, record.width) == shape[::-1]
        assert met.counts == {}


def coco_files(root, names, *, notes=(), categories=({"id": 1, "name": "cup"},)):
    """Makes COCO's instances of pictures of some names, an object in each; returns the plan."""
    images = [
        {"id": n, "file_name": name, "height": 48, "width": 64} for n, name in enumerate(names)
    ]
    listed = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": [POLYGON], "iscrowd": 0}
        for n in range(len(names))
    ]
    for number, name in enumerate(names):
        formats.image(root / "val" / name, number)
    for note, changes in zip(listed, notes, strict=False):
        note.update(changes)
    data = {"images": images, "annotations": listed, "categories": list(categories)}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_val.json").write_text(json.dumps(data))
    return dataset.Plan(name="coco_instances", source=root, out=root / "out")


NAMES = ["a/1.jpg", "b/1.jpg", "p.jpg", "p.png"]


def test_pictures_of_one_stem_are_all_kept(tmp_path):
    """name-1: identity is the path; the second of each pair was dropped as listed twice."""
    asked = coco_files(tmp_path / "coco", NAMES)
    report = build(asked)
    assert report["findings"] == {}
    assert [one.key for one in records(asked.out, "coco_instances", "val")] == [
        f"val/{name}" for name in NAMES
    ]
    own = own_data(tmp_path / "own", pictures=NAMES)
    assert build(own)["splits"]["train"]["records"] == 4
    assert len({one.image for one in records(own.out, "folder", "train")}) == 4


def test_lines_of_one_picture_are_one_image(tmp_path):
    """line-1: a line a phrase; the later phrases were lost."""
    asked = own_data(tmp_path, pictures=["a.jpg"])
    line = json.loads((tmp_path / "train.jsonl").read_text())
    more = json.loads(json.dumps(line))
    more["phrases"][0]["text"] = "the mug"
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(more)}\n")
    build(asked)
    (record,) = records(asked.out, "folder", "train")
    assert sorted(one.text for one in record.expressions) == ["cup 0", "the mug"]


@pytest.mark.parametrize(
    ("changes", "categories"),
    [
        ({"category_id": "1"}, ({"id": 1, "name": "cup"},)),
        ({"category_id": 7}, ({"id": 1, "name": "cup"},)),
        ({}, ()),
        ({}, ({"id": 1, "name": "cup"}, {"id": 1, "name": "mug"})),
        ({}, ({"id": 1, "name": None},)),
    ],
)
def test_categories_that_do_not_fit_are_told(tmp_path, changes, categories):
    """cat-1, null-1: objects without a phrase, without a word."""
    asked = coco_files(tmp_path, ["p0.jpg", "p1.jpg"], notes=[changes], categories=categories)
    try:
        report = build(asked)
    except ValueError as error:
        told = str(error)
    else:
        told = json.dumps(report["findings"])
        phrases = [t.text for r in records(asked.out, asked.name, "val") for t in r.expressions]
        assert {*phrases} <= {"cup", "mug"}
    assert "categor" in told


@pytest.mark.parametrize(
    ("box", "stored"),
    [
        ((10.0, 10.0, 40.0, 30.0), (10, 10, 40, 30)),
        ((8.0, 11.5, 42.5, 30.0), (8, 11.5, 42.5, 30)),
        ((10.0, 10.0, 40.0, 40.0), (10, 10, 40, 30)),
        ((500.0, 500.0, 530.0, 520.0), (10, 10, 40, 30)),
        (None, (10, 10, 40, 30)),
    ],
)
def test_a_box_that_does_not_fit_its_outline_is_not_stored(tmp_path, box, stored):
    formats.image(tmp_path / "a.jpg", 1)
    one = AnnotatedObject(7, Polygons((tuple(POLYGON),)), box_px=box)
    entry = AnnotatedImage(
        key="train/a.jpg",
        split="train",
        image=tmp_path / "a.jpg",
        image_id=0,
        objects=(one,),
        expressions=(),
    )
    met = Findings()
    record, _ = record_files.build_record(entry, met)
    assert tuple(record.boxes_px[0]) == stored
    told = "box does not fit its outline: the outline's own is taken"
    assert met.counts == ({} if box in (stored, None) else {told: 1})


def test_fractions_are_not_taken_for_pixels(tmp_path):
    """unit-1: a mask of one pixel was made of them."""
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg"])
    lines = [json.loads(one) for one in (tmp_path / "train.jsonl").read_text().splitlines()]
    lines[0]["objects"][0]["segmentation"] = [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6, 0.1, 0.6]]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    report = build(asked)
    assert report["splits"]["train"]["records"] == 1
    assert "fraction" in json.dumps(report["findings"])


def test_pictures_that_were_added_or_replaced_are_built_anew(tmp_path):
    """The same command again; a time of change alone changes no byte of what was made."""
    asked = own_data(tmp_path, pictures=["a.jpg"], missing=["b.jpg"])
    assert build(asked)["splits"]["train"]["records"] == 1
    formats.image(tmp_path / "b.jpg", 7)
    report = build(asked)
    assert (report["splits"]["train"]["records"], report["findings"]) == (2, {})
    before = [one.image for one in records(asked.out, "folder", "train")]
    made = {name: data for name, data in tree(asked.out).items() if ".parts" not in name}
    os.utime(tmp_path / "b.jpg", ns=(1, 1))
    build(asked)
    assert {name: data for name, data in tree(asked.out).items() if ".parts" not in name} == made
    formats.image(tmp_path / "b.jpg", 8)
    build(asked)
    after = [one.image for one in records(asked.out, "folder", "train")]
    assert (tmp_path / "b.jpg").read_bytes() in after
    assert after != before
    (tmp_path / "b.jpg").unlink()
    assert "image left out: image is missing" in build(asked)["findings"]


def test_a_png_of_segments_that_was_repaired_is_read_anew(tmp_path):
    images = [annotated(tmp_path, PngSegment(tmp_path / "numbers.png", 7))]
    (task,) = record_files.tasks_of_split("coco_panoptic", "train", images, out=tmp_path, records=1)
    assert record_files.make_file(task)["records"] == 0
    Image.new("RGB", (64, 48), (7, 0, 0)).save(tmp_path / "numbers.png")
    assert record_files.make_file(task)["records"] == 1


def spoiled(tmp_path, change):
    """Makes data of one's own of two pictures, with the first line changed; returns the plan."""
    asked = own_data(tmp_path, pictures=["a.jpg", "b.jpg"])
    lines = [json.loads(one) for one in (tmp_path / "train.jsonl").read_text().splitlines()]
    change(lines)
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return asked


def test_where_nothing_is_left_the_readers_reason_is_told(tmp_path):
    def to_fractions(lines):
        for line in lines:
            line["objects"][0]["segmentation"] = [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6]]

    with pytest.raises(dataset.NothingKept, match="got none that can be kept: .*fraction") as told:
        build(spoiled(tmp_path, to_fractions))
    assert len(told.value.findings.counts) > 1


@pytest.mark.parametrize("text", ["", "no line\n", '{"image": 3}\n'])
def test_a_split_of_which_no_line_can_be_taken_is_told(tmp_path, text):
    asked = own_data(tmp_path, pictures=["a.jpg"])
    (tmp_path / "val.jsonl").write_text(text)
    found = build(asked)["findings"]["split without images"]
    told = {"count": 1, "examples": [str(tmp_path / "val.jsonl")]}
    assert found == told | {"do": "fill or correct the file, or remove it"}


def test_a_file_of_coco_without_images_is_told(tmp_path):
    asked = coco_files(tmp_path, ["p.jpg"])
    (tmp_path / "train").mkdir()
    empty = tmp_path / "annotations" / "instances_train.json"
    empty.write_text('{"images": [], "annotations": [], "categories": []}')
    assert build(asked)["findings"]["split without images"]["examples"] == [str(empty)]


def test_findings_name_the_place_of_an_object_and_a_phrase_in_their_line(tmp_path):
    def spoil(lines):
        good, bad = lines[0]["objects"][0], {"segmentation": [[1, 2, 3]]}
        outside = {"segmentation": [[100, 100, 120, 100, 120, 120]]}
        lines[0]["objects"] = [bad, good, outside]
        texts = [{"text": "a", "objects": [0]}, {"text": "b", "objects": [1]}]
        lines[0]["phrases"] = [*texts, {"text": " ", "objects": [1]}]
        lines.append({"image": "a.jpg", "objects": [outside, good], "phrases": []})

    asked = spoiled(tmp_path, spoil)
    found = build(asked)["findings"]
    (example,) = found["object left out, as no pixel of the image is in it"]["examples"]
    assert example.endswith("object 2")
    (example,) = found["expression left out, as it has no text"]["examples"]
    assert example.endswith("expression 2")


def test_a_doubt_about_a_turned_image_tells_what_to_do(tmp_path):
    met = Findings()
    record_files.build_record(turned(tmp_path, 6, height=48, width=64), met)
    (line,) = met.lines()
    assert '; do: set "upright": true if outlines are of the turned image, false if of' in line
