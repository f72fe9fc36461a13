"""The vision tower of Qwen3-VL in Flax NNX: a learned grid, plain blocks and DeepStack's mergers.

Source: Qwen3-VL technical report, arXiv 2511.21631, section 2; DeepStack, arXiv 2406.04334; config
names of `transformers` (`Qwen3VLVisionConfig`).

Axes here: `E` width of the decoder, where `D` is that of the vision tower.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.facts import hub_config
from seg_jax.models.nn import attention, blocks, layer_stack, patches, rotary
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.models.vlm import qwen_decoder
from seg_jax.records import Array, Images

EPS = 1e-6
"""Epsilon of every norm; no config holds it."""
THETA = 10_000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower (`vision_config`) and the normalisation of its images."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    num_position_embeddings: int = 2304
    """Places of the learned grid, a square."""
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    """Blocks whose outputs go into the first layers of the decoder."""
    initializer_range: float = 0.02
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Not of `config.json` but of `preprocessor_config.json`."""

    def __post_init__(self):
        hub_config.check_sizes(self, "vision")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                "vision: expected a width that is four times a multiple of the heads, got "
                f"{self.hidden_size} and {self.num_heads}"
                "; do: take a hidden_size that 4 x num_heads divides"
            )
        if self.grid**2 != self.num_position_embeddings:
            raise ValueError(
                "vision.num_position_embeddings: expected a square, got "
                f"{self.num_position_embeddings}"
                "; do: take the square of a grid's side, as 48 x 48 = 2304"
            )
        deep = self.deepstack_visual_indexes
        if list(deep) != sorted(set(deep) & set(range(self.depth))):
            raise ValueError(
                "vision.deepstack_visual_indexes: expected rising numbers of blocks below "
                f"{self.depth}, got {deep}"
                "; do: sort them, and leave out the ones beyond the last block"
            )

    @property
    def grid(self) -> int:
        """Side of the learned grid."""
        return math.isqrt(self.num_position_embeddings)


class Grid(nnx.Module):
    """A learned vector for every place of a square grid, read for grids of any size."""

    def __init__(self, side: int, width: int, *, std: float, dtype: str, rngs: nnx.Rngs):
        """Draws side x side vectors, row by row."""
        self.side = side
        draw = std * jax.random.normal(rngs.params(), (side * side, width), jnp.dtype(dtype))
        self.embedding = nnx.Param(draw)

    def __call__(
        self, place: Int[Array, "B S 2"], size: Int[Array, "B S 2"]
    ) -> Float[Array, "B S D"]:
        """Returns the vectors of patches at `place` of images of `size` patches, in float32.

        Places are stretched so that the corners of an image lie on the corners of the grid, and
        read bilinearly between its points.
        """
        table = self.embedding[...].astype(jnp.float32)
        at = place.astype(jnp.float32) * (self.side - 1) / jnp.maximum(size - 1, 1)
        low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, self.side - 1)
        high = jnp.minimum(low + 1, self.side - 1)
        far = at - low
        out = jnp.zeros((*place.shape[:-1], table.shape[-1]), jnp.float32)
        for row, row_share in ((low[..., 0], 1 - far[..., 0]), (high[..., 0], far[..., 0])):
            for column, share in ((low[..., 1], 1 - far[..., 1]), (high[..., 1], far[..., 1])):
                out += table[row * self.side + column] * (row_share * share)[..., None]
        return out


class Merger(nnx.Module):
    """Turns patches into visual tokens: a norm of either, then two layers with a GELU."""

    def __init__(
        self,
        vision: Vision,
        *,
        out: int,
        whole: bool,
        stack: int,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Draws a stack of mergers.

        Args:
          vision: sizes of the tower.
          out: width of visual tokens.
          whole: whether the norm is of visual tokens, not of patches.
          stack: number of mergers; 0 for a single one without an axis of layers.
          compute: how they compute.
          rngs: random numbers.
        """
        dtype = compute.param_dtype
        cell = vision.hidden_size * vision.spatial_merge_size**2

        def affine(width: int, size: int) -> Linear:
            std = vision.initializer_range
            return Linear((width, size), bias=True, stack=stack, std=std, dtype=dtype, rngs=rngs)

        self.whole, self.cell = whole, cell
        width = cell if whole else vision.hidden_size
        self.norm = LayerNorm(width, eps=EPS, stack=stack, dtype=dtype)
        self.merge_in = affine(cell, cell)
        self.merge_out = affine(cell, out)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B visual_tokens E"]:
        """Returns one vector per visual token."""
        shape = (x.shape[0], -1, self.cell)
        visual_tokens = self.norm(x.reshape(shape)) if self.whole else self.norm(x).reshape(shape)
        return self.merge_out(jax.nn.gelu(self.merge_in(visual_tokens), approximate=False))


class VisionTower(nnx.Module):
    """Patches to visual tokens, and to what the first layers of the decoder get of them."""

    def __init__(self, vision: Vision, *, out: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a tower whose visual tokens have width `out`."""
        self.config, self.compute = vision, compute
        dtype = compute.param_dtype
        std, width = vision.initializer_range, vision.hidden_size
        # Rows in torch's order: channel, frame, row, column.
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        self.patch = Linear((pixels, width), bias=True, stack=0, std=std, dtype=dtype, rngs=rngs)
        self.grid = Grid(vision.grid, width, std=std, dtype=dtype, rngs=rngs)
        shape = blocks.Shape(
            width=width,
            heads=vision.num_heads,
            kv_heads=vision.num_heads,
            ffn=vision.intermediate_size,
            eps=EPS,
            std=std,
            out_bias=True,
            ffn_bias=True,
        )
        self.blocks = blocks.GeluBlock(
            shape, pairs=False, stack=vision.depth, compute=compute, rngs=rngs
        )
        deep = len(vision.deepstack_visual_indexes)
        options = {"out": out, "compute": compute, "rngs": rngs}
        self.merger = Merger(vision, whole=False, stack=0, **options)
        self.deep = Merger(vision, whole=True, stack=deep, **options) if deep else None

    def __call__(self, images: Images) -> qwen_decoder.Seen:
        """Returns one vector per visual token of merge x merge patches, and the deep ones."""
        indexes = np.array(self.config.deepstack_visual_indexes, int)
        x, one = self.embed(images), self.step(images)

        def step(block, carry, taken):
            x, _ = one(block, carry[0], None)
            return (x, jnp.where(taken[:, None, None, None], x, carry[1])), None

        # Row i of the second carry is the output of the i-th block that is taken.
        taken = np.arange(self.config.depth)[:, None] == indexes
        carry = x, jnp.zeros((len(indexes), *x.shape), x.dtype)
        (x, outputs), _ = layer_stack.apply(
            self.blocks, carry, step, each=taken, compute=self.compute
        )
        if self.deep is None:
            return qwen_decoder.Seen(self.merger(x))
        _, deep = layer_stack.apply(
            self.deep,
            None,
            lambda merger, _, x: (None, merger(x)),
            each=outputs,
            compute=self.compute,
        )
        return qwen_decoder.Seen(self.merger(x), deep)

    def embed(self, images: Images) -> Float[Array, "B S D"]:
        """Returns what goes into the first block."""
        x = qwen_decoder.stills(self.patch, self.config, images, dtype=self.compute.dtype)
        size = patches.image_sizes(images.place, images.image)
        return x + self.grid(images.place, size).astype(x.dtype)

    def step(self, images: Images) -> layer_stack.Step:
        """Returns the function that applies one block: patches see all of their image."""
        head = self.config.hidden_size // self.config.num_heads
        turn = rotary.planar(images.place, head=head, theta=THETA)

        def mix(heads):
            kind = self.compute.attention
            return attention.attend(heads, images.image, causal=False, kind=kind), None

        return lambda block, x, _: block(x, turn, mix)
