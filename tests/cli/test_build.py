"""Drives `seg-jax build`: what it prints, its errors in one line, and training on what it made."""

import dataclasses
import json
import os
import pickle

import published_formats as formats
import pytest
import small_run

from seg_jax.cli import arguments, finetune
from seg_jax.cli import main as shell
from seg_jax.data import sources
from seg_jax.runs import supervised
from seg_jax.training import optimizers


@pytest.fixture
def run(capsys):
    """Runs a command line; returns the status, what it printed, and its lines on errors."""

    def go(*words):
        status = shell.main([str(word) for word in words])
        printed, errors = capsys.readouterr()
        return status, printed, errors

    return go


def test_a_data_set_is_built_and_reported(run, tmp_path):
    formats.refer(tmp_path, "refcoco_unc")
    words = "build", "refcoco_unc", "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    status, printed, errors = run(*words, "--json", tmp_path / "report.json")
    assert (status, printed) == (0, f"{tmp_path / 'out'}\n")
    words_said = " ".join(errors.split())
    assert "expected 42404 refs as published, got 6" in words_said
    assert "0 of 3 images stand in a val or test split of refcoco_unc: removed" in words_said
    assert "not looked through, not there: refcoco_google" in words_said
    report = json.loads((tmp_path / "report.json").read_text())
    kept = json.loads((tmp_path / "out" / "build.json").read_text())
    assert {name: report[name] for name in kept} == kept
    assert report["splits"]["testA"]["records"] == 3
    assert run(*words)[0] == 0
    assert run(*words, "--paper")[0] == 1
    assert run(*words, "--paper", "--anew")[0] == 0


def test_some_splits_are_built(run, tmp_path):
    formats.refer(tmp_path, "refcoco_unc", images=1)
    words = "build", "refcoco_unc", "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    assert run(*words, "--splits", "val", "testB")[0] == 0
    assert len(sources.Built(folders=(tmp_path / "out",), split="testB")) == 1
    with pytest.raises(ValueError, match="expected one of the splits testB, val"):
        len(sources.Built(folders=(tmp_path / "out",)))


def hostile(root):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {root / 'touched'}",)

    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([Attack()], 2))


def a_folder_for_a_file(root):
    (root / "refcoco" / "instances.json").unlink()
    (root / "refcoco" / "instances.json").mkdir()


def half_a_file(root):
    path = root / "refcoco" / "instances.json"
    path.write_text(path.read_text()[:100])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (hostile, "could run code; none was run; do: get the file from where it was published"),
        (a_folder_for_a_file, "instances.json: expected a file, got a folder; do: "),
        (half_a_file, "instances.json: expected JSON, got "),
        (lambda root: (root / "refcoco" / "refs(unc).p").unlink(), "got no such file"),
        (lambda root: (root / "images").rename(root / "elsewhere"), "do: --images DIR"),
    ],
)
def test_an_error_is_one_line(run, tmp_path, spoil, told):
    formats.refer(tmp_path, "refcoco_unc", images=1)
    spoil(tmp_path)
    words = "build", "refcoco_unc", "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    status, printed, errors = run(*words)
    line = errors.removeprefix("refcoco_unc: reading annotations\n")
    assert (status, printed, line.count("\n")) == (1, "", 1)
    assert line.startswith("seg-jax build: ")
    assert told in line
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "out" / "dataset_info.json").exists()


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("coco_instances", ["--runner-options", "region=x"], "expected none without --runner"),
        ("folder", ["--paper"], "paper: expected none for folder"),
        ("reasonseg", ["--images", "there"], "images: expected none for reasonseg"),
        ("reasonseg", ["--family", "refer_seg"], "family: expected none for reasonseg"),
        ("folder", ["--held-out", "refcoco_unc"], "held_out: expected none for folder"),
        ("coco_instances", ["--paper"], "paper: expected --family DIR beside it"),
        ("coco_panoptic", ["--held-out", "refcoco_unc"], "held_out: expected --family DIR"),
        ("folder", ["--workers", "2", "--runner", "DirectRunner"], "workers: expected none beside"),
        ("folder", ["--workers", "0"], "workers: expected at least 1, got 0"),
    ],
)
def test_an_option_without_effect_is_refused(run, tmp_path, name, words, told):
    status, printed, errors = run(
        "build", name, "--source", tmp_path, "--out", tmp_path / "out", *words
    )
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert told in errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--held-out", "refcoco"], "held_out: expected some of refcoco_unc, refcoco_google"),
        (
            ["--held-out", "refclef_unc"],
            "got refclef_unc; do: choose editions with the same images",
        ),
        (["--splits", "val", "--paper"], "paper: expected a train split, from which images"),
    ],
)
def test_a_leak_filter_that_would_filter_nothing_is_refused(run, tmp_path, words, told):
    formats.refer(tmp_path, "refcoco_unc", images=1)
    place = "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    status, printed, errors = run("build", "refcoco_unc", *place, *words)
    assert (status, printed) == (1, "")
    assert told in errors


def test_a_family_without_editions_is_refused(run, tmp_path):
    formats.instances(tmp_path)
    place = "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    status, printed, errors = run("build", "coco_instances", *place, "--family", tmp_path)
    assert (status, printed) == (1, "")
    assert "expected the references of one of refcoco_unc" in errors


def test_a_wrong_command_line_is_told(run, tmp_path):
    status, _, errors = run("build", "refcoco", "--source", tmp_path, "--out", tmp_path)
    assert status == 2
    assert "refcoco_unc" in errors
    status, _, errors = run("build", "folder", "--source", tmp_path / "no", "--out", tmp_path)
    assert status == 1
    assert "expected the folder of the data set, got no folder" in errors


def make_strip(root, data):
    """Makes the first image of train one of 900 x 3 pixels."""
    first = data["images"][0]
    first |= {"height": 3, "width": 900}
    place = root / "images" / "mscoco" / "images" / "train2014"
    formats.image(place / first["file_name"], 1, height=3, width=900)
    for note in data["annotations"]:
        if note["image_id"] == first["id"]:
            note["segmentation"] = [[1.0, 0.0, 30.0, 0.0, 30.0, 3.0, 1.0, 3.0]]
    (root / "refcoco" / "instances.json").write_text(json.dumps(data))


@pytest.mark.slow
def test_a_model_learns_from_what_was_built(run, tmp_path, monkeypatch):
    """ratio-1: with a picture of 900 x 3 in it, which is passed over, counted and named."""
    small_run.on_one_device(monkeypatch)  # On several: test_meshes, test_processes.
    data, _ = formats.refer(tmp_path, "refcoco_unc", images=4)
    make_strip(tmp_path, data)
    words = "build", "refcoco_unc", "--source", tmp_path, "--out", tmp_path / "data"
    status, _, errors = run(*words, "--workers", 1)
    assert status == 0
    assert "1 x passed over by models of scaled images (Qwen)" in " ".join(errors.split())
    source = sources.Built(folders=(tmp_path / "data",))
    base = small_run.sft_config()
    config = dataclasses.replace(
        base,
        out=tmp_path / "run",
        source=source,
        layout=dataclasses.replace(base.layout, max_prompt=60),
        loop=dataclasses.replace(base.loop, steps=2),
        optimizer=optimizers.AdamW(),
    )
    assert finetune.main(config) == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["source"] == {
        "class": "Built",
        "folders": [str(tmp_path / "data")],
        "split": "train",
        "absent": False,
        "singly": False,
    }
    steps = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [step["step"] for step in steps if "loss" in step] == [1, 2]
    passed = json.loads((tmp_path / "run" / "passed_over_sft.json").read_text())
    (found,) = passed.values()
    assert found["count"] == 1
    (example,) = found["examples"]
    assert "COCO_train2014_000000000001.jpg" in example


def test_a_configuration_names_the_data_and_options_replace_it(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        '"""Trains on data of mine."""\n'
        "from pathlib import Path\n"
        "from seg_jax.runs import supervised\n"
        "from seg_jax.data.sources import Built\n"
        "def config():\n"
        "    return supervised.Config(source=Built(folders=(Path('a'), Path('b'))))\n"
    )
    config = arguments.read(supervised.Config, [str(path)], program="seg-jax finetune")
    assert [str(folder) for folder in config.source.folders] == ["a", "b"]
    words = [str(path), "--source.folders", "c", "d", "e", "--source.split", "val"]
    config = arguments.read(supervised.Config, words, program="seg-jax finetune")
    assert [str(folder) for folder in config.source.folders] == ["c", "d", "e"]
    assert config.source.split == "val"


def test_a_command_that_failed_claims_no_folder(run, tmp_path):
    formats.folder(tmp_path)
    words = "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    assert run("build", "coco_instances", *words)[0] == 1
    assert run("build", "folder", *words)[0] == 0
    status, _, errors = run("build", "coco_instances", *words)
    assert status == 1
    told = "expected the build of name='folder', as before, got name='coco_instances'; do: "
    assert told in errors


def test_damage_that_is_healed_is_told(run, tmp_path):
    formats.folder(tmp_path)
    words = "build", "folder", "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    _, _, errors = run(*words)
    assert "made again" not in errors
    first = min((tmp_path / "out").glob("*.array_record-*"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    status, _, errors = run(*words)
    assert (status, first.read_bytes()) == (0, whole)
    assert f"record file {first.name} was damaged or gone: made again" in " ".join(errors.split())
    assert "made again" not in run(*words)[2]


def test_images_that_were_converted_are_told(run, tmp_path):
    formats.folder(tmp_path)
    words = "build", "folder", "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    assert "8-bit RGB" not in run(*words)[2]
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["image"]
    formats.image(tmp_path / first, 1, mode="L", form="PNG")
    status, _, errors = run(*words)
    assert status == 0
    assert "note: images of train converted to PNG of 8-bit RGB: 1" in errors


def test_all_reasons_are_told_before_a_build_without_images_ends(run, tmp_path):
    formats.image(tmp_path / "a.jpg", 1)
    line = {"image": "a.jpg", "objects": [{"segmentation": [[0.1, 0.1, 0.6, 0.1, 0.6, 0.6]]}]}
    line["phrases"] = [{"text": "it", "objects": [0]}]
    (tmp_path / "train.jsonl").write_text(json.dumps(line))
    words = "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    status, _, errors = run("build", "folder", *words)
    assert status == 1
    assert "warning: 1 x object left out: " in errors
    assert "fraction" in errors.splitlines()[-1]


def test_outlines_are_measured(run, tmp_path):
    formats.folder(tmp_path)
    words = "build", "folder", "--source", tmp_path, "--out", tmp_path / "out", "--workers", 1
    status, _, errors = run(*words, "--stats", 4)
    assert status == 0
    assert "outlines of 4 objects of train" in errors
    rows = json.loads((tmp_path / "out" / "stats.json").read_text())["rows"]
    assert rows[0]["epsilon"] == 0.0
    assert rows[0]["iou"] > rows[-1]["iou"]
    assert rows[0]["tokens_qwen"] > rows[-1]["tokens_qwen"]
