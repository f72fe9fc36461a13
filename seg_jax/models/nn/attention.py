"""Attention of whole rows, by the kernel that the devices have or by XLA's own products.

Token-by-token decoding (`cached_attention.attend_slots`) stays with XLA: a query or a few against a
long cache is bound by reading the cache, which no kernel saves.

Axes here: `P` prompt tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int

from seg_jax.kernels import attention as kernels
from seg_jax.models.nn import cached_attention, xla_attention
from seg_jax.models.nn.xla_attention import Heads
from seg_jax.models.parallel import mesh_axes, sharding
from seg_jax.records import Array, Packing


def attend(
    heads: Heads, segments: Int[Array, "B T"], *, causal: bool, kind: kernels.Kernel
) -> Float[Array, "B T heads vd"]:
    """Returns attention within equal segments, as `xla_attention.attend`.

    Args:
      heads: queries, keys and values.
      segments: numbers; padding is a segment like any other.
      causal: whether tokens see no later ones.
      kind: which kernel; `Compute.attention`.
    """
    kernel = _kernel(kind, heads.q, heads.v)
    if kernel is None:
        return xla_attention.attend(heads, segments, causal=causal)
    return kernel(heads, segments, None, causal=causal)


def attend_windows(
    heads: Heads, segments: Int[Array, "B T"], *, reach: int, kind: kernels.Kernel
) -> Float[Array, "B T heads vd"]:
    """Returns attention within equal segments that lie together, as `xla_attention.attend_windows`.

    Of a segment longer than `reach` a token sees less here: what is not `reach` tokens away. Only
    padding is that long.
    """
    kernel = _kernel(kind, heads.q, heads.v)
    if kernel is None:
        return xla_attention.attend_windows(heads, segments, reach=reach)
    return kernel(heads, segments, None, causal=False, reach=reach)


class Visibility(NamedTuple):
    """What tokens of whole answers see, worked out once for all layers."""

    used: Bool[Array, "B P"]
    """Where the prompt has a token."""
    own: Bool[Array, "*n Q Q"]
    """Where a token sees one of its own answer."""
    segments: Int[Array, "B G Q"] | None
    """Conversations of an answer, which do not see each other; None: one."""


def visibility(used: Bool[Array, "B P"], length: int, packing: Packing | None) -> Visibility:
    """Returns what tokens of answers of `length` tokens see: the prompt, and none that is later."""
    columns = jnp.arange(length)
    own = columns[:, None] >= columns
    if packing is None:
        return Visibility(used, own, None)
    segments = packing.segments
    return Visibility(used, own & (segments[..., :, None] == segments[..., None, :]), segments)


def attend_answers(
    heads: Heads, prompt: cached_attention.PromptCache, seen: Visibility, *, kind: kernels.Kernel
) -> Float[Array, "B G Q heads vd"]:
    """Returns causal attention of whole answers to their prompt and to themselves.

    A kernel gets the prompt's keys and values copied for every answer of a layer: they are little
    beside the scores that it saves.

    Args:
      heads: of G answers per prompt, [B G Q ..].
      prompt: the prompt's keys and values.
      seen: what they see.
      kind: which kernel; `Compute.attention`.
    """
    batch, answers, length = heads.q.shape[:3]
    flat = Heads(*(x.reshape(batch * answers, *x.shape[2:]) for x in heads))
    kernel = _kernel(kind, flat.q, flat.v, rows=batch)
    if kernel is None:
        own = cached_attention.answer_cache(heads)
        return cached_attention.attend(heads.q, prompt, own, used=seen.used, seen=seen.own)

    def each(x):
        return jnp.repeat(x, answers, 0)

    k, v = each(prompt.k.transpose(0, 3, 1, 2)), each(prompt.v.transpose(0, 2, 1, 3))
    behind = Heads(flat.q, jnp.concatenate([k, flat.k], 1), jnp.concatenate([v, flat.v], 1))
    segments = seen.segments
    if segments is not None:
        segments = segments.reshape(batch * answers, length)
    out = kernel(behind, segments, each(seen.used), causal=True)
    return out.reshape(batch, answers, *out.shape[1:])


def _kernel(
    kind: kernels.Kernel, query: Array, value: Array, *, rows: int | None = None
) -> Callable[..., Array] | None:
    """Returns the function (heads, segments, used, ..) of a kernel, or None where XLA attends.

    Kernels are not divided by the compiler: on a mesh each device runs its own rows and heads.
    Where rows do not divide, or are shared along `context`, XLA attends.

    Args:
      kind: what is asked for.
      query: [B T heads hd].
      value: [B S kv vd].
      rows: of the batch; None: B.
    """
    which = kernels.choose_kernel(kind, query, value)
    on = sharding.current_mesh()
    whole = on is None or (rows or query.shape[0]) % sharding.row_parts(on) == 0
    if which == "xla" or not whole or sharding.along_rows() > 1:
        return None
    function = (
        kernels.cudnn
        if which == "cudnn"
        else functools.partial(kernels.splash, interpret=which == "interpret")
    )

    def everywhere(heads, segments, used, **options):
        def mine(heads, masks):
            segments, used = masks
            return function(*heads, segments=segments, used=used, **options)

        if on is None:
            return mine(heads, (segments, used))
        heads, inner = _divisible(heads, on)
        batch = mesh_axes.MESH["batch"]
        place = PartitionSpec(batch, None, inner)
        return jax.shard_map(
            mine, in_specs=(place, PartitionSpec(batch)), out_specs=place, check_vma=False
        )(heads, (segments, used))

    return everywhere


def _divisible(heads: Heads, on: Any) -> tuple[Heads, tuple[str, ...] | None]:
    """Returns heads and the axes of a mesh that they are divided among, None where none divides.

    Keys that are too few are repeated for the queries that share them.
    """
    axes, count, kv = mesh_axes.MESH["inner"], heads.q.shape[2], heads.k.shape[2]
    parts = mesh_axes.parts_of(axes, on)
    if count % parts:
        return heads, None
    if kv % parts:
        k, v = (jnp.repeat(x, count // kv, 2) for x in heads[1:])
        heads = Heads(heads.q, k, v)
    return heads, axes
