"""The mask decoder of SAM 2: tokens and image see each other twice, tokens become masks.

Source: Segment Anything, Kirillov et al. 2023, appendix A; SAM 2, Ravi et al. 2024, section 4;
checked against `Sam2MaskDecoder` of transformers.

Axes here: `N` prompts of an image, `T` tokens, `S` places of the coarse features, `M` masks of a
prompt, `h w` rows and columns of the coarse features, `D` channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from seg_jax.models.nn import layer_stack
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.models.sam2 import layers
from seg_jax.models.sam2.config import Config
from seg_jax.records import Array

DEPTH = 2
"""Blocks in which tokens and image see each other."""
BLOCK_EPS, EPS = 1e-5, 1e-6


class Features(NamedTuple):
    """What is known of images before anything is asked about them."""

    coarse: Float[Array, "B h h D"]
    middle: Float[Array, "B _ _ _"]
    """Twice the rows and columns, a quarter of the channels."""
    fine: Float[Array, "B _ _ _"]
    """Four times the rows and columns, an eighth of the channels."""


class Masks(NamedTuple):
    """A mask for every prompt."""

    logits: Float[Array, "B N _ _"]
    """Above 0 within the mask; four times the rows and columns of the coarse features."""
    quality: Float[Array, "B N"]
    """The IoU with the true mask that the model expects."""
    presence: Float[Array, "B N"]
    """Logit of there being an object at all; it changes no mask."""


class Candidates(NamedTuple):
    """All masks that a prompt may mean: the first is the single one, the others its readings."""

    logits: Float[Array, "B N M _ _"]
    quality: Float[Array, "B N M"]
    presence: Float[Array, "B N"]


class Placed(NamedTuple):
    """Vectors and what says where they are, which is added wherever they are compared."""

    x: Float[Array, "B _ _ D"]
    at: Float[Array, "*b _ _ D"]


class Projected(NamedTuple):
    """An image as a block compares it with tokens, which it does before it changes it."""

    keys: layers.Keys
    queries: Float[Array, "B _ heads S hd"]


class TwoWayBlock(nnx.Module):
    """Tokens see each other, then the image, then the image sees tokens; norms behind each."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `DEPTH` blocks."""
        width, heads = config.width, config.num_attention_heads
        inner = width // config.attention_downsample_rate
        options = {"stack": DEPTH, "compute": compute, "rngs": rngs}

        def norm() -> LayerNorm:
            return LayerNorm(width, eps=BLOCK_EPS, stack=DEPTH, dtype=compute.param_dtype)

        self.among = layers.Attention(width, width, heads, **options)
        self.to_image = layers.Attention(width, inner, heads, **options)
        self.from_image = layers.Attention(width, inner, heads, **options)
        self.up = layers.affine((width, config.mlp_dim), **options)
        self.down = layers.affine((config.mlp_dim, width), **options)
        self.norm_among, self.norm_to_image, self.norm_ffn, self.norm_image = (
            norm() for _ in range(4)
        )

    def project(self, image: Placed) -> Projected:
        """Returns what tokens see of an image, and what it asks of them."""
        placed = image.x + image.at
        return Projected(self.to_image.keys(placed, image.x), self.from_image.queries(placed))

    def __call__(
        self,
        tokens: Placed,
        image: Placed,
        *,
        projected: Projected,
        used: Bool[Array, "B N T"],
        first: bool,
    ) -> tuple[Placed, Placed]:
        """Returns tokens and image behind the block; the first one adds nothing to its input.

        Args:
          tokens: of the prompts.
          image: one for all of them, or one for each.
          projected: the image by `project`.
          used: which tokens may be seen.
          first: whether it is the first block.
        """
        x, at = tokens
        seen = x if first else x + at
        out = self.among(seen, seen, x, used=used)
        x = self.norm_among(out if first else x + out)
        whole, where = image
        asked = self.to_image.queries(x + at)
        x = self.norm_to_image(x + self.to_image.attend(asked, projected.keys))
        x = self.norm_ffn(x + self.down(jax.nn.relu(self.up(x))))
        seen = self.from_image.attend(projected.queries, self.from_image.keys(x + at, x), used=used)
        whole = self.norm_image(whole + seen)
        return Placed(x, at), Placed(whole, where)


class Decoder(nnx.Module):
    """Prompts' tokens and images' features to masks."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        self.config = config
        width, dtype = config.width, compute.param_dtype
        count = config.num_multimask_outputs + 1
        options = {"compute": compute, "rngs": rngs}

        def vectors(count: int) -> nnx.Param:
            draw = jax.random.normal(rngs.params(), (count, width), jnp.dtype(dtype))
            return nnx.Param(layers.STD * draw)

        self.presence_token, self.quality_token = vectors(1), vectors(1)
        self.mask_tokens = vectors(count)
        self.blocks = TwoWayBlock(config, **options)
        inner = width // config.attention_downsample_rate
        heads = config.num_attention_heads
        self.to_image = layers.Attention(width, inner, heads, stack=0, **options)
        self.norm = LayerNorm(width, eps=BLOCK_EPS, stack=0, dtype=dtype)
        self.upscale1 = layers.Upscale((width, width // 4), **options)
        self.upscale_norm = LayerNorm(width // 4, eps=EPS, stack=0, dtype=dtype)
        self.upscale2 = layers.Upscale((width // 4, width // 8), **options)
        self.masks = layers.MLP((width, width, width // 8), 3, stack=count, **options)
        sizes = width, config.iou_head_hidden_dim, count
        self.quality = layers.MLP(sizes, config.iou_head_depth, stack=0, **options)
        self.presence = layers.MLP((width, width, 1), 3, stack=0, **options)

    def project(self, image: Placed) -> Projected:
        """Returns an image as the first block sees it, which no prompt has changed yet."""
        return layer_stack.unstack(self.blocks)[0].project(image)

    def __call__(
        self,
        features: Features,
        image: Placed,
        *,
        projected: Projected,
        tokens: Float[Array, "B N T D"],
        used: Bool[Array, "B N T"],
    ) -> Candidates:
        """Returns every mask of every prompt.

        Args:
          features: of the images.
          image: the coarse ones with what is known of earlier masks, and the positions of their
            places; one for all prompts, or one for each.
          projected: that image by `project`.
          tokens: of the prompts.
          used: which of them may be seen.
        """
        batch, prompts = tokens.shape[:2]
        own = [self.presence_token, self.quality_token, self.mask_tokens]
        own = jnp.concatenate([part[...].astype(tokens.dtype) for part in own])
        own = jnp.broadcast_to(own, (batch, prompts, *own.shape))
        x = jnp.concatenate([own, tokens], 2)
        seen = jnp.concatenate([jnp.ones(own.shape[:3], bool), used], 2)
        placed, whole = Placed(x, x), image
        for layer, block in enumerate(layer_stack.unstack(self.blocks)):
            projected = projected if layer == 0 else block.project(whole)
            placed, whole = block(placed, whole, projected=projected, used=seen, first=layer == 0)
        x = placed.x
        x = self.norm(x + self.to_image(x + placed.at, whole.x + whole.at, whole.x))
        count = self.config.num_multimask_outputs + 1
        kernels = _each(self.masks, x[:, :, 2 : 2 + count])
        maps = self._enlarge(whole.x, features)
        logits = jnp.einsum("bnmc,bnhwc->bnmhw", kernels, maps, preferred_element_type=jnp.float32)
        quality = jax.nn.sigmoid(self.quality(x[:, :, 1]).astype(jnp.float32))
        presence = self.presence(x[:, :, 0])[..., 0].astype(jnp.float32)
        return Candidates(logits, quality, presence)

    def _enlarge(
        self, image: Float[Array, "B N S D"], features: Features
    ) -> Float[Array, "B N _ _ _"]:
        """Returns the image as its prompts have left it, with four times the rows and columns."""
        side = features.coarse.shape[1]
        x = image.reshape(*image.shape[:2], side, side, -1)
        x = self.upscale1(x) + features.middle[:, None]
        x = jax.nn.gelu(self.upscale_norm(x), approximate=False)
        return jax.nn.gelu(self.upscale2(x) + features.fine[:, None], approximate=False)


def _each(stack: layers.MLP, x: Float[Array, "B N M i"]) -> Float[Array, "B N M o"]:
    """Returns each of M vectors behind an MLP of its own."""
    graph, params = nnx.split(stack)
    return jax.vmap(lambda one, x: nnx.merge(graph, one)(x), (0, 2), 2)(params, x)


def choose(candidates: Candidates, config: Config) -> Masks:
    """Returns the single mask of each prompt, or the best reading where that one is unsure.

    It is sure if the share of places above -delta that are above delta too reaches a threshold.

    Source: SAM 2, Ravi et al. 2024, appendix D.2.1; `dynamic_multimask_via_stability` of its
    code.
    """
    logits, quality, presence = candidates
    single = Masks(logits[:, :, 0], quality[:, :, 0], presence)
    if not config.dynamic_multimask_via_stability:
        return single
    delta = config.dynamic_multimask_stability_delta
    inner, outer = ((single.logits > edge).sum((-2, -1)) for edge in (delta, -delta))
    stable = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0)
    sure = stable >= config.dynamic_multimask_stability_thresh
    best = jnp.argmax(quality[:, :, 1:], -1) + 1
    reading = jnp.take_along_axis(logits, best[..., None, None, None], 2)[:, :, 0]
    expected = jnp.take_along_axis(quality, best[..., None], 2)[..., 0]
    return Masks(
        jnp.where(sure[..., None, None], single.logits, reading),
        jnp.where(sure, single.quality, expected),
        presence,
    )
