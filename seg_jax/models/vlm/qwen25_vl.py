"""Qwen2.5-VL in Flax NNX: windowed vision tower, merger and text decoder with M-RoPE.

Source: Qwen2.5-VL technical report, arXiv 2502.13923, section 2.1; config names of
`transformers` (`Qwen2_5_VLConfig`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from msgspec import Meta

from seg_jax import schemas
from seg_jax.models.facts import arithmetic, hub_config, image_layout
from seg_jax.models.facts.arithmetic import Arithmetic
from seg_jax.models.facts.family import VLM, Family
from seg_jax.models.nn import attention, blocks, layer_stack, rotary, xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Linear
from seg_jax.models.nn.norms import RMSNorm
from seg_jax.models.vlm import qwen_decoder
from seg_jax.records import Array, Images

VISION_EPS = 1e-6
"""Epsilon of every norm in the vision tower; no config holds it."""
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
    ("depth", "hidden_size", "intermediate_size", "num_heads"),
)
"""Sizes that a `config.json` must give for text and vision."""


def _head(width: int, heads: int, where: str) -> int:
    if width % heads:
        raise ValueError(
            f"{where}: expected heads that divide width {width}, got {heads}"
            "; do: take a number of heads that does"
        )
    return width // heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The decoder (`text_config`)."""

    vocab_size: int = 152_064
    hidden_size: int = 3584
    intermediate_size: int = 18_944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    """Pairs of channels that turn with time, height and width."""
    max_position_embeddings: int = 128_000
    initializer_range: float = 0.02
    bos_token_id: int | None = 151_643
    eos_token_id: int | None = 151_645

    def __post_init__(self):
        hub_config.check_sizes(self, "text")
        head = _head(self.hidden_size, self.num_attention_heads, "text")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text.num_key_value_heads: expected a divisor of {self.num_attention_heads} "
                f"heads, got {self.num_key_value_heads}"
                "; do: take one that divides num_attention_heads"
            )
        if 2 * sum(self.mrope_section) != head or len(self.mrope_section) != 3:
            raise ValueError(
                f"text.mrope_section: expected three numbers that add up to {head // 2} (half the "
                f"head width), got {self.mrope_section}"
                "; do: divide that sum among time, height and width"
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """Axis of the position that turns each pair of channels: one section after another."""
        return tuple(np.repeat(np.arange(3), self.mrope_section).tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower (`vision_config`) and the normalisation of its images."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112
    """Side of an attention window in pixels."""
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    initializer_range: float = 0.02
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """CLIP's, of pixels in 0..1 (`preprocessor_config.json`)."""
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        hub_config.check_sizes(self, "vision")
        if _head(self.hidden_size, self.num_heads, "vision") % 4:
            raise ValueError(
                f"vision: expected a head width that four divides, got "
                f"{self.hidden_size // self.num_heads}; do: take other num_heads, as height and "
                "width turn half of it each"
            )
        if self.window_tokens < 1:
            raise ValueError(
                f"vision.window_size: expected at least {self.patch_size} x "
                f"{self.spatial_merge_size} pixels, got {self.window_size}"
                "; do: raise window_size"
            )

    @property
    def window_tokens(self) -> int:
        """Side of an attention window in visual tokens."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches of a whole attention window."""
        return (self.window_tokens * self.spatial_merge_size) ** 2


def _full_blocks(vision: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the blocks of a vision part that look at the whole image; all are there, once."""
    depth = vision.get("depth", Vision.depth)
    kind = list[Annotated[int, Meta(ge=0, lt=depth if type(depth) is int and depth > 0 else 2**31)]]
    named = tuple(
        schemas.check(
            vision["fullatt_block_indexes"],
            kind,
            where="vision_config.fullatt_block_indexes",
            advice="copy the file that belongs to the weights",
        )
    )
    if len(named) > len({*named}):
        raise ValueError(
            "vision_config.fullatt_block_indexes: expected each block once, got "
            f"{len(named)} numbers of {len({*named})} blocks; do: copy the file that belongs to "
            "the weights"
        )
    return named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole model; the defaults are Qwen2.5-VL-7B."""

    text: Text = Text()
    vision: Vision = Vision()
    tie_word_embeddings: bool = False
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Config:
        """Returns the config that a `config.json` describes, flat (hub) or nested."""
        hub_config.check_model_type(hf, "qwen2_5_vl")
        nested = hf.get("text_config") or hf
        rope, kind = hub_config.rotary(nested)
        if kind not in ("default", "mrope"):
            raise ValueError(
                f"rope_scaling: expected type 'mrope' or 'default', got {kind!r}"
                "; do: take a model with one of these, others are not supported"
            )
        if nested.get("use_sliding_window"):
            raise ValueError(
                "use_sliding_window: expected false, got true; do: take a model without it, "
                "sliding windows are not supported"
            )
        vision = hf.get("vision_config") or {}
        hub_config.check_present({"": (nested, _SIZES[0]), "vision_config.": (vision, _SIZES[1])})
        if vision.get("in_channels", 3) != 3:
            raise ValueError(
                f"vision_config.in_channels: expected 3, got {vision['in_channels']!r:.40}"
                "; do: take a model of images in red, green and blue"
            )
        for where, part in (("text_config", nested), ("vision_config", vision)):
            if part.get("hidden_act", "silu") != "silu":
                raise ValueError(
                    f"{where}.hidden_act: expected 'silu', got {part['hidden_act']!r}"
                    "; do: take a model with it, others are not supported"
                )
        text = hub_config.pick_fields(Text, nested)
        text["rope_theta"] = float(rope.get("rope_theta", nested.get("rope_theta", 1e6)))
        if "mrope_section" not in rope:  # Read as if it had three axes it would answer, wrongly.
            raise ValueError(
                "rope_scaling: expected the mrope_section of Qwen2.5-VL, got none: 1-D rotary "
                "positions (as OpenCUA has them) are not supported; do: give a model with M-RoPE"
            )
        text["mrope_section"] = tuple(rope["mrope_section"])
        # The class default of transformers; checkpoints say 1e-6.
        text.setdefault("rms_norm_eps", 1e-5)
        vision = hub_config.pick_fields(Vision, vision)
        if "fullatt_block_indexes" in vision:
            vision["fullatt_block_indexes"] = _full_blocks(vision)
        ids = {name: hf[name] for name in qwen_decoder.TOKEN_IDS if name in hf}
        tie = hf.get("tie_word_embeddings") or nested.get("tie_word_embeddings") or False
        return cls(text=Text(**text), vision=Vision(**vision), tie_word_embeddings=tie, **ids)

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers reads."""
        text = dataclasses.asdict(self.text)
        rope = {"rope_type": "default", "type": "mrope", "rope_theta": text.pop("rope_theta")}
        text["rope_parameters"] = rope | {"mrope_section": list(text.pop("mrope_section"))}
        text |= {"model_type": "qwen2_5_vl_text", "hidden_act": "silu"}
        text["tie_word_embeddings"] = self.tie_word_embeddings
        vision = dataclasses.asdict(self.vision)
        del vision["image_mean"], vision["image_std"]
        vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
        vision |= {"out_hidden_size": self.text.hidden_size, "in_channels": 3}
        vision |= {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"}
        rest = {name: getattr(self, name) for name in qwen_decoder.TOKEN_IDS}
        return rest | {
            "tie_word_embeddings": self.tie_word_embeddings,
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "text_config": text,
            "vision_config": vision,
        }


_VISION, _TEXT = "visual.blocks.{}.", "model.layers.{}."

NAMES: dict[str, str] = {
    "vision/patch/kernel": "visual.patch_embed.proj.weight",
    "vision/blocks/norm_attention/scale": _VISION + "norm1.weight",
    "vision/blocks/norm_ffn/scale": _VISION + "norm2.weight",
    "vision/blocks/q/*": _VISION + "attn.qkv.*[0/3]",
    "vision/blocks/k/*": _VISION + "attn.qkv.*[1/3]",
    "vision/blocks/v/*": _VISION + "attn.qkv.*[2/3]",
    "vision/blocks/o/*": _VISION + "attn.proj.*",
    "vision/blocks/gate/*": _VISION + "mlp.gate_proj.*",
    "vision/blocks/up/*": _VISION + "mlp.up_proj.*",
    "vision/blocks/down/*": _VISION + "mlp.down_proj.*",
    "vision/norm/scale": "visual.merger.ln_q.weight",
    "vision/merge_in/*": "visual.merger.mlp.0.*",
    "vision/merge_out/*": "visual.merger.mlp.2.*",
    "embed/embedding": "model.embed_tokens.weight",
    "blocks/norm_attention/scale": _TEXT + "input_layernorm.weight",
    "blocks/norm_ffn/scale": _TEXT + "post_attention_layernorm.weight",
    "blocks/q/*": _TEXT + "self_attn.q_proj.*",
    "blocks/k/*": _TEXT + "self_attn.k_proj.*",
    "blocks/v/*": _TEXT + "self_attn.v_proj.*",
    "blocks/o/*": _TEXT + "self_attn.o_proj.*",
    "blocks/gate/*": _TEXT + "mlp.gate_proj.*",
    "blocks/up/*": _TEXT + "mlp.up_proj.*",
    "blocks/down/*": _TEXT + "mlp.down_proj.*",
    "norm/scale": "model.norm.weight",
    "head/embedding": "lm_head.weight",
}
"""Ours to theirs. `{}` is the layer (ours are stacked), `*` is kernel and weight or bias and bias,
`[i/n]` the i-th of n equal parts of the rows of theirs. Kernels are transposed weights."""


class VisionTower(nnx.Module):
    """Patches to visual tokens."""

    def __init__(self, config: Config, *, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute = config.vision, compute
        vision = self.config

        def affine(size: tuple[int, int], bias: bool) -> Linear:
            std, dtype = vision.initializer_range, compute.param_dtype
            return Linear(size, bias=bias, stack=0, std=std, dtype=dtype, rngs=rngs)

        # Rows in torch's order: channel, frame, row, column.
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        self.patch = affine((pixels, vision.hidden_size), bias=False)
        shape = blocks.Shape(
            width=vision.hidden_size,
            heads=vision.num_heads,
            kv_heads=vision.num_heads,
            ffn=vision.intermediate_size,
            eps=VISION_EPS,
            std=vision.initializer_range,
            out_bias=True,
            ffn_bias=True,
        )
        self.blocks = blocks.Block(shape, stack=vision.depth, compute=compute, rngs=rngs)
        cell = vision.hidden_size * vision.spatial_merge_size**2
        self.norm = RMSNorm(vision.hidden_size, eps=VISION_EPS, stack=0, dtype=compute.param_dtype)
        self.merge_in = affine((cell, cell), bias=True)
        self.merge_out = affine((cell, config.text.hidden_size), bias=True)

    def __call__(self, images: Images) -> qwen_decoder.Seen:
        """Returns one vector per visual token of merge x merge patches."""
        if not self._looks_in_windows(images):
            return qwen_decoder.Seen(self._cells(images))
        # Patches of a window together; the visual tokens go back to where they were.
        order = jnp.argsort(images.window, axis=1, stable=True)
        together = Images(*(jax.vmap(lambda x, at: x[at])(x, order) for x in images))
        visual_tokens = self._cells(together)
        unit = self.config.spatial_merge_size**2
        back = jnp.argsort(order[:, ::unit], axis=1)
        return qwen_decoder.Seen(jnp.take_along_axis(visual_tokens, back[..., None], 1))

    def embed(self, images: Images) -> Float[Array, "B S D"]:
        """Returns what goes into the first block."""
        return qwen_decoder.stills(self.patch, self.config, images, dtype=self.compute.dtype)

    def step(self, images: Images) -> layer_stack.Step:
        """Returns the function that applies one block, told whether patches see all their image.

        Where images are large, patches of a window must lie together.
        """
        vision = self.config
        head = vision.hidden_size // vision.num_heads
        turn = rotary.planar(images.place, head=head, theta=VISION_THETA)
        kind = self.compute.attention

        def everywhere(heads):
            return attention.attend(heads, images.image, causal=False, kind=kind)

        def in_window(heads):
            reach = vision.window_patches
            return attention.attend_windows(heads, images.window, reach=reach, kind=kind)

        def mix(heads, full):
            if self._looks_in_windows(images):
                return jax.lax.cond(full, everywhere, in_window, heads), None
            segments = jnp.where(full, images.image, images.window)
            return attention.attend(heads, segments, causal=False, kind=kind), None

        return lambda block, x, full: block(x, turn, lambda heads: mix(heads, full))

    def _looks_in_windows(self, images: Images) -> bool:
        """Returns whether windows are looked at block by block: rows long, windows small."""
        patches = images.window.shape[1]
        return patches > max(xla_attention.LONG_ROW, 3 * self.config.window_patches)

    def _cells(self, images: Images) -> Float[Array, "B visual_tokens D"]:
        vision = self.config
        full = np.isin(np.arange(vision.depth), vision.fullatt_block_indexes)
        x, step = self.embed(images), self.step(images)
        x, _ = layer_stack.apply(self.blocks, x, step, each=full, compute=self.compute)
        visual_tokens = self.norm(x).reshape(x.shape[0], -1, self.merge_in.kernel.shape[-2])
        return self.merge_out(jax.nn.gelu(self.merge_in(visual_tokens), approximate=False))


class Qwen25VL(qwen_decoder.Dense):
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
        shape = qwen_decoder.block_shape(text)
        vision = VisionTower(config, compute=compute, rngs=rngs)
        super().__init__(config, shape, vision=vision, compute=compute, rngs=rngs)


def count_products(config: Config) -> Arithmetic:
    """Returns what a model computes for a token and for a patch."""
    text, vision = config.text, config.vision
    full = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    whole = arithmetic.of_tower(vision, depth=full, products=3)
    windowed = whole._replace(count=vision.depth - full, reach=vision.window_patches)
    head = text.hidden_size // text.num_attention_heads
    decoder = arithmetic.of_grouped_queries(text, head=head)
    return arithmetic.of_model(config, decoder=decoder, tower=[whole, windowed])


FAMILY = Family(
    model_type="qwen2_5_vl",
    config=Config,
    model=Qwen25VL,
    names=NAMES,
    # Names within transformers and in the files that its version 5 writes, to those of the hub.
    aliases=(("model.visual.", "visual."), ("model.language_model.", "model.")),
    relatives={"opencua": "Qwen2.5-VL with 1-D rotary positions and Moonshot's tokenizer"},
    convolutions=qwen_decoder.video_kernel,
    repeated=lambda config: (NAMES["head/embedding"],) if config.tie_word_embeddings else (),
    with_preprocessor=hub_config.with_pixel_statistics,
    vlm=VLM(
        tokenizer="qwen",
        with_tokens=qwen_decoder.with_tokens,
        image_layout=image_layout.scaled_layout,
        preprocessor=image_layout.scaled_preprocessor,
        arithmetic=count_products,
        merger=("vision/norm", "vision/merge_in", "vision/merge_out"),
        window_tokens=lambda config: config.vision.window_tokens,
    ),
)
