"""Drives `seg-jax annotate`: with true models, errors in one line, and who reads its output."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run

from seg_jax.annotation import jobs, results
from seg_jax.cli import finetune
from seg_jax.cli import main as shell
from seg_jax.data import image_lists, sources
from seg_jax.data.build import dataset
from seg_jax.runs import experiments
from seg_jax.training import optimizers

sys.path.append(str(Path(__file__).parents[1] / "annotation"))
import known_scenes as known
import tiny_hub


@pytest.fixture
def run(capsys):
    """Runs a command line; returns the status, what it printed, and its lines on errors."""

    def go(*words):
        status = shell.main([str(word) for word in words])
        printed, errors = capsys.readouterr()
        return status, printed, " ".join(errors.split())

    return go


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns options that name tiny models."""
    root = tmp_path_factory.mktemp("hub")
    detector, segmenter = tiny_hub.detector(root / "dino"), tiny_hub.sam2(root / "sam")
    return "--detector", detector, "--segmenter", segmenter, "--device", "cpu"


# Random weights find anything anywhere.
LOOSE = [
    "--filters.min-score",
    "0",
    "--filters.min-box",
    "0",
    "--filters.max-box",
    "1",
    "--filters.min-quality",
    "0",
    "--filters.min-stability",
    "0",
    "--filters.min-mask",
    "0",
    "--filters.max-outside",
    "1",
    "--filters.max-mask-iou",
    "1",
    "--contour.min-area-px",
    "0",
]


def test_images_become_a_data_set(run, models, tmp_path):
    known.make(tmp_path / "web", 3)
    (tmp_path / "web" / "001.png").write_bytes(b"no image")
    (tmp_path / "names.txt").write_text("red star\n\nblue circle\n")
    out = tmp_path / "out"
    words = ("annotate", "--images", tmp_path / "web", "--labels", tmp_path / "names.txt")
    words = (*words, "--out", out, *models, *LOOSE)
    status, printed, errors = run(*words, "--json", tmp_path / "summary.json")
    assert (status, printed) == (0, f"{out}\n"), errors
    assert "1 of 3 images failed" in errors
    assert "dead letters: 1 read; see" in errors
    source = sources.Built(folders=(out,))
    assert len(source) == 2
    assert source[0].masks.any((1, 2)).all()
    assert {text for some in source[0].phrases for text in some} <= {"red star", "blue circle"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"] == 3
    assert summary["versions"]["seg-jax"]
    kept = json.loads((out / "summary.json").read_text())
    assert {name: summary[name] for name in kept} == kept
    line = json.loads((out / "annotations" / "train.jsonl").read_text().splitlines()[0])
    origin = line["provenance"]
    assert origin["models"]["detector"]["name"] == "dino"
    assert origin["models"]["segmenter"]["revision"].startswith("sha256:")
    assert origin["filters"]["min_score"] == 0.0
    assert origin["code"].startswith("seg-jax ")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(*words)[0] == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    status, _, errors = run(*words, "--filters.max-objects", 1)
    assert status == 1
    assert "as before, got settings.filters.max_objects=1; do: " in errors
    assert run(*words, "--filters.max-objects", 1, "--anew")[0] == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"--images": "none"}, "images: expected a folder, a pattern or a list"),
        ({"--prompts": " "}, "labels: expected what to look for, got nothing"),
        ({"--detector": "none"}, "none: expected the folder of a model, got none"),
        ({"--segmenter": "web"}, "config.json: segmenter: expected this file"),
        ({"--describer": "nowhere"}, "nowhere: expected the folder of a model, got none"),
        ({"--describer": "ftp://host"}, "describer: expected an address as http://HOST:8000/v1"),
        ({"--out": "."}, "expected a folder without images to annotate, got some in it"),
        ({"--filters.min-score": "7"}, "filters.min_score: expected 0 to 1, got 7"),
        ({"--workers": "0"}, "workers: expected at least 1, got 0"),
    ],
)
def test_an_error_is_one_line(run, models, tmp_path, monkeypatch, changes, told):
    known.make(tmp_path / "web", 1)
    monkeypatch.chdir(tmp_path)
    words = {"--images": "web", "--prompts": "red star", "--out": "out"}
    words |= dict(zip(models[::2], models[1::2], strict=True)) | changes
    status, printed, errors = run("annotate", *(word for pair in words.items() for word in pair))
    assert (status in (1, 2), printed) == (True, "")
    assert told in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "dataset_info.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runner-options", "region=x"], "expected none without --runner, got region=x"),
        (["--runner", "DirectRunner", "--workers", "2"], "workers: expected none beside --runner"),
        (["--endpoint.tries", "2"], "expected --describer beside --endpoint.*"),
        (["--wording.view-px", "99"], "expected --describer beside --wording.*"),
        (["--splits.val", "test"], "splits.val: expected --splits.share above 0 beside it"),
        (["--describer", "models/d", "--endpoint.tries", "2"], "expected --endpoint.max-tokens"),
        (["--workers", "0"], "workers: expected at least 1, got 0"),
    ],
)
def test_an_option_without_effect_is_refused(run, tmp_path, words, told):
    places = ["--images", tmp_path, "--out", tmp_path / "out", "--prompts", "a"]
    models = ["--detector", tmp_path, "--segmenter", tmp_path]
    status, printed, errors = run("annotate", *places, *models, *words)
    assert (status, printed) == (2, "")
    assert told in errors


@pytest.fixture
def made(tmp_path):
    """Returns a data set of known scenes, with their samples."""
    samples = known.make(tmp_path / "web", 6)
    job = known.job(tmp_path / "out", 6)
    with jobs.claim_folder(job, anew=False):
        every = jobs.cut_into_shards(image_lists.list_images(str(tmp_path / "web")), job.records)
        jobs.annotate_shards(every, job, workers=1, progress=lambda done: None)
        results.gather_shards(every, job, results.Splits())
        make = functools.partial(dataset.make_files, workers=1, progress=lambda done: None)
        results.build_dataset(job, lambda plan, tasks: make(tasks))
    return job.out, samples


def test_evaluation_reads_what_was_annotated(run, made, tmp_path):
    out, samples = made
    lines = [json.loads(line) for line in (out / "annotations" / "train.jsonl").open()]
    answers = []
    for line, sample in zip(lines, samples, strict=True):
        for which, (one, name) in enumerate(zip(line["objects"], sample.names, strict=True)):
            rings = [[[x / 64, y / 64] for x, y in ring] for ring in one["rings_px"]]
            text = "[" + ", ".join(
                "[" + ", ".join(f"[{x:.3f}, {y:.3f}]" for x, y in ring) + "]" for ring in rings
            )
            told = {"key": f"out/train/{line['key']}", "which": which, "phrase": name}
            answers.append(told | {"given": "text", "kind": "mask", "text": f"{text}]."})
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in answers))
    words = ("evaluate", "--protocol", "res", "--answers", file, "--data", out, "--split", "train")
    status, printed, errors = run(*words)
    assert status == 0, errors
    summary = json.loads(printed)
    assert summary["questions"] == 12
    assert summary["giou"]["mean"] > 0.95


@pytest.mark.slow
def test_a_model_learns_from_what_was_annotated(made, tmp_path, monkeypatch):
    out, _ = made
    small_run.on_one_device(monkeypatch)  # On several: test_meshes, test_processes.
    base = small_run.sft_config()
    config = dataclasses.replace(
        base,
        out=tmp_path / "run",
        source=sources.Built(folders=(out,)),
        layout=dataclasses.replace(base.layout, max_prompt=60),
        loop=dataclasses.replace(base.loop, steps=2),
        optimizer=optimizers.AdamW(),
    )
    assert finetune.main(config) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [step["step"] for step in steps if "loss" in step] == [1, 2]
    assert np.isfinite([step["loss"] for step in steps if "loss" in step]).all()


@pytest.mark.slow
def test_a_model_of_ours_describes(run, models, tmp_path):
    known.make(tmp_path / "web", 2)
    words = ("annotate", "--images", tmp_path / "web", "--prompts", "red star", *models, *LOOSE)
    words = (*words, "--describer", experiments.NANO, "--wording.question", "Name {label}.")
    status, _, errors = run(*words, "--endpoint.max-tokens", 12, "--out", tmp_path / "out")
    letters = (tmp_path / "out" / "dead_letters.jsonl").read_text().splitlines()
    reasons = {(one["stage"], one["transient"]) for one in map(json.loads, letters)}
    # What it was not taught to say is taken or refused, for a reason that is told.
    assert reasons <= {("describer", False)}
    assert status == 0 or (letters and "expected images with objects, got none" in errors)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"][2][0] == "nano_model"
    told = summary["splits"]["train"]["objects"]
    assert told + len(letters) + summary["dropped"].get("mask_area", 0) >= 2
