"""Images of many sizes with questions about them, for tests of packed rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from seg_jax.data import encode, packing
from seg_jax.data.sources import Scenes
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tokens
from seg_jax.records import Sample
from seg_jax.scenes import phrases
from seg_jax.tasks.referring import Referring

TASK = Referring(digits=2, epsilon=0.02, max_points=12, wordings="many")
LAYOUT = encode.Layout(
    patch=6,
    merge=2,
    window_tokens=2,
    min_pixels=24 * 24,
    max_pixels=48 * 60,
    max_patches=80,
    max_prompt=120,
    max_question=90,
    max_answer=64,
    canvas=(64, 64),
)


class Crops:
    """Drawn scenes cut to sizes of their own; objects that are cut away lose their phrases."""

    def __init__(self, count: int = 100):
        self._scenes = Scenes(count=count)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Sample:
        whole = self._scenes[index]
        rng = np.random.default_rng(index)
        rows, columns = (int(size) for size in rng.integers(36, 64, 2))
        masks = whole.masks[:, :rows, :columns]
        if not masks.any((1, 2)).any():
            rows, columns, masks = 64, 64, whole.masks
        kept = [
            texts if mask.any() else () for texts, mask in zip(whole.phrases, masks, strict=True)
        ]
        image = np.ascontiguousarray(whole.image[:rows, :columns])
        return dataclasses.replace(whole, image=image, masks=masks, phrases=tuple(kept))


def encoder(folder: Path) -> encode.Encoder:
    """Returns an encoder for them, with a tokenizer of a few hundred tokens."""
    told = phrases.corpus(np.random.default_rng(0), 200)
    tokenizer = tokens.train(chat.sentences(told), folder=folder, numbers="whole", digits=2)
    return encode.Encoder(tokenizer, LAYOUT)


def examples(index: int, count: int):
    """Returns so many questions about an image."""
    sample = Crops()[index]
    rng = np.random.default_rng(index)
    return [TASK.example(sample, rng) for _ in range(count)]


def piece(made: encode.Encoder, index: int) -> packing.Item:
    """Returns an image with a question, ready to be packed."""
    return packing.encode_item(made, examples(index, 1))
