"""Tables of Hugging Face's datasets: Arrow as Parquet, and objects in a column of their own."""

import json
import random

import label_folders as labels
import numpy as np
import published_formats as formats
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from seg_jax.data import image_files
from seg_jax.data.formats import arrow_rows, huggingface, table_rows
from seg_jax.data.formats.conventions import Numbers
from seg_jax.data.formats.conversations import Rules

SIZE = (48, 64)
BOXES = [[8, 10, 16, 20], [40, 5, 20, 40], [30, 20, 10, 12]]
"""x, y, width, height."""
NAMES = ["cup", "fork"]


def png(folder, value):
    path = folder / f"{value}.png"
    Image.fromarray(np.full((*SIZE, 3), value, np.uint8)).save(path)
    return {"bytes": path.read_bytes(), "path": path.name}


def corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def mask(box):
    x0, y0, x1, y1 = corners(box)
    return formats.rectangle(y0, x0, y1, x1, *SIZE)


def rows(tmp_path, *, count=5, change=lambda box: box, listed=False, **changes):
    """Returns rows of images with objects, a list of them or an object of lists."""
    found = []
    for number in range(count):
        objects = [
            {"bbox": [float(one) for one in change(box)], "category": place % 2} | changes
            for place, box in enumerate(BOXES)
        ]
        if not listed:
            objects = {name: [one[name] for one in objects] for name in objects[0]}
        found.append({"image": png(tmp_path, number), "objects": objects})
    return found


FEATURES = {
    "an object of lists": {"bbox": {}, "category": {"feature": {"names": NAMES}}},
    "a list of objects": [{"category": {"names": NAMES, "_type": "ClassLabel"}}],
    "an older table": {"feature": {"category": {"names": NAMES}}, "_type": "Sequence"},
}


def table(some, features=FEATURES["an object of lists"]):
    note = {"info": {"features": {"objects": features}}}
    found = pyarrow.Table.from_pylist(some)
    return found.replace_schema_metadata({"huggingface": json.dumps(note)})


def write(path, some, **options):
    """Writes a table by the ending of its name; Arrow's in batches of two rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(some, path)
        return
    options = pyarrow.ipc.IpcWriteOptions(**options)
    with pyarrow.ipc.new_stream(str(path), some.schema, options=options) as file:
        file.write_table(some, max_chunksize=2)


def build(folder, **options):
    return labels.records("huggingface", folder, boxes=True, **options)


def assert_boxes(found, count=5):
    assert len(found) == count
    for record in found.values():
        some, texts = labels.things(record)
        assert [name for name, _ in some] == ["cup", "fork", "cup"]
        assert texts == {"cup": (0, 2), "fork": (1,)}
        for (_, got), box in zip(some, BOXES, strict=True):
            np.testing.assert_array_equal(got, mask(box))


PLACES = {
    "data/train-00000-of-00001.parquet": "train",
    "validation/data-00000-of-00001.arrow": "val",
    "data-00000-of-00001.arrow": "train",
    "set-test-00000-of-00001.arrow": "train",
    "test.arrow": "test",
}


@pytest.mark.parametrize("place", PLACES)
def test_objects_of_tables_are_read(tmp_path, place):
    write(tmp_path / "out" / place, table(rows(tmp_path)))
    (tmp_path / "out" / "cache-0a.arrow").write_bytes(b"of a map, passed over")
    found, met = build(tmp_path / "out")
    assert_boxes(found)
    assert {split for split, _ in found} == {PLACES[place]}
    assert met.counts["boxes of the column objects are taken for a corner, width and height"] == 15
    told = "numbers of the column objects are taken for pixels of the image, x first"
    assert met.counts[told] == 15


@pytest.mark.parametrize("name", FEATURES)
def test_names_of_classes_are_found(tmp_path, name):
    some = rows(tmp_path, listed=name == "a list of objects")
    write(tmp_path / "out" / "train.arrow", table(some, FEATURES[name]))
    said = Numbers(boxes="sizes", meaning="pixels")
    found, met = build(tmp_path / "out", numbers=said)
    assert_boxes(found)
    assert met.counts == {}


def test_names_that_are_texts_stand_as_they_are(tmp_path):
    write(tmp_path / "out" / "train.arrow", table(rows(tmp_path, category="a  cup"), {}))
    found, _ = build(tmp_path / "out", numbers=Numbers(boxes="sizes", meaning="pixels"))
    for record in found.values():
        assert labels.things(record)[1] == {"a cup": (0, 1, 2)}


def test_classes_that_are_not_listed_are_told(tmp_path):
    write(tmp_path / "out" / "train.arrow", table(rows(tmp_path, category=7)))
    found, met = build(tmp_path / "out")
    assert met.counts["object without a name: its class is not listed"] == 15
    assert [labels.things(record)[1] for record in found.values()] == [{}] * 5


FORMS = {
    "sizes": lambda box: box,
    "corners": corners,
    "fractions": lambda box: [one / side for one, side in zip(box, (64, 48) * 2, strict=True)],
    "fractions, corners": lambda box: [
        one / side for one, side in zip(corners(box), (64, 48) * 2, strict=True)
    ],
}


@pytest.mark.parametrize("name", FORMS)
def test_what_boxes_are_is_found_out_and_told(tmp_path, name):
    write(tmp_path / "out" / "train.arrow", table(rows(tmp_path, change=FORMS[name])))
    said = Numbers() if "fractions" in name else Numbers(meaning="pixels")
    found, met = build(tmp_path / "out", numbers=said)
    assert_boxes(found)
    what = "their corners" if "corners" in name else "a corner, width and height"
    told = [line for line in met.lines() if f"are taken for {what}" in line]
    assert len(told) == 1
    assert "%" in told[0]
    assert "--numbers.boxes" in told[0]


def test_boxes_that_fit_both_are_refused_until_it_is_said(tmp_path):
    some = rows(tmp_path, change=lambda box: [1, 2, box[2], box[3]])
    write(tmp_path / "out" / "train.arrow", table(some))
    with pytest.raises(ValueError, match="its boxes fit two corners and sizes alike"):
        build(tmp_path / "out", numbers=Numbers(meaning="pixels"))
    found, _ = build(tmp_path / "out", numbers=Numbers(meaning="pixels", boxes="corners"))
    (_, got), *_ = labels.things(found["train", "train.arrow#0"])[0]
    np.testing.assert_array_equal(got, formats.rectangle(2, 1, 20, 16, *SIZE))
    some = rows(tmp_path, change=lambda box: [60, 40, 50, 45])
    write(tmp_path / "out" / "train.arrow", table(some))
    with pytest.raises(ValueError, match="its boxes fit no convention"):
        build(tmp_path / "out", numbers=Numbers(meaning="pixels"))


def test_outlines_come_before_boxes(tmp_path):
    star = formats.star(np.random.default_rng(0))
    some = rows(tmp_path, listed=True, segmentation=[star])
    write(tmp_path / "out" / "train.arrow", table(some, FEATURES["a list of objects"]))
    found, met = labels.records("huggingface", tmp_path / "out", numbers=Numbers(meaning="pixels"))
    assert met.counts == {}
    for record in found.values():
        for _, got in labels.things(record)[0]:
            np.testing.assert_array_equal(got, formats.true_mask([star]))


def test_bad_objects_cost_themselves(tmp_path):
    some = rows(tmp_path, count=1, listed=True)
    for bad in ({"bbox": [1.0, 2.0]}, {"bbox": None}, {"bbox": [float("nan")] * 4}):
        some[0]["objects"].append(bad | {"category": 0})
    some.append({"image": png(tmp_path, 9), "objects": None})
    write(tmp_path / "out" / "train.arrow", table(some, FEATURES["a list of objects"]))
    found, met = build(tmp_path / "out", numbers=Numbers(boxes="sizes", meaning="pixels"))
    assert_boxes(found, 1)
    assert met.counts["region left out: it has no box of four numbers"] == 3
    assert met.counts["objects left out: they are no list of few"] == 1


def test_rows_are_read_in_any_order(tmp_path):
    path = tmp_path / "train.arrow"
    some = rows(tmp_path, count=7)
    write(path, table(some))
    for row in (6, 0, 3, 3, 5, 1):
        assert table_rows.image_bytes(path, row) == some[row]["image"]["bytes"]
    with pytest.raises(image_files.Unreadable, match="expected the bytes of an image, got .*7"):
        table_rows.image_bytes(path, 7)
    write(path, table(some[:1]))  # Another file of the same name is not taken for the old one.
    with pytest.raises(image_files.Unreadable):
        table_rows.image_bytes(path, 3)


def test_images_that_are_paths_alone_are_told(tmp_path):
    some = rows(tmp_path, count=1)
    some[0]["image"]["bytes"] = None
    write(tmp_path / "out" / "train.arrow", table(some))
    with pytest.raises(ValueError, match="image is missing.* got a path alone"):
        build(tmp_path / "out")


def test_compressed_batches_are_refused(tmp_path):
    path = tmp_path / "train.arrow"
    write(path, table(rows(tmp_path)), compression="zstd")
    with pytest.raises(ValueError, match="expected batches as they are, got compressed ones"):
        arrow_rows.columns(path)


def test_countless_rows_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "train.arrow"
    write(path, table(rows(tmp_path)))
    assert arrow_rows._Stream(path).read(4, ["objects"])["objects"]["category"] == [0, 1, 0]
    monkeypatch.setattr(arrow_rows.parquet_rows, "MOST_ROWS", 4)
    with pytest.raises(ValueError, match="expected at most 4 rows, got 5"):
        arrow_rows._Stream(path)


def test_damaged_streams_end_in_one_line(tmp_path):
    path = tmp_path / "train.arrow"
    write(path, table(rows(tmp_path)))
    whole, rng = path.read_bytes(), random.Random(0)
    met = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)
        try:
            huggingface.read(tmp_path, rules=Rules(boxes=True))
        except ValueError as error:
            met.append(str(error))
    assert len(met) > 20
    assert [one for one in met if "; do: " not in one or "\n" in one] == []


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    several = {"bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4))}
    several["category"] = datasets.List(datasets.ClassLabel(names=NAMES))
    features = datasets.Features({"image": datasets.Image(), "objects": several})
    images = [Image.fromarray(np.full((*SIZE, 3), one, np.uint8)) for one in range(5)]
    objects = [{"bbox": BOXES, "category": [0, 1, 0]}] * 5
    made = datasets.Dataset.from_dict({"image": images, "objects": objects}, features=features)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "out")
    found, _ = build(tmp_path / "out", numbers=Numbers(boxes="sizes", meaning="pixels"))
    assert_boxes(found, 10)
    assert {split for split, _ in found} == {"train", "test"}
