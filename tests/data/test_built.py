"""Holds built data sets as sources: to the files they are of, to TFDS, to Grain's workers."""

import dataclasses
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import built_data
import grain
import numpy as np
import published_formats as formats
import pytest
import small_run
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from pycocotools import mask as coco

from seg_jax.data import pipeline, record_schema, sources, tf_example
from seg_jax.data.build import dataset
from seg_jax.data.sources import Built
from seg_jax.geometry import bitmask


def build(name, source, out, **options):
    return built_data.build(dataset.Plan(name=name, source=source, out=out, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A built edition of every format, with what its files say."""
    root = tmp_path_factory.mktemp("built")
    told = {"refcoco_unc": formats.refer(root, "refcoco_unc")}
    told["grefcoco_unc"] = formats.refer(root, "grefcoco_unc")
    told["coco_instances"] = formats.instances(root / "coco")
    told["reasonseg"] = formats.reasonseg(root / "reasonseg")
    for name in told:
        source = root / {"coco_instances": "coco", "reasonseg": "reasonseg"}.get(name, "")
        build(name, source, root / "out" / name, records=2)
    return root / "out", told


def test_a_sample_is_an_image_with_the_objects_that_are_meant(made):
    root, told = made
    data, refs = told["refcoco_unc"]
    source = Built(folders=(root / "refcoco_unc",))
    notes = {note["id"]: note for note in data["annotations"]}
    assert isinstance(source, sources.Source)
    assert len(source) == 3
    for index in range(3):
        sample = source[index]
        record = source.record(index)
        assert sample.key == f"refcoco_unc/train/COCO_train2014_{record.image_id:012d}.jpg"
        here = [ref for ref in refs if ref["image_id"] == record.image_id]
        assert sample.phrases == tuple(tuple(s["sent"] for s in ref["sentences"]) for ref in here)
        for mask, ref in zip(sample.masks, here, strict=True):
            true = formats.true_mask(notes[ref["ann_id"]]["segmentation"])
            np.testing.assert_array_equal(mask, true)
        kinds = {1: "person", 2: "bicycle"}
        assert sample.names == tuple(kinds[ref["category_id"]] for ref in here)
        assert sample.categories == sample.names
        with Image.open(io.BytesIO(record.image)) as image:
            np.testing.assert_array_equal(sample.image, np.asarray(image))
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"0\.\.2"):
            source[index]


def test_expressions_of_many_objects_mean_their_union(made):
    root, told = made
    data, _ = told["grefcoco_unc"]
    source = Built(folders=(root / "grefcoco_unc",), split="val")
    notes = {note["id"]: formats.true_mask(note["segmentation"]) for note in data["annotations"]}
    sample = source[0]
    assert "the green cow" not in {text for texts in sample.phrases for text in texts}
    both = next(i for i, texts in enumerate(sample.phrases) if "both of them" in texts)
    ids = source.record(0).ids
    np.testing.assert_array_equal(sample.masks[both], notes[ids[0]] | notes[ids[1]])
    assert sample.names[both] == "bicycle and person"
    assert sample.categories[both] == ""
    absent = dataclasses.replace(source, absent=True)[0]
    none = absent.phrases.index(("the green cow",))
    assert not absent.masks[none].any()
    assert len(absent.masks) == len(sample.masks) + 1


def test_every_category_of_coco_is_a_phrase(made):
    root, told = made
    sample = Built(folders=(root / "coco_instances",), split="train2017")[1]
    assert sorted(sample.phrases) == [("bicycle",), ("person",)]
    assert sample.ignored is None  # A crowd is meant by its name.
    notes = [note for note in told["coco_instances"]["annotations"] if note["image_id"] == 2]
    for mask, (name,) in zip(sample.masks, sample.phrases, strict=True):
        number = {"person": 1, "bicycle": 2}[name]
        wanted = [formats.true_mask(n["segmentation"]) for n in notes if n["category_id"] == number]
        np.testing.assert_array_equal(mask, np.any(wanted, 0))


def test_data_sets_follow_each_other(made):
    root, _ = made
    folders = (root / "refcoco_unc", root / "reasonseg", root / "grefcoco_unc")
    source = Built(folders=folders, split="val")
    assert len(source) == 3 + 2 + 3
    keys = [source[i].key.split("/")[0] for i in range(8)]
    assert keys == ["refcoco_unc"] * 3 + ["reasonseg"] * 2 + ["grefcoco_unc"] * 3


def test_a_source_travels_to_other_processes(made):
    root, _ = made
    source = Built(folders=(root / "refcoco_unc",))
    first = source[2]
    again = pickle.loads(pickle.dumps(source))
    assert vars(again).keys() == {"folders", "split", "absent", "singly"}
    assert again == source
    np.testing.assert_array_equal(again[2].masks, first.masks)


@pytest.mark.slow
def test_the_pipeline_reads_it_in_worker_processes(made):
    root, _ = made
    source = Built(folders=(root / "refcoco_unc",))
    config = small_run.sft_config()
    drawn = []
    for workers in (0, 2):
        feed = dataclasses.replace(config.feed, batch=2, workers=workers)
        encoder = small_run.bundle().encoder
        rows = pipeline.batches(source, config.task, encoder, feed=feed, rows="sft")
        drawn.append([next(rows) for _ in range(3)])
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.images.patches, other.images.patches)
    assert drawn[0][0].ids.shape[0] == 2


@pytest.mark.parametrize("name", ["refcoco_unc", "grefcoco_unc", "coco_instances", "reasonseg"])
def test_tfds_reads_a_build(made, name):
    root, _ = made
    builder = tfds.builder_from_directory(root / name)
    assert builder.info.name == name
    for split in builder.info.splits:
        theirs = builder.as_data_source(split=split)
        ours = Built(folders=(root / name,), split=split, absent=True)
        assert len(theirs) == len(ours) == builder.info.splits[split].num_examples
        for index in range(len(ours)):
            record, read = ours.record(index), theirs[index]
            np.testing.assert_array_equal(read["image"], record.pixels())
            assert read["key"].decode() == record.key
            assert read["split"].decode() == record.split
            assert (read["image/height"], read["image/width"]) == read["image"].shape[:2]
            assert [text.decode() for text in read["phrase/text"]] == [
                t.text for t in record.expressions
            ]
            np.testing.assert_array_equal(read["object/id"], record.ids)
            np.testing.assert_array_equal(read["object/box"], record.boxes_px)
            for place, counts in enumerate(read["object/counts"]):
                size = [int(read["image/height"]), int(read["image/width"])]
                mask = coco.decode({"size": size, "counts": counts}).astype(bool)
                np.testing.assert_array_equal(mask, bitmask.from_rle(record.rle(place)))
                assert read["object/area"][place] == mask.sum()
            objects = np.split(read["phrase/objects"], np.cumsum(read["phrase/count"])[:-1])
            assert [tuple(one) for one in objects] == [t.objects for t in record.expressions]
    skipped = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    assert skipped[0]["image"] == ours.record(0).image


def test_neither_tensorflow_nor_tfds_is_needed(made):
    root, _ = made
    code = (
        "import sys; from pathlib import Path; from seg_jax.data import sources\n"
        "from seg_jax.data.build import dataset\n"
        f"source = sources.Built(folders=(Path({str(root / 'refcoco_unc')!r}),))\n"
        "assert source[0].masks.any()\n"
        "print({'tensorflow', 'tensorflow_datasets', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "set()", done.stderr[-2000:]


def test_grain_reads_a_build(made):
    root, _ = made
    files = sorted(str(path) for path in (root / "refcoco_unc").glob("*-train.*"))
    plain = grain.sources.ArrayRecordDataSource(files)
    source = Built(folders=(root / "refcoco_unc",))
    assert [record_schema.decode(plain[i]).key for i in range(len(plain))] == [
        source.record(i).key for i in range(len(source))
    ]


def official(folder, *, images=2):
    """Writes TFDS's ref_coco 1.1.0 by TFDS's own serialiser; returns masks and texts."""
    f = tfds.features
    box = {"id": np.int64, "area": np.int64, "bbox": f.BBoxFeature(), "label": np.int64}
    refexp = f.Sequence({"refexp_id": np.int64, "raw": f.Text()})
    mask = f.Image(encoding_format="png")
    features = f.FeaturesDict(
        {
            "image": f.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "objects": f.Sequence(box | {"gt_box_index": np.int64, "mask": mask, "refexp": refexp}),
            "coco_annotations": f.Sequence(box),
        }
    )
    folder.mkdir()
    truth = []
    writer = ArrayRecordWriter(
        str(folder / record_schema.file_name("ref_coco", "validation", index=0, count=1)),
        "group_size:1",
    )
    for number in range(images):
        masks = [formats.rectangle(2, 3, 20 + number, 30), formats.rectangle(25, 5, 40, 60)]
        texts = [["the top", "upper one"], ["bottom"]]
        truth.append((masks, texts))
        pngs = []
        for one in masks:
            buffer = io.BytesIO()
            Image.fromarray(one).save(buffer, "png")  # One bit a pixel, as TFDS's builder writes.
            pngs.append(buffer.getvalue())
        image = formats.image(folder / "image.jpg", number).read_bytes()
        (folder / "image.jpg").unlink()
        boxes = np.array(
            [[2 / 48, 3 / 64, (20 + number) / 48, 30 / 64], [25 / 48, 5 / 64, 40 / 48, 60 / 64]]
        )
        writer.write(
            tf_example.encode(
                {
                    "image": [image],
                    "image/id": np.array([500 + number], np.int64),
                    "objects/id": np.array([7, 8], np.int64),
                    "objects/area": np.array([1, 2], np.int64),
                    "objects/bbox": boxes.astype(np.float32).ravel(),
                    "objects/label": np.array([1, 1], np.int64),
                    "objects/gt_box_index": np.array([0, 1], np.int64),
                    "objects/mask": pngs,
                    "objects/refexp/refexp_id/ragged_flat_values": np.array([1, 2, 3], np.int64),
                    "objects/refexp/refexp_id/ragged_row_lengths_0": np.array([2, 1], np.int64),
                    "objects/refexp/raw/ragged_flat_values": [
                        t.encode() for ts in texts for t in ts
                    ],
                    "objects/refexp/raw/ragged_row_lengths_0": np.array([2, 1], np.int64),
                    "coco_annotations/id": np.array([7, 8], np.int64),
                    "coco_annotations/area": np.array([1, 2], np.int64),
                    "coco_annotations/bbox": boxes.astype(np.float32).ravel(),
                    "coco_annotations/label": np.array([1, 1], np.int64),
                }
            )
        )
    writer.close()
    (folder / "features.json").write_text(json.dumps(features.to_json()))
    info = record_schema.info_json("ref_coco", "", [("validation", [images], 1)])
    (folder / "dataset_info.json").write_text(info)
    return truth


def test_ref_coco_as_tfds_prepares_it_is_read(tmp_path):
    truth = official(tmp_path / "ref_coco")
    source = Built(folders=(tmp_path / "ref_coco",), split="validation")
    # What was written is of TFDS's own layout: TFDS reads it.
    theirs = tfds.builder_from_directory(tmp_path / "ref_coco").as_data_source(split="validation")
    assert len(source) == len(theirs) == 2
    for index, (masks, texts) in enumerate(truth):
        sample, record, read = source[index], source.record(index), theirs[index]
        np.testing.assert_array_equal(sample.masks, masks)
        assert sample.phrases == tuple(tuple(some) for some in texts)
        np.testing.assert_array_equal(sample.image, read["image"])
        raw = [[text.decode() for text in some] for some in read["objects"]["refexp"]["raw"]]
        assert raw == texts
        assert record.image_id == read["image/id"]
        np.testing.assert_array_equal(record.boxes_px, [[3, 2, 30, 20 + index], [5, 25, 60, 40]])


def test_folders_that_are_no_data_set_are_told(made, tmp_path):
    root, _ = made
    with pytest.raises(ValueError, match="do: seg-jax build, until it ends"):
        len(Built(folders=(tmp_path,)))
    with pytest.raises(ValueError, match="expected one of the splits testA, testB, train, val"):
        len(Built(folders=(root / "refcoco_unc",), split="test"))
    with pytest.raises(ValueError, match="expected the folder of a built data set, got none"):
        Built(folders=())
    for one, other in (("a/ds", "b/ds"), ("ds", "ds"), ("ds", "ds/")):
        with pytest.raises(ValueError, match="different names, got .*ds' and .*rename a folder"):
            Built(folders=(Path(one), Path("c"), Path(other)))
    info = json.loads((root / "refcoco_unc" / "dataset_info.json").read_text())
    (tmp_path / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="do: tfds build"):
        len(Built(folders=(tmp_path,)))


def test_its_words_train_a_tokenizer(made):
    root, told = made
    source = Built(folders=(root / "refcoco_unc",))
    _, refs = told["refcoco_unc"]
    wanted = [s["sent"] for ref in refs if ref["split"] == "train" for s in ref["sentences"]]
    assert sources.corpus(source) == wanted
    assert sources.corpus(source, 4) == wanted[:4]
