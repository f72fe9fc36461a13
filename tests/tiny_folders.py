"""Folders as the hub has them, of tiny models with random weights, one of each family."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import moonshot
import numpy as np
from flax import nnx

from seg_jax import files
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tokens
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute

sys.path.append(str(Path(__file__).parent / "models"))
import tiny_kimi
import tiny_qwen3
import tiny_vlm

KINDS = ("qwen2_5_vl", "qwen3_vl", "kimi_vl")
VOCAB = 320


def make(kind: str, folder: Path, model: Callable[[Any], Any] | None = None) -> Path:
    """Writes a folder with all files that a checkpoint of the hub has; returns it.

    Args:
      kind: `model_type`.
      folder: where to.
      model: gives the model of a config; None: one of random weights.
    """
    tokenizer = _tokenizer(kind, folder)
    config = _config(kind, tokenizer)
    weights.save(_drawn(config) if model is None else model(config), folder)
    hub = files.read_json_object(folder / "config.json") | {"dtype": "float32"}
    # The hub's Kimi-VL does not name the token that ends its turns.
    ends = [tokenizer.eos_id] if kind == "kimi_vl" else [tokenizer.end_id, tokenizer.pad_id]
    _write(folder, "config.json", hub)
    _write(folder, "generation_config.json", {"eos_token_id": ends, "do_sample": False})
    _write(folder, "preprocessor_config.json", _preprocessor(kind))
    return folder


def _drawn(config: Any) -> Any:
    graph, params = nnx.split(weights.blank(config, Compute()))
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    return nnx.merge(graph, draw)


def _tokenizer(kind: str, folder: Path) -> tokens.Tokenizer:
    told = list(chat.sentences(["the red star"]))
    if kind != "kimi_vl":
        return tokens.train(told, folder=folder, vocab_size=300)
    return tokens.Tokenizer.load(moonshot.write(folder, moonshot.table(told, 290)))


def _config(kind: str, tokenizer: tokens.Tokenizer) -> Any:
    make = {"qwen2_5_vl": tiny_vlm, "qwen3_vl": tiny_qwen3, "kimi_vl": tiny_kimi}[kind].config
    config = make(text={"vocab_size": VOCAB, "num_hidden_layers": 2})
    if kind == "kimi_vl":
        return dataclasses.replace(config, media_placeholder_token_id=tokenizer.image_id)
    return dataclasses.replace(config, image_token_id=tokenizer.image_id)


def _preprocessor(kind: str) -> dict[str, Any]:
    some = {"patch_size": 6, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    if kind == "kimi_vl":
        return some | {"in_token_limit": 64, "pad_input": True, "num_pooled_tokens": 1024}
    some |= {"merge_size": 2, "temporal_patch_size": 2}
    if kind == "qwen3_vl":
        return some | {"size": {"shortest_edge": 144, "longest_edge": 2304}}
    return some | {"min_pixels": 144, "max_pixels": 2304}


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value, indent=2) + "\n")
