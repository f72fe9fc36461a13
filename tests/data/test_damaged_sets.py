"""Holds built data sets to noticing damage: of a bit, a file, a record, of what describes them."""

import dataclasses
import json
import pickle
import random

import numpy as np
import published_formats as formats
import pytest
from built_data import build, tree

from seg_jax.data import limits, record_schema, sources, split_files, tf_example
from seg_jax.data.build import claims, dataset, record_files
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built
from seg_jax.tasks.task import Unfit


@pytest.fixture
def asked(tmp_path):
    formats.refer(tmp_path, "refcoco_unc", images=3)
    plan = dataset.Plan(name="refcoco_unc", source=tmp_path, out=tmp_path / "out", records=2)
    build(plan)
    return plan


def train_files(plan):
    return sorted(plan.out.glob("*-train.array_record-*"))


def used_bytes(data):
    """Returns the places of bytes that say something: the rest is padding of whole blocks."""
    return [place for place, byte in enumerate(data) if byte]


def test_a_flipped_bit_costs_one_record_and_is_repaired(asked):
    whole = tree(asked.out)
    path, rng = train_files(asked)[0], random.Random(0)
    data = path.read_bytes()
    task = next(one for one in dataset.plan_files(asked).tasks if one.file_path == path)
    noticed = 0
    for place in rng.sample(used_bytes(data)[:4000], 40):
        spoiled = bytearray(data)
        spoiled[place] ^= 1 << rng.randrange(8)
        path.write_bytes(spoiled)
        source, met = Built(folders=(asked.out,)), Findings()
        keys = [sample.key for _, sample in sources.readable(source, range(3), met)]
        assert len(keys) + sum(met.counts.values()) == 3
        for examples in met.examples.values():
            assert examples[0].startswith(f"{path}, record ")
        noticed += bool(met.counts)
        # Where no record is hurt (the name of the writer, say), the build still sees it.
        assert not record_files.is_whole(task)
    assert noticed > 30
    build(asked)
    assert tree(asked.out) == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:70_000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"text" * 40_000),
    ],
)
def test_a_missing_or_cut_file_costs_its_records_and_is_repaired(asked, damage):
    whole = tree(asked.out)
    path = train_files(asked)[0]
    damage(path)
    source, met = Built(folders=(asked.out,)), Findings()
    assert [index for index, _ in sources.readable(source, range(3), met)] == [2]
    assert sum(met.counts.values()) == 2
    with pytest.raises(Unfit, match=r"record 1: expected a whole record .* do: run the same"):
        source[1]
    # It shows before a record is read.
    early = Findings()
    assert source.split_files[0].lost_records(early) == [0, 1]
    assert next(iter(early.counts.values())) == 2
    build(asked)
    assert tree(asked.out) == whole


@pytest.mark.parametrize(
    "part",
    [
        "{",
        "null",
        "[" * 100_000,
        '{"digest": 5}',
        lambda part: part | {"images": 7},
        lambda part: part | {"records": -3},
        lambda part: part | {"findings": {"x": {"count": "many"}}},
        lambda part: part | {"xxh3": "0" * 32},
    ],
)
def test_a_hostile_part_file_is_not_believed(asked, part):
    whole = tree(asked.out)
    path = asked.out / record_files.PARTS / "train-00000.json"
    text = part if isinstance(part, str) else json.dumps(part(json.loads(path.read_text())))
    path.write_text(text)
    build(asked)
    assert tree(asked.out) == whole


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 100_000, "\0"])
def test_a_hostile_claim_is_one_line(asked, text):
    (asked.out / claims.CLAIM).write_text(text)
    with pytest.raises(
        ValueError, match="expected .*, got .*; do: replace it with --anew"
    ) as error:
        build(asked)
    assert "\n" not in str(error.value)
    with dataset.claim_build(asked, anew=True):
        assert not [*asked.out.glob("*.array_record-*")]


INFO = "dataset_info.json"


@pytest.mark.parametrize(
    ("name", "spoil", "told"),
    [
        (INFO, lambda _: "{", "expected JSON"),
        (INFO, lambda _: "[]", "expected object"),
        (
            INFO,
            lambda text: text.replace('"refcoco_unc"', '"../../etc/x"'),
            "expected str matching",
        ),
        (
            INFO,
            lambda text: text.replace('"splits": [', '"splits": [5, '),
            "expected object, got 5",
        ),
        (INFO, lambda text: text.replace('"2"', '"-2"'), "expected str matching"),
        (INFO, lambda text: text.replace('"2"', '"9' + "9" * 40 + '"'), "expected str matching"),
        (record_schema.REPORT, lambda _: "[", "expected JSON"),
        (record_schema.REPORT, lambda _: '{"splits": 7}', "expected object, got 7"),
        (record_schema.REPORT, lambda _: '{"splits": {"train": {"records": "x"}}}', "expected int"),
    ],
)
def test_hostile_descriptions_are_one_line(asked, name, spoil, told):
    path = asked.out / name
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=told) as error:
        len(Built(folders=(asked.out,)))
    assert "\n" not in str(error.value)
    assert "; do: " in str(error.value)
    build(asked)
    assert len(Built(folders=(asked.out,))) == 3


def test_a_data_set_without_a_report_is_read(asked):
    """Of TFDS, or of an older build: nothing is known about sizes and lengths."""
    for name in (record_schema.REPORT, record_schema.SIZES):
        (asked.out / name).unlink()
    source = Built(folders=(asked.out,))
    assert len([source[index] for index in range(3)]) == 3
    assert source.split_files[0].sizes() is None
    assert source.split_files[0].lost_records(Findings()) == []


def test_sizes_are_those_of_the_records(asked):
    source = Built(folders=(asked.out,))
    sizes = source.split_files[0].sizes()
    assert sizes == [record_schema.size_of(source.record(index)) for index in range(3)]
    path = asked.out / record_schema.SIZES
    path.write_bytes(path.read_bytes().replace(b"48", b"49", 1))
    with pytest.raises(ValueError, match="expected it as it was built, got other bytes"):
        split_files.SplitFiles.find(asked.out, "train").sizes()


@pytest.mark.parametrize("text", ["", "[]", "{}", None])
def test_damaged_sizes_are_told_where_a_data_set_is_opened(asked, text):
    path = asked.out / record_schema.SIZES
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="sizes.json: expected .*; do: run the same") as error:
        len(Built(folders=(asked.out,)))
    assert "\n" not in str(error.value)
    build(asked)
    assert len(Built(folders=(asked.out,))) == 3


@pytest.mark.parametrize("text", ["{}", None])
def test_damaged_features_are_told_too(asked, text):
    path = asked.out / record_schema.FEATURES
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"features.json: expected .*; do: run the same"):
        len(Built(folders=(asked.out,)))
    build(asked)
    assert len(Built(folders=(asked.out,))) == 3


def test_a_report_that_is_gone_is_told(asked):
    """As of a data set of TFDS: nobody knows what was left out."""
    (asked.out / record_schema.REPORT).unlink()
    built, limited = split_files.read_findings(asked.out)
    assert built.lines()[0].startswith(f"1 x {split_files.UNTOLD}, first {asked.out}/build.json")
    assert limited.counts == {}


def test_a_rebuild_that_ends_early_leaves_no_data_set_but_the_old_one_where_nothing_changed(
    asked, monkeypatch
):
    """Old descriptions beside new files would be read together."""
    old = (asked.out / INFO).read_bytes()
    build(asked)
    assert (asked.out / INFO).read_bytes() == old
    path = next(asked.source.rglob("refs(unc).p"))
    refs = pickle.loads(path.read_bytes())
    refs[0]["sentences"][0]["sent"] = "another one"
    path.write_bytes(pickle.dumps(refs))
    monkeypatch.setattr(dataset, "finish_build", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(asked)
    with pytest.raises(ValueError, match="expected a data set with dataset_info.json, got none"):
        len(Built(folders=(asked.out,)))
    monkeypatch.undo()
    build(asked)
    assert len(Built(folders=(asked.out,))) == 3


def test_files_of_records_that_a_smaller_build_does_not_have_are_removed(tmp_path):
    formats.folder(tmp_path)
    asked = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "out", records=1)
    build(asked)
    had = {*tree(asked.out)}
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:-1]))
    build(asked)
    fewer = dataclasses.replace(asked, out=tmp_path / "fresh")
    build(fewer)
    assert tree(asked.out) == tree(fewer.out)
    assert had - {*tree(asked.out)}


def hostile_features(source, **changes):
    """Returns the bytes of a stored image with other features."""
    features = tf_example.decode(source.split_files[0]._reader[0])
    return tf_example.encode({**features, **changes})


def int64(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image/height": int64(10**12)}, "expected an image with pixels"),
        ({"image/height": int64(-1)}, "expected an image with pixels"),
        ({"image/height": int64()}, "expected an image that seg-jax build"),
        ({"image": [b"no image"]}, ""),
        ({"object/role": int64(0, 99)}, "99 is not a valid Role"),
        ({"object/id": int64(1)}, "all that objects have"),
        ({"object/box": np.zeros(3, np.float32)}, "cannot reshape"),
        ({"object/counts": [b"\xff\xff", b"b'abc'"]}, ""),
        ({"phrase/count": int64(2**62, 2**62, 2**62)}, "counts that divide a list"),
        ({"phrase/count": int64(-1, 2, 3)}, "counts that divide a list"),
        ({"phrase/objects": int64(0, 7)}, "counts that divide|places of 2 objects"),
        ({"key": [b"\xff\xfe"]}, "codec can't decode"),
        ({"objects/mask": [b"x"]}, ""),
        ({"objects/mask": [], "objects/id": int64()}, "expected an image that seg-jax build"),
    ],
)
def test_absurd_values_of_a_record_are_one_line(asked, changes, told):
    source = Built(folders=(asked.out,))
    data = hostile_features(source, **changes)
    source.split_files[0].__dict__["_reader"] = [data]
    with pytest.raises(Unfit, match=rf"record 0: expected a whole record.*{told}") as error:
        source[0]
    assert "\n" not in str(error.value)


def test_more_masks_than_memory_holds_are_no_sample(asked, monkeypatch):
    source = Built(folders=(asked.out,))
    monkeypatch.setattr(limits, "MOST_MASK_BYTES", 48 * 64)
    with pytest.raises(Unfit, match="expected at most 3072 pixels of all masks together"):
        source[0]
