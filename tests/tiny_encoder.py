"""A model that is no VLM: a two-layer image encoder, its port and the same in PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import torch
from flax import nnx
from safetensors.torch import save_file

from seg_jax.models.facts.family import Family
from seg_jax.models.nn import blocks, layer_stack, rotary, xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Embedding, Linear
from seg_jax.models.nn.norms import LayerNorm

EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the encoder; there is no `text`, no `vision` and no token in it."""

    hidden_size: int = 32
    intermediate_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    patch_size: int = 4
    image_size: int = 16

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Config:
        """Returns the config that a `config.json` describes."""
        return cls(**{field.name: hf[field.name] for field in dataclasses.fields(cls)})

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json`."""
        return dataclasses.asdict(self) | {"model_type": "tiny_encoder"}


class Encoder(nnx.Module):
    """Patches with a class token and learned positions through plain blocks."""

    def __init__(
        self,
        config: Config,
        *,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        self.config, self.compute = config, compute
        width, dtype = config.hidden_size, compute.param_dtype
        options = {"std": 0.02, "dtype": dtype, "rngs": rngs}
        size = (3 * config.patch_size**2, width)
        self.patch = Linear(size, bias=True, stack=0, **options)
        self.first = nnx.Param(jnp.zeros((1, 1, width), dtype))
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.positions = Embedding((tokens, width), **options)
        shape = blocks.Shape(
            width=width,
            heads=config.num_attention_heads,
            kv_heads=config.num_attention_heads,
            ffn=config.intermediate_size,
            eps=EPS,
            std=0.02,
            out_bias=True,
            ffn_bias=True,
        )
        layers = config.num_hidden_layers
        self.blocks = blocks.GeluBlock(shape, pairs=False, stack=layers, compute=compute, rngs=rngs)
        self.norm = LayerNorm(width, eps=EPS, stack=0, dtype=dtype)

    def __call__(self, patches):
        """Returns the features of patches [B S C] behind that of the class token."""
        x = self.patch(patches.astype(self.compute.dtype))
        first = jnp.broadcast_to(self.first[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first.astype(x.dtype), x], 1) + self.positions.embedding[...]
        half = self.config.hidden_size // self.config.num_attention_heads // 2
        turn = rotary.from_angles(jnp.zeros((*x.shape[:2], half)))
        alike = jnp.zeros(x.shape[:2], jnp.int32)

        def step(block, x, _):
            return block(x, turn, lambda h: (xla_attention.attend(h, alike, causal=False), None))

        x, _ = layer_stack.apply(self.blocks, x, step, each=None, compute=self.compute)
        return self.norm(x)


_LAYER = "encoder.layers.{}."

FAMILY = Family(
    model_type="tiny_encoder",
    config=Config,
    model=Encoder,
    names={
        "patch/*": "embeddings.patch.*",
        "first": "embeddings.first",
        "positions/embedding": "embeddings.positions.weight",
        "blocks/norm_attention/scale": _LAYER + "norm1.weight",
        "blocks/norm_attention/bias": _LAYER + "norm1.bias",
        "blocks/norm_ffn/scale": _LAYER + "norm2.weight",
        "blocks/norm_ffn/bias": _LAYER + "norm2.bias",
        "blocks/q/*": _LAYER + "qkv.*[0/3]",
        "blocks/k/*": _LAYER + "qkv.*[1/3]",
        "blocks/v/*": _LAYER + "qkv.*[2/3]",
        "blocks/o/*": _LAYER + "o.*",
        "blocks/up/*": _LAYER + "up.*",
        "blocks/down/*": _LAYER + "down.*",
        "norm/scale": "norm.weight",
        "norm/bias": "norm.bias",
    },
    convolutions=lambda config: {"patch/kernel": (3, config.patch_size, config.patch_size)},
)


class _TorchLayer(torch.nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.norm1 = torch.nn.LayerNorm(width, EPS)
        self.norm2 = torch.nn.LayerNorm(width, EPS)
        self.qkv, self.o = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, config.intermediate_size)
        self.down = torch.nn.Linear(config.intermediate_size, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (y.reshape(batch, length, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(seen.transpose(1, 2).reshape(batch, length, width))
        inner = torch.nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(inner)


class TorchEncoder(torch.nn.Module):
    """The same in PyTorch, with names as a hub has them."""

    def __init__(self, config: Config):
        super().__init__()
        width, side = config.hidden_size, config.patch_size
        self.embeddings = torch.nn.Module()
        self.embeddings.patch = torch.nn.Conv2d(3, width, side, side)
        self.embeddings.first = torch.nn.Parameter(torch.randn(1, 1, width))
        tokens = (config.image_size // side) ** 2 + 1
        self.embeddings.positions = torch.nn.Embedding(tokens, width)
        self.encoder = torch.nn.Module()
        layers = [_TorchLayer(config) for _ in range(config.num_hidden_layers)]
        self.encoder.layers = torch.nn.ModuleList(layers)
        self.norm = torch.nn.LayerNorm(width, EPS)

    def forward(self, images):
        x = self.embeddings.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.embeddings.first.expand(len(x), -1, -1), x], 1)
        x = x + self.embeddings.positions.weight
        for layer in self.encoder.layers:
            x = layer(x)
        return self.norm(x)


def make(folder: Path) -> TorchEncoder:
    """Writes a folder as PyTorch's users have it, without a tokenizer; returns its model."""
    torch.manual_seed(0)
    model = TorchEncoder(Config())
    with torch.no_grad():  # Norms that do nothing would hide a wrong name.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    hub = Config().to_hf() | {"dtype": "float32", "architectures": ["TinyEncoder"]}
    (folder / "config.json").write_text(json.dumps(hub))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3}))
    (folder / "LICENSE").write_text("MIT\n")
    return model
