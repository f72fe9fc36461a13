"""Segments by SAM 2, of ours: a mask for every box, without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from seg_jax.annotation import hub
from seg_jax.annotation.stages import Segment, Unusable
from seg_jax.inference import segmenter
from seg_jax.models.sam2.config import MODEL_TYPE, VIDEO_TYPE

TYPES = (MODEL_TYPE, VIDEO_TYPE)
"""The `model_type`s; published folders name the class that follows videos."""


class Sam2:
    """A segmenter that boxes prompt: an image is encoded once for all its boxes.

    Source: SAM 2, Ravi et al. 2024.
    """

    def __init__(self, folder: Path):
        """Reads the model of a folder.

        Raises:
          Unusable: the folder holds no such model, or a file of it is broken.
        """
        hub.read_config(folder, TYPES, "segmenter")
        hub.read_preprocessor(folder, "segmenter")
        try:
            self._segmenter = segmenter.load(folder)
        except (ValueError, OSError) as error:
            raise Unusable(f"segmenter: {error}") from None

    def segment(
        self, image: UInt8[np.ndarray, "H W 3"], boxes_px: Float[np.ndarray, "M 4"]
    ) -> list[Segment]:
        """Returns the masks of boxes x0 y0 x1 y1."""
        asked = [segmenter.prompt(box_px=box) for box in boxes_px]
        drawn = self._segmenter.draw(image, asked)
        return [Segment(one.mask, one.quality, one.stability) for one in drawn]
