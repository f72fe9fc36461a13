"""CLIP in Flax NNX: which text fits which image, by the angle between their vectors.

Source: Radford et al. 2021 (arXiv 2103.00020); checked against `CLIPModel` of transformers.

Axes here: `N` images or texts, `E` width of the common space.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.models.clip import arithmetic, names, openai_names
from seg_jax.models.clip.config import MODEL_TYPE, Config, with_preprocessor
from seg_jax.models.clip.towers import TextTower, VisionTower
from seg_jax.models.facts.family import Family, Pairs, Published
from seg_jax.models.nn.compute import Compute
from seg_jax.records import Array

FIRST_SCALE = math.log(1 / 0.07)
"""Where the logarithm of the scale begins."""


class CLIP(nnx.Module):
    """Brings images and texts into one space, where what fits lies close."""

    def __init__(
        self,
        config: Config,
        *,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        """Draws a model."""
        self.config, self.compute = config, compute
        self.vision = VisionTower(config, compute=compute, rngs=rngs)
        self.tower = TextTower(config.text, config.projection_dim, compute=compute, rngs=rngs)
        self.log_scale = nnx.Param(jnp.asarray(FIRST_SCALE, jnp.float32))

    def image(self, pixels: UInt8[Array, "N H W 3"]) -> Float[Array, "N E"]:
        """Returns the unit vectors of images, in float32; their rows and columns are the config's.

        Pixels are as they are seen, 0..255: they are normalised here.
        """
        return _unit(self.vision(pixels))

    def text(
        self, ids: Int[Array, "N T"], used: Bool[Array, "N T"] | None = None
    ) -> Float[Array, "N E"]:
        """Returns the unit vectors of texts, in float32; arguments as of `TextTower`."""
        return _unit(self.tower(ids, used))

    def scale(self) -> Float[Array, ""]:
        """Returns what cosines are multiplied by before the softmax: one over the temperature."""
        return jnp.exp(self.log_scale[...])


def _unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """Returns vectors of length 1."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _convolutions(config: Config) -> dict[str, tuple[int, ...]]:
    side = config.vision.patch_size
    return {"vision/patch/kernel": (3, side, side)}


FAMILY = Family(
    model_type=MODEL_TYPE,
    config=Config,
    model=CLIP,
    names=names.NAMES,
    convolutions=_convolutions,
    with_preprocessor=with_preprocessor,
    pairs=Pairs(image=arithmetic.image, text=arithmetic.text),
    published=Published(
        is_of=openai_names.is_openai,
        config=openai_names.config_of,
        sources=openai_names.sources,
        preprocessor=Config.to_preprocessor,
        names=lambda config: openai_names.NAMES,
        choices=openai_names.with_activation,
    ),
)
