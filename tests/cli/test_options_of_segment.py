"""Every option of segment acts, or is refused."""

from __future__ import annotations

from pathlib import Path

import fingerprints
import numpy as np
import pytest

from seg_jax.cli import segment
from seg_jax.data import image_files
from seg_jax.data.exports import overlay
from seg_jax.inference import segmenter

OUT = Path("out")
MODES = {
    "box": {"box": (0.1, 0.1, 0.5, 0.5)},
    "clicks": {"click": ((0.2, 0.3, 1), (0.4, 0.3, 0))},
    "both, with files": {"box": (0.1, 0.1, 0.5, 0.5), "click": ((0.2, 0.3, 1),), "out": OUT},
}


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of the program receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)

    class Segmenter:
        def draw(self, image, prompts):
            for one in prompts:
                note("prompt", one.points_px.tolist(), one.labels.tolist())
            return [segmenter.Drawn(np.ones(image.shape[:2], bool), 0.5, 0.5, 0.5)]

    def load(source, *, dtype):
        note("load", source, dtype)
        return Segmenter()

    def read(path):
        note("image", path)
        return np.zeros((2, 2, 3), np.uint8)

    def draw(image, rings, *, points_unit, boxes_unit):
        note("overlay", points_unit, boxes_unit)
        return image

    monkeypatch.setattr(segmenter, "load", load)
    monkeypatch.setattr(image_files, "read", read)
    monkeypatch.setattr(image_files, "write", lambda path, image: note("write", path))
    monkeypatch.setattr(overlay, "draw", draw)
    return note.of


@pytest.mark.parametrize("mode", MODES)
def test_every_option_of_segment(mode, prints):
    base = segment.Config(segmenter=Path("sam2"), image=Path("image.png"), **MODES[mode])
    fingerprints.walk(prints, segment, base)
