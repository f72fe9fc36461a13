"""The trunk of SAM 2: a Hiera with windows, whose maps are halved three times.

Source: Hiera, Ryali et al. 2023 (arXiv 2306.00989); SAM 2, Ravi et al. 2024, section 4; checked
against `Sam2HieraDetModel` of transformers.

Axes here: `H W` rows and columns of patches, `D` width of a stage, `O` width behind a block.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from seg_jax.models.nn import layer_stack, linear, xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.models.nn.xla_attention import Heads
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2.config import KERNEL, PATCH, Config, Hiera
from seg_jax.records import Array

EPS = 1e-6
STD = 0.02


@dataclasses.dataclass(frozen=True)
class Run:
    """Equal blocks that follow each other: one stack of weights, applied by one scan."""

    stage: int
    begin: int
    """Number of the first block in the whole trunk."""
    count: int
    window: int
    """Places of a side of a window before pooling; 0: places see all others."""
    halves: bool
    """Whether the block halves rows and columns: it begins a stage but the first, and is alone."""


def runs(trunk: Hiera) -> list[Run]:
    """Returns the runs of a trunk, in order.

    The first block of a stage still has the window of the stage before, whose places it sees.
    """
    found: list[Run] = []
    block = 0
    for stage, count in enumerate(trunk.blocks_per_stage):
        for place in range(count):
            halves = stage > 0 and place == 0
            window = trunk.window_size_per_stage[stage - halves]
            if block in trunk.global_attention_blocks:
                window = 0
            kind = (stage, window, halves)
            last = found[-1] if found else None
            if last is not None and (last.stage, last.window, last.halves) == kind:
                found[-1] = dataclasses.replace(last, count=last.count + 1)
            else:
                found.append(Run(stage, block, 1, window, halves))
            block += 1
    return found


class Block(nnx.Module):
    """Pre-norm attention within windows, then two layers with a GELU; both residual."""

    def __init__(self, trunk: Hiera, run: Run, *, compute: Compute, rngs: nnx.Rngs):
        """Draws the stack of a run."""
        self.run, self.fuse = run, compute.fuse
        self.heads = trunk.num_attention_heads_per_stage[run.stage]
        width = trunk.embed_dim_per_stage[run.stage]
        narrow = trunk.embed_dim_per_stage[run.stage - run.halves]
        dtype = compute.param_dtype

        def affine(wide: int, long: int) -> Linear:
            return Linear((wide, long), bias=True, stack=run.count, std=STD, dtype=dtype, rngs=rngs)

        def norm(width: int) -> LayerNorm:
            return LayerNorm(width, eps=EPS, stack=run.count, dtype=dtype)

        self.norm_attention, self.norm_ffn = norm(narrow), norm(width)
        self.q, self.k, self.v = (affine(narrow, width) for _ in range(3))
        self.o = affine(width, width)
        self.up, self.down = affine(width, 4 * width), affine(4 * width, width)
        self.widen = affine(narrow, width) if run.halves else None

    def __call__(self, x: Float[Array, "B H W D"]) -> Float[Array, "B h w O"]:
        """Returns the block's output; rows and columns are halved where the run halves."""
        seen = self.norm_attention(x)
        kept = x if self.widen is None else sharding.constrain_maps(_pool(self.widen(seen)))
        side = self.run.window
        cells = seen if not side else _cut_windows(seen, side)
        q, k, v = linear.project([self.q, self.k, self.v], cells, fuse=self.fuse)
        q = _pool(q) if self.run.halves else q
        out = xla_attention.attend_keys(Heads(*(self._by_heads(part) for part in (q, k, v))))
        out = self.o(out.reshape(q.shape))
        if side:
            out = _join_windows(out, kept.shape)
        x = kept + out
        x = x + self.down(jax.nn.gelu(self.up(self.norm_ffn(x)), approximate=False))
        return sharding.constrain_maps(x)

    def _by_heads(self, x: Float[Array, "n h w O"]) -> Float[Array, "n places heads hd"]:
        return x.reshape(len(x), -1, self.heads, x.shape[-1] // self.heads)


class Trunk(nnx.Module):
    """Images to four maps, each of half the rows and columns of the one before."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        trunk, dtype = config.backbone, compute.param_dtype
        self.config, self.compute = trunk, compute
        width, window = trunk.embed_dim_per_stage[0], trunk.window_size_per_stage[0]
        # Rows in torch's order: channel, row, column.
        pixels = (3 * KERNEL**2, width)
        self.patch = Linear(pixels, bias=True, stack=0, std=STD, dtype=dtype, rngs=rngs)
        grid = trunk.window_positional_embedding_background_size
        self.background = nnx.Param(jnp.zeros((1, width, *grid), jnp.dtype(dtype)))
        self.window = nnx.Param(jnp.zeros((1, width, window, window), jnp.dtype(dtype)))
        self.runs = nnx.List([Block(trunk, run, compute=compute, rngs=rngs) for run in runs(trunk)])

    def __call__(self, images: Float[Array, "B side side 3"]) -> list[Float[Array, "B _ _ _"]]:
        """Returns what comes out of each stage, the finest first."""
        x = self.embed(images)
        outputs = []
        for run, following in itertools.zip_longest(self.runs, self.runs[1:]):
            x = self._apply(run, x)
            if following is None or following.run.halves:
                outputs.append(x)
        return outputs

    def embed(self, images: Float[Array, "B side side 3"]) -> Float[Array, "B H W D"]:
        """Returns what goes into the first block: overlapping patches and their positions."""
        dtype = self.compute.dtype
        kernel = self.patch.kernel[...].astype(dtype)
        width = kernel.shape[-1]
        x = jax.lax.conv_general_dilated(
            jnp.asarray(images, dtype),
            kernel.reshape(3, KERNEL, KERNEL, width).transpose(1, 2, 0, 3),
            window_strides=(PATCH, PATCH),
            padding=((KERNEL // 2, KERNEL // 2),) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        assert self.patch.bias is not None
        x = x + self.patch.bias[...].astype(dtype)
        return sharding.constrain_maps(x + self._positions(x.shape[1]).astype(dtype))

    def _positions(self, side: int) -> Float[Array, "H W D"]:
        """Returns the stretched grid plus the window's positions, repeated, in float32.

        The grid is resized as torch does by `bicubic`, whose kernel is steeper than JAX's own.
        """
        grid, window = (p[0].astype(jnp.float32) for p in (self.background, self.window))
        shape = (len(grid), side, side)
        grid = jax.image.resize(
            grid, shape, "cubic-pytorch", antialias=False, precision=jax.lax.Precision.HIGHEST
        )
        times = side // window.shape[-1]
        return (grid + jnp.tile(window, (1, times, times))).transpose(1, 2, 0)

    def _apply(self, run: Block, x: Float[Array, "B H W D"]) -> Float[Array, "B h w O"]:
        if run.run.halves:  # A scan cannot change the shape of what it carries.
            (block,) = layer_stack.unstack(run)
            return jax.checkpoint(block)(x) if self.compute.remat != "none" else block(x)
        step = lambda block, x, _: (block(x), None)  # noqa: E731
        return layer_stack.apply(run, x, step, each=None, compute=self.compute)[0]


def _cut_windows(x: Float[Array, "B H W D"], side: int) -> Float[Array, "n side side D"]:
    """Returns windows of side x side places; those at the end are filled up with zeros.

    What fills up is seen like any other place, as in the published models.
    """
    batch, rows, columns, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -rows % side), (0, -columns % side), (0, 0)))
    x = sharding.constrain_maps(x)
    x = x.reshape(batch, x.shape[1] // side, side, x.shape[2] // side, side, width)
    return x.swapaxes(2, 3).reshape(-1, side, side, width)


def _join_windows(x: Float[Array, "n s s D"], shape: tuple[int, ...]) -> Float[Array, "B H W D"]:
    """Returns the map of a shape whose windows these are, without what filled them up."""
    batch, rows, columns, width = shape
    side = x.shape[1]
    down, across = -(-rows // side), -(-columns // side)
    x = x.reshape(batch, down, across, side, side, width).swapaxes(2, 3)
    x = sharding.constrain_maps(x.reshape(batch, down * side, across * side, width))
    return x[:, :rows, :columns]


def _pool(x: Float[Array, "n H W D"]) -> Float[Array, "n h w D"]:
    """Returns the largest of each two by two places."""
    count, rows, columns, width = x.shape
    return x.reshape(count, rows // 2, 2, columns // 2, 2, width).max((2, 4))
