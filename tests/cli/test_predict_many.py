"""`seg-jax predict` about many pictures: how they are named, and what is refused."""

import json
import os
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from seg_jax.data.exports.table import Format

TEXT = ("--text", "the red star")


@pytest.fixture
def web(tmp_path, monkeypatch):
    """Returns a folder of pictures two of which have one name, and works beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("web/a.png", "web/b/a.png", "web/b/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), "red").save(path)
    (tmp_path / "list.txt").write_text("web/b/c.jpg\nweb/a.png\n")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (("web",), ["web/a.png", "web/b/a.png", "web/b/c.jpg"]),
        (("web/a.png", "web"), ["web/a.png", "web/b/a.png", "web/b/c.jpg"]),
        (("web/*/*.jpg",), ["web/b/c.jpg"]),
        (("list.txt",), ["web/a.png", "web/b/c.jpg"]),
        (("web/b/c.jpg", "web/a.png"), ["web/b/c.jpg", "web/a.png"]),
    ],
)
def test_pictures_are_files_folders_patterns_and_lists(given, run, answers, web, named, found):
    asked = ("--checkpoint", given, "--images", *named, *TEXT, "--batch", 2, "--out", "out")
    status, out, _ = run("predict", *asked, "--formats", "overlays", "coco", "coco_results")
    assert (status, out.strip()) == (0, "out")
    told = [json.loads(line) for line in (web / "out/answers.jsonl").read_text().splitlines()]
    assert [one["image"] for one in told] == found
    assert len([*(web / "out/overlays").rglob("*.png")]) == len(found)


def test_names_that_are_no_utf8_cost_themselves(given, run, fails, answers, web):
    odd = Path(os.fsdecode(b"web/bad\xff.png"))
    odd.write_bytes((web / "web/a.png").read_bytes())
    asked = ("--checkpoint", given, *TEXT, "--out", "out", "--formats", *get_args(Format))
    status, _, line = run("predict", *asked, "--images", "web")
    assert (status, line) == (0, "3 answered, 0 failed, 0 masks")
    assert "got 1 x picture left out" in fails("predict", *asked, "--images", str(odd))


def test_several_questions_a_picture_and_a_summary(given, run, answers, web):
    (web / "q.jsonl").write_text(
        '{"image": "web/a.png", "questions": [{"text": "x"}, {"point": [0.5, 0.5]}]}\n'
        '{"image": "web/b/a.png", "box": [0.1, 0.1, 0.5, 0.5], "id": "mine"}\nno JSON\n'
    )
    asked = ("--checkpoint", given, "--questions", "q.jsonl", "--out", "out")
    status, out, line = run("predict", *asked, "--json", "-")
    summary = json.loads(out)
    assert (status, summary["answered"], summary["pictures"]) == (0, 3, 2)
    assert line == "3 answered, 0 failed, 0 masks"
    assert run("predict", *asked, "--json", "told.json")[1] == ""
    assert json.loads((web / "told.json").read_text()) == summary


def test_one_answer_is_printed_or_written(given, run, answers, image, tmp_path):
    asked = ("--checkpoint", given, "--image", image, *TEXT)
    _, out, _ = run("predict", *asked)
    assert run("predict", *asked, "--json", "-")[1] == out
    assert run("predict", *asked, "--json", tmp_path / "told.json")[1] == ""
    assert json.loads((tmp_path / "told.json").read_text()) == json.loads(out)


@pytest.mark.parametrize(
    ("words", "say"),
    [
        (TEXT, "predict: expected exactly one of --image, --images and --questions, got 0; do: "),
        (("--image", "a.png", "--images", "web", *TEXT), "and --questions, got 2; do: give one"),
        (("--images", "web", *TEXT), "out: expected a folder for the answers about many images"),
        (("--images", "web", "--out", "o"), "--text, --texts, --point and --box, got 0; do: "),
        (
            ("--images", "web", "--out", "o", *TEXT, "--texts", "a", "b"),
            "--text, --texts, --point and --box, got 2; do: ",
        ),
        (("--images", "web", "--out", "o", "--texts", "a", " "), "got an empty --texts; do: "),
        (("--images", "none", "--out", "o", *TEXT), "images: expected a folder, a pattern or a"),
        (("--images", "web", "--out", "o", *TEXT, "--batch", "0"), "batch: expected at least 1"),
        (("--image", "web/a.png", *TEXT, "--formats", "coco"), "formats: expected --images or"),
        (("--images", "web", "--out", "list.txt", *TEXT), "expected a folder for the answers, got"),
        (("--image", "web/a.png", *TEXT, "--anew"), "anew: expected --images or --questions"),
        (("--questions", "none.jsonl", "--out", "o", *TEXT), "questions: expected no --text, "),
        (("--questions", "none.jsonl", "--out", "o"), "none.jsonl: expected questions, a JSON"),
    ],
)
def test_what_does_not_go_together_is_refused(given, fails, web, words, say):
    assert say in fails("predict", "--checkpoint", given, *words)
    assert not (web / "o").exists()
