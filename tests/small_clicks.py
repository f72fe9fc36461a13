"""A tiny model of boxes and clicks and a tiny SAM 2, both of random weights, as folders."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import random_weights
import small_run
from flax import nnx

from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models.io import model_folder, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.sam2.config import Config, Hiera
from seg_jax.runs import start
from seg_jax.tasks.prompted import Prompted

FRAME = 64
ASKS = Prompted(frame=FRAME, boxes=2, points=3, clicks=3, brief=True)
SAM = Config(
    backbone=Hiera(
        blocks_per_stage=(1, 1, 2, 1),
        embed_dim_per_stage=(8, 16, 24, 32),
        num_attention_heads_per_stage=(1, 2, 2, 4),
        window_size_per_stage=(4, 4, 4, 2),
        global_attention_blocks=(3,),
        window_positional_embedding_background_size=(4, 4),
    ),
    side=64,
    width=16,
    mask_input_channels=8,
    mlp_dim=16,
    num_attention_heads=2,
    iou_head_hidden_dim=16,
)


def save_segmenter(folder: Path) -> None:
    """Writes a SAM 2 whose masks are neither empty nor full."""
    graph, shapes = nnx.split(weights.blank(SAM, Compute()))
    model_folder.save(nnx.merge(graph, random_weights.drawn(shapes)), folder)


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def bundle() -> Bundle:
    """Returns the model that answers, with a tokenizer that knows its questions."""
    base = small_run.sft_config()
    assert base.layout is not None
    layout = dataclasses.replace(base.layout, max_prompt=100, max_question=60, max_answer=160)
    config = dataclasses.replace(base, task=ASKS, layout=layout, ordered_numbers=False)
    blank = start.blank_model(config, Path(_keep().name) / "tokenizer")
    params = start.weight_initializer(config, blank, small_run.alone())()
    return dataclasses.replace(blank, params=params)


def save_model(folder: Path) -> None:
    """Writes that model."""
    bundles.save(bundle(), folder)
