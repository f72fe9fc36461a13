"""What a SAM 2's `config.json` and `preprocessor_config.json` say is taken, written or refused."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import tiny_sam2
import transformers

from seg_jax.models import families
from seg_jax.models.sam2 import hiera, meta_names
from seg_jax.models.sam2.config import Config

TINY = tiny_sam2.CONFIG


def test_transformers_reads_what_is_written():
    theirs = transformers.Sam2Config(**TINY.to_hf())
    assert Config.from_hf(theirs.to_dict()) == TINY
    assert transformers.Sam2Config(**Config().to_hf()).to_dict() == transformers.Sam2Config(
        architectures=["Sam2Model"]
    ).to_dict()  # fmt: skip
    assert Config.from_hf(json.loads(json.dumps(TINY.to_hf()))) == TINY
    video = transformers.Sam2VideoConfig().to_dict()
    assert Config.from_hf(video) == Config()


def test_the_published_trunks_are_cut_into_runs():
    found = {name: hiera.runs(trunk) for name, trunk in meta_names.SIZES.items()}
    assert [(r.begin, r.count, r.window, r.halves) for r in found["tiny"]] == [
        (0, 1, 8, False),
        (1, 1, 8, True),
        (2, 1, 4, False),
        (3, 1, 4, True),
        (4, 1, 14, False),
        (5, 1, 0, False),
        (6, 1, 14, False),
        (7, 1, 0, False),
        (8, 1, 14, False),
        (9, 1, 0, False),
        (10, 1, 14, True),
        (11, 1, 7, False),
    ]
    large = [(r.begin, r.count, r.window) for r in found["large"] if r.stage == 2]
    assert large[:3] == [(8, 1, 4), (9, 14, 16), (23, 1, 0)]
    assert large[3:] == [(24, 9, 16), (33, 1, 0), (34, 9, 16), (43, 1, 0)]


TRUNK = "vision_config.backbone_config."
PARTS = {
    "no sizes": ({"vision_config": {}}, "expected all sizes of a model, got no"),
    "windows": ({TRUNK + "window_size_per_stage": [8, 7, 14, 7]}, "expected even windows"),
    "stages": ({TRUNK + "blocks_per_stage": [1, 2, 7]}, "expected 4 numbers above 0"),
    "blocks": ({TRUNK + "blocks_per_stage": [1, 2, 7000, 2]}, "expected at most 1000 blocks"),
    "heads": ({TRUNK + "num_attention_heads_per_stage": [5, 2, 4, 8]}, "heads that divide"),
    "begins": ({TRUNK + "global_attention_blocks": [3]}, "with which stages begin"),
    "beyond": ({TRUNK + "global_attention_blocks": [12]}, "numbers of blocks below 12"),
    "equal": ({TRUNK + "embed_dim_per_stage": [96, 96, 384, 768]}, "each stage wider"),
    "act": ({TRUNK + "hidden_act": "relu"}, "expected 'gelu', got 'relu'"),
    "levels": ({"vision_config.fpn_top_down_levels": [1, 2, 3]}, "expected [2, 3], got [1, 2, 3]"),
    "side": ({"prompt_encoder_config.image_size": 1000}, "expected a multiple of 32"),
    "huge": ({"prompt_encoder_config.image_size": 32 * 1024}, "at most 4096"),
    "other side": ({"prompt_encoder_config.image_size": 512}, "backbone_feature_sizes: expected"),
    "width": ({"mask_decoder_config.hidden_size": 128}, "hidden_size: expected 256, got 128"),
    "depth": ({"mask_decoder_config.num_hidden_layers": 3}, "expected 2, got 3"),
    "layers": ({"mask_decoder_config.iou_head_depth": 1}, "expected 2 to 16 layers"),
    "type": ({"model_type": "sam"}, "expected 'sam2', got 'sam'"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_what_is_no_such_model_is_refused(case):
    changes, reason = PARTS[case]
    hub = copy.deepcopy(Config().to_hf())
    for path, value in changes.items():
        *inner, last = path.split(".")
        part = hub
        for name in inner:
            part = part[name]
        part[last] = value
    with pytest.raises(ValueError) as caught:
        Config.from_hf(hub)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_are_prepared_otherwise_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(Config().to_hf()))
    path = tmp_path / "preprocessor_config.json"
    told = Config().to_preprocessor()
    path.write_text(json.dumps(told | {"image_mean": [0.1, 0.2, 0.3]}))
    assert families.read(tmp_path) == dataclasses.replace(Config(), image_mean=(0.1, 0.2, 0.3))
    wrong = {
        "size": {"height": 512, "width": 512},
        "resample": 3,
        "do_normalize": False,
        "rescale_factor": 1.0,
        "image_std": [0.5],
    }
    for name, value in wrong.items():
        path.write_text(json.dumps(told | {name: value}))
        with pytest.raises(ValueError, match="preprocessor_config.json.*expected"):
            families.read(tmp_path)
