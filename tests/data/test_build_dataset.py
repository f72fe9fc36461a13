"""Proves builds: whole, the same whatever happened, without leaks, and honest about the data."""

import dataclasses
import errno
import json
import os
import random
import time
from pathlib import Path

import many_processes
import numpy as np
import published_formats as formats
import pytest
from built_data import build, records, tree
from PIL import Image

from seg_jax.data.build import claims, dataset, record_files
from seg_jax.data.formats import expected_sizes
from seg_jax.data.formats.annotations import Role
from seg_jax.geometry import bitmask


def family(root, *, images=3):
    """Makes two data sets that share images: val of the second holds train of the first."""
    formats.refer(root, "refcoco_unc", images=images)
    formats.refer(root, "refcocoplus_unc", images=images, first=3 - images + 1)
    return dataset.Plan(name="refcoco_unc", source=root, out=root / "out", records=2)


def test_a_build_holds_what_the_files_say(tmp_path):
    data, refs = formats.refer(tmp_path, "refcoco_unc")
    report = build(dataset.Plan(name="refcoco_unc", source=tmp_path, out=tmp_path / "out"))
    notes = {note["id"]: note for note in data["annotations"]}
    told = []
    for split in formats.SPLITS["refcoco_unc"]:
        for record in records(tmp_path / "out", "refcoco_unc", split):
            assert record.split == split
            path = tmp_path / "images/mscoco/images/train2014" / record.name
            assert record.image == path.read_bytes()
            for which, number in enumerate(record.ids):
                mask = bitmask.from_rle(record.rle(which))
                true = formats.true_mask(notes[number]["segmentation"])
                np.testing.assert_array_equal(mask, true)
                x, y, w, h = notes[number]["bbox"]
                np.testing.assert_array_equal(record.boxes_px[which], [x, y, x + w, y + h])
            told += [
                (split, record.image_id, record.ids[one.objects[0]], one.ref, one.id, one.text)
                for one in record.expressions
            ]
    wanted = [
        (ref["split"], ref["image_id"], ref["ann_id"], ref["ref_id"], s["sent_id"], s["sent"])
        for ref in refs
        for s in ref["sentences"]
    ]
    assert sorted(told) == sorted(wanted)
    assert report["splits"]["train"]["records"] == 3
    assert sum(one["expressions"] for one in report["splits"].values()) == len(wanted)
    # Three images are not what was published, and this is said.
    assert "refcoco_unc train: expected 42404 refs as published, got 6" in report["warnings"]
    assert report["annotated"]["val"] == {"refs": 6, "images": 3, "expressions": 12}


def test_published_sizes_are_not_complained_about():
    sizes = expected_sizes.SIZES["refcocog_umd"]
    assert expected_sizes.differences("refcocog_umd", sizes) == []
    less = sizes | {"val": sizes["val"]._replace(images=1299)}
    told = expected_sizes.differences("refcocog_umd", less)
    assert told == ["refcocog_umd val: expected 1300 images as published, got 1299"]


def leaky(root):
    """Makes the family: val of refCOCO+ has two, testA one of refCOCO's three train images."""
    formats.refer(root, "refcoco_unc", first=10)
    formats.refer(root, "refcocoplus_unc", images=2, first=8)
    return dataset.Plan(name="refcoco_unc", source=root, out=root / "out")


def test_no_image_of_another_val_or_test_split_is_trained_on(tmp_path):
    asked = leaky(tmp_path)
    leaks = build(asked)["leaks"]
    # refCOCO+ has 8, 9 in train, 10, 11 in val, 12, 13 in testA.
    assert leaks["train"]["train"]["images"] == 3
    assert leaks["by"] == {"refcocoplus_unc/testA": 1, "refcocoplus_unc/val": 2}
    assert "refcocog_umd" in leaks["not_there"]
    assert not [*asked.out.glob("*-train.*")]


def test_the_paper_keeps_leaks_and_they_are_counted(tmp_path):
    asked = dataclasses.replace(leaky(tmp_path), paper=True)
    leaks = build(asked)["leaks"]
    assert leaks["filter"] == "kept, as the paper does"
    assert leaks["train"]["train"] == {"images": 3, "of": 3, "expressions": 12}
    assert len(records(asked.out, "refcoco_unc", "train")) == 3


def test_leaks_are_of_chosen_editions(tmp_path):
    formats.refer(tmp_path, "refcoco_unc", first=10)
    formats.refer(tmp_path, "refcocoplus_unc", images=1, first=10)
    formats.refer(tmp_path, "refcocog_umd", images=1, first=10)
    asked = dataset.Plan(name="refcoco_unc", source=tmp_path, out=tmp_path / "out")
    # refCOCO+ has 10 in train, 11 in val, 12 in testA; refCOCOg has 11 in val, 12 in test.
    chosen = dataclasses.replace(asked, held_out=("refcocog_umd",), splits=("train",))
    leaks = build(chosen)["leaks"]
    assert leaks["by"] == {"refcocog_umd/test": 1, "refcocog_umd/val": 1}
    assert [one.image_id for one in records(asked.out, "refcoco_unc", "train")] == [10]
    missing = dataclasses.replace(chosen, held_out=("refcocog_google",), out=tmp_path / "other")
    with pytest.raises(ValueError, match=r"refs\(google\).p: expected the references"):
        build(missing)


def test_images_of_coco_are_held_out_too(tmp_path):
    formats.instances(tmp_path / "coco")
    formats.refer(tmp_path, "refcocog_umd", images=1, first=1)
    asked = dataset.Plan(name="coco_instances", source=tmp_path / "coco", out=tmp_path / "out")
    assert build(asked)["leaks"]["filter"].startswith("off: --family")
    asked = dataclasses.replace(asked, family=tmp_path, out=tmp_path / "safe")
    assert build(asked)["leaks"]["by"] == {"refcocog_umd/test": 1, "refcocog_umd/val": 1}
    assert [one.image_id for one in records(asked.out, "coco_instances", "train2017")] == [1]


def spoiled(root):
    """Makes a folder with one of every fault."""
    formats.folder(root)
    lines = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    good = lines[0]
    (root / "images/cut.jpg").write_bytes(
        formats.image(root / "images/whole.jpg", 9).read_bytes()[:700]
    )
    (root / "images/text.png").write_text("no image")
    formats.image(root / "images/grey.jpg", 5, mode="L")
    outside = [[-20.0, 5.0, 30.0, 5.0, 30.0, 30.0]]
    far = [[100.0, 100.0, 120.0, 100.0, 120.0, 120.0]]
    more = [
        {"image": "images/absent.png"},
        {"image": "images/cut.jpg"},
        {"image": "images/text.png"},
        {"image": "images/grey.jpg"},
        {"image": "images/1.png", "key": "other"},
        {"image": "images/1.png"},
        {
            "image": "images/2.png",
            "key": "odd",
            "objects": [
                {"segmentation": outside},
                {"segmentation": far},
                {"segmentation": [[1, 2, 3]]},
                {"segmentation": {"size": [9, 9], "counts": [81]}},
            ],
            "phrases": [
                {"text": "  half   out ", "objects": [0]},
                {"text": "half out", "objects": [0]},
                {"text": "all out", "objects": [1]},
                {"text": "both", "objects": [0, 1]},
                {"text": " ", "objects": [0]},
            ],
        },
        {
            "image": "images/2.png",
            "key": "nothing",
            "objects": [{"segmentation": far}],
            "phrases": [{"text": "all out", "objects": [0]}],
        },
    ]
    lines += [{**good, **one} for one in more]
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return dataset.Plan(name="folder", source=root, out=root / "out", records=3)


def test_faults_are_left_out_and_counted(tmp_path):
    asked = spoiled(tmp_path)
    report = build(asked)
    counts = {reason: one["count"] for reason, one in report["findings"].items()}
    assert counts == {
        "image left out: image is missing": 1,
        "image left out: image is damaged": 1,
        "image left out: file is no image that is read": 1,
        "image left out, as no object and no expression is left of it": 1,
        "object left out: a polygon has half a point": 1,
        "outline cut off at the border of the image": 1,
        "object left out, as no pixel of the image is in it": 2,
        "object left out: expected masks of the image's size": 1,
        "expression left out, as none of its objects is left": 2,
        "expression left out, as it has no text": 1,
        "expression kept without those of its objects that were left out": 1,
    }
    (told,) = report["findings"]["image left out: image is missing"]["examples"]
    assert told.startswith(
        f"train/images/absent.png ({tmp_path}/images/absent.png): expected an image, got "
    )
    assert report["images_repeated"] == {"train": 2}
    train = report["splits"]["train"]
    assert train["skipped"] == 4
    assert train["records"] == 6
    assert train["images_converted"] == 1
    assert train["expressions_repeated"] == 2  # "a fork" of both lines of one image, too.
    by_key = {one.key: one for one in records(asked.out, "folder", "train")}
    assert [one.text for one in by_key["train/odd"].expressions] == ["half out", "half out", "both"]
    with Image.open(tmp_path / "images/grey.jpg") as grey:
        wanted = np.asarray(grey.convert("RGB"))
    np.testing.assert_array_equal(by_key["train/images/grey.jpg"].pixels(), wanted)


def test_images_of_another_size_are_left_out(tmp_path):
    formats.refer(tmp_path, "refcoco_unc")
    place = tmp_path / "images/mscoco/images/train2014"
    formats.image(place / f"COCO_train2014_{1:012d}.jpg", 1, height=64, width=48)
    report = build(dataset.Plan(name="refcoco_unc", source=tmp_path, out=tmp_path / "out"))
    found = report["findings"]["image left out, as it is of another size than annotated"]
    assert found["count"] == 1
    assert "expected 48x64 as annotated, got 64x48" in found["examples"][0]


def test_turned_images_of_reasonseg_are_stored_upright(tmp_path):
    formats.reasonseg(tmp_path, images=1)
    path = tmp_path / "train" / "train_0.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    build(dataset.Plan(name="reasonseg", source=tmp_path, out=tmp_path / "out"))
    (record,) = records(tmp_path / "out", "reasonseg", "train")
    assert record.pixels().shape == (48, 64, 3)
    with Image.open(path) as image:
        raw = np.asarray(image)
    np.testing.assert_array_equal(record.pixels(), np.rot90(raw, -1))


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_repetition_change_nothing(tmp_path, workers):
    formats.refer(tmp_path, "grefcoco_unc")
    asked = dataset.Plan(name="grefcoco_unc", source=tmp_path, out=tmp_path / "a", records=2)
    build(asked)
    other = dataclasses.replace(asked, out=tmp_path / "b")
    build(other, workers=workers)
    first = tree(tmp_path / "a")
    assert tree(tmp_path / "b") == first
    times = {path: path.stat().st_mtime_ns for path in asked.out.glob("*.array_record-*")}
    build(asked)
    assert tree(tmp_path / "a") == first
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_changed_annotations_are_made_again(tmp_path):
    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out", records=1)
    build(asked)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace("both of them", "the two", 1))
    build(asked)
    told = [
        [one.text for one in each.expressions] for each in records(asked.out, "folder", "train")
    ]
    assert told[0] == ["the star", "the two", "a fork"]
    assert told[1] == ["the star", "both of them", "a fork"]


def survive(tmp_path, *, kills, workers, images, rng):
    """Kills a build so many times, at random; returns the files made before each kill."""
    root, out = tmp_path / "source", tmp_path / "killed"
    formats.refer(root, "refcoco_unc", images=images)
    whole = tmp_path / "whole"

    def begun(out, workers):
        asked = dataset.Plan(name="refcoco_unc", source=root, out=out, records=2)
        child = many_processes.nursery().Process(
            target=build, args=(asked,), kwargs={"workers": workers}
        )
        child.start()
        return child

    undisturbed = begun(whole, 1)
    undisturbed.join(timeout=300)
    assert undisturbed.exitcode == 0
    files = len([*whole.glob("*.array_record-*")])
    seen = []
    for kill in range(kills + 1):
        child = begun(out, workers)
        if kill == kills:
            child.join(timeout=300)
            assert child.exitcode == 0
            break
        # At some moment after some file, or before the first one.
        wanted = len(seen) * files // (kills + 1) if kill else 0
        while child.is_alive() and len([*out.glob(".parts/*")]) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        child.kill()
        child.join()
        seen.append(len([*out.glob("*.array_record-*")]))
        assert not (out / "dataset_info.json").exists()
        for path in out.glob("*.array_record-*"):
            assert path.read_bytes() == (whole / path.name).read_bytes()
    assert tree(out) == tree(whole)
    return seen


@pytest.mark.parametrize(
    ("kills", "workers"), [(10, 1), pytest.param(4, 2, marks=pytest.mark.slow)]
)
def test_a_build_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path, kills, workers):
    seen = survive(tmp_path, kills=kills, workers=workers, images=100, rng=random.Random(1))
    assert len(seen) == kills
    assert 0 < seen[-1] < 200
    assert len({*seen}) > kills // 2, seen


def test_a_half_written_file_is_never_taken_for_whole(tmp_path):
    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out", records=1)
    build(asked)
    whole = tree(asked.out)
    first = sorted(asked.out.glob("*train*"))[0]
    first.write_bytes(first.read_bytes()[:1000])
    (asked.out / record_files.UNFINISHED).mkdir()
    (asked.out / record_files.UNFINISHED / "left.1").write_bytes(b"half")
    (asked.out / record_files.PARTS / "train-00001.json").write_text("{")
    build(asked)
    assert tree(asked.out) == whole
    os.mkfifo(asked.out / record_files.UNFINISHED)  # Which `shutil.rmtree` waits at.
    build(asked)
    assert tree(asked.out) == whole


def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path, monkeypatch):
    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out", records=1)

    class Full:
        """Fails as the true writer does on a full disk, when it is closed."""

        def __init__(self, path, options):
            self.path = Path(path)

        def write(self, data):
            self.path.write_bytes(data[:100])

        def close(self):
            raise RuntimeError(
                f"write() failed: No space left on device; writing {self.path}; at byte 1048576"
            )

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Full)
    with pytest.raises(OSError, match="No space left") as told:
        build(asked)
    assert told.value.errno == errno.ENOSPC
    assert told.value.filename.startswith(str(asked.out))
    assert not [
        *asked.out.glob("*.array_record-*"),
        *(asked.out / record_files.UNFINISHED).iterdir(),
    ]
    monkeypatch.undo()
    build(asked)
    assert len(records(asked.out, "folder", "train")) == 3


def test_a_folder_belongs_to_one_build(tmp_path):
    asked = family(tmp_path)
    build(asked)
    with pytest.raises(
        ValueError, match="expected the build of paper=False, as before, got paper=True"
    ):
        build(dataclasses.replace(asked, paper=True))
    with dataset.claim_build(asked, anew=False), pytest.raises(ValueError, match="to work alone"):
        build(asked)
    other = tmp_path / "full"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with (
        pytest.raises(ValueError, match="expected a new folder or an unfinished build"),
        dataset.claim_build(dataclasses.replace(asked, out=other), anew=True),
    ):
        pass
    assert (other / "thesis.txt").exists()
    with dataset.claim_build(dataclasses.replace(asked, paper=True), anew=True):
        assert not [*asked.out.glob("*.array_record-*")]


def test_anew_leaves_files_of_others_alone(tmp_path):
    asked = family(tmp_path)
    build(asked)
    mine = [
        "notes.txt",
        "images/cat.jpg",
        ".parts/mine.txt",
        "annotations/a.jsonl",
        "x.array_record",
    ]
    for name in mine:
        (asked.out / name).parent.mkdir(exist_ok=True)
        (asked.out / name).write_text("mine")
    (asked.out / "linked").symlink_to(tmp_path / "images")
    before = tree(tmp_path / "images")
    with dataset.claim_build(dataclasses.replace(asked, paper=True), anew=True):
        assert set(tree(asked.out)) == {*mine, claims.CLAIM}
    assert (asked.out / "linked").is_symlink()
    assert tree(tmp_path / "images") == before


@pytest.mark.parametrize("name", ["source", "images", "family"])
@pytest.mark.parametrize("below", [".", "raw"])
def test_anew_removes_nothing_that_is_read(tmp_path, name, below):
    asked = family(tmp_path)
    build(asked)
    (asked.out / "raw").mkdir()
    whole = tree(asked.out)
    hostile = dataclasses.replace(asked, **{name: asked.out / below})
    with (
        pytest.raises(ValueError, match="expected a folder that nothing is read from") as error,
        dataset.claim_build(hostile, anew=True),
    ):
        pass
    assert "\n" not in str(error.value)
    assert tree(asked.out) == whole


def test_images_that_lie_elsewhere_are_told_at_once(tmp_path):
    formats.refer(tmp_path, "refcoco_unc", images=1)
    asked = dataset.Plan(name="refcoco_unc", source=tmp_path, out=tmp_path / "out")
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="do: --images DIR"):
        dataset.plan_files(asked)
    with pytest.raises(ValueError, match="got none of 4; do: --images DIR"):
        dataset.plan_files(dataclasses.replace(asked, images=tmp_path))
    found = tmp_path / "elsewhere/mscoco/images/train2014"
    assert len(dataset.plan_files(dataclasses.replace(asked, images=found)).tasks) == 4


def test_other_splits_are_told(tmp_path):
    formats.refer(tmp_path, "refcoco_unc", images=1)
    asked = dataset.Plan(name="refcoco_unc", source=tmp_path, out=tmp_path, splits=("test",))
    with pytest.raises(ValueError, match="expected some of testA, testB, train, val, got test"):
        dataset.plan_files(asked)


def test_images_without_objects_come_last(tmp_path):
    formats.folder(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    lines[0]["phrases"] = lines[0]["phrases"][2:]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out")
    report = build(asked)
    assert [one.key for one in records(asked.out, "folder", "train")] == [
        "train/images/1.png",
        "train/images/2.png",
        "train/images/0.png",
    ]
    assert report["splits"]["train"]["records_with_objects"] == 2


def test_roles_survive(tmp_path):
    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out")
    build(asked)
    assert records(asked.out, "folder", "val")[0].roles == (Role.OBJECT, Role.OBJECT, Role.IGNORED)


def test_only_data_that_may_be_cocos_own_are_compared_and_in_doubt():
    size = expected_sizes.Size(4, 4, 4)
    told = expected_sizes.differences("coco_instances", {"train2017": size, "mine": size})
    assert told[0].startswith("if this is the published COCO: coco_instances train2017: expected ")
    assert len(told) == 2
