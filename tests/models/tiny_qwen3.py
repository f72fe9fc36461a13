"""Tiny random Qwen3-VL models."""

from __future__ import annotations

from typing import Any

from flax import nnx
from tiny_vlm import END, IMAGE, START, VIDEO, VOCAB

from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import qwen3_vit, qwen3_vl


def config(*, tie: bool = False, **changes: Any) -> qwen3_vl.Config:
    """Returns a model of a few thousand weights: wide heads, GQA, two deep features of four."""
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 10_000.0,
        "mrope_section": (3, 3, 2),
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_heads": 2,
        "patch_size": 6,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": (0, 2),
    }
    return qwen3_vl.Config(
        text=qwen3_vl.Text(**(text | changes.get("text", {}))),
        vision=qwen3_vit.Vision(**(vision | changes.get("vision", {}))),
        tie_word_embeddings=tie,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


def blank(
    config: qwen3_vl.Config,
    compute: Compute = Compute(),  # noqa: B008 - frozen
) -> qwen3_vl.Qwen3VL:
    """Returns the shapes of a model."""
    return nnx.eval_shape(lambda: qwen3_vl.Qwen3VL(config, compute=compute, rngs=nnx.Rngs(0)))
