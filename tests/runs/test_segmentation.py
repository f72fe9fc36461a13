"""A segmenter at work compiles from shapes, and counts what it computes."""

from __future__ import annotations

import json

import jax
import pytest
import tiny_sam2

from seg_jax.cli import main
from seg_jax.models.sam2 import arithmetic, meta_names
from seg_jax.models.sam2.config import Config
from seg_jax.models.vlm import qwen25_vl
from seg_jax.runs import lowering, segmentation

RUN = """\
import tiny_sam2
from seg_jax.runs import segmentation
from seg_jax.training import steps


def config():
    mesh = steps.Mesh(data=4, fsdp=2)
    options = {"images": 8, "prompts": 2, "points": 3, "mesh": mesh}
    return segmentation.Config(model=tiny_sam2.CONFIG, **options)
"""


@pytest.mark.skipif(
    jax.default_backend() != "cpu" or jax.device_count() < 8, reason="needs eight CPU devices"
)
def test_compile_takes_both_steps(tmp_path, capsys):
    path, out = tmp_path / "run.py", tmp_path / "out.json"
    path.write_text(RUN)
    words = ["compile", str(path), "--topology", "cpu:8", "--images", "16", "--json", str(out)]
    assert main.main(words) == 0
    capsys.readouterr()
    told = json.loads(out.read_text())
    assert [step["step"] for step in told["steps"]] == ["encode", "decode"]
    assert (told["mesh"]["data"], told["mesh"]["fsdp"]) == (4, 2)
    assert told["run"]["images"] == 16
    encode, decode = told["steps"]
    vision = 16 * arithmetic.encoding(tiny_sam2.CONFIG) / 8
    assert encode["operations"] == {"vision": pytest.approx(vision)}
    head = 16 * 2 * arithmetic.decoding(tiny_sam2.CONFIG, 3) / 8
    assert decode["operations"] == {"head": pytest.approx(head)}
    assert encode["memory"]["arguments"] > 0


TERA = {"tiny": 0.29, "small": 0.36, "base-plus": 0.65, "large": 1.82}


@pytest.mark.parametrize("size", TERA)
def test_the_published_sizes_take_these_operations(size):
    config = Config(backbone=meta_names.SIZES[size])
    assert round(arithmetic.encoding(config) / 1e12, 2) == TERA[size]
    assert round(arithmetic.decoding(config, 4) / 1e9, 1) == 3.7


def test_what_is_missing_or_contradicts_a_checkpoint_is_told(tmp_path):
    assert isinstance(segmentation.Config(), lowering.Lowerable)
    with pytest.raises(ValueError, match="expected the sizes of a model or a checkpoint"):
        segmentation.Config().completed()
    with pytest.raises(ValueError, match="prompts: expected at least 1, got 0; do: give more"):
        segmentation.Config(prompts=0)
    (tmp_path / "config.json").write_text(json.dumps(tiny_sam2.CONFIG.to_hf()))
    found = segmentation.Config().completed(tmp_path)
    assert (found.model, found.checkpoint) == (tiny_sam2.CONFIG, tmp_path)
    with pytest.raises(ValueError, match="got others; do: leave --model out"):
        segmentation.Config(model=Config(), checkpoint=tmp_path).completed()
    (tmp_path / "config.json").write_text(json.dumps(qwen25_vl.Config().to_hf()))
    with pytest.raises(ValueError, match=f"^{tmp_path}: model_type: .*got 'qwen2_5_vl'"):
        segmentation.Config(checkpoint=tmp_path).completed()
