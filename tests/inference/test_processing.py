"""Other programs load what we write, and see and answer as we do."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from seg_jax.cli.model_options import ModelOptions
from seg_jax.data.encode import Native
from seg_jax.inference import bundle as bundles
from seg_jax.inference import processing
from seg_jax.models import families
from seg_jax.runs import experiments

sys.path += [str(Path(__file__).parents[1] / name) for name in ("data", "models")]
import test_layouts as published
import tiny_kimi

SCENES = experiments.load("simpleseg/nano_shapes_sft.py").varied(seed=77)


@pytest.fixture(scope="module")
def nano():
    return ModelOptions(dtype="float32").predictor()


@pytest.fixture(scope="module")
def written(nano, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "model"
    bundles.save(nano.bundle, folder)
    return folder


def test_transformers_answers_token_for_token_as_we_do(nano, written):
    see = AutoImageProcessor.from_pretrained(written)
    tokenizer = AutoTokenizer.from_pretrained(written)
    model: Any = AutoModelForImageTextToText.from_pretrained(written, dtype=torch.float32)
    model.eval()
    shapes = set()
    for index in range(20):
        sample = SCENES[index]
        ours = nano.predict_one(sample.image, sample.phrases[0][0])
        seen = see(images=[Image.fromarray(sample.image)], return_tensors="pt")
        pads = int(seen["image_grid_thw"].prod()) // see.merge_size**2
        turn = [{"type": "image"}, {"type": "text", "text": ours.question}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False
        ).replace("<|image_pad|>", "<|image_pad|>" * pads)
        asked = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        kinds = (asked["input_ids"] == model.config.image_token_id).int()
        with torch.no_grad():
            ids = model.generate(**asked, **seen, mm_token_type_ids=kinds)
        theirs = tokenizer.decode(ids[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        assert theirs == ours.text
        shapes.add(sample.image.shape)
    assert len(shapes) > 10  # not one shape alone


def test_a_folder_of_ours_says_how_it_sees_and_ends(nano, written):
    layout = nano.bundle.layout
    says = json.loads((written / processing.PREPROCESSOR).read_text())
    read = families.image_layout("qwen2_5_vl", says, visual_tokens=layout.max_patches)
    assert (read.patch, read.merge) == (layout.patch, layout.merge)
    assert (read.min_pixels, read.max_pixels) == (layout.min_pixels, layout.max_pixels)
    ends = json.loads((written / processing.GENERATION).read_text())
    assert set(ends["eos_token_id"]) == set(nano.bundle.end_ids)
    assert ends["max_new_tokens"] == layout.max_answer


@pytest.mark.parametrize("name", [processing.PREPROCESSOR, processing.GENERATION])
def test_the_packaged_model_has_them(name):
    assert (experiments.NANO / name).exists()


@pytest.mark.parametrize(
    "found", [published.QWEN25, published.QWEN3, published.KIMI], ids=["qwen25", "qwen3", "kimi"]
)
def test_what_came_with_a_model_is_kept_but_for_the_cutting(found, nano, tmp_path):
    (tmp_path / processing.PREPROCESSOR).write_text(json.dumps(found | {"do_rescale": True}))
    (tmp_path / processing.GENERATION).write_text('{"temperature": 0.1}')
    config, layout = families.read(experiments.NANO), nano.bundle.layout
    processing.write(tmp_path, config=config, layout=layout, tokenizer=nano.bundle.tokenizer)
    says = json.loads((tmp_path / processing.PREPROCESSOR).read_text())
    assert says["do_rescale"] is True
    assert says["image_processor_type"] == found["image_processor_type"]
    assert (says["patch_size"], says["max_pixels"]) == (layout.patch, layout.max_pixels)
    assert (tmp_path / processing.GENERATION).read_text() == '{"temperature": 0.1}'


def test_a_limit_that_would_cut_answers_short_is_raised(nano, tmp_path):
    path, layout = tmp_path / processing.GENERATION, nano.bundle.layout
    told = {"config": families.read(experiments.NANO), "layout": layout}
    for before, after in ((1, layout.max_answer), (None, layout.max_answer), (10**4, 10**4)):
        path.write_text(json.dumps({"top_k": 1, "max_new_tokens": before}))
        processing.write(tmp_path, **told, tokenizer=nano.bundle.tokenizer)
        assert json.loads(path.read_text()) == {"top_k": 1, "max_new_tokens": after}


def test_transformers_5s_file_does_not_contradict(nano, tmp_path):
    whole = {"processor_class": "Qwen2_5_VLProcessor", "image_processor": published.QWEN25}
    (tmp_path / processing.TRANSFORMERS_5).write_text(json.dumps(whole))
    bundle = nano.bundle
    processing.write(
        tmp_path,
        config=families.read(experiments.NANO),
        layout=bundle.layout,
        tokenizer=bundle.tokenizer,
    )
    found = families.preprocessor(tmp_path)
    assert (found["patch_size"], found["max_pixels"]) == (8, bundle.layout.max_pixels)
    left = json.loads((tmp_path / processing.TRANSFORMERS_5).read_text())
    assert left == {"processor_class": "Qwen2_5_VLProcessor"}


def test_images_that_keep_their_size(nano):
    layout = dataclasses.replace(nano.bundle.layout, native=Native(limit=64, pad=True))
    images = processing.image_layout(layout)
    config = tiny_kimi.config()
    says = families.vlm_facts(config).preprocessor(config, images)
    read = families.image_layout("kimi_vl", says, visual_tokens=4096)
    assert (read.native_limit, read.native_pad, read.merge) == (64, True, layout.merge)
    assert read.max_pixels is None
