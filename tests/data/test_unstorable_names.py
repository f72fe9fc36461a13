"""Texts that no file of UTF-8 can hold (halves of surrogates, other encodings) cost themselves."""

import json
import os
import sys

import label_folders as labels
import published_formats as formats
import pytest

HALF = "\ud800cup"


def change(path, do):
    """Changes the JSON of a file in place."""
    value = json.loads(path.read_text())
    do(value)
    path.write_text(json.dumps(value))


def result_of(tasks):
    return tasks[0]["annotations"][0]["result"][0]


def text_result(tasks):
    task = tasks[0]["annotations"][0]["result"]
    one = {"id": task[0]["id"], "type": "textarea", "value": {"text": ["red", HALF]}}
    task.append(one)


@pytest.mark.parametrize(
    ("name", "file", "do", "reason"),
    [
        (
            "label_studio",
            "*.json",
            lambda tasks: result_of(tasks)["value"].update(polygonlabels=[HALF]),
            "region left out: its label has lone surrogates or is too long",
        ),
        (
            "label_studio",
            "*.json",
            text_result,
            "texts left out: expected str without lone surrogates at text[]",
        ),
        (
            "label_studio",
            "*.json",
            lambda tasks: tasks[0].update(data={"image": f"{HALF}.png"}),
            "task left out: it names no image",
        ),
        (
            "labelme",
            "*/0.json",
            lambda value: value["shapes"][0].update(label=HALF),
            "shape left out: expected str without lone surrogates at label",
        ),
    ],
)
def test_half_a_surrogate_costs_itself(tmp_path, name, file, do, reason):
    getattr(labels, name)(tmp_path, labels.pictures())
    before, met = labels.records(name, tmp_path)
    assert met.counts == {}
    (path, *_) = sorted(tmp_path.glob(file)) or sorted(tmp_path.rglob(file))
    change(path, do)
    after, met = labels.records(name, tmp_path)
    assert met.counts.get(reason) == 1, met.counts
    assert len(after) >= len(before) - 1


def test_classes_of_yolo_with_half_a_surrogate_have_no_name(tmp_path):
    labels.yolo(tmp_path, labels.pictures())
    (path,) = tmp_path.glob("*.yaml")
    text = path.read_text()
    path.write_text(text.replace("cup", '"\\ud800"'))
    assert path.read_text() != text
    _, met = labels.records("yolo", tmp_path)
    assert met.counts["class without a name"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are texts elsewhere")
@pytest.mark.parametrize("name", ["yolo", "ecssd"])
def test_a_file_named_in_another_encoding_costs_itself(tmp_path, name):
    """As archives from Windows have them."""
    if name == "yolo":
        labels.yolo(tmp_path, labels.pictures())
    else:
        formats.masks(tmp_path, name, images=3)
    before, _ = labels.records(name, tmp_path)
    stem = next(one for one in tmp_path.rglob("*") if one.suffix in (".png", ".jpg")).stem
    for path in sorted(one for one in tmp_path.rglob(f"{stem}.*") if one.is_file()):
        path.rename(path.with_name(os.fsdecode(b"caf\xe9" + path.suffix.encode())))
    after, met = labels.records(name, tmp_path)
    assert met.counts == {"image left out, as the name of its file is no UTF-8": 1}
    assert "caf\\udce9" in met.lines()[0]
    assert len(after) == len(before) - 1
