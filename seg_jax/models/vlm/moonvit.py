"""MoonViT and its projector in Flax NNX: images of any size to visual tokens.

Source: Kimi-VL technical report, arXiv 2504.07491, section 2.1; config names of the published
checkpoints (`moonvit`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.facts import hub_config
from seg_jax.models.nn import attention, blocks, layer_stack, patches, rotary
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.records import Array, Images

EPS = 1e-5
"""Epsilon of every norm; no config holds it."""
THETA = 10_000.0
STD = 0.02
CUBIC = -0.75
"""The free coefficient of the cubic kernel, as torch has it."""


SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
"""Sizes that a `vision_config` must give."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """The tower (`vision_config`) and the pixel statistics it was trained with."""

    patch_size: int = 14
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_attention_heads: int = 16
    num_hidden_layers: int = 27
    merge_kernel_size: tuple[int, int] = (2, 2)
    init_pos_emb_height: int = 64
    init_pos_emb_width: int = 64
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Not of `config.json` but of `preprocessor_config.json`."""

    def __post_init__(self):
        hub_config.check_sizes(self, "vision")
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                "vision: expected a width that is four times a multiple of the heads, got "
                f"{self.hidden_size} and {self.num_attention_heads}"
                "; do: take a hidden_size that 4 x num_attention_heads divides"
            )
        if len(set(self.merge_kernel_size)) != 1 or self.merge_kernel_size[0] < 1:
            raise ValueError(
                f"vision.merge_kernel_size: expected two equal sides, got {self.merge_kernel_size}"
                "; do: take square merges, as 2, 2"
            )

    @property
    def spatial_merge_size(self) -> int:
        """Side of a visual token in patches."""
        return self.merge_kernel_size[0]


class Grid(nnx.Module):
    """A learned vector for every place of a grid of one size, read for grids of any size."""

    def __init__(self, size: tuple[int, int, int], *, std: float, dtype: str, rngs):
        """Draws a grid of (rows, columns, width)."""
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), size, jnp.dtype(dtype)))

    def __call__(
        self, place: Int[Array, "B S 2"], image: Int[Array, "B S"]
    ) -> Float[Array, "B S D"]:
        """Returns the vectors of the patches at `place`, in float32, as if the grid were resized.

        Equal to torch's bicubic resize to each image's rows and columns, without antialias.
        """
        table = self.embedding[...].astype(jnp.float32)
        size = patches.image_sizes(place, image)
        rows, row_shares = _taps(place[..., 0], size[..., 0], table.shape[0])
        columns, column_shares = _taps(place[..., 1], size[..., 1], table.shape[1])
        out = jnp.zeros((*place.shape[:-1], table.shape[-1]), jnp.float32)
        for row, row_share in zip(rows, row_shares, strict=True):
            for column, column_share in zip(columns, column_shares, strict=True):
                out += table[row, column] * (row_share * column_share)[..., None]
        return out


def _taps(
    place: Int[Array, "*n"], size: Int[Array, "*n"], length: int
) -> tuple[list[Int[Array, "*n"]], list[Float[Array, "*n"]]]:
    """Returns the four entries of a table of `length` that a place of an axis is made of.

    Beside them their shares. Places are centres of `size` equal parts of the axis; beyond the
    ends the table goes on with its last entry.

    Source: cubic convolution, Keys 1981.
    """
    at = (place.astype(jnp.float32) + 0.5) * (length / size.astype(jnp.float32)) - 0.5
    base = jnp.floor(at)
    entries, shares = [], []
    for step in range(-1, 3):
        far = jnp.abs(at - base - step)
        near = ((CUBIC + 2) * far - (CUBIC + 3)) * far**2 + 1
        outer = ((CUBIC * far - 5 * CUBIC) * far + 8 * CUBIC) * far - 4 * CUBIC
        shares.append(jnp.where(far <= 1, near, outer))
        entries.append(jnp.clip(base.astype(jnp.int32) + step, 0, length - 1))
    return entries, shares


class VisionTower(nnx.Module):
    """MoonViT and the projector: patches to visual tokens."""

    def __init__(self, vision: Vision, *, out: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a tower whose visual tokens have width `out`."""
        self.config, self.compute = vision, compute
        width, dtype = vision.hidden_size, compute.param_dtype

        def affine(wide: int, long: int) -> Linear:
            return Linear((wide, long), bias=True, stack=0, std=STD, dtype=dtype, rngs=rngs)

        self.patch = affine(3 * vision.patch_size**2, width)
        grid = (vision.init_pos_emb_height, vision.init_pos_emb_width, width)
        self.grid = Grid(grid, std=STD, dtype=dtype, rngs=rngs)
        shape = blocks.Shape(
            width=width,
            heads=vision.num_attention_heads,
            kv_heads=vision.num_attention_heads,
            ffn=vision.intermediate_size,
            eps=EPS,
            std=STD,
            out_bias=True,
            ffn_bias=True,
        )
        depth = vision.num_hidden_layers
        self.blocks = blocks.GeluBlock(shape, pairs=True, stack=depth, compute=compute, rngs=rngs)
        self.norm = LayerNorm(width, eps=EPS, stack=0, dtype=dtype)
        self.merge_norm = LayerNorm(width, eps=EPS, stack=0, dtype=dtype)
        cell = width * vision.spatial_merge_size**2
        self.merge_in = affine(cell, cell)
        self.merge_out = affine(cell, out)

    def __call__(self, images: Images) -> Float[Array, "B visual_tokens D"]:
        """Returns one vector per visual token of merge x merge patches."""
        x, step = self.embed(images), self.step(images)
        x, _ = layer_stack.apply(self.blocks, x, step, each=None, compute=self.compute)
        x = self.merge_norm(self.norm(x))
        visual_tokens = x.reshape(x.shape[0], -1, self.merge_in.kernel.shape[-2])
        return self.merge_out(jax.nn.gelu(self.merge_in(visual_tokens), approximate=False))

    def embed(self, images: Images) -> Float[Array, "B S D"]:
        """Returns what goes into the first block."""
        vision = self.config
        x = patches.standardise(
            images.patches,
            mean=vision.image_mean,
            std=vision.image_std,
            patch_size=vision.patch_size,
        )
        x = self.patch(x.astype(self.compute.dtype))
        return x + self.grid(images.place, images.image).astype(x.dtype)

    def step(self, images: Images) -> layer_stack.Step:
        """Returns the function that applies one block: patches see all of their image."""
        head = self.config.hidden_size // self.config.num_attention_heads
        spin = rotary.frequencies(head // 4, THETA)
        # Pairs of channels turn with the column and the row by turns.
        angles = images.place[..., None, ::-1].astype(jnp.float32) * spin[:, None]
        turn = rotary.from_angles(angles.reshape(*angles.shape[:2], -1))

        def mix(heads):
            kind = self.compute.attention
            return attention.attend(heads, images.image, causal=False, kind=kind), None

        return lambda block, x, _: block(x, turn, mix)
