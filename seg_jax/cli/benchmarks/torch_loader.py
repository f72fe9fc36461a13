"""Feeds samples of a built data set as a plain PyTorch DataLoader does, for a benchmark."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from seg_jax.data import record_schema
from seg_jax.data.encode import Layout
from seg_jax.data.sources import Built
from seg_jax.grammar import chat, outline
from seg_jax.records import Kind
from seg_jax.tasks.referring import Referring

PACKAGES = ("torch", "transformers", "pycocotools", "cv2", "PIL")
"""What it is made of."""
IGNORED = -100
"""Label of what is not learnt, as PyTorch's cross-entropy has it."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """A map-style data set: each image with a question about one of its objects.

    Pillow decodes, transformers' processor scales, normalises and cuts, pycocotools reads masks,
    OpenCV traces and thins them out, transformers' tokenizer renders and encodes.
    """

    source: Built
    tokenizer: Path
    """Folder of the tokenizer."""
    layout: Layout
    task: Referring
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns ids, labels, pixels and grid of an image."""
        record = self.source.record(index)
        return self.row_of_record(record, self.process_image(record.pixels()), index)

    def row_of_record(
        self, record: record_schema.Record, seen: Any, index: int
    ) -> dict[str, np.ndarray]:
        """Returns the row of a record whose image has been processed."""
        rng = np.random.default_rng([self.seed, index])
        phrase = record.expressions[int(rng.integers(len(record.expressions)))]
        question = chat.question(Kind.MASK, phrase.text, rng=rng)
        text = outline.write_mask(
            self._rings(_mask(record, phrase.objects)), digits=self.task.digits
        )
        answer = chat.answer(text, Kind.MASK, rng=rng)
        visual_tokens = int(seen["image_grid_thw"].prod()) // self.layout.merge**2
        ids, labels = self._tokens(question, answer, visual_tokens)
        pixels, grid = seen["pixel_values"], seen["image_grid_thw"]
        return {"input_ids": ids, "labels": labels, "pixel_values": pixels, "image_grid_thw": grid}

    def collate(self, rows: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Returns rows as tensors, padded to the longest; pixels of all images run together."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self._tokenizer.pad_token_id, "labels": IGNORED}
        batch: dict[str, Any] = {}
        for name, value in fill.items():
            padded = [
                np.pad(r[name], (0, longest - len(r[name])), constant_values=value) for r in rows
            ]
            batch[name] = torch.from_numpy(np.stack(padded))
        used = [np.arange(longest) < len(row["input_ids"]) for row in rows]
        batch["attention_mask"] = torch.from_numpy(np.stack(used))
        for name in ("pixel_values", "image_grid_thw"):
            batch[name] = torch.from_numpy(np.concatenate([row[name] for row in rows]))
        return batch

    def process_image(self, image: Any) -> Any:
        """Returns the pixels of an image, scaled, normalised and cut, and its grid."""
        return self._processor(images=image, return_tensors="np")

    def _rings(self, mask: Bool[np.ndarray, "H W"]) -> list[np.ndarray]:
        """Returns the outline of a mask in unit coordinates, within the task's budgets."""
        import cv2

        task = self.task
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        rings = [ring for ring in contours if cv2.contourArea(ring) >= task.min_area] or [*contours]
        rings = sorted(rings, key=cv2.contourArea, reverse=True)[: task.max_rings]
        epsilon = task.epsilon
        while True:
            thin = [
                cv2.approxPolyDP(r, epsilon * cv2.arcLength(r, True), True)[:, 0] for r in rings
            ]
            if sum(map(len, thin)) <= task.max_points:
                return [ring / np.array(mask.shape[::-1]) for ring in thin]
            epsilon *= 1.5

    def _tokens(
        self, question: str, answer: str, visual_tokens: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and labels of a conversation about an image."""
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        name = self._tokenizer.special_tokens_map.get("image_token", "<|image_pad|>")
        prompt_ids = self._tokenizer(prompt.replace(name, name * visual_tokens))["input_ids"]
        answer_ids = self._tokenizer(f"{answer}{self._tokenizer.eos_token}")["input_ids"]
        return np.array(prompt_ids + answer_ids), np.array([IGNORED] * len(prompt_ids) + answer_ids)

    # Each process has its own.
    @functools.cached_property
    def _tokenizer(self) -> Any:
        return importlib.import_module("transformers").PreTrainedTokenizerFast.from_pretrained(
            self.tokenizer
        )

    @functools.cached_property
    def _processor(self) -> Any:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        layout = self.layout
        return Qwen2VLImageProcessorPil(
            patch_size=layout.patch,
            merge_size=layout.merge,
            min_pixels=layout.min_pixels,
            max_pixels=layout.max_pixels,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _mask(record: record_schema.Record, objects: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
    from pycocotools import mask

    rles: Any = [record.rle(which) for which in objects]
    return mask.decode(mask.merge(rles) if len(rles) > 1 else rles[0]).astype(bool)


def loader(samples: Samples, *, batch: int, workers: int) -> Any:
    """Returns a DataLoader whose worker processes stay from one round to the next."""
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(samples.seed)
    several = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    return DataLoader(
        samples,  # pyright: ignore[reportArgumentType]
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        collate_fn=samples.collate,
        generator=generator,
        **several,
    )
