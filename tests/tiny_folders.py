"""Folders as the hub has them, of tiny models with random weights, one of each family."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from seg_jax.grammar import chat, tokens
from seg_jax.models import families, layers, weights

sys.path.append(str(Path(__file__).parent / "models"))
import tiny_kimi
import tiny_qwen3
import tiny_vlm

KINDS = ("qwen2_5_vl", "qwen3_vl", "kimi_vl")
VOCAB = 320
MEDIA = {
    "<|vision_start|>": "<|media_start|>",
    "<|image_pad|>": "<|media_pad|>",
    "<|vision_end|>": "<|media_end|>",
}
"""What Kimi calls the tokens of pictures."""


def make(kind: str, folder: Path) -> Path:
    """Writes a folder with all files that a checkpoint of the hub has; returns it."""
    tokenizer = _tokenizer(kind, folder)
    config = _config(kind, tokenizer)
    graph, params = nnx.split(weights.blank(config, layers.Compute()))
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    weights.save(nnx.merge(graph, draw), folder)
    hub = families.read_json(folder / "config.json") | {"dtype": "float32"}
    ends = [tokenizer.end_id, tokenizer.pad_id]
    _write(folder, "config.json", hub)
    _write(folder, "generation_config.json", {"eos_token_id": ends, "do_sample": False})
    _write(folder, "preprocessor_config.json", _preprocessor(kind))
    return folder


def _tokenizer(kind: str, folder: Path) -> tokens.Tokenizer:
    made = tokens.train(chat.sentences(["the red star"]), folder=folder, vocab_size=300)
    if kind != "kimi_vl":
        return made
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for old, new in MEDIA.items():
            text = text.replace(old, new)
        (folder / name).write_text(text)
    return tokens.Tokenizer.load(folder)


def _config(kind: str, tokenizer: tokens.Tokenizer) -> Any:
    make = {"qwen2_5_vl": tiny_vlm, "qwen3_vl": tiny_qwen3, "kimi_vl": tiny_kimi}[kind].config
    config = make(text={"vocab_size": VOCAB, "num_hidden_layers": 2})
    if kind == "kimi_vl":
        return dataclasses.replace(config, media_placeholder_token_id=tokenizer.image_id)
    return dataclasses.replace(config, image_token_id=tokenizer.image_id)


def _preprocessor(kind: str) -> dict[str, Any]:
    some = {"patch_size": 6, "merge_size": 2}
    mean = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    if kind == "kimi_vl":
        more = {"merge_kernel_size": [2, 2], "in_token_limit": 64, "pad_input": True}
    else:
        more = {"min_pixels": 144, "max_pixels": 2304, "temporal_patch_size": 2}
    return some | mean | more


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, indent=2) + "\n")
