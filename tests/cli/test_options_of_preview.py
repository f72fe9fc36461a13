"""Drives `seg-jax preview`: its page, its lines, and every option of it."""

import dataclasses
import json
from pathlib import Path

import fingerprints
import published_formats as formats
import pytest
from built_data import build

from seg_jax.cli import main as shell
from seg_jax.cli import preview
from seg_jax.data.build import dataset
from seg_jax.report import html_page


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
    page = tmp_path / "page.html"
    assert shell.main(["preview", str(data), "--out", str(page)]) == 0
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
        "mask 1",
        "3 of 3 images",
        "64 x 48 pixels",
    ):
        assert wanted in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_any_number_of_images_is_that_of_the_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    page = tmp_path / "page.html"
    assert shell.main(["preview", ".", "--images", str(10**13), "--out", str(page)]) == 0
    assert "3 of 3 images" in page.read_text()
    assert "out: train" in page.read_text()


def test_damage_is_shown(data, tmp_path, capsys):
    """A file that is gone: what is left is shown, and the reason."""
    first, *_ = sorted(data.glob("*-train.array_record-*"))
    kept = first.read_bytes()
    first.unlink()
    try:
        assert shell.main(["preview", str(data), "--out", str(tmp_path / "page.html")]) == 0
    finally:
        first.write_bytes(kept)
    assert "2 x record passed over, as its file is missing" in capsys.readouterr()[1]
    assert "cannot be read now" in (tmp_path / "page.html").read_text()


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


def test_every_option_of_preview(data, monkeypatch, tmp_path):
    def before(config):
        del config
        for place in ("given", "elsewhere"):
            other = data if place == "given" else data.parent
            Path(place).symlink_to(other)

    note = fingerprints.Notes(monkeypatch, tmp_path, before=before)

    def write(path, report):
        note("page", path, report.title, [len(one.panels) for one in report.exhibits])

    monkeypatch.setattr(html_page, "write", write)
    base = preview.Config(data=Path("given"), images=1, masks=1)
    fingerprints.walk(note.of, preview, base)
