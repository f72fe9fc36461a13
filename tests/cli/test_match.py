"""The program that asks a CLIP which text fits which image, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import clip_tokenizer
import numpy as np
import pytest
import tiny_clip
from PIL import Image

from seg_jax.cli import main
from seg_jax.inference import matcher
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
