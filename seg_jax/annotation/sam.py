"""Segments by SAM, of transformers: a mask for every box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from seg_jax.annotation import hub
from seg_jax.annotation.stages import Segment, Unusable

TYPES = ("sam",)
"""The `model_type`s."""
OFFSET = 1.0
"""How far the stability score moves the threshold of logits."""
MOST_SIDE_PX = 4096
"""The largest image that a segmenter may ask for; the published ones take 1024."""
_AT_ONCE = 16
"""Boxes that are decoded together; each is a map of the image's size for a moment."""


class Sam:
    """A segmenter that boxes prompt.

    An image is encoded once for all its boxes, each box gives one mask.

    Source: Segment Anything, Kirillov et al. 2023.
    """

    def __init__(self, folder: Path, *, device: str = "auto"):
        """Reads the model of a folder.

        Raises:
          Unusable: the folder holds no such model, or PyTorch is missing.
        """
        hub.read_config(folder, TYPES, "segmenter")
        self._prepare = hub.read_preprocessor(folder, "segmenter")
        with hub.load_context(folder, "segmenter") as (torch, transformers):
            self._torch = torch
            self._device = hub.pick_device(torch, device)
            self._model = hub.load_model(transformers.SamModel, folder, self._device)
            self._side = int(self._model.config.prompt_encoder_config.image_size)
        if not 1 <= self._side <= MOST_SIDE_PX:
            raise Unusable(
                f"{folder}: expected a segmenter for images of at most {MOST_SIDE_PX} pixels a "
                f"side, got {self._side}; do: fetch the model again"
            )

    def segment(
        self, image: UInt8[np.ndarray, "H W 3"], boxes_px: Float[np.ndarray, "M 4"]
    ) -> list[Segment]:
        """Returns the masks of boxes x0 y0 x1 y1."""
        torch = self._torch
        size = self.resized_size(*image.shape[:2])
        pixels = np.zeros((1, 3, self._side, self._side), np.float32)
        pixels[0, :, : size[0], : size[1]] = hub.prepare_image(image, size, self._prepare)
        scale = np.array([size[1] / image.shape[1], size[0] / image.shape[0]] * 2)
        boxes = torch.tensor((boxes_px * scale)[None], dtype=torch.float32, device=self._device)
        drawn: list[Segment] = []
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).to(self._device)
            encoded = self._model.get_image_embeddings(inputs)
            for begin in range(0, boxes.shape[1], _AT_ONCE):
                some = boxes[:, begin : begin + _AT_ONCE]
                found = self._model(
                    image_embeddings=encoded, input_boxes=some, multimask_output=False
                )
                quality = found.iou_scores[0, :, 0].float().tolist()
                logits = self._enlarge(found.pred_masks[0].float(), size, image.shape[:2])
                drawn += [_segment(one, q) for one, q in zip(logits[:, 0], quality, strict=True)]
        return drawn

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the height and width that an image is resized to.

        It keeps its shape, and is filled up with the mean colour to the right or below.
        """
        scale = self._side / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def _enlarge(self, logits: Any, size: tuple[int, int], whole: tuple[int, ...]) -> Any:
        """Returns logits n 1 h w of the model at the image's own size."""
        resize = self._torch.nn.functional.interpolate
        side = (self._side, self._side)
        logits = resize(logits, side, mode="bilinear", align_corners=False)
        logits = logits[..., : size[0], : size[1]]
        return resize(logits, tuple(whole), mode="bilinear", align_corners=False)


def _segment(logits: Any, quality: float) -> Segment:
    """Returns the mask of logits H W, with its quality and stability."""
    inner, outer = int((logits > OFFSET).sum()), int((logits > -OFFSET).sum())
    return Segment((logits > 0).cpu().numpy(), quality, inner / outer if outer else 0.0)
