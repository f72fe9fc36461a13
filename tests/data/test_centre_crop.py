"""Images become the squares that transformers' processor of CLIP makes of them, byte for byte."""

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from seg_jax.data import centre_crop

SHAPES = [(64, 64), (32, 32), (100, 37), (37, 100), (33, 32), (32, 47), (5, 9), (301, 223), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [32, 33])
def test_bytes_are_those_of_transformers(shape, side):
    rng = np.random.default_rng(shape)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    size, crop = {"shortest_edge": side}, {"height": side, "width": side}
    plain = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False}
    processor = CLIPImageProcessorPil(size=size, crop_size=crop, **plain)
    (want,) = processor(image, input_data_format="channels_last")["pixel_values"]
    got = centre_crop.square(image, side)
    assert got.shape == (side, side, 3)
    np.testing.assert_array_equal(got, np.asarray(want).transpose(1, 2, 0))


def test_threads_are_refused():
    thread = np.zeros((1, 201, 3), np.uint8)
    with pytest.raises(ValueError, match="got 201 x 1 pixels; do: cut it"):
        centre_crop.square(thread, 8)
    assert centre_crop.square(thread[:, 1:], 8).shape == (8, 8, 3)
