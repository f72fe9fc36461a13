"""The two towers of a CLIP: images to vectors, texts to vectors.

Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; checked against `CLIPModel` of
transformers.

Axes here: `N` images or texts, `E` width of the common space, `S` patches of an image.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.models.clip.config import LEGACY_EOS, Config, Text, Vision
from seg_jax.models.nn import attention, blocks, layer_stack
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Embedding, Linear
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.models.parallel import sharding
from seg_jax.records import Array

TOKEN_STD, PLACE_STD = 0.02, 0.01
"""Standard deviations of the tables of tokens and of their places in a text, as random weights
have them; whatever else is drawn has one over the root of what it adds up (`openai/CLIP`,
`model.py`). With less, small towers begin with vectors that are all alike, and stay there."""


def _stack(tower: Vision | Text, *, compute: Compute, rngs: nnx.Rngs) -> blocks.GeluBlock:
    shape = blocks.Shape(
        width=tower.hidden_size,
        heads=tower.num_attention_heads,
        kv_heads=tower.num_attention_heads,
        ffn=tower.intermediate_size,
        eps=tower.layer_norm_eps,
        std=tower.hidden_size**-0.5,
        out_bias=True,
        ffn_bias=True,
        activation=tower.hidden_act,
    )
    layers = tower.num_hidden_layers
    return blocks.GeluBlock(shape, pairs=False, stack=layers, compute=compute, rngs=rngs)


def _apply(
    stack: blocks.GeluBlock,
    x: Float[Array, "N T D"],
    segments: Int[Array, "N T"],
    *,
    causal: bool,
    compute: Compute,
) -> Float[Array, "N T D"]:
    """Returns what comes out of all blocks; tokens of other segments are not seen."""

    def mix(heads):
        found = attention.attend(heads, segments, causal=causal, kind=compute.attention)
        return found, None

    def step(block, x, _):
        return block(x, None, mix)

    return layer_stack.apply(stack, x, step, each=None, compute=compute)[0]


class VisionTower(nnx.Module):
    """Patches behind a learned first token, whose features are the image's."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        """Draws the tower and the layer to the common space."""
        self.config, self.compute = config, compute
        vision = config.vision
        width, dtype = vision.hidden_size, compute.param_dtype
        options = {"std": width**-0.5, "dtype": dtype, "rngs": rngs}
        pixels = (3 * vision.patch_size**2, width)  # In torch's order: channel, row, column.
        of_pixels = options | {"std": pixels[0] ** -0.5}
        self.patch = Linear(pixels, bias=False, stack=0, **of_pixels)
        draw = width**-0.5 * rngs.params.normal((width,), jnp.dtype(dtype))
        self.first = nnx.Param(draw)
        self.positions = Embedding((vision.patches + 1, width), **options)
        self.norm_before = LayerNorm(width, eps=vision.layer_norm_eps, stack=0, dtype=dtype)
        self.blocks = _stack(vision, compute=compute, rngs=rngs)
        self.norm = LayerNorm(width, eps=vision.layer_norm_eps, stack=0, dtype=dtype)
        self.project = Linear((width, config.projection_dim), bias=False, stack=0, **options)

    def __call__(self, pixels: UInt8[Array, "N H W 3"]) -> Float[Array, "N E"]:
        """Returns the features of images whose rows and columns are `config.side`."""
        x = self.patch(self._patches(pixels).astype(self.compute.dtype))
        first = jnp.broadcast_to(self.first[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], 1) + self.positions.embedding[...].astype(x.dtype)
        x = sharding.constrain_rows(self.norm_before(x))
        alike = jnp.zeros(x.shape[:2], jnp.int32)
        x = _apply(self.blocks, x, alike, causal=False, compute=self.compute)
        return self.project(self.norm(x[:, 0]))

    def _patches(self, pixels: UInt8[Array, "N H W 3"]) -> Float[Array, "N S C"]:
        """Returns normalised patches in float32, row by row of the image."""
        config, vision = self.config, self.config.vision
        mean, deviation = (
            jnp.asarray(values, jnp.float32) for values in (config.image_mean, config.image_std)
        )
        x = (pixels.astype(jnp.float32) / 255 - mean) / deviation
        side, count = vision.patch_size, vision.image_size // vision.patch_size
        x = x.reshape(len(x), count, side, count, side, 3).transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(len(x), count * count, 3 * side * side)


class TextTower(nnx.Module):
    """Tokens that see what stands before them; the features of the end token are the text's."""

    def __init__(self, text: Text, width: int, *, compute: Compute, rngs: nnx.Rngs):
        """Draws the tower and the layer to a common space of `width` channels."""
        self.config, self.compute = text, compute
        size, dtype = text.hidden_size, compute.param_dtype
        options = {"dtype": dtype, "rngs": rngs}
        self.embed = Embedding((text.vocab_size, size), std=TOKEN_STD, **options)
        places = (text.max_position_embeddings, size)
        self.positions = Embedding(places, std=PLACE_STD, **options)
        self.blocks = _stack(text, compute=compute, rngs=rngs)
        self.norm = LayerNorm(size, eps=text.layer_norm_eps, stack=0, dtype=dtype)
        self.project = Linear((size, width), bias=False, stack=0, std=size**-0.5, **options)

    def __call__(
        self, ids: Int[Array, "N T"], used: Bool[Array, "N T"] | None = None
    ) -> Float[Array, "N E"]:
        """Returns the features of texts.

        Args:
          ids: start, text and end; behind the end anything, which nothing before it sees.
          used: where tokens count; needed only where padding stands before a text. None: all do.
        """
        x = self.embed.embedding[...][ids].astype(self.compute.dtype)
        x = x + self.positions.embedding[: ids.shape[1]].astype(x.dtype)
        segments = jnp.zeros_like(ids) if used is None else used.astype(jnp.int32)
        x = sharding.constrain_rows(x)
        x = _apply(self.blocks, x, segments, causal=True, compute=self.compute)
        end = self.config.eos_token_id
        place = jnp.argmax(ids if end == LEGACY_EOS else ids == end, -1)
        x = jnp.take_along_axis(x, place[:, None, None], 1)[:, 0]
        return self.project(self.norm(x))
