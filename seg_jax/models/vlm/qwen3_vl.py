"""Qwen3-VL (dense) in Flax NNX: a vision tower with DeepStack before a text decoder.

Source: Qwen3-VL technical report, arXiv 2511.21631, section 2; DeepStack, arXiv 2406.04334; config
names of `transformers` (`Qwen3VLConfig`).

Axes here: `E` width of the decoder, where `D` is that of the vision tower.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.nn import attention, blocks, layer_stack, patches, rotary
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import LayerNorm
from seg_jax.models.vlm import protocol, qwen_decoder
from seg_jax.records import Array, Images

VISION_EPS = 1e-6
"""Of every norm in the vision tower; no config holds it."""
VISION_THETA = 10_000.0

_SIZES = (
    (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    ("depth", "hidden_size", "intermediate_size", "num_heads", "deepstack_visual_indexes"),
)
"""What a `config.json` must say of text and vision: a default would be another model's."""

_FIXED = (
    {"hidden_act": "silu", "attention_bias": False},
    {"hidden_act": "gelu_pytorch_tanh", "in_channels": 3},
)
"""What a `config.json` may say no other value of."""

_REST = (
    "tie_word_embeddings",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)
"""What a `config.json` says outside of its two parts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The decoder (`text_config`)."""

    vocab_size: int = 151_936
    hidden_size: int = 4096
    intermediate_size: int = 12_288
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    """Pairs of channels that turn with time, height and width, by turns."""
    max_position_embeddings: int = 262_144
    initializer_range: float = 0.02
    bos_token_id: int | None = 151_643
    eos_token_id: int | None = 151_645

    def __post_init__(self):
        protocol.check_sizes(self, "text")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text.num_key_value_heads: expected a divisor of {self.num_attention_heads} "
                f"heads, got {self.num_key_value_heads}"
            )
        if 2 * sum(self.mrope_section) != self.head_dim or len(self.mrope_section) != 3:
            raise ValueError(
                f"text.mrope_section: expected three numbers that add up to {self.head_dim // 2} "
                f"(half of head_dim), got {self.mrope_section}"
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """Axis of the position that turns each pair of channels: by turns, then time."""
        pairs = range(self.head_dim // 2)
        return tuple(i % 3 if i < 3 * self.mrope_section[i % 3] else 0 for i in pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower (`vision_config`) and the normalisation of its images."""

    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    num_position_embeddings: int = 2304
    """Places of the learned grid, a square."""
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    """Blocks whose outputs go into the first layers of the decoder."""
    initializer_range: float = 0.02
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Not of `config.json` but of `preprocessor_config.json`."""

    def __post_init__(self):
        protocol.check_sizes(self, "vision")
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                "vision: expected a width that is four times a multiple of the heads, got "
                f"{self.hidden_size} and {self.num_heads}"
            )
        if self.grid**2 != self.num_position_embeddings:
            raise ValueError(
                "vision.num_position_embeddings: expected a square, got "
                f"{self.num_position_embeddings}"
            )
        deep = self.deepstack_visual_indexes
        if list(deep) != sorted(set(deep) & set(range(self.depth))):
            raise ValueError(
                "vision.deepstack_visual_indexes: expected rising numbers of blocks below "
                f"{self.depth}, got {deep}"
            )

    @property
    def grid(self) -> int:
        """Side of the learned grid."""
        return math.isqrt(self.num_position_embeddings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole model; the defaults are Qwen3-VL-8B."""

    text: Text = Text()
    vision: Vision = Vision()
    tie_word_embeddings: bool = False
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653

    def __post_init__(self):
        if len(self.vision.deepstack_visual_indexes) > self.text.num_hidden_layers:
            raise ValueError(
                "vision.deepstack_visual_indexes: expected at most as many as layers of text "
                f"({self.text.num_hidden_layers}), got {self.vision.deepstack_visual_indexes}"
            )

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Config:
        """Returns the config that a `config.json` of the hub describes."""
        if hf.get("model_type", "qwen3_vl") != "qwen3_vl":
            raise ValueError(f"model_type: expected 'qwen3_vl', got {hf['model_type']!r}")
        parts = {name: hf.get(name) or {} for name in ("text_config", "vision_config")}
        lost, wrong = [], []
        for (where, part), sizes, fixed in zip(parts.items(), _SIZES, _FIXED, strict=True):
            lost += [f"{where}.{name}" for name in sizes if name not in part]
            wrong += [(f"{where}.{k}", v, part[k]) for k, v in fixed.items() if part.get(k, v) != v]
        if lost:
            raise ValueError(f"config.json: expected all sizes of a model, got no {lost}")
        for name, value, got in wrong:
            raise ValueError(f"{name}: expected {value!r}, got {got!r}: not supported")
        text, vision = _pick(Text, parts["text_config"]), _pick(Vision, parts["vision_config"])
        rope = parts["text_config"].get("rope_parameters")
        rope = rope or parts["text_config"].get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise ValueError(f"text_config.rope_scaling: expected type 'default', got {kind!r}")
        # The class default of transformers; checkpoints say five million.
        text["rope_theta"] = float(rope.get("rope_theta", text.get("rope_theta", 500_000)))
        text["mrope_section"] = tuple(rope.get("mrope_section", (24, 20, 20)))
        vision["deepstack_visual_indexes"] = tuple(vision["deepstack_visual_indexes"])
        rest = {name: hf[name] for name in _REST if name in hf}
        return cls(text=Text(**text), vision=Vision(**vision), **rest)

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers reads."""
        text = dataclasses.asdict(self.text) | _FIXED[0] | {"model_type": "qwen3_vl_text"}
        rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
        rope |= {"mrope_interleaved": True, "mrope_section": list(text.pop("mrope_section"))}
        text["rope_parameters"] = rope
        vision = dataclasses.asdict(self.vision) | _FIXED[1] | {"model_type": "qwen3_vl_vision"}
        del vision["image_mean"], vision["image_std"]
        vision["deepstack_visual_indexes"] = list(self.vision.deepstack_visual_indexes)
        vision["out_hidden_size"] = self.text.hidden_size
        return {name: getattr(self, name) for name in _REST} | {
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "text_config": text,
            "vision_config": vision,
        }


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _merger(ours: str, theirs: str) -> dict[str, str]:
    return _norm(f"{ours}/norm", f"{theirs}.norm") | {
        f"{ours}/merge_in/*": f"{theirs}.linear_fc1.*",
        f"{ours}/merge_out/*": f"{theirs}.linear_fc2.*",
    }


_VISION, _TEXT = "model.visual.blocks.{}", "model.language_model.layers.{}"

NAMES: dict[str, str] = {
    "vision/patch/*": "model.visual.patch_embed.proj.*",
    "vision/grid/embedding": "model.visual.pos_embed.weight",
    **_norm("vision/blocks/norm_attention", f"{_VISION}.norm1"),
    **_norm("vision/blocks/norm_ffn", f"{_VISION}.norm2"),
    "vision/blocks/q/*": f"{_VISION}.attn.qkv.*[0/3]",
    "vision/blocks/k/*": f"{_VISION}.attn.qkv.*[1/3]",
    "vision/blocks/v/*": f"{_VISION}.attn.qkv.*[2/3]",
    "vision/blocks/o/*": f"{_VISION}.attn.proj.*",
    "vision/blocks/up/*": f"{_VISION}.mlp.linear_fc1.*",
    "vision/blocks/down/*": f"{_VISION}.mlp.linear_fc2.*",
    **_merger("vision/merger", "model.visual.merger"),
    **_merger("vision/deep", "model.visual.deepstack_merger_list.{}"),
    "embed/embedding": "model.language_model.embed_tokens.weight",
    "blocks/norm_attention/scale": f"{_TEXT}.input_layernorm.weight",
    "blocks/norm_ffn/scale": f"{_TEXT}.post_attention_layernorm.weight",
    "blocks/q/*": f"{_TEXT}.self_attn.q_proj.*",
    "blocks/k/*": f"{_TEXT}.self_attn.k_proj.*",
    "blocks/v/*": f"{_TEXT}.self_attn.v_proj.*",
    "blocks/q_norm/scale": f"{_TEXT}.self_attn.q_norm.weight",
    "blocks/k_norm/scale": f"{_TEXT}.self_attn.k_norm.weight",
    "blocks/o/*": f"{_TEXT}.self_attn.o_proj.*",
    "blocks/gate/*": f"{_TEXT}.mlp.gate_proj.*",
    "blocks/up/*": f"{_TEXT}.mlp.up_proj.*",
    "blocks/down/*": f"{_TEXT}.mlp.down_proj.*",
    "norm/scale": "model.language_model.norm.weight",
    "head/embedding": "lm_head.weight",
}
"""Ours to theirs. `{}` is the layer (ours are stacked), `*` is kernel and weight or bias and bias,
`[i/n]` the i-th of n equal parts of the rows of theirs. Kernels are transposed weights."""


class Grid(nnx.Module):
    """A learned vector for every place of a square grid, read for grids of any size."""

    def __init__(self, side: int, width: int, *, std: float, dtype: str, rngs: nnx.Rngs):
        """Draws side x side vectors, row by row."""
        self.side = side
        draw = std * jax.random.normal(rngs.params(), (side * side, width), jnp.dtype(dtype))
        self.embedding = nnx.Param(draw)

    def __call__(
        self, place: Int[Array, "B S 2"], size: Int[Array, "B S 2"]
    ) -> Float[Array, "B S D"]:
        """Returns the vectors of patches at `place` of images of `size` patches, in float32.

        Places are stretched so that the corners of an image lie on the corners of the grid, and
        read bilinearly between its points.
        """
        table = self.embedding[...].astype(jnp.float32)
        at = place.astype(jnp.float32) * (self.side - 1) / jnp.maximum(size - 1, 1)
        low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, self.side - 1)
        high = jnp.minimum(low + 1, self.side - 1)
        far = at - low
        out = jnp.zeros((*place.shape[:-1], table.shape[-1]), jnp.float32)
        for row, row_share in ((low[..., 0], 1 - far[..., 0]), (high[..., 0], far[..., 0])):
            for column, share in ((low[..., 1], 1 - far[..., 1]), (high[..., 1], far[..., 1])):
                out += table[row * self.side + column] * (row_share * share)[..., None]
        return out


class Merger(nnx.Module):
    """Turns patches into visual tokens: a norm of either, then two layers with a GELU."""

    def __init__(
        self,
        config: Config,
        *,
        whole: bool,
        stack: int,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Draws a stack of `stack` mergers (0: one); `whole`: the norm is of visual tokens."""
        vision, dtype = config.vision, compute.param_dtype
        cell = vision.hidden_size * vision.spatial_merge_size**2

        def affine(width: int, out: int) -> Linear:
            std = vision.initializer_range
            return Linear((width, out), bias=True, stack=stack, std=std, dtype=dtype, rngs=rngs)

        self.whole, self.cell = whole, cell
        width = cell if whole else vision.hidden_size
        self.norm = LayerNorm(width, eps=VISION_EPS, stack=stack, dtype=dtype)
        self.merge_in = affine(cell, cell)
        self.merge_out = affine(cell, config.text.hidden_size)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B visual_tokens E"]:
        """Returns one vector per visual token."""
        shape = (x.shape[0], -1, self.cell)
        visual_tokens = self.norm(x.reshape(shape)) if self.whole else self.norm(x).reshape(shape)
        return self.merge_out(jax.nn.gelu(self.merge_in(visual_tokens), approximate=False))


class VisionTower(nnx.Module):
    """Patches to visual tokens, and to what the first layers of the decoder get of them."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute = config.vision, compute
        vision, dtype = config.vision, compute.param_dtype
        std, width = vision.initializer_range, vision.hidden_size
        # Rows in torch's order: channel, frame, row, column.
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        self.patch = Linear((pixels, width), bias=True, stack=0, std=std, dtype=dtype, rngs=rngs)
        self.grid = Grid(vision.grid, width, std=std, dtype=dtype, rngs=rngs)
        shape = blocks.Shape(
            width=width,
            heads=vision.num_heads,
            kv_heads=vision.num_heads,
            ffn=vision.intermediate_size,
            eps=VISION_EPS,
            std=std,
            out_bias=True,
            ffn_bias=True,
        )
        self.blocks = blocks.GeluBlock(
            shape, pairs=False, stack=vision.depth, compute=compute, rngs=rngs
        )
        self.merger = Merger(config, whole=False, stack=0, compute=compute, rngs=rngs)
        deep = len(vision.deepstack_visual_indexes)
        self.deep = (
            Merger(config, whole=True, stack=deep, compute=compute, rngs=rngs) if deep else None
        )

    def __call__(self, images: Images) -> qwen_decoder.Seen:
        """Returns one vector per visual token of merge x merge patches, and the deep ones."""
        indexes = np.array(self.config.deepstack_visual_indexes, int)
        x, one = self.embed(images), self.step(images)

        def step(block, carry, taken):
            x, _ = one(block, carry[0], None)
            return (x, jnp.where(taken[:, None, None, None], x, carry[1])), None

        # Row i of the second carry is the output of the i-th block that is taken.
        taken = np.arange(self.config.depth)[:, None] == indexes
        carry = x, jnp.zeros((len(indexes), *x.shape), x.dtype)
        (x, outputs), _ = layer_stack.apply(
            self.blocks, carry, step, each=taken, compute=self.compute
        )
        if self.deep is None:
            return qwen_decoder.Seen(self.merger(x))
        _, deep = layer_stack.apply(
            self.deep,
            None,
            lambda merger, _, x: (None, merger(x)),
            each=outputs,
            compute=self.compute,
        )
        return qwen_decoder.Seen(self.merger(x), deep)

    def embed(self, images: Images) -> Float[Array, "B S D"]:
        """Returns what goes into the first block."""
        x = qwen_decoder.stills(self.patch, self.config, images, dtype=self.compute.dtype)
        size = patches.image_sizes(images.place, images.image)
        return x + self.grid(images.place, size).astype(x.dtype)

    def step(self, images: Images) -> layer_stack.Step:
        """Returns the function that applies one block: patches see all of their image."""
        head = self.config.hidden_size // self.config.num_heads
        turn = rotary.planar(images.place, head=head, theta=VISION_THETA)

        def mix(heads):
            kind = self.compute.attention
            return attention.attend(heads, images.image, causal=False, kind=kind), None

        return lambda block, x, _: block(x, turn, mix)


class Qwen3VL(qwen_decoder.Dense):
    """The model; see `vlm.VLM` for what its methods mean."""

    def __init__(
        self,
        config: Config,
        *,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        """Draws a model: normal weights, zero biases, norms at one."""
        text = config.text
        shape = blocks.Shape(
            width=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            ffn=text.intermediate_size,
            eps=text.rms_norm_eps,
            std=text.initializer_range,
            out_bias=False,
            ffn_bias=False,
            in_bias=False,
            head_width=text.head_dim,
            head_norm=True,
        )
        vision = VisionTower(config, compute=compute, rngs=rngs)
        super().__init__(config, shape, vision=vision, compute=compute, rngs=rngs)


def _pick(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries that are fields of a config class; of several end tokens the first."""
    names = {field.name for field in dataclasses.fields(kind)}
    found = {name: values[name] for name in names if name in values}
    if isinstance(found.get("eos_token_id"), list):
        found["eos_token_id"] = found["eos_token_id"][0]
    return found
