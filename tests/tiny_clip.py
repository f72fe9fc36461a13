"""Tiny random CLIPs of transformers, and the same weights in our model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import transformers

from seg_jax.models.clip.config import Activation, Config, Text, Vision
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute

SIDE, LENGTH, VOCABULARY = 32, 12, 60
START, END = 58, 59
"""Ids of the tokens around a text: the two largest, as in the published vocabulary."""
MIDDLE_END = 40
"""Another end token: texts have larger ids before it."""

VISION = Vision(
    hidden_size=128,  # Heads of 64 channels, as OpenAI's files have them.
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=8,
)
TEXT = Text(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=1,
    max_position_embeddings=LENGTH,
    eos_token_id=2,
)
CONFIG = Config(vision=VISION, text=TEXT, projection_dim=24)


def config(activation: Activation = "quick_gelu", end: int = 2) -> Config:
    """Returns the tiny config with another activation, or another end token."""
    return dataclasses.replace(
        CONFIG,
        vision=dataclasses.replace(VISION, hidden_act=activation),
        text=dataclasses.replace(TEXT, hidden_act=activation, eos_token_id=end),
    )


def theirs(config: Config = CONFIG, *, seed: int = 0, scale: float = 0.3) -> Any:
    """Returns transformers' model with random weights, none of which does nothing."""
    torch.manual_seed(seed)
    model = transformers.CLIPModel(transformers.CLIPConfig(**config.to_hf())).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn_like(tensor)
            tensor.add_(noise * (scale if tensor.ndim < 2 else 4 / max(tensor.shape[1], 64)))
            assert tensor.abs().max() > 0, name
    return model


def ours(model: Any, config: Config = CONFIG, compute: Compute | None = None, **options) -> Any:
    """Returns our model with the weights of transformers'."""
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return weights.load(tensors, config=config, compute=compute, **options)


def images(count: int = 5, *, seed: int = 0) -> np.ndarray:
    """Returns random images [count side side 3] of 0..255."""
    shape = (count, SIDE, SIDE, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixel_values(images: np.ndarray, config: Config = CONFIG) -> torch.Tensor:
    """Returns images as transformers takes them."""
    mean, deviation = (np.float32(x) for x in (config.image_mean, config.image_std))
    x = (images.astype(np.float32) / 255 - mean) / deviation
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def texts(end: int = END, *, pad: int = 0, left: bool = False, seed: int = 0) -> np.ndarray:
    """Returns ids [4 LENGTH] of texts of 3, 7, 12 and 2 tokens, start and end among them."""
    rng = np.random.default_rng(seed)
    rows = np.full((4, LENGTH), pad, np.int32)
    for row, length in zip(rows, (3, 7, LENGTH, 2), strict=True):
        inner = rng.integers(1, START, length - 2)
        text = np.array([START, *np.where(inner == end, 1, inner), end])
        row[LENGTH - length if left else 0 :][:length] = text
    return rows


def openai(model: Any) -> dict[str, torch.Tensor]:
    """Returns the weights of transformers' model by the names of OpenAI's code."""
    found, theirs = {}, {name: t.detach() for name, t in model.state_dict().items()}
    for ours, hub in (("visual.", "vision_model"), ("", "text_model")):
        layers = {name.split(".")[3] for name in theirs if name.startswith(f"{hub}.encoder")}
        for layer in layers:
            block, other = f"{ours}transformer.resblocks.{layer}.", f"{hub}.encoder.layers.{layer}."
            for kind in ("weight", "bias"):
                parts = [theirs[f"{other}self_attn.{x}_proj.{kind}"] for x in "qkv"]
                found[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                ):
                    found[f"{block}{a}.{kind}"] = theirs[f"{other}{b}.{kind}"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    return found | {
        "visual.class_embedding": theirs[vision + "class_embedding"],
        "visual.conv1.weight": theirs[vision + "patch_embedding.weight"],
        "visual.positional_embedding": theirs[vision + "position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": theirs[text + "token_embedding.weight"],
        "positional_embedding": theirs[text + "position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T.contiguous(),
        "logit_scale": theirs["logit_scale"],
    }


def with_vocabulary(size: int) -> Config:
    """Returns the tiny config with room for the tokens of a tokenizer, the last of which ends."""
    text = dataclasses.replace(TEXT, vocab_size=size, eos_token_id=size - 1)
    return dataclasses.replace(CONFIG, text=text)
