"""A segmenter at work on images of any size gives the masks that transformers' model gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_sam2
import torch
from PIL import Image

from seg_jax.inference import segmenter
from seg_jax.models import families
from seg_jax.models.vlm import qwen25_vl

SIDE = tiny_sam2.SIDE


@pytest.mark.parametrize("size", [(7, 12), (31, 20), (24, 24), (100, 3)])
def test_maps_are_resized_as_torch_does(size):
    logits = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    resize = torch.nn.functional.interpolate
    want = resize(torch.from_numpy(logits)[None, None], size, mode="bilinear", align_corners=False)
    got = segmenter.enlarged(logits, size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want[0, 0], rtol=0, atol=1e-5)


def test_a_prompt_has_its_corners_first():
    clicks = np.array([[3.0, 4.0], [5.0, 6.0]])
    whole = segmenter.prompt(
        box_px=np.arange(4.0), clicks_px=clicks, inside=np.array([True, False])
    )
    assert whole.points_px.tolist() == [[0, 1], [2, 3], [3, 4], [5, 6]]
    assert whole.labels.tolist() == [2, 3, 1, 0]
    assert segmenter.prompt(clicks_px=clicks).labels.tolist() == [1, 1]


def test_masks_of_an_image_are_those_of_transformers(monkeypatch):
    """Three prompts of different lengths, in two batches, on an image of another shape."""
    monkeypatch.setattr(segmenter, "AT_ONCE", 2)
    theirs = tiny_sam2.theirs()
    config = dataclasses.replace(tiny_sam2.CONFIG, image_mean=(0.5, 0.4, 0.3))
    asked = segmenter.Segmenter(tiny_sam2.ours(theirs, config))
    rng = np.random.default_rng(3)
    height, width = 50, 130
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    box, clicks = np.array([10.0, 5.0, 90.5, 40.0]), np.array([[30.0, 20.0], [100.0, 45.5]])
    inside = np.array([True, False])
    prompts = [
        segmenter.prompt(clicks_px=clicks, inside=inside),
        segmenter.prompt(box_px=box),
        segmenter.prompt(box_px=box, clicks_px=clicks[:1]),
    ]
    drawn = asked.draw(image, prompts)
    bilinear = Image.Resampling.BILINEAR
    pixels = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), bilinear), np.float32) / 255
    pixels = (pixels - np.array(config.image_mean)) / np.array(config.image_std)
    scale = np.array([SIDE / width, SIDE / height])
    corners = (box.reshape(2, 2) * scale).reshape(1, 1, 4)
    points = (clicks * scale)[None, None]
    inputs = [
        {"input_points": points, "input_labels": inside[None, None].astype(int)},
        {"input_boxes": corners},
        {"input_boxes": corners, "input_points": points[:, :, :1], "input_labels": [[[1]]]},
    ]
    for got, given in zip(drawn, inputs, strict=True):
        tensors = {name: torch.tensor(np.array(value)) for name, value in given.items()}
        tensors = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        values = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
        with torch.no_grad():
            want = theirs(pixel_values=values, multimask_output=False, **tensors)
        resize = torch.nn.functional.interpolate
        whole = resize(want.pred_masks[0], (height, width), mode="bilinear", align_corners=False)
        mask = whole[0, 0].numpy() > 0
        assert got.mask.shape == mask.shape
        assert (got.mask & mask).sum() / (got.mask | mask).sum() > 0.999
        assert 0 < mask.mean() < 1
        assert got.quality == pytest.approx(float(want.iou_scores[0, 0, 0]), abs=1e-4)
        presence = float(torch.sigmoid(want.object_score_logits[0, 0, 0]))
        assert got.presence == pytest.approx(presence, abs=1e-4)


def test_what_draws_no_masks_is_told():
    with pytest.raises(ValueError, match="draws masks of points and boxes, got 'qwen2_5_vl'"):
        families.check_segmenter(qwen25_vl.Config())
