"""The prompt encoder of SAM 2: clicks, corners of boxes and earlier masks as vectors.

Source: Segment Anything, Kirillov et al. 2023, section 3 and appendix A; random Fourier features,
Tancik et al. 2020; checked against `Sam2PromptEncoder` of transformers.

Axes here: `N` prompts of an image, `T` clicks and corners of a prompt, `D` channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.models.sam2 import layers
from seg_jax.models.sam2.config import Config
from seg_jax.records import Array

EPS = 1e-6
NOTHING, OUTSIDE, INSIDE, FIRST_CORNER, SECOND_CORNER = -1, 0, 1, 2, 3
"""Labels of what stands at a point."""


class Fourier(nnx.Module):
    """Sines and cosines of random directions in the plane; fixed, not learned.

    They stay in float32: bfloat16 would move places by pixels.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        """Draws the directions of `width` channels."""
        self.directions = nnx.Param(jax.random.normal(rngs.params(), (2, width // 2), jnp.float32))

    def __call__(self, points_unit: Float[Array, "*n 2"]) -> Float[Array, "*n D"]:
        """Returns the positions' vectors in float32."""
        directions = jax.lax.stop_gradient(self.directions[...])
        highest = jax.lax.Precision.HIGHEST  # A place is lost in products of bfloat16.
        angles = jnp.matmul(2 * points_unit - 1, directions, precision=highest) * (2 * jnp.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class Prompts(nnx.Module):
    """Points with labels to tokens, earlier masks to maps."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        self.config = config
        width, channels, dtype = config.width, config.mask_input_channels, compute.param_dtype
        options = {"stack": 0, "compute": compute, "rngs": rngs}

        def vectors(count: int) -> nnx.Param:
            draw = jax.random.normal(rngs.params(), (count, width), jnp.dtype(dtype))
            return nnx.Param(layers.STD * draw)

        self.fourier = Fourier(width, rngs=rngs)
        self.labels, self.nothing, self.no_mask = vectors(4), vectors(1), vectors(1)
        self.shrink1 = layers.affine((4, channels // 4), **options)
        self.shrink1_norm = LayerNorm(channels // 4, eps=EPS, stack=0, dtype=dtype)
        self.shrink2 = layers.affine((channels, channels), **options)
        self.shrink2_norm = LayerNorm(channels, eps=EPS, stack=0, dtype=dtype)
        self.project = layers.affine((channels, width), **options)

    def tokens(
        self,
        points_px: Float[Array, "B N T 2"],
        labels: Int[Array, "B N T"],
        used: Bool[Array, "B N T"],
    ) -> tuple[Float[Array, "B N T2 D"], Bool[Array, "B N T2"]]:
        """Returns the tokens of prompts in float32, and which of them may be seen.

        Two tokens that stand for no point follow the T: one that every prompt has, one more where
        it has nothing else. Both are so in the published models, whose attention sees them; a
        slot that is not used must not be seen instead of being made such a token.
        """
        more = ((0, 0), (0, 0), (0, 2))
        points_px = jnp.pad(points_px, (*more, (0, 0)))
        labels = jnp.pad(labels, more, constant_values=NOTHING)
        always = jnp.ones_like(used[..., :1])
        used = jnp.concatenate([used, always, ~used.any(-1, keepdims=True)], -1)
        # Points are corners of pixels; the models were taught with their centres.
        known = self.fourier((points_px.astype(jnp.float32) + 0.5) / self.config.side)
        table = self.labels[...].astype(jnp.float32)
        known = known + table[jnp.clip(labels, 0, len(table) - 1)]
        none = self.nothing[0].astype(jnp.float32)
        return jnp.where((labels >= 0)[..., None], known, none), used

    def dense(
        self, earlier: Float[Array, "B N H W"] | None, dtype: str
    ) -> Float[Array, "*n h w D"]:
        """Returns what is added to the coarse features for the logits of an earlier mask.

        None stands for no mask: its vector is the same everywhere.
        """
        if earlier is None:
            return self.no_mask[...].astype(dtype).reshape(1, 1, 1, 1, -1)
        x = self.shrink1(layers.halve(earlier[..., None].astype(dtype)))
        x = jax.nn.gelu(self.shrink1_norm(x), approximate=False)
        x = self.shrink2(layers.halve(x))
        x = jax.nn.gelu(self.shrink2_norm(x), approximate=False)
        return self.project(x)
