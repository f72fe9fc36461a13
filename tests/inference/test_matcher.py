"""A folder of CLIP says of images and texts of any size what transformers says."""

import json

import clip_tokenizer
import numpy as np
import pytest
import tiny_clip
import torch

from seg_jax.data import centre_crop
from seg_jax.inference import matcher

TEXTS = ["a red circle", "two blue stars", "", "the large " * 30]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a folder with a tokenizer, transformers' model and its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer.make(folder, TEXTS * 3, merges=20)
    config = tiny_clip.with_vocabulary(len(tokenizer))
    model = tiny_clip.theirs(config)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(config.to_preprocessor()))
    return folder, model, tokenizer


def test_vectors_are_those_of_transformers(made):
    folder, model, tokenizer = made
    found = matcher.load(folder)
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (50, 40), (20, 64)] * 12  # More than are encoded at once.
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    squares = np.stack([centre_crop.square(image, tiny_clip.SIDE) for image in images])
    length = tiny_clip.LENGTH
    ids = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    with torch.no_grad():
        pixels = tiny_clip.pixel_values(squares)
        want = model(input_ids=torch.tensor(ids), pixel_values=pixels)
    np.testing.assert_allclose(found.images(images), want.image_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.texts(TEXTS), want.text_embeds, rtol=0, atol=1e-5)
    assert found.cut == 1
    np.testing.assert_allclose(found.scale, model.logit_scale.exp().item(), rtol=1e-6)


def test_what_is_no_such_folder_is_told(made, tmp_path):
    folder, _, _ = made
    with pytest.raises(ValueError, match="config.json"):
        matcher.load(tmp_path)
    for path in folder.iterdir():
        if not path.name.startswith("tokenizer"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        matcher.load(tmp_path)
    hub = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "sam2"}
    (tmp_path / "config.json").write_text(json.dumps(hub))
    with pytest.raises(ValueError, match="expected"):
        matcher.load(tmp_path)
