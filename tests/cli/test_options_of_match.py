"""Every option of match acts, or is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import fingerprints
import numpy as np
import pytest
import tiny_clip

from seg_jax.cli import match
from seg_jax.data.formats import spec
from seg_jax.evaluation.matching.choices import Scored
from seg_jax.inference import matcher
from seg_jax.runs import console, matching, run_folder


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
            match.main(dataclasses.replace(BASES[base], **change))
