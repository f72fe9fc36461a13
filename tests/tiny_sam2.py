"""Tiny random SAM 2s of transformers, and the same weights in our model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.sam2.config import Config, Hiera

SIDE = 96
"""Maps of 24, 12, 6 and 3 places: windows of 4 do not divide 6, halved ones neither."""

HIERA = Hiera(
    blocks_per_stage=(2, 1, 3, 1),
    embed_dim_per_stage=(8, 16, 24, 32),
    num_attention_heads_per_stage=(1, 2, 2, 4),
    window_size_per_stage=(4, 8, 4, 3),
    global_attention_blocks=(4,),
    window_positional_embedding_background_size=(7, 5),
)
CONFIG = Config(
    backbone=HIERA,
    side=SIDE,
    width=32,
    mask_input_channels=8,
    mlp_dim=48,
    num_attention_heads=2,
    iou_head_hidden_dim=24,
)


def theirs(config: Config = CONFIG, *, seed: int = 0, scale: float = 0.3) -> Any:
    """Returns transformers' model with random weights, none of which does nothing."""
    torch.manual_seed(seed)
    model = transformers.Sam2Model(transformers.Sam2Config(**config.to_hf())).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "positional_embedding" not in name:
                tensor.add_(scale * torch.randn_like(tensor))
    return model


def ours(model: Any, config: Config = CONFIG, compute: Compute | None = None, **options) -> Any:
    """Returns our model with the weights of transformers'."""
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return weights.load(tensors, config=config, compute=compute, **options)


def images(count: int = 2, *, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """Returns random normalised images [count side side 3]."""
    return np.random.default_rng(seed).normal(size=(count, side, side, 3)).astype(np.float32)


def named(params: Any, config: Config = CONFIG) -> dict[str, np.ndarray]:
    """Returns arrays as they lie in our model by the names of the hub."""
    tensors = weights.ModelTensors(config, params)
    return {entry.name: tensors.read(entry.name) for entry in tensors.entries()}
