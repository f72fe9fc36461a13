"""`seg-jax segment` draws the mask of a box and clicks, or says in one line why it does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny_folders
import tiny_sam2
from PIL import Image

from seg_jax.cli import main, segment
from seg_jax.data import image_files
from seg_jax.geometry import bitmask
from seg_jax.inference import segmenter


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder as transformers writes it."""
    path = tmp_path_factory.mktemp("segment") / "sam2"
    tiny_sam2.theirs().save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(tiny_sam2.CONFIG.to_preprocessor()))
    return path


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_box_and_clicks_give_a_mask_and_files(folder, image, tmp_path, capsys):
    words = ["segment", "--segmenter", str(folder), "--image", str(image)]
    box = ["--box", "0.1", "0.2", "0.8", "0.9", "--click", "0.4", "0.5", "1", "0.7", "0.3", "0"]
    assert main.main([*words, *box, "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    mask = bitmask.from_rle(told["rle"])
    assert mask.shape == tuple(told["size"]) == (40, 60)
    assert told["area_px"] == mask.sum() > 0
    assert 0 < told["quality"] < 1
    assert 0 <= told["presence"] <= 1
    assert Path(told["mask"]).name == "image.png-mask.png"
    drawn = np.asarray(Image.open(told["mask"]))
    np.testing.assert_array_equal(drawn, np.repeat(np.where(mask, 255, 0)[..., None], 3, -1))
    assert Image.open(told["overlay"]).width >= 60
    size = np.array([60, 40])
    asked = segmenter.prompt(
        box_px=np.array([0.1, 0.2, 0.8, 0.9]) * np.tile(size, 2),
        clicks_px=np.array([[0.4, 0.5], [0.7, 0.3]]) * size,
        inside=np.array([True, False]),
    )
    (want,) = segmenter.load(folder).draw(image_files.read(image), [asked])
    np.testing.assert_array_equal(mask, want.mask)
    assert main.main([*words, "--click", "0.4", "0.5", "1", "--dtype", "bfloat16"]) == 0
    assert "mask" not in json.loads(capsys.readouterr().out)


WRONG = {
    "neither": ([], "expected a box, clicks or both, got neither"),
    "beyond": (["--box", "0", "0", "1.5", "1"], "expected fractions of width and height in 0..1"),
    "no number": (["--click", "nan", "0", "1"], "expected fractions of width and height in 0..1"),
    "pixels": (["--click", "40", "20", "1"], "do: divide pixels by the image's size"),
    "flat": (["--box", "0.5", "0.1", "0.5", "0.9"], "expected a box x0 y0 x1 y1 with x0 < x1"),
    "swapped": (["--box", "0.1", "0.9", "0.5", "0.2"], "upper left corner first"),
    "label": (["--click", "0.5", "0.5", "7"], "expected 1 or 0 behind each x y"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_prompts_are_told_before_a_file_is_read(case, capsys):
    words, reason = WRONG[case]
    start = ["segment", "--segmenter", "nowhere", "--image", "nothing.png"]
    assert main.main([*start, *words]) == 1
    out, errors = capsys.readouterr()
    assert out == ""
    assert reason in errors
    assert len(errors.strip().splitlines()) == 1


def test_wrong_files_are_told(folder, image, tmp_path, capsys):
    def fails(segmenter, image=image, *words) -> str:
        start = ["segment", "--segmenter", str(segmenter), "--image", str(image)]
        assert main.main([*start, "--click", "0.5", "0.5", "1", *words]) == 1
        out, errors = capsys.readouterr()
        assert out == ""
        assert len(errors.strip().splitlines()) == 1, errors
        return errors

    assert "nothing.png" in fails(folder, tmp_path / "nothing.png")
    line = fails("facebook/sam2.1-hiera-tiny")
    assert "facebook/sam2.1-hiera-tiny: expected the folder of a model, got nothing there" in line
    assert "seg-jax convert facebook/sam2.1-hiera-tiny DIR" in line
    assert "expected the folder of a model, got a file" in fails(image)
    (tmp_path / "nothing").mkdir()
    assert "config.json: expected a file, got none" in fails(tmp_path / "nothing")
    vlm = tiny_folders.make("qwen2_5_vl", tmp_path / "vlm")
    assert "expected a model that draws masks of points and boxes, got 'qwen2_5_vl'" in fails(vlm)
    assert "expected weights as torch.save writes them" in fails(tmp_path / "nowhere.pt")
    (tmp_path / "file").write_text("")
    line = fails(folder, image, "--out", str(tmp_path / "file"))
    assert "expected a folder for the mask, got a file" in line
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").symlink_to(folder / "model.safetensors")
    smaller = dataclasses.replace(tiny_sam2.CONFIG, mlp_dim=40)
    (other / "config.json").write_text(json.dumps(smaller.to_hf()))
    assert "layers.0.mlp.proj_in.weight: expected (40, 32), got (48, 32)" in fails(other)


def test_the_options_are_those_of_the_readme():
    words = ["segment", "--segmenter", "DIR", "--image", "FILE", "--box", "0", "0", "1", "1"]
    assert main.main([*words, "--click", "0.5", "0.5", "1"]) == 1  # There is no such image.
    assert segment.Config(segmenter=Path("DIR"), image=Path("FILE")).click == ()
