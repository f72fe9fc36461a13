"""Drives `seg-jax preview`: its page, its lines, and every option of it."""

import dataclasses
import json
from pathlib import Path

import fingerprints
import published_formats as formats
import pytest
import small_run
from built_data import build

from seg_jax.cli import main as shell
from seg_jax.cli import preview
from seg_jax.data import pipeline, sources
from seg_jax.data.build import dataset
from seg_jax.inference import bundle as bundles
from seg_jax.report import html_page
from seg_jax.report.row_exhibits import Looks
from seg_jax.runs import run_folder, start
from seg_jax.training import policy


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with a missing picture, one whose text is no picture, and hostile names."""
    root = tmp_path_factory.mktemp("data")
    formats.folder(root)
    lines = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    lines.append({**lines[0], "image": "images/gone\x1b]0;OWNED\x07.png"})
    lines[1]["phrases"][0]["text"] = "<script>alert(1)</script>"
    (root / "train.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    build(dataset.Plan(name="folder", source=root, out=root / "out", records=2))
    return root / "out"


def test_a_page_shows_images_with_outlines_and_reasons(data, tmp_path, capsys):
    page = tmp_path / "preview.html"
    assert shell.main(["preview", str(data), "--out", str(tmp_path)]) == 0
    printed, errors = capsys.readouterr()
    assert printed == f"{page}\n"
    words = " ".join(errors.split())
    assert "warning: 1 x image left out: image is missing, first train/" in words
    assert words.count("do: check the path") == 1
    assert "\x1b]0;OWNED" not in errors
    text = page.read_text()
    for wanted in (
        "image left out: image is missing",
        "check the path",
        "as the model gets it",
        "annotation",
        "all masks of the image",
        "questions about 3 images",
        "64 x 48 as ",
    ):
        assert wanted in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_any_number_of_images_is_that_of_the_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    words = ["preview", ".", "--images", str(10**13), "--out", str(tmp_path)]
    assert shell.main(words) == 0
    text = (tmp_path / "preview.html").read_text()
    assert "about 3 images" in text
    assert "out: train" in text


def test_damage_is_shown(data, tmp_path, capsys):
    """A file that is gone: what is left is shown, and the reason."""
    first, *_ = sorted(data.glob("*-train.array_record-*"))
    kept = first.read_bytes()
    first.unlink()
    try:
        assert shell.main(["preview", str(data), "--out", str(tmp_path)]) == 0
    finally:
        first.write_bytes(kept)
    assert "2 x record passed over, as its file is missing" in capsys.readouterr()[1]
    assert "passed over by these rows" in (tmp_path / "preview.html").read_text()


def test_the_split_that_is_left_out_is_train_or_the_only_one(tmp_path, capsys):
    formats.folder(tmp_path)
    lines = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").rename(tmp_path / "mine.jsonl")
    build(dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "one", splits=("mine",)))
    assert shell.main(["preview", str(tmp_path / "one")]) == 0
    for other in ("mine", "other"):
        (tmp_path / f"{other}.jsonl").write_text(lines)
    plan = dataset.Plan(name="folder", source=tmp_path, out=tmp_path / "two")
    build(dataclasses.replace(plan, splits=("mine", "other")))
    capsys.readouterr()
    assert shell.main(["preview", str(tmp_path / "two")]) == 1
    assert "as there are mine, other, got none; do: --split mine" in capsys.readouterr()[1]
    assert shell.main(["preview", str(tmp_path / "two"), "--split", "no"]) == 1
    assert "splits mine, other, got 'no'; do: --split mine" in capsys.readouterr()[1]


def test_what_is_no_data_set_is_one_line(tmp_path, capsys):
    assert shell.main(["preview", str(tmp_path)]) == 1
    assert "expected a data set with dataset_info.json, got none" in capsys.readouterr()[1]


def test_a_name_of_a_page_is_no_folder(data, capsys):
    assert shell.main(["preview", str(data), "--out", "runs/page.html"]) in (1, 2)
    assert "expected a folder, which gets preview.html" in " ".join(capsys.readouterr()[1].split())


def test_other_configurations_are_refused(tmp_path, capsys):
    (tmp_path / "other.py").write_text("def config():\n    return 3\n")
    assert shell.main(["preview", str(tmp_path / "other.py")]) == 2
    assert "expected a configuration of finetune or reinforce" in capsys.readouterr()[1]


@pytest.fixture
def note(monkeypatch, tmp_path, data):
    """Returns what notes which rows are made, in what order, and what is written of them."""

    def before(config):
        del config
        for place in ("given", "elsewhere"):
            other = data if place == "given" else data.parent
            Path(place).symlink_to(other)

    note = fingerprints.Notes(monkeypatch, tmp_path, before=before)

    def rows(source, task, encoder, *, feed, rows, met, answer_tokens):
        note("rows", source, task, encoder.layout, feed, rows, answer_tokens)
        yield from iter(lambda: None, 0)

    def add(self, made):
        del made
        self.images += 1
        note("image", self._shown)

    def write(path, report):
        note("page", path, report.title, report.notes[-1])

    monkeypatch.setattr(pipeline, "rows_in_order", rows)
    # Which words a tokenizer is made of is part of the source and the task, noted above.
    tokenizer = small_run.bundle().tokenizer
    monkeypatch.setattr(start, "make_tokenizer", lambda *_: tokenizer)
    monkeypatch.setattr(run_folder, "versions", dict)
    monkeypatch.setattr(Looks, "add", add)
    monkeypatch.setattr(html_page, "write", write)
    return note


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the folder of a model of random weights."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return folder


def test_every_option_of_preview(note):
    fingerprints.walk(note.of, preview, preview.Config(data=Path("given"), images=1, shown=1))


def test_a_checkpoint_says_how_rows_are_made(note, checkpoint):
    base = preview.Config(data=Path("given"), images=1, checkpoint=checkpoint)
    [rows, *_] = note.of(preview, base)
    assert fingerprints.plain(small_run.sft_config().layout) in rows


SCENES = sources.Scenes(world=small_run.TINY.config().source.world, count=3)
PROMPTS = small_run.gspo_config(source=SCENES)
RUNS = {
    "finetune": (small_run.sft_config(source=SCENES), ("",)),
    "packed": (
        small_run.sft_config(source=SCENES, feed=pipeline.Feed(batch=2, pack=small_run.PACK)),
        ("feed",),
    ),
    "a data set": (
        small_run.sft_config(source=sources.Built(folders=(Path("given"),))),
        ("source", "validate"),
    ),
    "reinforce": (PROMPTS, ("",)),
    "true answers": (
        dataclasses.replace(PROMPTS, policy=policy.Policy(truth="judged")),
        ("policy", "sampling"),
    ),
}
"""Runs, and which of their options are walked over."""


@pytest.mark.parametrize("name", RUNS)
def test_every_option_of_a_run_that_is_looked_at(name, note):
    run, parts = RUNS[name]
    base = dataclasses.replace(preview.Config.of_run(run), images=1)
    base = dataclasses.replace(base, run=run.completed(), images=1)
    fingerprints.walk(note.of, preview, base, parts=[f"run.{part}" for part in parts])


def test_rows_of_a_run_are_shown(tmp_path, capsys):
    words = ["configs/simpleseg/tiny_sft.py", "--images", "4", "--shown", "3", "--source.seed", "5"]
    assert shell.main(["preview", *words, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr()[0] == f"{tmp_path / 'preview.html'}\n"
    page = (tmp_path / "preview.html").read_text()
    assert page.count("as the model gets it</span>") == 3
    assert "scene-5-" in page
    rows = [json.loads(line) for line in (tmp_path / "preview_rows.jsonl").open()]
    assert 12 <= len(rows) <= 16
    assert [one["picture_error"] for one in rows] == [0.0] * len(rows)
    found = [one["agreement"] for one in rows if one["agreement"] is not None]
    assert found == sorted(found)
    assert shell.main(["preview", *words, "--optimizer.lr", "3"]) == 1
    told = " ".join(capsys.readouterr()[1].split())
    assert "optimizer.lr: expected options that rows depend on, got 3.0" in told
