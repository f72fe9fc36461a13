"""Linear layers with or without low-rank adapters, tables of embeddings, and scores of tokens.

Source of the adapters: LoRA, arXiv 2106.09685, section 4.1: y = x kernel + scale (x A) B.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from seg_jax.records import Array

MATRICES = ("kernel", "embedding", "lora_a", "lora_b")
"""Names of the weights that products are made with, in the dtype of their other factor."""


class Adaptable(nnx.Module):
    """A layer whose kernel can have an adapter beside it; `models/adapters` adds it.

    Both matrices are stacked as the kernel is. Layers that are parts of one layer of the hub share
    A, which the first of them holds.
    """

    lora_a: nnx.Param | None = None
    """A [.. in rank]."""
    lora_b: nnx.Param | None = None
    """B [.. rank out]; None: no adapter."""
    lora_scale: float = 1.0


class Linear(Adaptable):
    """y = x kernel + bias; the kernel is the transpose of torch's weight."""

    def __init__(
        self, size: tuple[int, int], *, bias: bool, stack: int, std: float, dtype: str, rngs
    ):
        """Draws a stack of `stack` kernels (0: a single one) of size (in, out)."""
        lead = (stack,) if stack else ()
        draw = std * jax.random.normal(rngs.params(), (*lead, *size), jnp.dtype(dtype))
        self.kernel = nnx.Param(draw)
        self.bias = nnx.Param(jnp.zeros((*lead, size[1]), jnp.dtype(dtype))) if bias else None

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """Returns the product in the dtype of x."""
        return project([self], x, fuse=False)[0]

    def whole_kernel(self, dtype: jnp.dtype) -> Float[Array, "*lead i o"]:
        """Returns the kernel with its adapter added, for products that are not x kernel."""
        kernel = self.kernel[...].astype(dtype)
        if self.lora_a is None or self.lora_b is None:
            return kernel
        a, b = self.lora_a[...].astype(dtype), self.lora_b[...].astype(dtype)
        return kernel + self.lora_scale * (a @ b)


def _in_one_product(linears: list[Linear], x: Float[Array, "*n i"]) -> list:
    """Returns the outputs of several layers with the same input from one matrix product."""
    kernels = [linear.kernel[...].astype(x.dtype) for linear in linears]
    widths = [kernel.shape[-1] for kernel in kernels]
    kernel = kernels[0] if len(kernels) == 1 else jnp.concatenate(kernels, -1)
    y = _dot(x, kernel)
    biases = [linear.bias[...].astype(x.dtype) for linear in linears if linear.bias is not None]
    if biases:
        y = y + (biases[0] if len(biases) == 1 else jnp.concatenate(biases, -1))
    if len(linears) == 1:
        return [y]
    edges = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    return jnp.split(y, edges, -1)


@jax.custom_vjp
def _dot(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """Returns x kernel; its gradient turns the narrower of x and dy around, not always dy.

    On CPU that is a copy before the product that gives the kernel's gradient.
    """
    return jnp.dot(x, kernel)


def _dot_forward(x, kernel):
    return jnp.dot(x, kernel), (x, kernel)


def _dot_backward(saved, dy):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(dy, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    if x.shape[-1] <= dy.shape[-1]:
        return dx, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    return dx, jax.lax.dot_general(dy, x, ((rows, rows), ((), ()))).T


_dot.defvjp(_dot_forward, _dot_backward)


def project(linears: list[Linear], x: Float[Array, "*n i"], *, fuse: bool) -> list:
    """Returns the outputs of layers with the same input, in one product or one by one."""
    if fuse:
        found = _in_one_product(linears, x)
    else:
        found = [_in_one_product([linear], x)[0] for linear in linears]
    low = None
    for number, linear in enumerate(linears):
        if linear.lora_b is None:
            continue
        if linear.lora_a is not None:
            low = _dot(x, linear.lora_a[...].astype(x.dtype))
        assert low is not None, "a layer that shares A stands behind the one that holds it"
        more = _dot(linear.lora_scale * low, linear.lora_b[...].astype(x.dtype))
        found[number] = found[number] + more
    return found


class Embedding(nnx.Module):
    """A table of V rows of width D; the output head is one too."""

    def __init__(self, size: tuple[int, int], *, std: float, dtype: str, rngs):
        draw = std * jax.random.normal(rngs.params(), size, jnp.dtype(dtype))
        self.embedding = nnx.Param(draw)


def logits(hidden: Float[Array, "*n D"], table: Float[Array, "V D"]) -> Float[Array, "*n V"]:
    """Returns the float32 score of every row of a table: the output head's scores of tokens."""
    return jnp.einsum(
        "...d,vd->...v", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
