"""Makes any image the square that models of images and texts see: scaled, its middle cut out."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MOST_ASPECT = 200
"""Longest side over the shortest: of a longer image next to nothing is within the square."""


def square(image: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Returns the middle of an image whose shorter side was made `side` pixels (bicubic, Pillow).

    Source: openai/CLIP, `clip.py` (`_transform`); the bytes are those of `CLIPImageProcessorPil` of
    transformers.

    Raises:
      ValueError: the image is too long for its height, or too high for its width.
    """
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    if long > MOST_ASPECT * short:
        raise ValueError(
            f"image: expected sides of which none is more than {MOST_ASPECT} times the other, got "
            f"{width} x {height} pixels; do: cut it"
        )
    longer = int(side * long / short)
    size = (longer, side) if width > height else (side, longer)
    scaled = image
    if size != (width, height):
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = ((have - side) // 2 for have in scaled.shape[:2])
    return scaled[top : top + side, left : left + side]
