"""Annotation of what is odd or hostile: lists, file names, damaged shards, outputs of detectors."""

import dataclasses
import functools
import json
import os
import shutil

import known_scenes as known
import numpy as np
import pytest

from seg_jax.annotation import annotator, filters, hub, jobs, results
from seg_jax.annotation.filters import Filters
from seg_jax.annotation.results import Splits
from seg_jax.annotation.stages import Detection, Segment, Stages, Unusable
from seg_jax.cli import annotate as program
from seg_jax.data import image_lists
from seg_jax.data.build import dataset
from seg_jax.data.findings import Findings
from seg_jax.data.image_lists import ImageFile
from seg_jax.data.sources import Built


def annotate(images, job):
    """Returns the summary of an annotation."""
    with jobs.claim_folder(job, anew=False):
        every = jobs.cut_into_shards(image_lists.list_images(str(images)), job.records)
        jobs.annotate_shards(every, job, workers=1, progress=lambda done: None)
        summary = results.gather_shards(every, job, Splits())
        make = functools.partial(dataset.make_files, workers=1, progress=lambda done: None)
        results.build_dataset(job, lambda plan, tasks: make(tasks))
    return summary


def test_a_list_of_images_is_read_as_people_write_it(tmp_path):
    """bom-1: a mark before the file, Windows' ends of lines, empty lines, repeated lines."""
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffb.png\r\n\r\n  a/b.png  \r\nb.png\r\n".encode())
    met = Findings()
    found = image_lists.list_images(str(listed), met)
    assert [one.key for one in found] == ["a/b.png", "b.png"]
    (line,) = met.lines()
    assert line == f"1 x image listed again, taken once, first {listed}, line 4: b.png"
    listed.write_bytes(b"a\xff\n")
    with pytest.raises(ValueError, match="path of an image a line, got other bytes at byte 1"):
        image_lists.list_images(str(listed))
    for pattern in ("**a", "a\0*", "["):
        with pytest.raises(ValueError, match="images: expected "):
            image_lists.list_images(str(tmp_path / pattern))


def test_files_that_are_no_images_by_name_are_told(tmp_path):
    known.make(tmp_path / "web", 1)
    for name in ("b.heic", "a.txt"):
        (tmp_path / "web" / name).touch()
    met = Findings()
    assert len(image_lists.list_images(str(tmp_path / "web"), met)) == 1
    (line,) = met.lines()
    assert line.startswith("2 x file left out, as its name does not end as an image's, first ")
    assert line.endswith("a.txt; do: rename or convert it, if it is an image")


def test_links_and_pipes_in_a_folder_of_images_are_not_passed_over(tmp_path):
    """They were missing without a word: what reads images says why each cannot be read."""
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "folder").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    met = Findings()
    assert [one.key for one in image_lists.list_images(str(tmp_path), met)] == [
        "broken.jpg",
        "pipe.png",
    ]
    assert met.counts == {"folder left out, as it is a link": 1}


def test_images_are_told_apart_by_their_paths(tmp_path):
    """name-1: one name in two folders, and two endings of one name."""
    known.make(tmp_path / "made", 3)
    for source, name in (("000", "a/1.png"), ("001", "b/1.png"), ("002", "a/1.jpeg.png")):
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "made" / f"{source}.png", tmp_path / "web" / name)
    job = known.job(tmp_path / "out", 3)
    assert annotate(tmp_path / "web", job)["splits"]["train"]["images"] == 3
    keys = {sample.key for sample in Built(folders=(job.out,))}
    assert keys == {f"out/train/{name}" for name in ("a/1.png", "b/1.png", "a/1.jpeg.png")}


def test_lines_of_a_list_that_name_nothing_are_dead_letters(tmp_path):
    known.make(tmp_path / "web", 1)
    hostile = ["web", "nul\0.png", "x" * 5000 + ".png", "http://host/a.png", "/dev/zero", "\x1b[2J"]
    (tmp_path / "list.txt").write_text("\n".join(["web/000.png", *hostile]))
    summary = annotate(tmp_path / "list.txt", known.job(tmp_path / "out", 1))
    assert (summary["annotated"], summary["failed"]) == (1, len(hostile))
    found = summary["findings"]["image left out, as the read stage failed on it"]
    assert found["count"] == len(hostile)
    assert all("expected an image, got " in one for one in found["examples"])
    assert all(one.isprintable() for one in found["examples"])


def damage_tail(data):
    return data[:-20]


def damage_bit(data):
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


def damage_head(data):
    return data.replace(b'"sha256": "', b'"sha256": 7, "x": "', 1)


def damage_count(data):
    assert data.count(b'"annotated": 2') == 1
    return data.replace(b'"annotated": 2', b'"annotated": 3')


def damage_findings(data):
    assert data.count(b'"findings": {}') == 1
    return data.replace(b'"findings": {}', b'"findings": {"a": 5}')


def damage_depth(data):
    return b"[" * 100_000 + b"\n" + data


@pytest.mark.parametrize(
    "damage",
    [damage_tail, damage_bit, damage_head, damage_count, damage_findings, damage_depth],
)
def test_a_damaged_shard_is_told_and_made_again(tmp_path, damage):
    known.make(tmp_path / "web", 4)
    job = known.job(tmp_path / "out", 4)
    annotate(tmp_path / "web", job)
    path = job.out / jobs.DONE / "000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    every = jobs.cut_into_shards(image_lists.list_images(str(tmp_path / "web")), job.records)
    (line,) = jobs.damaged_shards(every, job).lines()
    assert line.startswith(f"1 x finished shard is damaged and made again, first {path}")
    with pytest.raises(ValueError, match="000001.jsonl.*: expected .*; do: run the same command"):
        jobs.read_shard(every[1], job)
    annotate(tmp_path / "web", job)
    assert path.read_bytes() == whole
    assert not jobs.damaged_shards(every, job).lines()


def test_a_shard_of_an_older_version_stays(tmp_path):
    known.make(tmp_path / "web", 2)
    job = known.job(tmp_path / "out", 2)
    annotate(tmp_path / "web", job)
    path = job.out / jobs.DONE / "000000.jsonl"
    first, _, rest = path.read_bytes().partition(b"\n")
    head = json.loads(first)
    assert len(head.pop("own")) == 64
    path.write_bytes(json.dumps(head).encode() + b"\n" + rest)
    (shard,) = jobs.cut_into_shards(image_lists.list_images(str(tmp_path / "web")), job.records)
    assert jobs.is_whole(shard, job)
    assert not jobs.damaged_shards([shard], job).lines()


def test_a_damaged_list_of_a_pipeline_is_one_line(tmp_path):
    job = known.job(tmp_path / "out", 1)
    job.out.mkdir()
    for text in ("[1]\n", '["a"]\n', "{\n", '["a", "b", "c"]\n', "\xff\n"):
        (job.out / jobs.LIST).write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"\.images\.jsonl, line 1.*: expected .*; do: run"):
            jobs.read_list(job)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A detector and segmenter that say what they were told to say."""

    found: list
    masks: list

    def detect(self, image, labels):
        return self.found

    def segment(self, image, boxes_px):
        return self.masks


BOX = (8.0, 8.0, 40.0, 40.0)


def outcome_of(tmp_path, found, masks=()):
    known.make(tmp_path / "web", 1)
    stages = Stages(Fixed(found, list(masks)), Fixed(found, list(masks)), None)
    image = ImageFile("a/000.png", tmp_path / "web" / "000.png")
    settings = annotator.Settings(labels=("cup",), filters=Filters())
    return image, annotator.annotate(image, stages, settings, models=known.MODELS)


def test_numbers_that_are_none_drop_their_objects(tmp_path):
    nan, inf = float("nan"), float("inf")
    found = [
        Detection((nan, 0.0, 9.0, 9.0), "cup", 0.9),
        Detection((0.0, 0.0, inf, 9.0), "cup", 0.9),
        Detection(BOX, "cup", nan),
        Detection(BOX, "cup", inf),
    ]
    image, outcome = outcome_of(tmp_path, found)
    assert outcome.dropped == {"not_finite": 4}
    reasons = annotator.findings_of(image, outcome).as_json()
    told = "left out by filters: object whose box or score is no number"
    assert reasons[told] == {"count": 4, "examples": ["a/000.png"]}
    assert reasons["image left out, as no object is left of it"]["count"] == 1


@pytest.mark.parametrize("quality", [float("nan"), float("inf"), -float("inf")])
def test_a_mask_of_no_quality_is_dropped(tmp_path, quality):
    mask = np.zeros((64, 64), bool)
    mask[10:38, 10:38] = True
    for segment, name in (
        (Segment(mask, quality, 1.0), "quality"),
        (Segment(mask, 1.0, quality), "stability"),
    ):
        _, outcome = outcome_of(tmp_path, [Detection(BOX, "cup", 0.9)], [segment])
        assert outcome.dropped == {name: 1}


def test_each_filter_has_a_reason_in_words():
    source = open(filters.__file__).read() + open(annotator.__file__).read()  # noqa: PTH123, SIM115
    for name in ("small_image", "same_box", "too_many", "same_mask"):
        assert f'dropped["{name}"]' in source
    assert all(f'"{name}"' in source.replace(f'"{name}":', "") for name in filters.REASONS)


def labels(tmp_path, data, *prompts):
    (tmp_path / "labels.txt").write_bytes(data)
    models = {"detector": tmp_path, "segmenter": tmp_path}
    return program._labels(
        program.Config(
            images="web",
            out=tmp_path / "out",
            labels=tmp_path / "labels.txt",
            prompts=prompts,
            **models,
        )
    )


def test_labels_are_read_as_people_write_them(tmp_path, capsys):
    """bom-1: the mark is no part of the first name; repeated names are told."""
    assert labels(tmp_path, "\ufeffcup\r\n\r\n red  cup \r\ncup\r\n".encode(), "cup", "fork") == (
        "cup",
        "fork",
        "red cup",
    )
    assert "2 labels stand there twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"cup\n\xff", "expected a text file with a name a line, got other bytes at byte 4"),
        (b"\n \r\n", "expected what to look for, got nothing"),
        (b"cup\x00", "got the character U\\+0000 in 'cup.x00'"),
        (b"\x1b[2Jcup", "got the character U\\+001B"),
        (b"cup " * 300, "expected names of at most 1000 characters, got 1199; do: write each"),
        ("cup\u202e".encode(), "got the character U\\+202E"),
    ],
)
def test_labels_that_are_none_are_one_line(tmp_path, data, told):
    with pytest.raises(ValueError, match=told) as caught:
        labels(tmp_path, data)
    assert "; do: " in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("config.json", {"model_type": ["sam"]}, "model_type: expected str, got a list of 1"),
        ("config.json", {"model_type": "sam", "max_text_len": "7"}, "expected int, got '7'"),
        ("config.json", {"model_type": "sam", "max_text_len": 2**70}, "max_text_len: expected"),
        ("config.json", [], "got none that can be read"),
        ("preprocessor_config.json", {"resample": 17}, "resample: expected int <= 5, got 17"),
        ("preprocessor_config.json", {"resample": {}}, "resample: expected int"),
        ("preprocessor_config.json", {"rescale_factor": 0}, "rescale_factor: expected float > 0"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean: expected list of length"),
        ("preprocessor_config.json", {"image_mean": [1e999] * 3}, "image_mean[0]: expected "),
        ("preprocessor_config.json", {"image_std": [1, 1, 0]}, "image_std[2]: expected float > "),
        ("processor_config.json", {"image_processor": {"resample": "x"}}, "resample: expected"),
    ],
)
def test_what_a_models_folder_says_of_images_is_checked(tmp_path, name, value, told):
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    (tmp_path / "preprocessor_config.json").write_text('{"resample": null, "size": {"x": [1]}}')
    assert hub.read_config(tmp_path, ["sam"], "segmenter").max_text_len == 256
    assert hub.read_preprocessor(tmp_path, "segmenter") == hub.Preprocessor()
    (tmp_path / name).write_text(json.dumps(value))

    def read():
        hub.read_config(tmp_path, ["sam"], "segmenter")
        hub.read_preprocessor(tmp_path, "segmenter")

    with pytest.raises(Unusable) as caught:
        read()
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / name}: segmenter")
    assert told in line
    assert "\n" not in line
