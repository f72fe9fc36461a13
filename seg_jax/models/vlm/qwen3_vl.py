"""Qwen3-VL (dense) in Flax NNX: a vision tower with DeepStack before a text decoder.

Source: Qwen3-VL technical report, arXiv 2511.21631, section 2; config names of `transformers`
(`Qwen3VLConfig`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from seg_jax.models.facts import arithmetic, hub_config, image_layout
from seg_jax.models.facts.arithmetic import Arithmetic
from seg_jax.models.facts.family import VLM, Family
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import qwen3_vit, qwen_decoder

_SIZES = {
    "text_config": (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ),
    "vision_config": (
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "deepstack_visual_indexes",
    ),
}
"""Sizes that a `config.json` must give for text and vision."""

_FIXED = {
    "text_config": {"hidden_act": "silu", "attention_bias": False},
    "vision_config": {"hidden_act": "gelu_pytorch_tanh", "in_channels": 3},
}
"""Values that a `config.json` may not change."""

_REST = ("tie_word_embeddings", *qwen_decoder.TOKEN_IDS)
"""Fields of a `config.json` outside of its two parts."""


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
        hub_config.check_sizes(self, "text")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text.num_key_value_heads: expected a divisor of {self.num_attention_heads} "
                f"heads, got {self.num_key_value_heads}"
                "; do: take one that divides num_attention_heads"
            )
        if 2 * sum(self.mrope_section) != self.head_dim or len(self.mrope_section) != 3:
            raise ValueError(
                f"text.mrope_section: expected three numbers that add up to {self.head_dim // 2} "
                f"(half of head_dim), got {self.mrope_section}"
                "; do: divide that sum among time, height and width"
            )

    @property
    def axes(self) -> tuple[int, ...]:
        """Axis of the position that turns each pair of channels: by turns, then time."""
        pairs = range(self.head_dim // 2)
        return tuple(i % 3 if i < 3 * self.mrope_section[i % 3] else 0 for i in pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A whole model; the defaults are Qwen3-VL-8B."""

    text: Text = Text()
    vision: qwen3_vit.Vision = qwen3_vit.Vision()
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
                "; do: leave some out, or take more layers"
            )

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Config:
        """Returns the config that a `config.json` of the hub describes."""
        hub_config.check_model_type(hf, "qwen3_vl")
        parts = {name: hf.get(name) or {} for name in ("text_config", "vision_config")}
        hub_config.check_present(
            {f"{where}.": (parts[where], sizes) for where, sizes in _SIZES.items()}
        )
        for where, fixed in _FIXED.items():
            hub_config.check_fixed(parts[where], fixed, where=where)
        text = hub_config.pick_fields(Text, parts["text_config"])
        vision = hub_config.pick_fields(qwen3_vit.Vision, parts["vision_config"])
        rope, kind = hub_config.rotary(parts["text_config"])
        if kind not in ("default", "mrope"):
            raise ValueError(
                f"text_config.rope_scaling: expected type 'default', got {kind!r}"
                "; do: take a model with it, others are not supported"
            )
        # The class default of transformers; checkpoints say five million.
        text["rope_theta"] = float(rope.get("rope_theta", text.get("rope_theta", 500_000)))
        text["mrope_section"] = tuple(rope.get("mrope_section", (24, 20, 20)))
        vision["deepstack_visual_indexes"] = tuple(vision["deepstack_visual_indexes"])
        rest = {name: hf[name] for name in _REST if name in hf}
        return cls(text=Text(**text), vision=qwen3_vit.Vision(**vision), **rest)

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers reads."""
        text = (
            dataclasses.asdict(self.text) | _FIXED["text_config"] | {"model_type": "qwen3_vl_text"}
        )
        rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
        rope |= {"mrope_interleaved": True, "mrope_section": list(text.pop("mrope_section"))}
        text["rope_parameters"] = rope
        vision = dataclasses.asdict(self.vision) | _FIXED["vision_config"]
        vision["model_type"] = "qwen3_vl_vision"
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
        shape = qwen_decoder.block_shape(
            text, in_bias=False, head_width=text.head_dim, head_norm=True
        )
        out = text.hidden_size
        vision = qwen3_vit.VisionTower(config.vision, out=out, compute=compute, rngs=rngs)
        super().__init__(config, shape, vision=vision, compute=compute, rngs=rngs)


def count_products(config: Config) -> Arithmetic:
    """Returns what a model computes for a token and for a patch."""
    text, vision = config.text, config.vision
    return arithmetic.of_model(
        config,
        decoder=arithmetic.of_grouped_queries(text, head=text.head_dim),
        tower=[arithmetic.of_tower(vision, depth=vision.depth, products=2)],
        mergers=1 + len(vision.deepstack_visual_indexes),
    )


FAMILY = Family(
    model_type="qwen3_vl",
    config=Config,
    model=Qwen3VL,
    names=NAMES,
    convolutions=qwen_decoder.video_kernel,
    repeated=lambda config: (NAMES["head/embedding"],) if config.tie_word_embeddings else (),
    with_preprocessor=hub_config.with_pixel_statistics,
    vlm=VLM(
        tokenizer="qwen",
        with_tokens=qwen_decoder.with_tokens,
        image_layout=image_layout.scaled_layout,
        preprocessor=image_layout.scaled_preprocessor,
        arithmetic=count_products,
        merger=("vision/merger", "vision/deep"),
    ),
)
