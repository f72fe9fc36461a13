"""Detects by Grounding DINO, of transformers: objects by their names in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from seg_jax.annotation import hub
from seg_jax.annotation.stages import Detection, Unusable

TYPES = ("grounding-dino", "mm-grounding-dino")


class GroundingDino:
    """A detector that reads the names it looks for.

    Names that do not fit one text are looked for in several, each with the image anew. The score
    of a box for a name is the highest of the name's tokens; a box has its best name.

    Source: Grounding DINO, Liu et al. 2023. Differs: names come from their own tokens, not from
    whichever tokens exceed a threshold, so that no box gets half a name.
    """

    def __init__(self, folder: Path, *, device: str = "auto"):
        """Reads the model of a folder.

        Raises:
          Unusable: the folder holds no such model, or PyTorch is missing.
        """
        found = hub.read_config(folder, TYPES, "detector")
        with hub.load_context(folder, "detector") as (torch, transformers):
            self._torch = torch
            self._device = hub.pick_device(torch, device)
            kind = transformers.AutoModelForZeroShotObjectDetection
            self._model = hub.load_model(kind, folder, self._device)
            # Pillow resizes alike with and without torchvision.
            self._processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, backend="pil"
            )
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if not self._tokenizer.is_fast:
                raise Unusable(
                    f"{folder}: expected tokenizer.json, got none; do: fetch the model again"
                )
        self._most = found.max_text_len

    def detect(self, image: UInt8[np.ndarray, "H W 3"], labels: Sequence[str]) -> list[Detection]:
        """Returns a detection for every query of the model and every text of names.

        Raises:
          Unusable: a name is longer than a text may be.
        """
        torch = self._torch
        pixels = self._processor(images=image, return_tensors="pt").to(self._device)
        detections: list[Detection] = []
        for names, inputs, spans in self._texts(labels):
            with torch.inference_mode():
                found = self._model(**pixels, **inputs)
            scores = found.logits[0].float().sigmoid()
            by_name = torch.stack([scores[:, span].amax(1) for span in spans], 1)
            best, which = by_name.max(1)
            detections += _detections(
                found.pred_boxes[0].float().cpu().numpy(),
                best.cpu().numpy(),
                names=[names[place] for place in which.tolist()],
                size=image.shape[:2],
            )
        return detections

    def _texts(self, labels: Sequence[str]) -> list[tuple[list[str], Any, list[list[int]]]]:
        """Returns texts of as many names as fit: names, inputs, and the tokens of each name."""
        texts = []
        names: list[str] = []
        for label in labels:
            if names and self._tokenize([*names, label])["input_ids"].shape[1] > self._most:
                texts.append(self._text(names))
                names = []
            names.append(label)
        return [*texts, self._text(names)] if names else texts

    def _text(self, names: list[str]) -> tuple[list[str], Any, list[list[int]]]:
        inputs = self._tokenize(names)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        if len(offsets) > self._most:
            raise Unusable(
                f"labels: expected names of at most {self._most} tokens, got {names[0]!r} with "
                f"{len(offsets)}; do: shorten it"
            )
        spans, begin = [], 0
        for name in names:
            end = begin + len(_plain_name(name))
            spans.append([n for n, (a, b) in enumerate(offsets) if begin <= a < b <= end])
            begin = end + 2
        if lacking := next((name for name, span in zip(names, spans, strict=True) if not span), ""):
            raise Unusable(f"labels: expected words, got {lacking!r}; do: write it in letters")
        return names, inputs.to(self._device), spans

    def _tokenize(self, names: Sequence[str]) -> Any:
        text = "".join(f"{_plain_name(name)}. " for name in names).rstrip()
        return self._tokenizer(
            text, return_tensors="pt", return_offsets_mapping=True, return_token_type_ids=True
        )


def _plain_name(name: str) -> str:
    """Returns a name in the form that the model was trained on: lower case, no full stop."""
    return " ".join(name.lower().replace(".", " ").split())


def _detections(
    boxes: np.ndarray, scores: np.ndarray, *, names: Sequence[str], size: tuple[int, ...]
) -> list[Detection]:
    """Returns detections from boxes as centre, width and height in fractions of the image."""
    height, width = size
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    corners = np.concatenate([centre - half, centre + half], 1) * [width, height, width, height]
    return [
        Detection((x0, y0, x1, y1), name, score)
        for (x0, y0, x1, y1), name, score in zip(
            corners.tolist(), names, scores.tolist(), strict=True
        )
    ]
