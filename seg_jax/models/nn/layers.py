"""Layers that transformers are built of: linear, norm, rotary, attention, block, stack."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from seg_jax.kernels.attention import Kind
from seg_jax.models.nn import slots as seating
from seg_jax.models.parallel import sharding
from seg_jax.records import Array

NEVER = -1e30
"""Score of a forbidden key: finite, so that a row without keys gives numbers, not NaN."""
LONG = 1024
"""Rows of more tokens or patches than this never hold the scores of all pairs at once."""
NOWHERE = -2
"""Segment of what fills up blocks: no token or patch is in it (padding of rows has 0 or -1)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model computes; changes no architecture and no saved weight."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; norms, softmax and logits are always float32."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    """What is recomputed in the backward pass: nothing, all but matrix products, every layer."""
    unroll: bool = False
    """Layers one after another instead of a scan: faster on CPU, slower to compile."""
    fuse: bool = False
    """One product for q, k and v, and for gate and up: a tenth faster on CPU, slower where kernels
    are split over devices."""
    attention: Kind = "auto"
    """Of whole rows: "auto" takes splash kernels on TPUs, "cudnn" is for NVIDIA GPUs."""
    decode_gib: float | None = None
    """Of a device's memory that weights may take to be whole while answers are decoded; None: a
    third. Where they take more they are gathered for every token; given a number, Qwen's tokens
    travel to them instead."""


class Linear(nnx.Module):
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
        return fused([self], x)[0]


def fused(linears: list[Linear], x: Float[Array, "*n i"]) -> list:
    """Returns the outputs of several layers with the same input from one matrix product."""
    kernels = [linear.kernel[...].astype(x.dtype) for linear in linears]
    widths = [kernel.shape[-1] for kernel in kernels]
    kernel = kernels[0] if len(kernels) == 1 else jnp.concatenate(kernels, -1)
    y = dot(x, kernel)
    biases = [linear.bias[...].astype(x.dtype) for linear in linears if linear.bias is not None]
    if biases:
        y = y + (biases[0] if len(biases) == 1 else jnp.concatenate(biases, -1))
    if len(linears) == 1:
        return [y]
    edges = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
    return jnp.split(y, edges, -1)


@jax.custom_vjp
def dot(x: Float[Array, "*n i"], kernel: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """Returns x kernel; its gradient turns the narrower of x and dy around, not always dy.

    On CPU that is a copy before the product that gives the kernel's gradient.
    """
    return jnp.dot(x, kernel)


def _dot_forward(x, kernel):
    return jnp.dot(x, kernel), (x, kernel)


def _dot_backward(given, dy):
    x, kernel = given
    rows = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(dy, kernel, (((x.ndim - 1,), (1,)), ((), ())))
    if x.shape[-1] <= dy.shape[-1]:
        return dx, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    return dx, jax.lax.dot_general(dy, x, ((rows, rows), ((), ()))).T


dot.defvjp(_dot_forward, _dot_backward)


def project(linears: list[Linear], x: Float[Array, "*n i"], *, fuse: bool) -> list:
    """Returns the outputs of layers with the same input, in one product or one by one."""
    return fused(linears, x) if fuse else [linear(x) for linear in linears]


class Embedding(nnx.Module):
    """A table of V rows of width D; the output head is one too."""

    def __init__(self, size: tuple[int, int], *, std: float, dtype: str, rngs):
        draw = std * jax.random.normal(rngs.params(), size, jnp.dtype(dtype))
        self.embedding = nnx.Param(draw)


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


class Rotary(NamedTuple):
    """Cosines and sines of the rotation of each pair of channels (half the head width)."""

    cos: Float[Array, "*n half"]
    sin: Float[Array, "*n half"]


def frequencies(count: int, theta: float) -> Float[Array, " {count}"]:
    """Returns theta^(-i / count) for i < count (RoFormer, Su et al. 2021)."""
    return jnp.float32(theta) ** -(jnp.arange(count, dtype=jnp.float32) / count)


def rotary(angles: Float[Array, "*n half"]) -> Rotary:
    """Returns the rotation by the given angles."""
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def planar(place: Int[Array, "*n 2"], *, head: int, theta: float) -> Rotary:
    """Returns the rotation of heads of `head` channels by places in an image.

    The first half of the pairs of channels turns with the row, the second with the column.
    """
    spin = frequencies(head // 4, theta)
    row, column = (place[..., axis, None].astype(jnp.float32) for axis in range(2))
    return rotary(jnp.concatenate([row * spin, column * spin], -1))


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


def sizes(place: Int[Array, "B S 2"], image: Int[Array, "B S"]) -> Int[Array, "B S 2"]:
    """Returns rows and columns of each patch's image: its last place tells."""
    length = place.shape[1]

    def one(place, image):
        # Padding has number -1; it counts as an image after all others.
        last = jax.ops.segment_max(place, image % length, length)
        return last[image % length] + 1

    return jax.vmap(one)(place, image)


class Heads(NamedTuple):
    """Queries, keys and values of one layer; keys and values have fewer heads (GQA)."""

    q: Float[Array, "*n heads hd"]
    k: Float[Array, "*n kv hd"]
    v: Float[Array, "*n kv vd"]
    """As wide as keys in most models."""


def attend(
    heads: Heads, segments: Int[Array, "B T"], *, causal: bool
) -> Float[Array, "B T heads vd"]:
    """Returns attention within equal segments: block-diagonal, causal within a block if asked.

    Padding is a segment like any other, so that no row is without keys. Rows longer than `LONG`
    are worked off in parts of their queries, so that never T x T scores exist at once.
    """
    batch, length = segments.shape
    columns = jnp.arange(length)  # Not numpy's: no table of who sees whom in the compiled text.

    def part(q, wanted, at):
        allowed = wanted[:, :, None] == segments[:, None, :]
        if causal:
            allowed &= at[:, None] >= columns
        return _look(q, heads.k, heads.v, allowed)

    if length <= LONG:
        return part(heads.q, segments, columns)
    parts = -(-length // (LONG // 2))
    size = -(-length // parts)
    size += -size % sharding.along_rows()
    tail = (0, parts * size - length)
    q = jnp.pad(heads.q, ((0, 0), tail, (0, 0), (0, 0)))
    q = sharding.parts(q.reshape(batch, parts, size, *q.shape[2:]).swapaxes(0, 1), 2)
    wanted = jnp.pad(segments, ((0, 0), tail)).reshape(batch, parts, size).swapaxes(0, 1)
    at = jnp.arange(parts * size).reshape(parts, size)
    # The backward pass makes the scores of a part again rather than keep all of them.
    out = jax.lax.map(jax.checkpoint(lambda item: part(*item)), (q, wanted, at))
    return out.swapaxes(0, 1).reshape(batch, parts * size, *out.shape[3:])[:, :length]


def attend_near(
    heads: Heads, segments: Int[Array, "B T"], *, reach: int
) -> Float[Array, "B T heads vd"]:
    """Returns attention within equal segments that lie together, none longer than `reach`.

    Such a segment lies in two neighbouring blocks of `reach` tokens at most, so that a block looks
    at itself and its neighbours only: T x 3 reach scores for T x T. Of a longer segment a token
    sees the part within these blocks.
    """
    batch, length = segments.shape
    blocks = -(-length // reach)
    tail = (0, blocks * reach - length)

    def cut(x, fill=0):
        x = jnp.pad(x, ((0, 0), tail, *((0, 0),) * (x.ndim - 2)), constant_values=fill)
        return x.reshape(batch, blocks, reach, *x.shape[2:])

    def around(x, fill=0):
        edge = ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 2))
        wide = jnp.pad(x, edge, constant_values=fill)
        return jnp.concatenate([wide[:, :-2], wide[:, 1:-1], wide[:, 2:]], 2)

    def flat(x):
        return x.reshape(batch * blocks, *x.shape[2:])

    own = cut(segments, NOWHERE)
    allowed = flat(own)[:, :, None] == flat(around(own, NOWHERE))[:, None, :]
    k, v = (flat(around(cut(part))) for part in (heads.k, heads.v))
    out = _look(flat(cut(heads.q)), k, v, allowed)
    return out.reshape(batch, blocks * reach, *out.shape[2:])[:, :length]


def _look(
    q: Float[Array, "B T heads hd"],
    k: Float[Array, "B S kv hd"],
    v: Float[Array, "B S kv vd"],
    allowed: Bool[Array, "B T S"],
) -> Float[Array, "B T heads vd"]:
    """Returns the values of allowed keys, weighted by the softmax of their scores."""
    batch, length, count, width = q.shape
    kv = k.shape[2]
    q = q.reshape(batch, length, kv, count // kv, width)
    scores = jnp.einsum("btkrd,bskd->bkrts", q, k, preferred_element_type=jnp.float32)
    weights = softmax(scores * width**-0.5, allowed[:, None, None]).astype(v.dtype)
    out = jnp.einsum("bkrts,bskd->btkrd", weights, v)
    return out.reshape(batch, length, count, v.shape[-1])


def softmax(scores: Float[Array, "*n s"], allowed: Bool[Array, "*m s"]) -> Float[Array, "*n s"]:
    """Returns the float32 softmax over allowed keys."""
    return jax.nn.softmax(jnp.where(allowed, scores, NEVER), -1)


class Shared(NamedTuple):
    """Keys and values of the prompt in one layer, common to all its answers.

    Keys lie transposed, so that neither product of attention has to turn a cache around.
    """

    k: Float[Array, "B kv hd P"]
    v: Float[Array, "B kv P vd"]


class Own(NamedTuple):
    """Keys and values of each answer in one layer."""

    k: Float[Array, "B kv G hd L"]
    v: Float[Array, "B kv G L vd"]


def shared(heads: Heads) -> Shared:
    """Returns the keys and values of prompts, [B T kv hd], as answers read them."""
    return Shared(heads.k.transpose(0, 2, 3, 1), heads.v.transpose(0, 2, 1, 3))


def own(heads: Heads) -> Own:
    """Returns the keys and values of answers, [B G Q kv hd], as they read them themselves."""
    return Own(heads.k.transpose(0, 3, 1, 4, 2), heads.v.transpose(0, 3, 1, 2, 4))


def attend_shared(
    q: Float[Array, "B G Q heads hd"],
    prompt: Shared,
    answer: Own,
    *,
    used: Bool[Array, "B P"],
    seen: Bool[Array, "*n Q L"],
    scale: float | None = None,
) -> Float[Array, "B G Q heads vd"]:
    """Returns attention of answers to their prompt, never copied per answer, and to themselves.

    Args:
      q: queries of G answers per prompt.
      prompt: the prompt's keys and values.
      answer: the answers' keys and values.
      used: True where the prompt has a token.
      seen: True where a query sees a column of its own row; of all rows, or [B G Q L].
      scale: of the scores; None: one over the root of the width of queries.
    """
    batch, answers, length, count, width = q.shape
    kv, reach, deep = prompt.v.shape[1:]
    rows = length * (count // kv)
    q = q.reshape(batch, answers, length, kv, count // kv, width)
    q = q * (width**-0.5 if scale is None else scale)
    q = q.transpose(0, 3, 1, 2, 4, 5).reshape(batch, kv, answers * rows, width)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    to_prompt = jnp.where(used[:, None, None], product(q, prompt.k), NEVER)
    q, split = q.reshape(batch, kv, answers, rows, width), (batch, kv, answers, rows, -1)
    seen = jnp.repeat(seen, count // kv, axis=-2)
    to_own = jnp.where(seen[:, None] if seen.ndim > 2 else seen, product(q, answer.k), NEVER)
    scores = jnp.concatenate([to_prompt.reshape(split), to_own], -1)
    weights = jax.nn.softmax(scores, -1).astype(answer.v.dtype)
    from_prompt = weights[..., :reach].reshape(batch, kv, answers * rows, reach) @ prompt.v
    out = from_prompt.reshape(split) + weights[..., reach:] @ answer.v
    out = out.reshape(batch, kv, answers, length, count // kv, deep)
    return out.transpose(0, 2, 3, 1, 4, 5).reshape(batch, answers, length, count, deep)


def attend_decoding(
    q: Float[Array, "S R Q heads hd"],
    prompt: Shared,
    answer: Own,
    *,
    used: Bool[Array, "B P"],
    seen: Bool[Array, "*n Q L"],
    seats: seating.Seats | None,
    scale: float | None = None,
) -> Float[Array, "S R Q heads vd"]:
    """Returns the same where rows may change their answers.

    As many rows as prompts or fewer: each looks up its prompt, a copy for one layer at a time. Of
    more rows the queries travel to the prompts, which stay where they are, and results back, a
    vector per head each way.

    Args:
      q: queries of rows.
      prompt: keys and values of all prompts.
      answer: the rows' own keys and values.
      used: True where a prompt has a token.
      seen: True where a query sees a column of its own row.
      seats: whose answers the rows decode; None: rows [B G] are the answers of their prompts.
      scale: of the scores; None: one over the root of the width of queries.
    """
    if seats is None:
        return attend_shared(q, prompt, answer, used=used, seen=seen, scale=scale)
    queues, rows = q.shape[:2]
    if queues * rows > used.shape[0]:
        return _attend_travelling(q, prompt, answer, used=used, seen=seen, seats=seats, scale=scale)
    flat = jax.tree.map(
        lambda leaf: leaf.reshape(queues * rows, *leaf.shape[2:]),
        (q, seating.of_prompts(seats, (prompt, used)), seen),
    )
    one_each = Own(
        *(leaf.swapaxes(1, 2).reshape(-1, leaf.shape[1], 1, *leaf.shape[3:]) for leaf in answer)
    )
    q, (prompt, used), seen = flat
    out = attend_shared(q[:, None], prompt, one_each, used=used, seen=seen[:, None], scale=scale)
    return out.reshape(queues, rows, *out.shape[2:])


def _attend_travelling(
    q: Float[Array, "S R Q heads hd"],
    prompt: Shared,
    answer: Own,
    *,
    used: Bool[Array, "B P"],
    seen: Bool[Array, "S R Q L"],
    seats: seating.Seats,
    scale: float | None,
) -> Float[Array, "S R Q heads vd"]:
    """Returns the same with queries that travel to their prompts and results that travel back.

    The sums of both parts travel along, so that weights are those of one softmax, rounded once as
    in `attend_shared`.
    """
    queues, rows, length, count, width = q.shape
    batch, kv, _, deep = prompt.v.shape
    wide = length * (count // kv)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    q = q * (width**-0.5 if scale is None else scale)
    q = q.reshape(queues, rows, length, kv, count // kv, width)
    q = q.transpose(0, 1, 3, 2, 4, 5).reshape(queues, rows, kv, wide, width)
    seen = jnp.repeat(seen, count // kv, axis=-2)
    to_own = product(q.swapaxes(1, 2), answer.k)
    to_own = jnp.where(seen[:, None], to_own, NEVER).swapaxes(1, 2)  # S R kv wide L
    asked = seating.to_prompts(seats, (q, jax.nn.logsumexp(to_own, -1)), batch)
    asked, own_sum = (leaf.swapaxes(1, 2).reshape(batch, kv, -1, *leaf.shape[4:]) for leaf in asked)
    to_prompt = jnp.where(used[:, None, None], product(asked, prompt.k), NEVER)
    total = jnp.logaddexp(jax.nn.logsumexp(to_prompt, -1), own_sum)  # B kv G*wide
    weights = jnp.exp(to_prompt - total[..., None]).astype(answer.v.dtype)
    told = weights @ prompt.v, total
    told = (leaf.reshape(batch, kv, -1, wide, *leaf.shape[3:]).swapaxes(1, 2) for leaf in told)
    from_prompt, total = seating.to_rows(seats, tuple(told))  # S R kv wide ..
    weights = jnp.exp(to_own - total[..., None]).astype(answer.v.dtype)
    out = from_prompt + (weights.swapaxes(1, 2) @ answer.v).swapaxes(1, 2)
    out = out.reshape(queues, rows, kv, length, count // kv, deep).swapaxes(2, 3)
    return out.reshape(queues, rows, length, count, deep)


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

    @property
    def head(self) -> int:
        """Channels of a head."""
        return self.head_width or self.width // self.heads


Mix = Callable[[Heads], tuple[Float[Array, "*n heads hd"], Any]]


class Block(nnx.Module):
    """Pre-norm attention, then a gated feed-forward layer (SwiGLU), both residual."""

    def __init__(self, shape: Shape, *, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` blocks."""
        self.shape, self.fuse = shape, compute.fuse
        self.travel = False  # Whether rows go to weights that all devices share out.
        head, dtype = shape.head, compute.param_dtype

        def linear(size: tuple[int, int], bias: bool) -> Linear:
            return Linear(size, bias=bias, stack=stack, std=shape.std, dtype=dtype, rngs=rngs)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, eps=shape.eps, stack=stack, dtype=dtype)

        self.norm_attention, self.norm_ffn = norm(shape.width), norm(shape.width)
        self.q = linear((shape.width, shape.heads * head), bias=shape.in_bias)
        self.k = linear((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.v = linear((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.o = linear((shape.heads * head, shape.width), bias=shape.out_bias)
        self.q_norm = norm(head) if shape.head_norm else None
        self.k_norm = norm(head) if shape.head_norm else None
        self.gate = linear((shape.width, shape.ffn), bias=shape.ffn_bias)
        self.up = linear((shape.width, shape.ffn), bias=shape.ffn_bias)
        self.down = linear((shape.ffn, shape.width), bias=shape.ffn_bias)

    def __call__(
        self, x: Float[Array, "*n D"], turn: Rotary, mix: Mix
    ) -> tuple[Float[Array, "*n D"], Any]:
        """Returns the block's output and what `mix` returned beside the attention output."""
        # Told where a product lies, the compiler does not fetch its weights instead.
        whole, home, apart = (
            (sharding.gathered, sharding.rows, sharding.by_channels)
            if self.travel
            else (lambda x: x,) * 3
        )
        seen = whole(self.norm_attention(x))
        found = project([self.q, self.k, self.v], seen, fuse=self.fuse)
        q, k, v = (home(apart(part)) for part in found)
        lead = x.shape[:-1]
        q, k, v = (part.reshape(*lead, -1, self.shape.head) for part in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, extra = mix(Heads(rotate(q, turn), rotate(k, turn), v))
        x = x + home(self.o(apart(out.reshape(*lead, -1))))
        found = project([self.gate, self.up], whole(self.norm_ffn(x)), fuse=self.fuse)
        gate, up = map(apart, found)
        return sharding.rows(x + home(self.down(jax.nn.silu(gate) * up))), extra


class PlainBlock(nnx.Module):
    """Pre-norm attention, then two layers with a tanh-GELU between; LayerNorm and biases."""

    def __init__(self, shape: Shape, *, pairs: bool, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` blocks; `pairs`: neighbouring channels rotate together."""
        self.shape, self.pairs, self.fuse = shape, pairs, compute.fuse
        head, dtype = shape.head, compute.param_dtype

        def linear(size: tuple[int, int], bias: bool) -> Linear:
            return Linear(size, bias=bias, stack=stack, std=shape.std, dtype=dtype, rngs=rngs)

        def norm() -> LayerNorm:
            return LayerNorm(shape.width, eps=shape.eps, stack=stack, dtype=dtype)

        self.norm_attention, self.norm_ffn = norm(), norm()
        self.q = linear((shape.width, shape.heads * head), bias=shape.in_bias)
        self.k = linear((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.v = linear((shape.width, shape.kv_heads * head), bias=shape.in_bias)
        self.o = linear((shape.heads * head, shape.width), bias=shape.out_bias)
        self.up = linear((shape.width, shape.ffn), bias=shape.ffn_bias)
        self.down = linear((shape.ffn, shape.width), bias=shape.ffn_bias)

    def __call__(
        self, x: Float[Array, "*n D"], turn: Rotary, mix: Mix
    ) -> tuple[Float[Array, "*n D"], Any]:
        """Returns the block's output and what `mix` returned beside the attention output."""
        q, k, v = project([self.q, self.k, self.v], self.norm_attention(x), fuse=self.fuse)
        lead = x.shape[:-1]
        q, k, v = (part.reshape(*lead, -1, self.shape.head) for part in (q, k, v))
        spun = rotate_pairs if self.pairs else rotate
        out, extra = mix(Heads(spun(q, turn), spun(k, turn), v))
        x = x + self.o(out.reshape(*lead, -1))
        return sharding.rows(
            x + self.down(jax.nn.gelu(self.up(self.norm_ffn(x)), approximate=True))
        ), extra


Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(block, carry, per-layer value) -> (carry, per-layer result), as in a scan."""


def through(stack: nnx.Module, carry: Any, step: Step, *, each: Any, compute: Compute) -> tuple:
    """Returns the carry after all blocks of a stack and the stacked results of its layers.

    Args:
      stack: a block whose parameters have a leading axis of layers.
      carry: what goes from block to block.
      step: applies one block.
      each: a tree of values with a leading axis of layers, or None.
      compute: scan or unrolled, and what to recompute in the backward pass.
    """
    graph, params = nnx.split(stack)

    def body(carry, item):
        weights, value = item
        return step(nnx.merge(graph, weights), carry, value)

    if compute.remat == "full":
        body = jax.checkpoint(body, prevent_cse=compute.unroll)
    elif compute.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, prevent_cse=compute.unroll, policy=policy)
    return jax.lax.scan(body, carry, (params, each), unroll=compute.unroll or 1)


def unstack(stack: Any, lay: Callable[[Any], Any] | None = None) -> list[Any]:
    """Returns the blocks of a stack one by one, their weights laid over the devices by `lay`."""
    graph, params = nnx.split(stack)
    count = jax.tree.leaves(params)[0].shape[0]
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)]
    return [nnx.merge(graph, one if lay is None else lay(one)) for one in apart]
