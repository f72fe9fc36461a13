"""Blocks of transformers: attention and a feed-forward layer, both residual."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Float

from seg_jax.models.nn import linear, rotary
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import LayerNorm, RMSNorm
from seg_jax.models.nn.rotary import Rotary
from seg_jax.models.nn.xla_attention import Heads
from seg_jax.models.parallel import sharding
from seg_jax.records import Array

Activation = Literal["gelu_tanh", "gelu", "quick_gelu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one block."""

    width: int
    heads: int
    kv_heads: int
    ffn: int
    eps: float
    std: float
    out_bias: bool
    """Whether the attention output has a bias."""
    ffn_bias: bool
    in_bias: bool = True
    """Whether q, k and v have a bias."""
    head_width: int | None = None
    """None: width / heads."""
    head_norm: bool = False
    """Whether queries and keys are normalised head by head, before they are rotated."""
    activation: Activation = "gelu_tanh"
    """Between the two layers of a `GeluBlock`."""

    @property
    def head(self) -> int:
        """Channels of a head."""
        return self.head_width or self.width // self.heads


_HOME = functools.partial(sharding.constrain_rows, whole=False)
"""What comes back from weights that all devices share out: `tensor` may divide its heads."""
Mix = Callable[[Heads], tuple[Float[Array, "*n heads hd"], Any]]


class Block(nnx.Module):
    """Pre-norm attention, then a gated feed-forward layer (SwiGLU), both residual."""

    def __init__(self, shape: Shape, *, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` blocks."""
        self.shape, self.fuse = shape, compute.fuse
        self.travel = False  # Whether rows go to weights that all devices share out.
        head, dtype = shape.head, compute.param_dtype

        def affine(size: tuple[int, int], bias: bool) -> Linear:
            return Linear(size, bias=bias, stack=stack, std=shape.std, dtype=dtype, rngs=rngs)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, eps=shape.eps, stack=stack, dtype=dtype)

        self.norm_attention, self.norm_ffn = norm(shape.width), norm(shape.width)
        self.q = affine((shape.width, shape.heads * head), bias=shape.in_bias)
        self.k = affine((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.v = affine((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.o = affine((shape.heads * head, shape.width), bias=shape.out_bias)
        self.q_norm = norm(head) if shape.head_norm else None
        self.k_norm = norm(head) if shape.head_norm else None
        self.gate = affine((shape.width, shape.ffn), bias=shape.ffn_bias)
        self.up = affine((shape.width, shape.ffn), bias=shape.ffn_bias)
        self.down = affine((shape.ffn, shape.width), bias=shape.ffn_bias)

    def __call__(
        self, x: Float[Array, "*n D"], turn: Rotary, mix: Mix
    ) -> tuple[Float[Array, "*n D"], Any]:
        """Returns the block's output and what `mix` returned beside the attention output."""
        # Told where a product lies, the compiler does not fetch its weights instead.
        whole, home, apart = (
            (sharding.constrain_whole, _HOME, sharding.constrain_channels)
            if self.travel
            else (lambda x: x,) * 3
        )
        seen = whole(self.norm_attention(x))
        found = linear.project([self.q, self.k, self.v], seen, fuse=self.fuse)
        q, k, v = (home(apart(part)) for part in found)
        lead = x.shape[:-1]
        q, k, v = (part.reshape(*lead, -1, self.shape.head) for part in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, extra = mix(Heads(rotary.rotate(q, turn), rotary.rotate(k, turn), v))
        x = sharding.constrain_rows(x + home(self.o(apart(out.reshape(*lead, -1)))))
        found = linear.project([self.gate, self.up], whole(self.norm_ffn(x)), fuse=self.fuse)
        gate, up = map(apart, found)
        return sharding.constrain_rows(x + home(self.down(jax.nn.silu(gate) * up))), extra


class GeluBlock(nnx.Module):
    """Pre-norm attention, then two layers with a GELU between; LayerNorm and biases."""

    def __init__(self, shape: Shape, *, pairs: bool, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` blocks; `pairs`: neighbouring channels rotate together."""
        self.shape, self.pairs, self.fuse = shape, pairs, compute.fuse
        head, dtype = shape.head, compute.param_dtype

        def affine(size: tuple[int, int], bias: bool) -> Linear:
            return Linear(size, bias=bias, stack=stack, std=shape.std, dtype=dtype, rngs=rngs)

        def norm() -> LayerNorm:
            return LayerNorm(shape.width, eps=shape.eps, stack=stack, dtype=dtype)

        self.norm_attention, self.norm_ffn = norm(), norm()
        self.q = affine((shape.width, shape.heads * head), bias=shape.in_bias)
        self.k = affine((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.v = affine((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.o = affine((shape.heads * head, shape.width), bias=shape.out_bias)
        self.up = affine((shape.width, shape.ffn), bias=shape.ffn_bias)
        self.down = affine((shape.ffn, shape.width), bias=shape.ffn_bias)

    def __call__(
        self, x: Float[Array, "*n D"], turn: Rotary | None, mix: Mix
    ) -> tuple[Float[Array, "*n D"], Any]:
        """Returns the block's output and what `mix` returned beside the attention output.

        Without a `turn` nothing rotates: positions were added to the tokens.
        """
        q, k, v = linear.project([self.q, self.k, self.v], self.norm_attention(x), fuse=self.fuse)
        lead = x.shape[:-1]
        q, k, v = (part.reshape(*lead, -1, self.shape.head) for part in (q, k, v))
        if turn is not None:
            rotate = rotary.rotate_pairs if self.pairs else rotary.rotate
            q, k = rotate(q, turn), rotate(k, turn)
        out, extra = mix(Heads(q, k, v))
        x = sharding.constrain_rows(x + self.o(out.reshape(*lead, -1)))
        inner = _activate(self.up(self.norm_ffn(x)), self.shape.activation)
        return sharding.constrain_rows(x + self.down(inner)), extra


def _activate(x: Float[Array, "*n ffn"], activation: Activation) -> Float[Array, "*n ffn"]:
    if activation == "quick_gelu":  # Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2.
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")
