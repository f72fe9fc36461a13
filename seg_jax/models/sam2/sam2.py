"""SAM 2's image path in Flax NNX: images encoded once, then masks of prompts.

Source: SAM 2, Ravi et al. 2024 (arXiv 2408.00714), section 4; checked against `Sam2Model` of
transformers.

Axes here: `N` prompts of an image, `T` clicks and corners of a prompt.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Real

from seg_jax.models.facts.family import Family, Published, Segmenter
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import arithmetic, decoder, hiera, layers, meta_names, names, prompts
from seg_jax.models.sam2.config import MODEL_TYPE, VIDEO_TYPE, Config, with_preprocessor
from seg_jax.models.sam2.decoder import Candidates, Features, Masks
from seg_jax.records import Array


class Prepared(NamedTuple):
    """Images as their prompts find them."""

    features: Features
    image: decoder.Placed
    projected: decoder.Projected


class Neck(nnx.Module):
    """The maps of the trunk at one width, and the finest two as the decoder takes them.

    Only the coarsest map is carried upwards, into the next one: what is finer stays as it is.

    Source: Feature pyramid networks, Lin et al. 2017, with SAM 2's choice of levels.
    """

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        """Draws its layers, all of a single place."""
        width = config.width
        options = {"stack": 0, "compute": compute, "rngs": rngs}
        widths = config.backbone.embed_dim_per_stage
        self.fine, self.middle, self.coarse, self.coarsest = (
            layers.affine((wide, width), **options) for wide in widths
        )
        self.to_fine = layers.affine((width, width // 8), **options)
        self.to_middle = layers.affine((width, width // 4), **options)
        dtype = jnp.dtype(compute.param_dtype)
        self.no_memory = nnx.Param(jnp.zeros((1, 1, width), dtype))

    def __call__(self, maps: list[Float[Array, "B _ _ _"]]) -> Features:
        """Returns the features of the trunk's four maps, the finest of which comes first."""
        fine, middle, coarse, coarsest = maps
        above = self.coarsest(coarsest)
        above = jnp.repeat(jnp.repeat(above, 2, 1), 2, 2)  # The nearest place, as torch finds it.
        coarse = self.coarse(coarse) + above + self.no_memory[...].astype(above.dtype)
        return Features(
            sharding.constrain_maps(coarse),
            sharding.constrain_maps(self.to_middle(self.middle(middle))),
            sharding.constrain_maps(self.to_fine(self.fine(fine))),
        )


class Sam2(nnx.Module):
    """Encodes an image once, then draws what points and boxes mean in it."""

    def __init__(
        self,
        config: Config,
        *,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        """Draws a model; grids and the sign of no memory are zero, as torch begins with."""
        self.config, self.compute = config, compute
        options = {"compute": compute, "rngs": rngs}
        self.trunk = hiera.Trunk(config, **options)
        self.neck = Neck(config, **options)
        self.fourier = prompts.Fourier(config.width, rngs=rngs)
        self.prompts = prompts.Prompts(config, **options)
        self.decoder = decoder.Decoder(config, **options)

    def normalise(self, images: Real[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Returns images of values 0..255 as the model was taught to see them, in float32."""
        mean, deviation = (
            jnp.asarray(values, jnp.float32)
            for values in (self.config.image_mean, self.config.image_std)
        )
        return (images.astype(jnp.float32) / 255 - mean) / deviation

    def encode(self, images: Float[Array, "B side side 3"]) -> Features:
        """Returns the features of normalised images, from which all their prompts are decoded."""
        return self.neck(self.trunk(images))

    def decode(
        self,
        features: Features,
        points_px: Float[Array, "B N T 2"],
        labels: Int[Array, "B N T"],
        *,
        used: Bool[Array, "B N T"],
        earlier: Float[Array, "B N _ _"] | None = None,
    ) -> Masks:
        """Returns one mask for each prompt; arguments as of `candidates`."""
        found = self.candidates(features, points_px, labels, used=used, earlier=earlier)
        return decoder.choose(found, self.config)

    def candidates(
        self,
        features: Features,
        points_px: Float[Array, "B N T 2"],
        labels: Int[Array, "B N T"],
        *,
        used: Bool[Array, "B N T"],
        earlier: Float[Array, "B N _ _"] | None = None,
    ) -> Candidates:
        """Returns the single mask and the readings of each prompt.

        Args:
          features: of the images.
          points_px: clicks and corners in the stretched image, whose pixels are `config.side`.
          labels: 1 a click inside the object, 0 one outside; 2 and 3 the first and the second
            corner of a box; -1 nothing.
          used: which slots hold something. The others change no bit of what comes out but by the
            order of sums; a prompt without any is answered as the models answer none.
          earlier: logits of masks that the prompts correct; None: there are none.
        """
        return self.answers(self.prepare(features, earlier), points_px, labels, used=used)

    def prepare(
        self, features: Features, earlier: Float[Array, "B N _ _"] | None = None
    ) -> Prepared:
        """Returns what all prompts of images share; of earlier masks each has its own."""
        batch, side, _, width = features.coarse.shape
        image = features.coarse[:, None] + self.prompts.dense(earlier, self.compute.dtype)
        image = image.reshape(batch, -1, side * side, width)
        centres = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side
        where = self.fourier(jnp.stack(jnp.meshgrid(centres, centres), -1))
        placed = decoder.Placed(image, where.reshape(1, 1, -1, width).astype(self.compute.dtype))
        return Prepared(features, placed, self.decoder.project(placed))

    def answers(
        self,
        prepared: Prepared,
        points_px: Float[Array, "B N T 2"],
        labels: Int[Array, "B N T"],
        *,
        used: Bool[Array, "B N T"],
    ) -> Candidates:
        """Returns the candidates of prompts of prepared images, see `candidates`."""
        tokens, seen = self.prompts.tokens(points_px, labels, used)
        tokens = tokens.astype(self.compute.dtype)
        features, image, projected = prepared
        return self.decoder(features, image, projected=projected, tokens=tokens, used=seen)


def _convolutions(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the kernels that are convolutions on the hub, with the sizes of their inner axes."""
    widths = config.backbone.embed_dim_per_stage
    laterals = ("fine", "middle", "coarse", "coarsest")
    channels = config.mask_input_channels
    return {
        "trunk/patch/kernel": (3, hiera.KERNEL, hiera.KERNEL),
        **{f"neck/{n}/kernel": (w, 1, 1) for n, w in zip(laterals, widths, strict=True)},
        "neck/to_fine/kernel": (config.width, 1, 1),
        "neck/to_middle/kernel": (config.width, 1, 1),
        "prompts/shrink1/kernel": (1, 2, 2),
        "prompts/shrink2/kernel": (channels // 4, 2, 2),
        "prompts/project/kernel": (channels, 1, 1),
    }


FAMILY = Family(
    model_type=MODEL_TYPE,
    other_types=(VIDEO_TYPE,),
    config=Config,
    model=Sam2,
    names=names.table,
    surplus=names.MEMORY,
    convolutions=_convolutions,
    with_preprocessor=with_preprocessor,
    remarks=meta_names.remarks,
    segmenter=Segmenter(
        encoding=arithmetic.encoding,
        decoding=arithmetic.decoding,
        sizes={
            f"facebook/sam2.1-hiera-{size}": Config(backbone=trunk)
            for size, trunk in meta_names.SIZES.items()
        },
    ),
    published=Published(
        is_of=meta_names.is_meta,
        config=meta_names.config_of,
        sources=meta_names.sources,
        preprocessor=Config.to_preprocessor,
    ),
)
