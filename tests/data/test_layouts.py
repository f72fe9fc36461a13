"""Images of published checkpoints: cut as their own processors cut them, to the last byte."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import moonshot
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, Qwen2VLImageProcessorPil

from seg_jax.data import encode
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tokens
from seg_jax.models import families
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import moonvit, qwen25_vl
from seg_jax.records import Images, Sample
from seg_jax.tasks.referring import Mixture, Referring

sys.path.append(str(Path(__file__).parents[1] / "models"))
import tiny_vlm

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
QWEN25 = {
    "image_processor_type": "Qwen2VLImageProcessor",
    **{"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2},
    **{"min_pixels": 3136, "max_pixels": 12_845_056},
    **CLIP,
}
QWEN3 = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    **{"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2},
    "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
KIMI = {
    "image_processor_type": "KimiVLImageProcessor",
    **{"patch_size": 14, "in_token_limit": 4096, "pad_input": True, "num_pooled_tokens": 1024},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
"""What the published checkpoints' `preprocessor_config.json` say of images."""

SIZES = [(480, 640), (1, 150), (37, 41), (897, 1200), (1300, 1700), (700, 90), (56, 28), (3, 3)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return tokens.train(chat.sentences(["red star"]), folder=folder, vocab_size=300)


def layout_of(family, found, *, visual_tokens=encode.VISUAL_TOKENS):
    return encode.layout_of(families.image_layout(family, found, visual_tokens=visual_tokens))


@pytest.fixture(scope="module")
def encoder(tokenizer):
    """Returns a function that gives the encoder of a family's images."""

    def make(family, found, **options):
        return encode.Encoder(tokenizer, layout_of(family, found, **options))

    return make


def scene(height, width):
    """Returns an image of blocks and noise, which no resampling leaves as it was."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 256, (-(-height // 9), -(-width // 9), 3))
    blocks = small.repeat(9, axis=0).repeat(9, axis=1)[:height, :width]
    return np.clip(blocks + rng.integers(-30, 30, blocks.shape), 0, 255).astype(np.uint8)


def real(images):
    """Returns the patches that are no padding of the row."""
    return images.patches[images.image >= 0]


@pytest.mark.parametrize(("family", "found"), [("qwen2_5_vl", QWEN25), ("qwen3_vl", QWEN3)])
@pytest.mark.parametrize("size", SIZES)
def test_qwens_bytes_are_those_of_transformers(family, found, size, encoder):
    asked = encoder(family, found)
    kept = {"max_pixels": asked.layout.max_pixels, "min_pixels": asked.layout.min_pixels}
    bare = {"do_rescale": False, "do_normalize": False, "size": None}
    official = Qwen2VLImageProcessorPil(**(found | kept | bare))
    theirs = official(Image.fromarray(scene(*size)), return_tensors="np")
    images, grid_of = asked.image(scene(*size))
    assert theirs["image_grid_thw"].tolist() == [[1, *grid_of]]
    patch = found["patch_size"] ** 2
    frames = theirs["pixel_values"].reshape(-1, 3, 2, patch)
    np.testing.assert_array_equal(real(images), frames[:, :, 0].reshape(-1, 3 * patch))
    np.testing.assert_array_equal(frames[:, :, 0], frames[:, :, 1])


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (1, 5000), (960, 1280), (504, 644)])
def test_kimis_bytes_are_those_of_its_rule(size, pad, encoder):
    asked = encoder("kimi_vl", KIMI | {"pad_input": pad})
    image = scene(*size)
    if not pad and min(size) < 28:
        with pytest.raises(ValueError, match="at least 28x28 to cut to whole cells"):
            asked.image(image)
        return
    images, (rows, columns) = asked.image(image)
    theirs, shape = moonshot.patches(image, patch=14, merge=2, limit=4096, pad=pad)
    assert shape == (rows, columns)
    row, column = images.place[images.image >= 0].T
    np.testing.assert_array_equal(real(images), theirs[row * columns + column])


def test_what_pads_an_image_is_black(encoder):
    images, (rows, columns) = encoder("kimi_vl", KIMI).image(np.full((30, 50, 3), 255, np.uint8))
    assert (rows, columns) == (4, 4)
    canvas = np.zeros((56, 56, 3), np.uint8)
    places = images.place[images.image >= 0]
    for patch, (row, column) in zip(real(images), places, strict=True):
        square = patch.reshape(3, 14, 14).transpose(1, 2, 0)
        canvas[14 * row :, 14 * column :][:14, :14] = square
    want = np.zeros_like(canvas)
    want[:30, :50] = 255
    np.testing.assert_array_equal(canvas, want)
    assert not images.patches[images.image < 0].any()


def identity(tower):
    """Makes the patch layer of a tower hand pixels through."""
    size = tower.patch.kernel.shape
    tower.patch.kernel = nnx.Param(jnp.eye(*size))


def entering(tower, images):
    """Returns what goes into the tower's first block."""
    rows = Images(*(np.asarray(leaf)[None] for leaf in images))
    return np.asarray(tower.embed(rows))[0][images.image >= 0]


def test_normalised_pixels_are_those_of_transformers(encoder):
    found = QWEN25 | {"patch_size": 6, "min_pixels": 144, "max_pixels": 9216}
    images, _ = encoder("qwen2_5_vl", found).image(scene(50, 70))
    statistics = {name: tuple(values) for name, values in CLIP.items()}
    config = tiny_vlm.config(vision={"hidden_size": 216, "depth": 1, **statistics})
    tower = qwen25_vl.VisionTower(config, compute=Compute(), rngs=nnx.Rngs(0))
    identity(tower)
    theirs = Qwen2VLImageProcessorPil(**found)(Image.fromarray(scene(50, 70)), return_tensors="np")
    np.testing.assert_allclose(entering(tower, images), theirs["pixel_values"], atol=2e-6)


def test_black_is_normalised_as_all_else(encoder):
    found = KIMI | {"patch_size": 6, "in_token_limit": 64}
    images, _ = encoder("kimi_vl", found).image(scene(17, 29))
    vision = moonvit.Vision(
        **{"patch_size": 6, "hidden_size": 108, "intermediate_size": 8},
        **{"num_attention_heads": 3, "num_hidden_layers": 1},
    )
    tower = moonvit.VisionTower(vision, out=8, compute=Compute(), rngs=nnx.Rngs(0))
    identity(tower)
    tower.grid.embedding = nnx.Param(jnp.zeros(tower.grid.embedding.shape))
    theirs = (real(images) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(entering(tower, images), theirs, atol=2e-6)
    assert (theirs == -1).sum() > 1000


@pytest.mark.parametrize(("family", "found"), [("kimi_vl", KIMI), ("qwen2_5_vl", QWEN25)])
def test_coordinates_are_those_of_the_image_as_it_came(family, found, encoder):
    height, width = 61, 43
    mask = np.zeros((1, height, width), bool)
    mask[0, 20:50, 10:30] = True
    sample = Sample("one", scene(height, width), mask, (("the star",),))
    made = encoder(family, found)
    _, (rows, columns) = made.image(sample.image)
    assert (rows * 14, columns * 14) != (height, width)
    for share, told in (("text_box", "answer"), ("box_mask", "question")):
        mixture = Mixture(**{"text_mask": 0.0, share: 1.0})
        asked = Referring(mixture=mixture, wordings="one").example(sample, np.random.default_rng(0))
        row = made.batch_row([asked])
        text = made.tokenizer.decode(row.ids[0], special=True)
        assert text.startswith(asked.question)
        assert asked.answer in text
        corners = re.findall(r"\[([\d., ]+)\]", getattr(asked, told))[0]
        box = np.array([float(number) for number in corners.split(", ")])
        np.testing.assert_allclose(box * ([width, height] * 2), [10, 20, 30, 50], atol=0.04)


def test_layouts_of_published_checkpoints():
    old = layout_of("qwen2_5_vl", QWEN25)
    assert (old.patch, old.merge, old.min_pixels) == (14, 2, 3136)
    assert (old.max_pixels, old.max_patches) == (1280 * 28 * 28, 5120)
    assert old.max_prompt == 1280 + 256
    wide = layout_of("qwen2_5_vl", QWEN25, visual_tokens=10**6)
    assert (wide.max_pixels, wide.max_patches) == (12_845_056, 4 * 16_384)
    new = layout_of("qwen3_vl", QWEN3)
    assert (new.patch, new.min_pixels, new.max_pixels) == (16, 65_536, 1280 * 32 * 32)
    kimi = layout_of("kimi_vl", KIMI)
    assert kimi.native == encode.Native(limit=4096, pad=True)
    assert kimi.max_patches == 4864
    final = layout_of("kimi_vl", KIMI | {"in_token_limit": 16_384})
    assert final.native.limit == 4225
    assert final.max_patches <= 5120
    final = layout_of("kimi_vl", KIMI | {"in_token_limit": 16_384}, visual_tokens=4608)
    assert (final.native.limit, final.max_patches) == (16_384, 17_920)
    assert layout_of("kimi_vl", {}).native == encode.Native(limit=4096, pad=False)


def test_both_spellings_of_the_budget():
    new = {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}
    bare = {name: QWEN25[name] for name in QWEN25 if "pixels" not in name}
    assert layout_of("qwen2_5_vl", bare | new) == layout_of("qwen2_5_vl", QWEN25)
    both = QWEN25 | {"max_pixels": 28 * 28 * 9} | new
    assert layout_of("qwen2_5_vl", both).max_pixels == 28 * 28 * 9
    official = Qwen2VLImageProcessorPil(**both)
    assert official.size["longest_edge"] == 28 * 28 * 9


@given(
    st.integers(1, 4000), st.floats(0, math.log(16)), st.sampled_from([16, 64, 100, 4096, 16384])
)
def test_rows_have_room_for_all_but_the_longest_strips(side, log_aspect, limit):
    layout = layout_of("kimi_vl", KIMI | {"in_token_limit": limit})
    other = max(1, int(side * math.exp(log_aspect)))
    assert max(side, other) <= 16 * min(side, other)
    fit = encode.fit_image(layout, side, other)
    assert math.prod(fit.framed) // 14**2 <= layout.max_patches
    least = layout_of("qwen2_5_vl", QWEN25 | {"max_pixels": 784 * limit})
    fit = encode.fit_image(least, side, other)
    assert math.prod(fit.framed) // 14**2 <= least.max_patches


def test_strips_that_do_not_fit_are_refused_with_the_knob_to_turn(encoder):
    asked = encoder("kimi_vl", KIMI)
    strip = np.zeros((153, 6761, 3), np.uint8)
    with pytest.raises(
        encode.TooLong, match=r"at most 4864 patches, got 5352 .* layout\.native\.l"
    ):
        asked.image(strip)
    with pytest.raises(ValueError, match="fewer than 512 patches a side"):
        asked.image(np.zeros((1, 8000, 3), np.uint8))
    with pytest.raises(ValueError, match="aspect ratio of at most 200, got 1x5000"):
        encoder("qwen2_5_vl", QWEN25).image(np.zeros((1, 5000, 3), np.uint8))


@pytest.mark.parametrize(
    ("family", "found", "word"),
    [
        ("qwen2_5_vl", QWEN25 | {"patch_size": "14"}, "patch_size: expected a positive whole"),
        ("qwen2_5_vl", QWEN25 | {"max_pixels": 0}, "max_pixels"),
        ("qwen2_5_vl", QWEN25 | {"resample": 2}, r"resample: expected 3 \(bicubic\), got 2"),
        ("qwen3_vl", QWEN3 | {"size": {"longest_edge": -1}}, "longest_edge"),
        ("kimi_vl", KIMI | {"in_token_limit": 1.5}, "in_token_limit"),
        ("kimi_vl", KIMI | {"merge_kernel_size": [2, 3]}, "two equal sides"),
        ("llama", KIMI, "model_type: expected one that has a layout, got 'llama'"),
    ],
)
def test_preprocessors_that_are_not_understood(family, found, word):
    with pytest.raises(ValueError, match=word):
        layout_of(family, found)


def test_qwen3_uses_the_processor_that_it_is_held_against(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN3))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    found = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(found) is Qwen2VLImageProcessorPil
    assert found.size["longest_edge"] == 16_777_216
