"""Holds the readers of published formats to what the files say, masks to pycocotools."""

import json
import os
import pickle

import cv2
import numpy as np
import published_formats as formats
import pytest

from seg_jax.data.formats import annotations, coco, folder, reasonseg, refer
from seg_jax.data.formats.annotations import Role
from seg_jax.geometry import bitmask


def mask_of(thing):
    return bitmask.from_rle(thing.outline.rle(48, 64))


@pytest.mark.parametrize("name", sorted(formats.SPLITS))
@pytest.mark.parametrize("protocol", [0, 2])
def test_the_refer_family_is_read(tmp_path, name, protocol):
    data, refs = formats.refer(tmp_path, name, images=2, protocol=protocol)
    edition = refer.FAMILY[name]
    images = tmp_path / (
        "images/saiapr_tc-12" if edition.images == "saiapr" else "images/mscoco/images/train2014"
    )
    read = refer.read(tmp_path, name, images)
    assert read.findings.counts == {}
    by_split = annotations.images_by_split(read.images)
    assert sorted(by_split) == sorted(formats.SPLITS[name])
    notes = {note["id"]: note for note in data["annotations"]}
    told = {}
    for entry in read.images:
        assert entry.image.is_file()
        assert entry.size == (48, 64)
        for thing in entry.objects:
            np.testing.assert_array_equal(
                mask_of(thing), formats.true_mask(notes[thing.id]["segmentation"])
            )
            x, y, width, height = notes[thing.id]["bbox"]
            assert thing.box_px == (x, y, x + width, y + height)
            assert thing.name == {1: "person", 2: "bicycle"}[notes[thing.id]["category_id"]]
        for one in entry.expressions:
            ids = [entry.objects[place].id for place in one.objects]
            told[entry.split, entry.image_id, one.ref, one.id] = (one.text, ids)
    wanted = {}
    for ref in refs:
        ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        for sentence in ref["sentences"]:
            key = (ref["split"], ref["image_id"], ref["ref_id"], sentence["sent_id"])
            wanted[key] = (sentence["sent"], [] if ids == [-1] else ids)
    assert told == wanted
    assert sum(read.refs.values()) == len(refs)


def test_images_of_refclef_may_lie_flat(tmp_path):
    formats.refer(tmp_path, "refclef_unc", images=1)
    for path in list((tmp_path / "images/saiapr_tc-12").rglob("*.jpg")):
        path.rename(tmp_path / "images/saiapr_tc-12" / path.name)
    read = refer.read(tmp_path, "refclef_unc", tmp_path / "images/saiapr_tc-12")
    assert all(entry.image.is_file() for entry in read.images)


def test_crowds_of_grefcoco_are_not_meant(tmp_path):
    data, _ = formats.refer(tmp_path, "grefcoco_unc", images=1)
    first = data["annotations"][0]
    first["iscrowd"] = 1
    (tmp_path / "grefcoco" / "instances.json").write_text(json.dumps(data))
    read = refer.read(tmp_path, "grefcoco_unc", tmp_path)
    entry = next(entry for entry in read.images if entry.image_id == first["image_id"])
    texts = {
        one.text: [entry.objects[place].id for place in one.objects] for one in entry.expressions
    }
    assert texts["both of them"] == [data["annotations"][1]["id"]]
    assert f"the one {first['id']}" not in texts
    # The reference of its own, and that of both.
    assert read.findings.counts == {
        "reference left out: it means crowds only": 1,
        "reference kept without the crowds that it means": 1,
    }


def test_references_to_nothing_are_told(tmp_path):
    _, refs = formats.refer(tmp_path, "refcoco_unc", images=1)
    refs[0]["ann_id"], refs[2]["image_id"] = 999_999, 888_888
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    read = refer.read(tmp_path, "refcoco_unc", tmp_path)
    assert sum(len(entry.expressions) for entry in read.images) == sum(
        len(ref["sentences"]) for place, ref in enumerate(refs) if place not in (0, 2)
    )
    lines = read.findings.lines()
    assert [line.partition(", first")[0] for line in lines] == [
        "1 x reference left out: its image is not listed",
        "1 x reference left out: its objects are not listed",
    ]
    assert "888888" in lines[0]
    assert "999999" in lines[1]


def test_references_are_a_list(tmp_path):
    _, refs = formats.refer(tmp_path, "refcoco_unc", images=1)
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps({"refs": refs}, 2))
    with pytest.raises(ValueError, match="expected a list of references, got a dict of 1; do: get"):
        refer.read(tmp_path, "refcoco_unc", tmp_path)


def test_a_hostile_file_of_references_runs_nothing(tmp_path):
    formats.refer(tmp_path, "refcoco_unc", images=1)

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'touched'}",)

    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Attack()], 2))
    with pytest.raises(ValueError, match="could run code; none was run"):
        refer.read(tmp_path, "refcoco_unc", tmp_path)
    assert not (tmp_path / "touched").exists()


def test_coco_instances_are_read(tmp_path):
    data = formats.instances(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    read = coco.read_instances(path, images=tmp_path / "train2017", split="train2017")
    notes = {note["id"]: note for note in data["annotations"]}
    assert [entry.image_id for entry in read.images] == [1, 2, 3]
    for entry in read.images:
        assert [thing.role for thing in entry.objects] == [Role.OBJECT] * 3 + [Role.CROWD]
        for thing in entry.objects:
            mask = formats.true_mask(notes[thing.id]["segmentation"])
            np.testing.assert_array_equal(mask_of(thing), mask)
        for one in entry.expressions:
            meant = {place for place, thing in enumerate(entry.objects) if thing.name == one.text}
            assert {*one.objects} == meant
        assert sorted(one.text for one in entry.expressions) == ["bicycle", "person"]


def test_coco_panoptic_is_read(tmp_path):
    data, numbers = formats.panoptic(tmp_path)
    annotations = tmp_path / "annotations"
    read = coco.read_panoptic(
        annotations / "panoptic_val2017.json",
        numbers=annotations / "panoptic_val2017",
        images=tmp_path,
        split="val2017",
    )
    assert len(read.images) == 2
    for entry, note in zip(read.images, data["annotations"], strict=True):
        assert [thing.id for thing in entry.objects] == [s["id"] for s in note["segments_info"]]
        for thing in entry.objects:
            np.testing.assert_array_equal(mask_of(thing), numbers[entry.image_id] == thing.id)
        assert [(one.text, one.objects) for one in entry.expressions] == [
            ("person", (0, 1)),
            ("sky-other-merged", (2,)),
        ]


def test_reasonseg_is_read_as_lisa_reads_it(tmp_path):
    notes = formats.reasonseg(tmp_path)
    read = reasonseg.read(tmp_path)
    assert [entry.split for entry in read.images] == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    for entry in read.images:
        note = notes[entry.key]
        assert [one.text for one in entry.expressions] == note["text"]
        assert all(one.sentence == note["is_sentence"] for one in entry.expressions)
        assert all(one.objects == (0,) for one in entry.expressions)
        # The largest first, each with its outline, over one canvas.
        wanted = np.zeros((48, 64), np.uint8)
        for shape in note["shapes"]:
            if shape["label"] != "flag":
                points = np.array([shape["points"]], np.float64).astype(np.int32)
                label = 255 if shape["label"] == "ignore" else 1
                cv2.polylines(wanted, points, True, label, 1)
                cv2.fillPoly(wanted, points, label)
        np.testing.assert_array_equal(mask_of(entry.objects[0]), wanted == 1)
        ignored = entry.objects[1:]
        assert len(ignored) == (wanted == 255).any()
        for thing in ignored:
            assert thing.role is Role.IGNORED
            np.testing.assert_array_equal(mask_of(thing), wanted == 255)


def test_a_folder_of_ones_own_is_read(tmp_path):
    lines = formats.folder(tmp_path)
    read = folder.read(tmp_path)
    assert [entry.key for entry in read.images] == [
        f"{split}/images/{number}.png" for number, split in enumerate(["train"] * 3 + ["val"])
    ]
    for entry, line in zip(read.images, lines, strict=True):
        for thing, one in zip(entry.objects, line["objects"], strict=True):
            segmentation = one["segmentation"]
            segmentation = [segmentation] if isinstance(segmentation, dict) else segmentation
            np.testing.assert_array_equal(mask_of(thing), formats.true_mask(segmentation))
        told = [{"text": one.text, "objects": [*one.objects]} for one in entry.expressions]
        assert told == line["phrases"]
        assert [thing.role for thing in entry.objects] == [Role.OBJECT, Role.OBJECT, Role.IGNORED]


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"expected files SPLIT\.jsonl"):
        folder.read(tmp_path)
    with pytest.raises(ValueError, match="expected the folders train, val and test"):
        reasonseg.read(tmp_path)
    formats.refer(tmp_path, "refcoco_unc", images=1)
    (tmp_path / "refcoco" / "refs(unc).p").unlink()
    with pytest.raises(ValueError, match="expected the references of refcoco"):
        refer.read(tmp_path, "refcoco_unc", tmp_path)
