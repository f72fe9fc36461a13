"""Multi-head latent attention: what a token leaves to later ones is one short vector.

Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; without compressed queries, as Moonlight.

Axes here: `R` width of the latent vector, `P` prompt tokens, `S` queues of slots.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from seg_jax.models.nn import attention, cached_attention, linear, rotary
from seg_jax.models.nn.batching import Slots
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import RMSNorm
from seg_jax.models.nn.rotary import Rotary
from seg_jax.models.nn.xla_attention import Heads
from seg_jax.records import Array

LATENT_EPS = 1e-6
"""Epsilon of the norm of what is compressed; no config holds it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of latent attention."""

    width: int
    heads: int
    rank: int
    """Numbers that keys and values of all heads are made of."""
    plain: int
    """Channels of a head that do not rotate."""
    rotary: int
    """Channels of a head that rotate; their keys are common to all heads."""
    value: int
    """Channels of a head's values."""
    std: float

    @property
    def scale(self) -> float:
        """Scale of the scores."""
        return (self.plain + self.rotary) ** -0.5


class Attention(nnx.Module):
    """Queries from tokens, keys and values from latents [rank + rotary], and the output layer.

    Whole rows are cheapest with keys and values spread out to all heads; a cache is cheapest left
    as it is, with queries and outputs taken to the latents and back (`attend_latent`).
    """

    def __init__(self, shape: Shape, *, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` layers."""
        self.shape, self.fuse, self.compute = shape, compute.fuse, compute
        dtype = compute.param_dtype

        def affine(wide: int, long: int) -> Linear:
            return Linear(
                (wide, long), bias=False, stack=stack, std=shape.std, dtype=dtype, rngs=rngs
            )

        self.q = affine(shape.width, shape.heads * (shape.plain + shape.rotary))
        self.kv_in = affine(shape.width, shape.rank + shape.rotary)
        self.kv_norm = RMSNorm(shape.rank, eps=LATENT_EPS, stack=stack, dtype=dtype)
        self.kv_out = affine(shape.rank, shape.heads * (shape.plain + shape.value))
        self.o = affine(shape.heads * shape.value, shape.width)

    def read(
        self, x: Float[Array, "*n D"], turn: Rotary
    ) -> tuple[Float[Array, "*n heads hd"], Float[Array, "*n R"]]:
        """Returns queries (plain channels, then rotated ones) and latents (the same)."""
        shape = self.shape
        q, latent = linear.project([self.q, self.kv_in], x, fuse=self.fuse)
        q = q.reshape(*x.shape[:-1], shape.heads, -1)
        q = jnp.concatenate(
            [q[..., : shape.plain], rotary.rotate_pairs(q[..., shape.plain :], turn)], -1
        )
        key = rotary.rotate_pairs(latent[..., None, shape.rank :], turn)[..., 0, :]
        return q, jnp.concatenate([self.kv_norm(latent[..., : shape.rank]), key], -1)

    def spread(
        self, latent: Float[Array, "*n R"]
    ) -> tuple[Float[Array, "*n heads hd"], Float[Array, "*n heads vd"]]:
        """Returns the keys and values of all heads."""
        shape = self.shape
        made = self.kv_out(latent[..., : shape.rank])
        made = made.reshape(*latent.shape[:-1], shape.heads, -1)
        key = jnp.broadcast_to(
            latent[..., None, shape.rank :], (*made.shape[:-1], latent.shape[-1] - shape.rank)
        )
        return jnp.concatenate([made[..., : shape.plain], key], -1), made[..., shape.plain :]

    def attend(
        self,
        q: Float[Array, "B T heads hd"],
        latent: Float[Array, "B T R"],
        segments: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """Returns causal attention within equal segments of whole rows, output layer included."""
        heads = Heads(q, *self.spread(latent))
        out = attention.attend(heads, segments, causal=True, kind=self.compute.attention)
        return self.o(out.reshape(*out.shape[:2], -1))

    def attend_spread(
        self,
        q: Float[Array, "B G Q heads hd"],
        prompt: Float[Array, "B P R"],
        own: Float[Array, "B G Q R"],
        *,
        seen: attention.Visibility,
    ) -> Float[Array, "B G Q D"]:
        """Returns causal attention of whole answers, output layer included."""
        k, v = self.spread(prompt)
        out = attention.attend_answers(
            Heads(q, *self.spread(own)),
            cached_attention.prompt_cache(Heads(k, k, v)),
            seen,
            kind=self.compute.attention,
        )
        return self.o(out.reshape(*out.shape[:3], -1))

    def attend_latent(
        self,
        q: Float[Array, "S rows Q heads hd"],
        prompt: Float[Array, "B P R"],
        own: Float[Array, "S rows L R"],
        *,
        used: Bool[Array, "B P"],
        seen: Bool[Array, "*n Q L"],
        slots: Slots | None,
    ) -> Float[Array, "S rows Q D"]:
        """Returns the same with latents themselves as keys and values of one common head.

        q (K c) = (q K) c: the layer that makes keys of latents moves over to the queries, and the
        one that makes values to the output. Rows are [B G], or any with slots.
        """
        shape = self.shape
        made = self.kv_out.whole_kernel(q.dtype).reshape(shape.rank, shape.heads, -1)
        to_keys, to_values = made[..., : shape.plain], made[..., shape.plain :]
        seeking = jnp.einsum("...hd,rhd->...hr", q[..., : shape.plain], to_keys)
        out = cached_attention.attend_slots(
            jnp.concatenate([seeking, q[..., shape.plain :]], -1),
            cached_attention.PromptCache(
                prompt.swapaxes(1, 2)[:, None], prompt[:, None, :, : shape.rank]
            ),
            cached_attention.AnswerCache(
                own.swapaxes(2, 3)[:, None], own[:, None, ..., : shape.rank]
            ),
            used=used,
            seen=seen,
            slots=slots,
            scale=shape.scale,
        )
        out = jnp.einsum("...hr,rhd->...hd", out, to_values)
        return self.o(out.reshape(*out.shape[:3], -1))
