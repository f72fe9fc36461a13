"""Facts about the patches of images that several vision towers need."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from seg_jax.records import Array


def image_sizes(place: Int[Array, "B S 2"], image: Int[Array, "B S"]) -> Int[Array, "B S 2"]:
    """Returns rows and columns of each patch's image: its last place tells."""
    length = place.shape[1]

    def one(place, image):
        # Padding has number -1; it counts as an image after all others.
        last = jax.ops.segment_max(place, image % length, length)
        return last[image % length] + 1

    return jax.vmap(one)(place, image)


def standardise(
    patches: UInt8[Array, "B S C"], *, mean: Sequence[float], std: Sequence[float], patch_size: int
) -> Float[Array, "B S C"]:
    """Returns the patches in float32, each channel less its mean and divided by its deviation.

    Args:
      patches: raw pixels, a channel after another.
      mean: of each channel, of pixels in 0..1.
      std: standard deviation of each channel, of pixels in 0..1.
      patch_size: side of a patch in pixels.
    """
    area = patch_size**2
    middle = np.repeat(np.array(mean, np.float32), area) * 255
    spread = np.repeat(np.array(std, np.float32), area) * 255
    return (patches.astype(jnp.float32) - middle) / spread
