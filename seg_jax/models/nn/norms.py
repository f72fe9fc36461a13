"""Normalisation of the last axis, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from seg_jax.records import Array


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, *, eps: float, stack: int, dtype: str):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((stack, width) if stack else (width,), jnp.dtype(dtype)))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Returns the normalised x in its own dtype."""
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), -1, keepdims=True)
        unit = wide * jax.lax.rsqrt(power + self.eps)
        return (unit * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * scale + bias, computed in float32 (Ba et al. 2016)."""

    def __init__(self, width: int, *, eps: float, stack: int, dtype: str):
        self.eps = eps
        shape = (stack, width) if stack else (width,)
        self.scale = nnx.Param(jnp.ones(shape, jnp.dtype(dtype)))
        self.bias = nnx.Param(jnp.zeros(shape, jnp.dtype(dtype)))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Returns the normalised x in its own dtype."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        unit = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.eps)
        scale, bias = (part[...].astype(jnp.float32) for part in (self.scale, self.bias))
        return (unit * scale + bias).astype(x.dtype)
