"""The program that asks a CLIP which text fits which image; every option acts or is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import clip_tokenizer
import fingerprints
import numpy as np
import pytest
import tiny_clip
from PIL import Image

from seg_jax.cli import main, match
from seg_jax.data.formats import spec
from seg_jax.evaluation.matching.choices import Scored
from seg_jax.inference import matcher
from seg_jax.runs import console, matching, run_folder
from seg_jax.scenes import contrasts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder of a tiny random CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    corpus = contrasts.corpus(contrasts.Config())[:500]
    tokenizer = clip_tokenizer.make(folder, corpus, merges=100)
    config = tiny_clip.with_vocabulary(len(tokenizer))
    tiny_clip.theirs(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(config.to_preprocessor()))
    return folder


def test_drawn_cases_are_scored_and_judged_again(folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["match", "--checkpoint", str(folder), "--count", "12", "--cases.side", "40"]
    assert main.main([*words, "--out", str(out), "--name", "tiny"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["choices"] == 2 * 2 * 30
    assert told["subsets"]["count"]["text_to_image"]["chance"] == pytest.approx(1 / 9)
    assert told["unscored"] == 0
    again = ["match", "--scores", str(out / "scores.jsonl"), "--json", str(tmp_path / "n.json")]
    assert main.main(again) == 0
    assert json.loads((tmp_path / "n.json").read_text())["subsets"] == told["subsets"]
    more = ["--out", str(tmp_path / "more"), "--beside", str(out)]
    assert main.main([*again[:3], *more]) == 0
    table = (tmp_path / "more" / "table.md").read_text()
    assert "| tiny, drawn cases | absolute size | 2 |" in table
    assert table.count("| mean of all |") == 2


def test_an_image_finds_its_text(folder, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    words = ["match", "--checkpoint", str(folder), "--image", str(tmp_path / "image.png")]
    assert main.main([*words, "--texts", "two dogs", "three dogs", "a red circle"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in told["texts"]] == ["two dogs", "three dogs", "a red circle"]
    assert sum(one["probability"] for one in told["texts"]) == pytest.approx(1)
    model = matcher.load(folder)
    cosines = model.texts(["two dogs", "three dogs", "a red circle"]) @ model.images([image])[0]
    np.testing.assert_allclose([one["cosine"] for one in told["texts"]], cosines, atol=1e-5)
    assert told["fits"] == told["texts"][int(cosines.argmax())]["text"]
    assert main.main([*words, "--texts", "one"]) != 0
    assert "expected an image and at least two texts" in capsys.readouterr().err


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of the program receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)
    patch = monkeypatch.setattr

    class Model:
        cut, scale, config = 0, 1.0, tiny_clip.CONFIG

        def images(self, images):
            return np.ones((len(images), 2), np.float32)

        def texts(self, texts):
            note("texts", texts)
            return np.ones((len(texts), 2), np.float32)

    def load(folder, *, dtype):
        note("load", folder, dtype)
        return Model()

    common = {"subset": "count", "case": "c", "query": "q", "direction": "text_to_image"}
    scored = [Scored(label=0, scores=(1.0, 0.0), **common)]

    def scoring(name):
        def score(*values, **options):
            note(name, values[1:], options)
            return scored

        return score

    def read_scores(path):
        note("scores", path)
        return scored

    def read_image(path):
        note("image", path)
        return np.zeros((4, 4, 3), np.uint8)

    patch(matcher, "load", load)
    patch(match.image_files, "read", read_image)
    patch(spec, "Published", lambda path: note("data", path))
    patch(matching, "score_drawn", scoring("drawn"))
    patch(matching, "score_published", scoring("published"))
    patch(matching, "read_scores", read_scores)
    patch(matching, "read", lambda folder: note("beside", folder))
    patch(matching, "show", lambda told: note("show", told["model"]))
    patch(matching, "write", lambda out, *_, **options: note("write", out, options["others"]))
    patch(run_folder, "tell_json", lambda told, path: note("numbers", path))
    patch(run_folder, "versions", dict)
    patch(console, "tell_json", lambda told, indent: note("told", told))
    patch(console, "say", lambda text: None)
    return note.of


FOLDER = Path("model")
BASES = {
    "drawn": match.Config(checkpoint=FOLDER),
    "written": match.Config(checkpoint=FOLDER, out=Path("out")),
    "published": match.Config(checkpoint=FOLDER, data=Path("data.zip")),
    "judged again": match.Config(scores=Path("scores.jsonl")),
    "an image": match.Config(checkpoint=FOLDER, image=Path("a.png"), texts=("a", "b")),
}


@pytest.mark.parametrize("kind", BASES)
def test_every_option_of_match(kind, prints):
    fingerprints.walk(prints, match, BASES[kind])


def test_options_that_do_not_go_together_are_refused():
    for base, change, told in (
        ("drawn", {"scores": Path("s")}, "expected a model or scores of one, got both"),
        ("drawn", {"checkpoint": None}, "expected a model or scores of one, got neither"),
        ("published", {"count": 3}, "--count: expected none beside data.zip"),
        ("judged again", {"dtype": "bfloat16"}, "--dtype: expected none beside scores.jsonl"),
        ("an image", {"out": Path("o")}, "--out: expected none beside a.png"),
        ("drawn", {"beside": (Path("o"),)}, "--beside: expected none beside no --out"),
        ("drawn", {"texts": ("a", "b")}, "expected an image and at least two texts, or neither"),
    ):
        with pytest.raises(ValueError, match=told):
            dataclasses.replace(BASES[base], **change)
