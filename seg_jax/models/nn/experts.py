"""A feed-forward layer of many experts, of which each token visits a few.

Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2 (sigmoid scores, selection by biased ones);
Moonlight, arXiv 2502.16982.

Axes here: `E` experts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from seg_jax.models.nn import linear
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Adaptable, Linear
from seg_jax.models.parallel import mesh_axes, sharding
from seg_jax.records import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a layer of experts and how tokens choose among them."""

    width: int
    ffn: int
    """Inner width of one expert."""
    experts: int
    """Experts that tokens are routed to."""
    visits: int
    """Routed experts of each token."""
    shared: int
    """Experts that every token visits."""
    scale: float
    """Factor on the routed experts' output."""
    normalised: bool
    """Whether a token's weights add up to one before they are scaled."""
    groups: int
    """Experts are in so many groups ..."""
    visited_groups: int
    """... and a token's experts come from so many of them."""
    std: float


class Gated(nnx.Module):
    """down(silu(gate(x)) * up(x)) without biases (SwiGLU, Shazeer 2020)."""

    def __init__(self, width: int, ffn: int, *, std: float, stack: int, compute: Compute, rngs):
        """Draws a stack of `stack` layers."""
        self.fuse = compute.fuse
        dtype = compute.param_dtype

        def affine(wide: int, long: int) -> Linear:
            return Linear((wide, long), bias=False, stack=stack, std=std, dtype=dtype, rngs=rngs)

        self.gate, self.up = affine(width, ffn), affine(width, ffn)
        self.down = affine(ffn, width)

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Returns the output in the dtype of x."""
        gate, up = linear.project([self.gate, self.up], x, fuse=self.fuse)
        return self.down(jax.nn.silu(gate) * up)


class Router(nnx.Module):
    """Scores every expert for a token: sigmoid(x kernel); the bias counts in the choice alone.

    The bias learns by no gradient: it is for whoever balances the load.
    """

    def __init__(self, shape: Shape, *, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` routers."""
        lead, dtype = (stack,) if stack else (), jnp.dtype(compute.param_dtype)
        size = (*lead, shape.width, shape.experts)
        self.shape = shape
        self.kernel = nnx.Param(shape.std * jax.random.normal(rngs.params(), size, dtype))
        # Rounded, it would choose otherwise.
        self.bias = nnx.Param(jnp.zeros((*lead, shape.experts), jnp.float32))

    def __call__(
        self, x: Float[Array, "*n D"]
    ) -> tuple[Int[Array, "*n visits"], Float[Array, "*n visits"]]:
        """Returns the experts of each token and their float32 weights."""
        # In float32 everywhere: a token that changes experts between sampling and learning is
        # another model's token.
        logits = jnp.dot(
            x.astype(jnp.float32),
            self.kernel[...].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        scores = jax.nn.sigmoid(logits)
        liking = jax.lax.stop_gradient(scores) + self.bias[...]
        chosen = jax.lax.top_k(self._in_groups(liking), self.shape.visits)[1]
        weights = jnp.take_along_axis(scores, chosen, -1)
        if self.shape.normalised:
            weights = weights / (jnp.sum(weights, -1, keepdims=True) + 1e-20)
        return chosen, weights * self.shape.scale

    def _in_groups(self, liking: Float[Array, "*n E"]) -> Float[Array, "*n E"]:
        """Returns minus infinity for experts outside the groups whose two best are best."""
        shape = self.shape
        if shape.visited_groups == shape.groups:
            return liking
        grouped = liking.reshape(*liking.shape[:-1], shape.groups, -1)
        best = jnp.sum(jax.lax.top_k(grouped, min(2, grouped.shape[-1]))[0], -1)
        visited = jax.lax.top_k(best, shape.visited_groups)[1]
        open_ = jnp.any(visited[..., None] == jnp.arange(shape.groups), -2)
        return jnp.where(open_[..., None], grouped, -jnp.inf).reshape(liking.shape)


class Factors(NamedTuple):
    """What the experts of a layer multiply tokens with, stacked by expert."""

    kernel: Float[Array, "E i o"]
    a: Float[Array, "E i rank"] | None = None
    """With b the adapters of the experts: x kernel + (x a) b."""
    b: Float[Array, "E rank o"] | None = None


class Kernels(Adaptable):
    """One kernel per expert."""

    def __init__(self, size: tuple[int, int, int], *, std: float, stack: int, dtype: str, rngs):
        """Draws a stack of `stack` times (experts, in, out)."""
        lead = (stack,) if stack else ()
        draw = std * jax.random.normal(rngs.params(), (*lead, *size), jnp.dtype(dtype))
        self.kernel = nnx.Param(draw)

    def factors(self, dtype: jnp.dtype) -> Factors:
        """Returns what tokens are multiplied with, adapters scaled."""
        kernel = self.kernel[...].astype(dtype)
        if self.lora_a is None or self.lora_b is None:
            return Factors(kernel)
        scaled = (self.lora_scale * self.lora_b[...]).astype(dtype)
        return Factors(kernel, self.lora_a[...].astype(dtype), scaled)


class Mixture(nnx.Module):
    """Routed experts, weighted, plus those that every token visits."""

    def __init__(self, shape: Shape, *, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` layers."""

        def kernels(wide: int, long: int) -> Kernels:
            size = (shape.experts, wide, long)
            return Kernels(size, std=shape.std, stack=stack, dtype=compute.param_dtype, rngs=rngs)

        self.router = Router(shape, stack=stack, compute=compute, rngs=rngs)
        self.expert_gate = kernels(shape.width, shape.ffn)
        self.expert_up = kernels(shape.width, shape.ffn)
        self.expert_down = kernels(shape.ffn, shape.width)
        # Experts side by side are one wide expert.
        wide = shape.ffn * shape.shared
        self.shared = Gated(
            shape.width, wide, std=shape.std, stack=stack, compute=compute, rngs=rngs
        )

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Returns the output in the dtype of x."""
        chosen, weights = self.router(x)
        gate, up, down = (
            part.factors(x.dtype) for part in (self.expert_gate, self.expert_up, self.expert_down)
        )
        return visit(x, chosen, weights, gate=gate, up=up, down=down) + self.shared(x)


def visit(
    x: Float[Array, "*n D"],
    chosen: Int[Array, "*n visits"],
    weights: Float[Array, "*n visits"],
    *,
    gate: Factors,
    up: Factors,
    down: Factors,
) -> Float[Array, "*n D"]:
    """Returns the weighted outputs of the experts that each token chose.

    Inside `jax.set_mesh` each device runs its own experts on all tokens that it sees, and the
    outputs are added up. Devices of the mesh's `expert` axis have rows of their own: they show
    each other all of them before, and keep the sums of their own after.
    """
    on = sharding.current_mesh()
    if on is None:
        return _visit(x, chosen, weights, kernels=(gate, up, down), first=0)
    axes, rows = mesh_axes.MESH["expert"], sharding.tokens(x)
    split = "expert" in (rows[0] or ()) and on.shape["expert"] > 1

    def mine(x, chosen, weights, *kernels):
        if split:
            x, chosen, weights = (
                jax.lax.all_gather(part, "expert", tiled=True) for part in (x, chosen, weights)
            )
        first = jax.lax.axis_index(axes) * kernels[0].kernel.shape[0]
        out = _visit(x, chosen, weights, kernels=kernels, first=first)
        if split:
            out = jax.lax.psum_scatter(out, "expert", tiled=True)
            return jax.lax.psum(out, [axis for axis in axes if axis != "expert"])
        return jax.lax.psum(out, axes)

    experts = PartitionSpec(axes)
    return jax.shard_map(
        mine, in_specs=(*(rows,) * 3, *(experts,) * 3), out_specs=rows, check_vma=False
    )(x, chosen, weights, gate, up, down)


def _visit(x, chosen, weights, *, kernels, first):
    """Returns what the experts from number `first` on add to the tokens' outputs.

    Visits are sorted by expert, so that one grouped product serves all experts; visits to experts
    elsewhere come last, beyond the groups.
    """
    gate, up, down = kernels
    here, visits = gate.kernel.shape[0], chosen.shape[-1]
    tokens = x.reshape(-1, x.shape[-1])
    expert = chosen.reshape(-1) - first
    expert = jnp.where((expert >= 0) & (expert < here), expert, here)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=here + 1)[:here].astype(jnp.int32)
    # What a grouped product leaves beyond its groups is no one's promise.
    local = (expert[order] < here)[:, None]
    rows = jnp.where(local, tokens[order // visits], 0)
    inner = jax.nn.silu(_grouped_product(rows, gate, sizes)) * _grouped_product(rows, up, sizes)
    out = _grouped_product(jnp.where(local, inner, 0), down, sizes)
    out = jnp.where(local, out, 0)[jnp.argsort(order)].reshape(-1, visits, x.shape[-1])
    mixed = jnp.einsum(
        "nkd,nk->nd",
        out,
        weights.reshape(-1, visits).astype(out.dtype),
        preferred_element_type=jnp.float32,
    )
    return mixed.astype(x.dtype).reshape(x.shape)


def _grouped_product(rows, factors: Any, sizes):
    """Returns the product of each group of rows with its expert's `Factors`."""
    out = jax.lax.ragged_dot(rows, factors.kernel, sizes)
    if factors.a is None or factors.b is None:
        return out
    # Beyond the groups anything may stand, which a further product must not meet.
    inside = (jnp.arange(rows.shape[0]) < jnp.sum(sizes))[:, None]
    low = jnp.where(inside, jax.lax.ragged_dot(rows, factors.a, sizes), 0)
    return out + jax.lax.ragged_dot(low, factors.b, sizes)
