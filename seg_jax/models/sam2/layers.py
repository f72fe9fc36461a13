"""The small layers of SAM 2's decoder: attention at another width, deep MLPs, doubled maps.

Axes here: `N` prompts of an image, `T` queries, `S` keys.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.xla_attention import MASKED_SCORE
from seg_jax.records import Array

STD = 0.02


def affine(size: tuple[int, int], *, stack: int, compute: Compute, rngs: nnx.Rngs) -> Linear:
    """Draws a linear layer with a bias, or a stack of them."""
    return Linear(size, bias=True, stack=stack, std=STD, dtype=compute.param_dtype, rngs=rngs)


class Keys(NamedTuple):
    """What attention compares its queries with, and what it hands on."""

    k: Float[Array, "B m heads S hd"]
    v: Float[Array, "B m heads S hd"]


class Attention(nnx.Module):
    """Attention of the two-way decoder, whose heads are narrower than its input."""

    def __init__(
        self, width: int, inner: int, heads: int, *, stack: int, compute: Compute, rngs: nnx.Rngs
    ):
        """Draws a stack of layers (0: a single one) of `inner` channels in all heads."""
        self.heads = heads
        options = {"stack": stack, "compute": compute, "rngs": rngs}
        self.q, self.k, self.v = (affine((width, inner), **options) for _ in range(3))
        self.o = affine((inner, width), **options)

    def __call__(
        self,
        q: Float[Array, "B n T D"],
        k: Float[Array, "B m S D"],
        v: Float[Array, "B m S D"],
        *,
        used: Bool[Array, "B N S"] | None = None,
    ) -> Float[Array, "B N T D"]:
        """Returns what queries get of the used keys (None: of all).

        Prompts of an image may share queries or keys, with one in the place of N: what they share
        is projected once.
        """
        return self.attend(self.queries(q), self.keys(k, v), used=used)

    def queries(self, x: Float[Array, "B n T D"]) -> Float[Array, "B n heads T hd"]:
        """Returns the queries of each head."""
        return self._by_heads(self.q(x))

    def keys(self, k: Float[Array, "B m S D"], v: Float[Array, "B m S D"]) -> Keys:
        """Returns the keys and values of each head."""
        return Keys(self._by_heads(self.k(k)), self._by_heads(self.v(v)))

    def attend(
        self,
        q: Float[Array, "B n heads T hd"],
        keys: Keys,
        *,
        used: Bool[Array, "B N S"] | None = None,
    ) -> Float[Array, "B N T D"]:
        """Returns the same of what is projected already."""
        k, v = keys
        scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        scores = scores * q.shape[-1] ** -0.5
        if used is not None:
            scores = jnp.where(used[:, :, None, None], scores, MASKED_SCORE)
        out = jnp.matmul(jax.nn.softmax(scores, -1).astype(v.dtype), v)
        return self.o(out.swapaxes(2, 3).reshape(*out.shape[:2], out.shape[3], -1))

    def _by_heads(self, x: Float[Array, "B n T i"]) -> Float[Array, "B n heads T hd"]:
        return x.reshape(*x.shape[:3], self.heads, -1).swapaxes(2, 3)


class MLP(nnx.Module):
    """Linear layers with a ReLU between each two."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        depth: int,
        *,
        stack: int,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Draws `depth` layers, at least two, of sizes in, between and out.

        Layers between the first and the last are a stack; there is none of them in a stack of
        MLPs deeper than three.
        """
        wide, between, out = sizes
        options = {"compute": compute, "rngs": rngs}
        self.first = affine((wide, between), stack=stack, **options)
        inner = depth - 2
        self.between = (
            affine((between, between), stack=stack or inner, **options) if inner else None
        )
        self.last = affine((between, out), stack=stack, **options)

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """Returns the output of the last layer."""
        x = jax.nn.relu(self.first(x))
        if self.between is not None:
            x = _through(self.between, x)
        return self.last(x)


def _through(layers: Linear, x: Float[Array, "*n i"]) -> Float[Array, "*n i"]:
    """Returns x behind each of a stack of layers and a ReLU; a single layer needs no stack."""
    graph, params = nnx.split(layers)
    if layers.kernel.ndim == 2:
        return jax.nn.relu(layers(x))
    step = lambda x, one: (jax.nn.relu(nnx.merge(graph, one)(x)), None)  # noqa: E731
    return jax.lax.scan(step, x, params)[0]


class Upscale(nnx.Module):
    """Each place becomes two by two: a transposed convolution of stride and size two."""

    def __init__(self, size: tuple[int, int], *, compute: Compute, rngs: nnx.Rngs):
        """Draws weights of size (in, out, 2, 2), torch's order, and a bias."""
        dtype = jnp.dtype(compute.param_dtype)
        self.weight = nnx.Param(STD * jax.random.normal(rngs.params(), (*size, 2, 2), dtype))
        self.bias = nnx.Param(jnp.zeros(size[1], dtype))

    def __call__(self, x: Float[Array, "*n h w i"]) -> Float[Array, "*n h2 w2 o"]:
        """Returns the map of twice as many rows and columns."""
        *lead, rows, columns, _ = x.shape
        y = jnp.einsum("...hwi,iors->...hrwso", x, self.weight[...].astype(x.dtype))
        return y.reshape(*lead, 2 * rows, 2 * columns, -1) + self.bias[...].astype(x.dtype)


def halve(x: Float[Array, "*n H W c"]) -> Float[Array, "*n h w c4"]:
    """Returns two by two places as one, in torch's order: channel, row, column."""
    *lead, rows, columns, width = x.shape
    x = x.reshape(math.prod(lead), rows // 2, 2, columns // 2, 2, width)
    x = x.transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(*lead, rows // 2, columns // 2, 4 * width)
