"""Attention of whole rows by an accelerator's own kernels, without scores of all pairs in memory.

Keys belong to P prompt tokens, which every query sees where they are used, and then to the T tokens
of the queries themselves, which see each other within equal segments. P may be 0.

Axes here: `P` prompt tokens, `S` keys (`P` + `T`).
"""

from __future__ import annotations

from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jaxtyping import Bool, Float, Int

from seg_jax.records import Array

Kernel = Literal["auto", "xla", "splash", "cudnn"]
"""Which kernel: "auto" is splash on TPUs and XLA's own products elsewhere; "splash" is interpreted,
slowly, where there is no TPU; "cudnn" is for NVIDIA GPUs only, and XLA's products elsewhere."""

BLOCKS = (512, 384, 256, 128)
"""Queries or keys of a block; where windows are small, none larger than 256."""
MIN_TOKENS = 128
"""Rows of fewer tokens are left to XLA's products by "auto": a block would be mostly padding."""
SEPARATION = 2.0**20
"""For each bit in which two segments differ, the square of this is subtracted from a score."""


def platform() -> str:
    """Returns the platform that the program being traced will run on: tpu, gpu or cpu.

    It is that of the devices of `jax.set_mesh`, which need not be attached to this machine; without
    a mesh it is JAX's default backend.
    """
    on = jax.sharding.get_abstract_mesh()
    device = None if on.empty else on.abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def choose_kernel(
    kind: Kernel, query: Float[Array, "B T heads hd"], value: Float[Array, "B S kv vd"]
) -> str:
    """Returns which kernel computes attention: splash, interpret, cudnn or xla.

    cuDNN knows half precision only, and widths of heads up to 128 that eight divides and that
    values share.
    """
    where = platform()
    if kind == "auto":
        long = min(query.shape[1], value.shape[1]) >= MIN_TOKENS
        return "splash" if where == "tpu" and long else "xla"
    if kind == "splash":
        return "splash" if where == "tpu" else "interpret"
    width = query.shape[-1]
    known = query.dtype.itemsize == 2 and width == value.shape[-1] <= 128 and width % 8 == 0
    return "cudnn" if kind == "cudnn" and where == "gpu" and known else "xla"


def splash(
    query: Float[Array, "B T heads hd"],
    key: Float[Array, "B S kv hd"],
    value: Float[Array, "B S kv vd"],
    *,
    segments: Int[Array, "B T"] | None,
    used: Bool[Array, "B P"] | None,
    causal: bool,
    reach: int | None = None,
    interpret: bool = False,
) -> Float[Array, "B T heads vd"]:
    """Returns attention by the splash kernel for TPUs, which has gradients.

    Blocks of keys that no query of a block may see by order or reach are not visited; segments
    are compared within blocks.

    Args:
      query: of T tokens.
      key: of P + T tokens; fewer heads than queries where they share them.
      value: of the same tokens.
      segments: of the T tokens; None: all see each other.
      used: where the prompt has a token; None: P = 0.
      causal: whether tokens see no later ones.
      reach: tokens see none that are so many places away; None: no limit. Not with a prompt.
      interpret: whether XLA runs the kernel, one operation after the other, for tests.

    Source: FlashAttention-2, Dao 2023, with sparse blocks: JAX's `splash_attention`.
    """
    (batch, length, heads, _), keys = query.shape, key.shape[1]
    query = _scale_query(query)
    ids = _segment_ids(segments, used, (batch, length))
    if used is not None and segments is not None:
        query, key = _add_segment_channels(query, key, segments)
    sides = [_block_size(count, small=reach is not None) for count in (length, keys)]
    padded = length + -length % sides[0], keys + -keys % sides[1]
    ids = library.SegmentIds(
        *(jnp.pad(x, ((0, 0), (0, to - x.shape[1])), constant_values=-1 << 30)
          for x, to in zip(ids, padded, strict=True))
    )  # fmt: skip
    mask = _static_mask(padded, causal=causal, reach=reach, behind=keys - length)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(*sides),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    by_heads = [
        jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, to - x.shape[1]), (0, 0)))
        for x, to in zip((query, key, value), (padded[0], *padded[1:] * 2), strict=True)
    ]
    out = cast(jax.Array, jax.vmap(kernel)(*by_heads, ids))
    return out[:, :, :length].transpose(0, 2, 1, 3)


def cudnn(
    query: Float[Array, "B T heads hd"],
    key: Float[Array, "B S kv hd"],
    value: Float[Array, "B S kv hd"],
    *,
    segments: Int[Array, "B T"] | None,
    used: Bool[Array, "B P"] | None,
    causal: bool,
    reach: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T heads hd"]:
    """Returns attention by cuDNN's fused kernel; arguments are those of `splash`.

    Who sees whom goes in as a table [B 1 T S], common to all heads.
    """
    (batch, length, *_), keys = query.shape, key.shape[1]
    seen = attention_mask(segments, used, (batch, length), causal=causal, reach=reach)
    more = (0, length % 2), (0, keys % 2)  # With such a table cuDNN needs even lengths.
    seen = jnp.pad(seen, ((0, 0), *more))[:, None]
    query, key, value = (
        jnp.pad(x, ((0, 0), pad, (0, 0), (0, 0)))
        for x, pad in zip((query, key, value), (more[0], more[1], more[1]), strict=True)
    )
    out = jax.nn.dot_product_attention(query, key, value, mask=seen, implementation=implementation)
    return out[:, :length]


def attention_mask(
    segments: Int[Array, "B T"] | None,
    used: Bool[Array, "B P"] | None,
    shape: tuple[int, int],
    *,
    causal: bool,
    reach: int | None,
) -> Bool[Array, "B T S"]:
    """Returns which queries of rows [B T] see which keys."""
    batch, length = shape
    row, column = jnp.arange(length)[:, None], jnp.arange(length)
    seen = row >= column if causal else jnp.ones((length, length), bool)
    if reach is not None:
        seen &= jnp.abs(row - column) < reach
    seen = jnp.broadcast_to(seen, (batch, length, length))
    if segments is not None:
        seen &= segments[:, :, None] == segments[:, None, :]
    if used is None:
        return seen
    prompt = jnp.broadcast_to(used[:, None], (batch, length, used.shape[1]))
    return jnp.concatenate([prompt, seen], -1)


def _scale_query(query: Float[Array, "B T heads hd"]) -> Float[Array, "B T heads hd"]:
    return (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)


def _segment_ids(segments, used, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Returns numbers of queries and of keys; they see each other where these are equal."""
    if used is None:
        own = jnp.zeros(shape, jnp.int32) if segments is None else segments.astype(jnp.int32)
        return own, own
    own = jnp.zeros(shape, jnp.int32)
    return own, jnp.concatenate([(~used).astype(jnp.int32), own], 1)


def _add_segment_channels(
    query: Float[Array, "B T heads hd"],
    key: Float[Array, "B S kv hd"],
    segments: Int[Array, "B T"],
) -> tuple[Float[Array, "B T heads wd"], Float[Array, "B S kv wd"]]:
    """Returns queries and keys with further channels that separate segments, but not the prompt.

    Numbers that are equal or not cannot say that every segment sees the prompt. A bit of a segment
    is two channels, (bit, 1 - bit) of a query against -(1 - bit, bit) of a key: their product is
    exactly 0 where they are equal, and so large where they are not that no weight is left. The
    prompt's keys have zeros there.
    """
    count = max(1, segments.shape[1].bit_length())  # A row has no more segments than tokens.
    bits = (segments[..., None] >> jnp.arange(count)) & 1
    ours = jnp.concatenate([bits, 1 - bits], -1).astype(query.dtype) * SEPARATION
    theirs = jnp.concatenate([bits - 1, -bits], -1).astype(key.dtype) * SEPARATION
    theirs = jnp.pad(theirs, ((0, 0), (key.shape[1] - theirs.shape[1], 0), (0, 0)))

    def append(x, more):
        more = jnp.broadcast_to(more[:, :, None], (*x.shape[:3], more.shape[-1]))
        return jnp.concatenate([x, more.astype(x.dtype)], -1)

    return append(query, ours), append(key, theirs)


def _block_size(count: int, *, small: bool) -> int:
    """Returns the side of blocks: the largest of those that pad `count` tokens least."""
    sides = [side for side in BLOCKS if not small or side <= 256]
    return min(sides, key=lambda side: (-count % side, -side))


def _block_sizes(queries: int, keys: int) -> library.BlockSizes:
    """Returns the blocks of the forward pass and of both passes of the gradient."""
    return library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )


def _static_mask(shape: tuple[int, int], *, causal: bool, reach: int | None, behind: int):
    """Returns the part of the mask that is known when the kernel is compiled."""
    if reach is not None:
        return library.LocalMask(shape, (reach - 1, 0 if causal else reach - 1), behind)
    return library.CausalMask(shape, behind) if causal else library.FullMask(shape)
