"""Kimi-VL in Flax NNX: MoonViT before the Moonlight decoder with latents and experts.

Source: Kimi-VL technical report, arXiv 2504.07491, section 2.1; Moonlight, arXiv 2502.16982;
config and weight names of the published checkpoints (`kimi_vl`, `moonvit`, `deepseek_v3`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.nn import (
    attention,
    batching,
    experts,
    latent_attention,
    layer_stack,
    linear,
    rotary,
)
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Embedding
from seg_jax.models.nn.norms import RMSNorm
from seg_jax.models.nn.rotary import Rotary
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import moonvit, protocol
from seg_jax.records import Array, Images, Packing, Tokens

_SIZES = (
    (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "kv_lora_rank",
        "qk_rope_head_dim",
        "qk_nope_head_dim",
        "v_head_dim",
    ),
    ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
)
"""What a `config.json` must say of text and vision: a default would be another model's."""

_FIXED = {
    "q_lora_rank": None,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "attention_bias": False,
    "hidden_act": "silu",
}
"""What a `text_config` may say no other value of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The decoder (`text_config`): its first layer is dense, all others have experts."""

    vocab_size: int = 163_840
    hidden_size: int = 2048
    intermediate_size: int = 11_264
    """Of the dense layer."""
    moe_intermediate_size: int = 1408
    """Of one expert."""
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.446
    kv_lora_rank: int = 512
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 800_000.0
    max_position_embeddings: int = 131_072
    initializer_range: float = 0.02
    bos_token_id: int | None = 163_584
    eos_token_id: int | None = 163_585

    def __post_init__(self):
        protocol.check_sizes(self, "text")
        if self.num_hidden_layers < 2:
            raise ValueError(
                "text.num_hidden_layers: expected 2 or more (a dense one, then experts), "
                f"got {self.num_hidden_layers}"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(
                f"text.qk_rope_head_dim: expected an even number, got {self.qk_rope_head_dim}"
            )
        if self.n_routed_experts % self.n_group or not 1 <= self.topk_group <= self.n_group:
            raise ValueError(
                f"text.n_group, topk_group: expected groups that divide {self.n_routed_experts} "
                f"experts, and as many or fewer visited, got {self.n_group}, {self.topk_group}"
            )
        reach = self.n_routed_experts // self.n_group * self.topk_group
        if not 1 <= self.num_experts_per_tok <= reach:
            raise ValueError(
                f"text.num_experts_per_tok: expected 1 to {reach}, got {self.num_experts_per_tok}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The whole model; the defaults are Kimi-VL-A3B."""

    text: Text = Text()
    vision: moonvit.Vision = moonvit.Vision()
    tie_word_embeddings: bool = False
    media_placeholder_token_id: int = 163_605

    @property
    def image_token_id(self) -> int:
        """Of the token that a visual token stands in for."""
        return self.media_placeholder_token_id

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Config:
        """Returns the config that a `config.json` of the hub describes."""
        if hf.get("model_type", "kimi_vl") != "kimi_vl":
            raise ValueError(f"model_type: expected 'kimi_vl', got {hf['model_type']!r}")
        text, vision = hf.get("text_config") or {}, hf.get("vision_config") or {}
        if lost := [f"text_config.{name}" for name in _SIZES[0] if name not in text] + [
            f"vision_config.{name}" for name in _SIZES[1] if name not in vision
        ]:
            raise ValueError(f"config.json: expected all sizes of a model, got no {lost}")
        for name, value in _FIXED.items():
            if text.get(name, value) != value:
                raise ValueError(
                    f"text_config.{name}: expected {value!r}, got {text[name]!r}: not supported"
                )
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"text_config.rope_scaling: expected none, got {kind!r}")
        text = _pick(
            Text, text | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
        )
        vision = _pick(moonvit.Vision, vision)
        if "merge_kernel_size" in vision:
            vision["merge_kernel_size"] = tuple(vision["merge_kernel_size"])
        named = ("tie_word_embeddings", "media_placeholder_token_id")
        rest = {name: hf[name] for name in named if name in hf}
        return cls(text=Text(**text), vision=moonvit.Vision(**vision), **rest)

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` as the hub has it, without pointers to remote code."""
        text = dataclasses.asdict(self.text) | _FIXED
        text |= {"model_type": "deepseek_v3", "rope_scaling": None}
        text |= {"num_key_value_heads": self.text.num_attention_heads}
        text |= {"tie_word_embeddings": self.tie_word_embeddings}
        vision = dataclasses.asdict(self.vision)
        del vision["image_mean"], vision["image_std"]
        vision |= {
            "model_type": "moonvit",
            "merge_kernel_size": list(self.vision.merge_kernel_size),
        }
        return {
            "architectures": ["KimiVLForConditionalGeneration"],
            "model_type": "kimi_vl",
            "media_placeholder_token_id": self.media_placeholder_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "vocab_size": self.text.vocab_size,
            "text_config": text,
            "vision_config": vision,
        }


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _text_layer(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}/norm_attention/scale": f"{theirs}.input_layernorm.weight",
        f"{ours}/norm_ffn/scale": f"{theirs}.post_attention_layernorm.weight",
        f"{ours}/attention/q/*": f"{theirs}.self_attn.q_proj.*",
        f"{ours}/attention/kv_in/*": f"{theirs}.self_attn.kv_a_proj_with_mqa.*",
        f"{ours}/attention/kv_norm/scale": f"{theirs}.self_attn.kv_a_layernorm.weight",
        f"{ours}/attention/kv_out/*": f"{theirs}.self_attn.kv_b_proj.*",
        f"{ours}/attention/o/*": f"{theirs}.self_attn.o_proj.*",
    }


_VISION = "vision_tower.encoder.blocks.{}"
_FIRST, _REST = "language_model.model.layers.{}", "language_model.model.layers.{+1}"

NAMES: dict[str, str] = {
    "vision/patch/*": "vision_tower.patch_embed.proj.*",
    "vision/grid/embedding": "vision_tower.patch_embed.pos_emb.weight",
    **_norm("vision/blocks/norm_attention", f"{_VISION}.norm0"),
    **_norm("vision/blocks/norm_ffn", f"{_VISION}.norm1"),
    "vision/blocks/q/*": f"{_VISION}.wqkv.*[0/3]",
    "vision/blocks/k/*": f"{_VISION}.wqkv.*[1/3]",
    "vision/blocks/v/*": f"{_VISION}.wqkv.*[2/3]",
    "vision/blocks/o/*": f"{_VISION}.wo.*",
    "vision/blocks/up/*": f"{_VISION}.mlp.fc0.*",
    "vision/blocks/down/*": f"{_VISION}.mlp.fc1.*",
    **_norm("vision/norm", "vision_tower.encoder.final_layernorm"),
    **_norm("vision/merge_norm", "multi_modal_projector.pre_norm"),
    "vision/merge_in/*": "multi_modal_projector.linear_1.*",
    "vision/merge_out/*": "multi_modal_projector.linear_2.*",
    "embed/embedding": "language_model.model.embed_tokens.weight",
    **_text_layer("first", _FIRST),
    "first/ffn/gate/*": f"{_FIRST}.mlp.gate_proj.*",
    "first/ffn/up/*": f"{_FIRST}.mlp.up_proj.*",
    "first/ffn/down/*": f"{_FIRST}.mlp.down_proj.*",
    **_text_layer("blocks", _REST),
    "blocks/ffn/router/kernel": f"{_REST}.mlp.gate.weight",
    "blocks/ffn/router/bias": f"{_REST}.mlp.gate.e_score_correction_bias",
    "blocks/ffn/expert_gate/*": f"{_REST}.mlp.experts.{{e}}.gate_proj.*",
    "blocks/ffn/expert_up/*": f"{_REST}.mlp.experts.{{e}}.up_proj.*",
    "blocks/ffn/expert_down/*": f"{_REST}.mlp.experts.{{e}}.down_proj.*",
    "blocks/ffn/shared/gate/*": f"{_REST}.mlp.shared_experts.gate_proj.*",
    "blocks/ffn/shared/up/*": f"{_REST}.mlp.shared_experts.up_proj.*",
    "blocks/ffn/shared/down/*": f"{_REST}.mlp.shared_experts.down_proj.*",
    "norm/scale": "language_model.model.norm.weight",
    "head/embedding": "language_model.lm_head.weight",
}
"""Ours to theirs. `{}` is the layer (ours are stacked), `{+1}` the layer of a stack that begins at
their layer 1, `{e}` the expert (ours on the next axis), `*` is kernel and weight or bias and bias,
`[i/n]` the i-th of n equal parts of the rows of theirs. Kernels are transposed weights."""


class Block(nnx.Module):
    """Pre-norm latent attention, then a dense gated layer or experts, both residual."""

    def __init__(self, text: Text, *, dense: bool, stack: int, compute: Compute, rngs: nnx.Rngs):
        """Draws a stack of `stack` blocks."""
        std, width = text.initializer_range, text.hidden_size

        def norm() -> RMSNorm:
            eps, dtype = text.rms_norm_eps, compute.param_dtype
            return RMSNorm(width, eps=eps, stack=stack, dtype=dtype)

        self.norm_attention, self.norm_ffn = norm(), norm()
        attention = latent_attention.Shape(
            width=width,
            heads=text.num_attention_heads,
            rank=text.kv_lora_rank,
            plain=text.qk_nope_head_dim,
            rotary=text.qk_rope_head_dim,
            value=text.v_head_dim,
            std=std,
        )
        self.attention = latent_attention.Attention(
            attention, stack=stack, compute=compute, rngs=rngs
        )
        if dense:
            ffn = text.intermediate_size
            self.ffn = experts.Gated(width, ffn, std=std, stack=stack, compute=compute, rngs=rngs)
            return
        shape = experts.Shape(
            width=width,
            ffn=text.moe_intermediate_size,
            experts=text.n_routed_experts,
            visits=text.num_experts_per_tok,
            shared=text.n_shared_experts,
            scale=text.routed_scaling_factor,
            normalised=text.norm_topk_prob,
            groups=text.n_group,
            visited_groups=text.topk_group,
            std=std,
        )
        self.ffn = experts.Mixture(shape, stack=stack, compute=compute, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*n D"], turn: Rotary, mix: Any
    ) -> tuple[Float[Array, "*n D"], Any]:
        """Returns the block's output and what mix(attention, q, latents) returned beside it."""
        q, latents = self.attention.read(self.norm_attention(x), turn)
        out, extra = mix(self.attention, q, latents)
        x = x + out
        return sharding.rows(x + self.ffn(self.norm_ffn(x))), extra


class KimiVL(nnx.Module):
    """The model; see `vlm.VLM` for what its methods mean."""

    def __init__(
        self,
        config: Config,
        *,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        """Draws a model: normal weights, zero biases, norms at one."""
        self.config, self.compute = config, compute
        text = config.text
        size = (text.vocab_size, text.hidden_size)
        std, dtype = text.initializer_range, compute.param_dtype
        self.vision = moonvit.VisionTower(
            config.vision, out=text.hidden_size, compute=compute, rngs=rngs
        )
        self.embed = Embedding(size, std=std, dtype=dtype, rngs=rngs)
        self.first = Block(text, dense=True, stack=1, compute=compute, rngs=rngs)
        rest = text.num_hidden_layers - 1
        self.blocks = Block(text, dense=False, stack=rest, compute=compute, rngs=rngs)
        self.norm = RMSNorm(text.hidden_size, eps=text.rms_norm_eps, stack=0, dtype=dtype)
        self.head = (
            None if config.tie_word_embeddings else Embedding(size, std=std, dtype=dtype, rngs=rngs)
        )

    def encode(self, images: Images) -> Float[Array, "B visual_tokens D"]:
        """Returns the visual tokens of each row's images."""
        return self.vision(images)

    def hidden(self, tokens: Tokens, images: Images | None) -> Float[Array, "B T D"]:
        """Returns the outputs at every token."""

        def mix(attention, q, latents):
            return attention.attend(q, latents, tokens.segments), None

        turn = self._turn(_counted(tokens.segments))
        return self._through(self._inputs(tokens, images), turn, mix, each=(None, None))[0]

    def prefill(self, tokens: Tokens, images: Images | None) -> protocol.Prefix:
        """Returns the prompts as read; of each token its latents are kept."""

        def mix(attention, q, latents):
            return attention.attend(q, latents, tokens.segments), latents

        place = _counted(tokens.segments)
        turn = self._turn(place)
        x = self._inputs(tokens, images)
        hidden, cache = self._through(x, turn, mix, each=(None, None))
        used = tokens.segments == tokens.segments[:, -1:]
        last = jnp.max(jnp.where(used, place, -1), 1)
        return protocol.Prefix(cache, used, last + 1, hidden[:, -1])

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: protocol.Prefix, packing: Packing | None = None
    ) -> Float[Array, "B G Q D"]:
        """Returns the outputs at whole answers."""
        columns = jnp.arange(ids.shape[-1]) if packing is None else packing.columns
        seen = attention.seen(prefix.used, ids.shape[-1], packing)

        def mix(layer, q, latents, prompt):
            return layer.attend_spread(q, prompt, latents, seen), None

        turn = self._turn(prefix.following[:, None, None] + columns)
        return self._through(self._words(ids), turn, mix, each=prefix.cache)[0]

    def decoder(self) -> Decoder:
        """Returns the model laid out for decoding."""
        return Decoder(self)

    def unembed(self) -> Float[Array, "V D"]:
        """Returns the output head."""
        return (self.head or self.embed).embedding[...]

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token, in float32."""
        return linear.logits(hidden, self.unembed())

    def _through(self, x: Array, turn: Rotary, mix: Any, *, each: tuple) -> tuple:
        """Returns the normalised output of all layers and what they returned, stack by stack.

        Args:
          x: inputs.
          turn: rotation of every token.
          mix: gets the value of its layer last, if there is one.
          each: values [layers ..] of the dense stack and of the stack of experts.
        """

        def step(block, x, value):
            def layer(*given):
                return mix(*given) if value is None else mix(*given, value)

            return block(x, turn, layer)

        kept = []
        for stack, values in zip((self.first, self.blocks), each, strict=True):
            x, extra = layer_stack.apply(stack, x, step, each=values, compute=self.compute)
            kept.append(extra)
        return self.norm(x), tuple(kept)

    def _words(self, ids: Int[Array, "*n"]) -> Float[Array, "*n D"]:
        return sharding.rows(self.embed.embedding[...][ids].astype(self.compute.dtype))

    def _inputs(self, tokens: Tokens, images: Images | None) -> Float[Array, "B T D"]:
        """Returns token embeddings with the visual tokens of images in their places."""
        words = self._words(tokens.ids)
        if images is None or images.patches.shape[1] == 0:
            return words
        at = jnp.maximum(tokens.visual_tokens, 0)[..., None]
        visual_tokens = jnp.take_along_axis(self.encode(images), at, axis=1)
        return jnp.where(
            tokens.visual_tokens[..., None] >= 0, visual_tokens.astype(words.dtype), words
        )

    def _turn(self, positions: Int[Array, "*n"]) -> Rotary:
        """Returns the rotation at positions, the same for all heads."""
        text = self.config.text
        spin = rotary.frequencies(text.qk_rope_head_dim // 2, text.rope_theta)
        return rotary.from_angles(positions[..., None].astype(jnp.float32) * spin)


def _counted(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns how many tokens of its conversation stand before each token, visual tokens included.

    They are its rotary position: unlike Qwen's models this one knows no rows and columns there.
    """
    columns = jnp.arange(segments.shape[1])
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begin = jax.lax.cummax(jnp.where(segments != before, columns, 0), axis=1)
    return columns - begin


class Decoder:
    """Kimi-VL laid out for decoding: layers apart, weights in the compute dtype."""

    def __init__(self, model: KimiVL):
        def cast(path, leaf):
            names = [getattr(key, "key", None) for key in path]
            matrix = ("kernel" in names or "embedding" in names) and "router" not in names
            return leaf.astype(model.compute.dtype) if matrix else leaf

        graph, params = nnx.split(model)
        params = jax.tree_util.tree_map_with_path(cast, params)
        read = nnx.State({name: part for name, part in params.items() if name != "vision"})
        lies = sharding.decoding(read, gib=model.compute.decode_gib, divides=False)
        stacks = nnx.merge(graph, params)
        self.blocks = [
            *layer_stack.unstack(stacks.first, lies),
            *layer_stack.unstack(stacks.blocks, lies),
        ]
        if lies is not None:
            stacked = ("first", "blocks")
            rest = nnx.State({name: part for name, part in read.items() if name not in stacked})
            params = nnx.State({**params, **lies(rest)})
        self.model = nnx.merge(graph, params)

    def empty(
        self, prefix: protocol.Prefix, *, answers: int, length: int, queues: int | None = None
    ) -> protocol.Suffix:
        """Returns the empty cache of answers of at most `length` tokens."""
        _, batch, _, wide = prefix.cache[0].shape
        own = jnp.zeros((queues or batch, answers, length, wide), prefix.cache[0].dtype)
        turn = self.model._turn(prefix.following[:, None] + jnp.arange(length))
        return protocol.Suffix((own,) * len(self.blocks), jnp.int32(0), turn)

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: protocol.Prefix, suffix: protocol.Suffix
    ) -> tuple[Float[Array, "B G Q D"], protocol.Suffix]:
        """Returns the outputs at the next Q tokens of each answer, and the longer cache."""
        new, reach = ids.shape[-1], suffix.own[0].shape[2]
        view = batching.visible_columns(suffix.length, suffix.slots, new=new, reach=reach)
        turn = batching.slice_columns(suffix.turn, suffix.length, suffix.slots, new=new)
        x = self.model._words(ids)
        prompts = [layer for stack in prefix.cache for layer in stack]
        filled = []
        for block, prompt, own in zip(self.blocks, prompts, suffix.own, strict=True):

            def mix(attention, q, latents, prompt=prompt, own=own):
                own = jax.lax.dynamic_update_slice_in_dim(own, latents, view.at, 2)
                used, seen = prefix.used, view.seen
                out = attention.attend_latent(
                    q, prompt, own, used=used, seen=seen, slots=suffix.slots
                )
                return out, own

            x, own = block(x, turn, mix)
            filled.append(own)
        return self.model.norm(x), suffix._replace(own=tuple(filled), length=suffix.length + new)

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token."""
        return self.model.logits(hidden)


def _pick(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries that are fields of a config class; of several end tokens the first."""
    names = {field.name for field in dataclasses.fields(kind)}
    found = {name: values[name] for name in names if name in values}
    if isinstance(found.get("eos_token_id"), list):
        found["eos_token_id"] = found["eos_token_id"][0]
    return found
