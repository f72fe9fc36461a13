"""Rotary positions: pairs of channels that turn with the place of a token or patch."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float, Int

from seg_jax.records import Array


class Rotary(NamedTuple):
    """Cosines and sines of the rotation of each pair of channels (half the head width)."""

    cos: Float[Array, "*n half"]
    sin: Float[Array, "*n half"]


def frequencies(count: int, theta: float) -> Float[Array, " {count}"]:
    """Returns theta^(-i / count) for i < count (RoFormer, Su et al. 2021)."""
    return jnp.float32(theta) ** -(jnp.arange(count, dtype=jnp.float32) / count)


def from_angles(angles: Float[Array, "*n half"]) -> Rotary:
    """Returns the rotation by the given angles."""
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def planar(place: Int[Array, "*n 2"], *, head: int, theta: float) -> Rotary:
    """Returns the rotation of heads of `head` channels by places in an image.

    The first half of the pairs of channels turns with the row, the second with the column.
    """
    spin = frequencies(head // 4, theta)
    row, column = (place[..., axis, None].astype(jnp.float32) for axis in range(2))
    return from_angles(jnp.concatenate([row * spin, column * spin], -1))


def rotate(x: Float[Array, "*n heads hd"], by: Rotary) -> Float[Array, "*n heads hd"]:
    """Returns x with channel i and channel i + hd/2 rotated as a pair, in float32 inside."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = by.cos[..., None, :], by.sin[..., None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def rotate_pairs(x: Float[Array, "*n heads hd"], by: Rotary) -> Float[Array, "*n heads hd"]:
    """Returns x with channels 2 i and 2 i + 1 rotated as a pair, first members before second ones.

    Products of two vectors do not depend on that order, as long as both are rotated here.
    """
    return rotate(jnp.concatenate([x[..., 0::2], x[..., 1::2]], -1), by)
