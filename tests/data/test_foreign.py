"""Folders of other formats: one line says what was found there, and what to do."""

import json

import published_formats as formats
import pytest

from seg_jax.data.build import dataset
from seg_jax.data.formats import folder, foreign, reasonseg, refer

FOLDERS = {
    "YOLO": (["data.yaml", "train/labels/1.txt", "train/images/1.jpg"], "labels of YOLO"),
    "YOLO without its yaml": (["images/train/1.jpg", "labels/train/1.txt"], "labels of YOLO"),
    "Darknet": (["obj.names", "obj_train_data/1.txt"], "labels of YOLO"),
    "Roboflow": (["train/_annotations.coco.json", "train/1.jpg"], "COCO as Roboflow writes it"),
    "CreateML": (["train/_annotations.createml.json"], "boxes of CreateML"),
    "classes": (["train/_classes.csv", "train/1.jpg"], "classes of images"),
    "VOC": (["Annotations/a.xml", "JPEGImages/a.jpg"], "XML, as CVAT, LabelMe and Pascal VOC"),
    "CVAT": (["annotations.xml", "images/a.jpg"], "XML, as CVAT, LabelMe and Pascal VOC"),
    "saved": (["train/state.json", "train/dataset_info.json"], "a data set of Hugging Face's"),
    "tables": (["data/train.parquet"], "tables of Hugging Face's hub"),
    "records": (["train/train.tfrecord"], "records of another program"),
    "shards": (["a-train.tfrecord-00000-of-00002"], "records of another program"),
    "keypoints": (["annotations/person_keypoints_val.json"], "COCO without outlines"),
    "results": (["instances_val2014_fakesegm100_results.json"], "results of a detector"),
    "stuff": (["annotations/stuff_val.json"], "stuff of COCO"),
    "built": (["dataset_info.json", "a-train.array_record-00000-of-00001"], "a data set that is"),
    "archive": (["train2017.zip"], "an archive"),
    "images": (["a/b/c.JPG"], "images alone (a/b/c.JPG)"),
    "other": (["a.txt"], "other files (a.txt)"),
    "nothing": ([], "an empty folder"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_format_is_named(tmp_path, name):
    names, what = FOLDERS[name]
    for one in names:
        (tmp_path / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one).write_bytes(b"")
    found = foreign.found_instead(tmp_path)
    assert found.what.startswith(what)
    plan = dataset.Plan(name="coco_instances", source=tmp_path, out=tmp_path)
    readers = (
        lambda: folder.read(tmp_path),
        lambda: refer.references(tmp_path, refer.FAMILY["refcoco_unc"]),
        lambda: dataset.plan_files(plan),
    )
    if name == "Roboflow":  # It is read as COCO.
        readers = readers[:-1]
    if not any(tmp_path.glob("train/*.json")):
        readers += (lambda: reasonseg.read(tmp_path),)
    for read in readers:
        with pytest.raises(ValueError, match="expected .*, got .*; do: ") as caught:
            read()
        assert what in str(caught.value)
        assert str(caught.value).endswith(found.advice)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"version": "5", "shapes": [], "imagePath": "a.jpg"}, "JSON of LabelMe"),
        ({"annotations": [{"segmentation": {"counts": "0"}}]}, "masks as Segment Anything's"),
        ([{"id": 1, "completions": []}], "JSON of Label Studio"),
        ({"a": 1}, "JSON of another format"),
    ],
)
def test_json_of_another_format_is_named(tmp_path, value, what):
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert foreign.found_instead(tmp_path).what == f"{what} (a.json)"


def test_what_is_read_here_is_named_with_its_way(tmp_path):
    formats.instances(tmp_path / "coco", "val")
    formats.panoptic(tmp_path / "panoptic", "val")
    formats.refer(tmp_path / "refer", "grefcoco_unc", images=1)
    formats.folder(tmp_path / "folder")
    wanted = {
        "coco": "build coco_instances",
        "panoptic": "build coco_panoptic",
        "refer": "build the data set of this name",
        "folder": "build folder",
    }
    for name, advice in wanted.items():
        assert advice in foreign.found_instead(tmp_path / name).advice


def test_a_folder_of_countless_files_is_not_walked_through(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "MOST_NAMES", 5)
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "a.xml").touch()
    assert foreign.found_instead(tmp_path).what == "other files (0.txt)"


def test_where_nothing_is_left_the_commonest_reason_is_told(tmp_path):
    """unit-1: a data set in fractions ends in one line that says so."""
    ring = [0.1, 0.1, 0.6, 0.1, 0.6, 0.6]
    line = {"image": "a.jpg", "objects": [{"segmentation": [ring]}] * 3, "phrases": []}
    (tmp_path / "train.jsonl").write_text(f"{json.dumps(line)}\n5\n")
    plan = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out")
    (tmp_path / "a.jpg").touch()
    assert dataset.plan_files(plan).findings.counts == {
        "object left out: coordinates are fractions of the image, not pixels": 3,
        "line left out: expected object": 1,
    }
    (tmp_path / "train.jsonl").write_text("5\n[]\n7\n")
    with pytest.raises(ValueError, match="got none but 3 x line left out: expected object, first"):
        dataset.plan_files(plan)
    assert not (tmp_path / "out").exists()
