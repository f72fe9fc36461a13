"""Tiny random models and rows with images, and the same in transformers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import random_weights
from flax import nnx

from seg_jax.geometry import grid
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import qwen25_vl
from seg_jax.records import Images, Tokens

VOCAB, IMAGE, VIDEO, START, END = 300, 290, 291, 292, 293


def config(*, tie: bool = False, **changes: Any) -> qwen25_vl.Config:
    """Returns a model of a few thousand weights: GQA, windows of 4 x 4 tokens, two full layers."""
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": (2, 3, 3),
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 6,
        "window_size": 48,
        "fullatt_block_indexes": (1, 3),
    }
    return qwen25_vl.Config(
        text=qwen25_vl.Text(**(text | changes.get("text", {}))),
        vision=qwen25_vl.Vision(**(vision | changes.get("vision", {}))),
        tie_word_embeddings=tie,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def model(
    config: qwen25_vl.Config,
    *,
    compute: Compute = Compute(),  # noqa: B008 - frozen
    amplify: float = 1.0,
) -> qwen25_vl.Qwen25VL:
    """Returns a model as at birth, but drawn by numpy: compiling the draws takes seconds."""
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: qwen25_vl.Qwen25VL(config, compute=compute, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graph, random_weights.drawn(shapes, amplify * 0.02))


class Row(NamedTuple):
    """One conversation: ids with placeholders, the patches of its images and their grids."""

    ids: np.ndarray
    patches: np.ndarray
    grids: tuple[tuple[int, int], ...]


def row(rng: np.random.Generator, grids, *, texts: tuple[int, ...], patch: int = 6) -> Row:
    """Returns a row of random text of the given lengths with images between."""
    ids = list(rng.integers(0, 280, texts[0]))
    for (gh, gw), length in zip(grids, texts[1:], strict=True):
        ids += [START] + [IMAGE] * (gh * gw // 4) + [END] + list(rng.integers(0, 280, length))
    count = sum(gh * gw for gh, gw in grids)
    patches = rng.integers(0, 256, (count, 3 * patch * patch), np.uint8)
    return Row(np.asarray(ids, np.int32), patches, tuple(grids))


def two_images(seed: int = 0) -> Row:
    """Returns a row with two images whose windows are ragged at the edges."""
    return row(np.random.default_rng(seed), [(10, 14), (6, 4)], texts=(5, 7, 9))


def stack(
    rows: list[Row], *, length: int = 0, patches: int = 0, left: bool = True, visual_tokens: int = 4
) -> tuple[Tokens, Images]:
    """Returns rows padded to one shape; prompts are right-aligned (`left` padding)."""
    length = length or max(r.ids.size for r in rows)
    patches = patches or max(r.patches.shape[0] for r in rows)
    out_t, out_p = [], []
    for r in rows:
        n, s = r.ids.size, r.patches.shape[0]
        is_visual = r.ids == IMAGE
        number = np.where(is_visual, np.cumsum(is_visual) - 1, -1)
        place = grid.rotary_positions(is_visual, r.grids, merge=2).positions
        at = (length - n, 0) if left else (0, length - n)
        out_t.append(
            Tokens(
                np.pad(r.ids, at),
                np.pad(np.ones(n, np.int32), at),
                np.pad(place, ((0, 0), at)),
                np.pad(number, at, constant_values=-1).astype(np.int32),
            )
        )
        windows, image, base = [], [], 0
        for i, (gh, gw) in enumerate(r.grids):
            window = grid.windows(gh, gw, merge=2, window_tokens=visual_tokens) + base
            windows.append(window)
            base = window.max() + 1
            image.append(np.full(gh * gw, i, np.int32))
        none = np.zeros(0, np.int32)
        places = [grid.patch_positions(gh, gw, 2) for gh, gw in r.grids] or [
            np.zeros((0, 2), np.int32)
        ]
        tail = (0, patches - s)
        out_p.append(
            Images(
                np.pad(r.patches, (tail, (0, 0))),
                np.pad(np.concatenate(places), (tail, (0, 0))),
                np.pad(np.concatenate(windows or [none]), tail, constant_values=-1),
                np.pad(np.concatenate(image or [none]), tail, constant_values=-1),
            )
        )
    return Tokens(*map(np.stack, zip(*out_t, strict=True))), Images(
        *map(np.stack, zip(*out_p, strict=True))
    )
