"""Images as a model of boxes and clicks, and a model that draws, are shown them (host).

Axes here: `E` rows and columns of the frame.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8

# Only who stretches an image waits for Pillow.


def stretched(pixels: UInt8[np.ndarray, "H W *c"], edge: int) -> UInt8[np.ndarray, "E E *c"]:
    """Returns pixels at edge x edge, bilinear, averaged where they shrink."""
    return at_size(pixels, (edge, edge))


def at_size(pixels: UInt8[np.ndarray, "H W *c"], size: tuple[int, int]) -> np.ndarray:
    """Returns pixels at a width and height, bilinear, averaged where they shrink."""
    from PIL import Image

    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def as_evaluated(image: UInt8[np.ndarray, "H W 3"], edge: int) -> UInt8[np.ndarray, "E E 3"]:
    """Returns an image as the release shows it to a model that it evaluates.

    It is stretched bicubically and goes through JPEG of quality 75, which training does not do.

    Source: Seg-R1, eval/eval_foreground_segmentation.py and its neighbours, `Image.resize` and
    `Image.save` of Pillow with their defaults.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).resize((edge, edge), Image.Resampling.BICUBIC).save(file, "JPEG")
    return np.asarray(Image.open(file))
