"""The Moonlight decoder in Flax NNX: latents for keys and values, experts behind its first layer.

Source: Moonlight, arXiv 2502.16982; DeepSeek-V3, arXiv 2412.19437, section 2.1; config and weight
names of the published checkpoints (`deepseek_v3`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.facts import hub_config
from seg_jax.models.facts.arithmetic import Blocks
from seg_jax.models.nn import experts, latent_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.norms import RMSNorm
from seg_jax.models.nn.rotary import Rotary
from seg_jax.models.parallel import sharding
from seg_jax.records import Array

SIZES = (
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
)
"""Sizes that a `text_config` must give."""

FIXED = {
    "q_lora_rank": None,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "attention_bias": False,
    "hidden_act": "silu",
}
"""Values that a `text_config` may not change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The decoder (`text_config`): its first layer is dense, all others have experts."""

    vocab_size: int = 163_840
    hidden_size: int = 2048
    intermediate_size: int = 11_264
    """Inner width of the first layer, which has no experts."""
    moe_intermediate_size: int = 1408
    """Inner width of one expert."""
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
        hub_config.check_sizes(self, "text")
        if self.num_hidden_layers < 2:
            raise ValueError(
                "text.num_hidden_layers: expected 2 or more (a dense one, then experts), "
                f"got {self.num_hidden_layers}"
                "; do: give it more layers"
            )
        if self.qk_rope_head_dim % 2:
            raise ValueError(
                f"text.qk_rope_head_dim: expected an even number, got {self.qk_rope_head_dim}"
                "; do: add 1 to it"
            )
        if self.n_routed_experts % self.n_group or not 1 <= self.topk_group <= self.n_group:
            raise ValueError(
                f"text.n_group, topk_group: expected groups that divide {self.n_routed_experts} "
                f"experts, and as many or fewer visited, got {self.n_group}, {self.topk_group}"
                "; do: take a divisor as n_group, and a topk_group from 1 to n_group"
            )
        reach = self.n_routed_experts // self.n_group * self.topk_group
        if not 1 <= self.num_experts_per_tok <= reach:
            raise ValueError(
                f"text.num_experts_per_tok: expected 1 to {reach}, got {self.num_experts_per_tok}"
                "; do: take a number in this range, or raise topk_group"
            )


def _layer_names(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}/norm_attention/scale": f"{theirs}.input_layernorm.weight",
        f"{ours}/norm_ffn/scale": f"{theirs}.post_attention_layernorm.weight",
        f"{ours}/attention/q/*": f"{theirs}.self_attn.q_proj.*",
        f"{ours}/attention/kv_in/*": f"{theirs}.self_attn.kv_a_proj_with_mqa.*",
        f"{ours}/attention/kv_norm/scale": f"{theirs}.self_attn.kv_a_layernorm.weight",
        f"{ours}/attention/kv_out/*": f"{theirs}.self_attn.kv_b_proj.*",
        f"{ours}/attention/o/*": f"{theirs}.self_attn.o_proj.*",
    }


_FIRST, _REST = "language_model.model.layers.{}", "language_model.model.layers.{+1}"


NAMES: dict[str, str] = {
    **_layer_names("first", _FIRST),
    "first/ffn/gate/*": f"{_FIRST}.mlp.gate_proj.*",
    "first/ffn/up/*": f"{_FIRST}.mlp.up_proj.*",
    "first/ffn/down/*": f"{_FIRST}.mlp.down_proj.*",
    **_layer_names("blocks", _REST),
    "blocks/ffn/router/kernel": f"{_REST}.mlp.gate.weight",
    "blocks/ffn/router/bias": f"{_REST}.mlp.gate.e_score_correction_bias",
    "blocks/ffn/expert_gate/*": f"{_REST}.mlp.experts.{{e}}.gate_proj.*",
    "blocks/ffn/expert_up/*": f"{_REST}.mlp.experts.{{e}}.up_proj.*",
    "blocks/ffn/expert_down/*": f"{_REST}.mlp.experts.{{e}}.down_proj.*",
    "blocks/ffn/shared/gate/*": f"{_REST}.mlp.shared_experts.gate_proj.*",
    "blocks/ffn/shared/up/*": f"{_REST}.mlp.shared_experts.up_proj.*",
    "blocks/ffn/shared/down/*": f"{_REST}.mlp.shared_experts.down_proj.*",
}
"""Our names of the decoder's layers to theirs, as `io.weights` reads them."""


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
        x = sharding.constrain_rows(x + out)
        return sharding.constrain_rows(x + self.ffn(self.norm_ffn(x))), extra


def count_tokens(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns how many tokens of its conversation stand before each token, visual tokens included.

    They are its rotary position: unlike Qwen's models this one knows no rows and columns there.
    """
    columns = jnp.arange(segments.shape[1])
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    begin = jax.lax.cummax(jnp.where(segments != before, columns, 0), axis=1)
    return columns - begin


def count_products(text: Text) -> list[Blocks]:
    """Returns what the blocks compute: the first is dense, in all others tokens visit experts."""
    wide, heads, rank = text.hidden_size, text.num_attention_heads, text.kv_lora_rank
    plain, turning, value = text.qk_nope_head_dim, text.qk_rope_head_dim, text.v_head_dim
    spread = 2.0 * rank * heads * (plain + value)
    attention = 2.0 * wide * (heads * (plain + turning) + rank + turning) + spread
    attention += 2.0 * heads * value * wide
    pair = 2.0 * heads * (plain + turning + value)
    cached = 2.0 * heads * (2 * rank + turning)
    dense = 2.0 * wide * text.intermediate_size
    expert = 2.0 * wide * text.moe_intermediate_size
    visits = text.num_experts_per_tok + text.n_shared_experts
    routed = attention + 2.0 * wide * text.n_routed_experts + 3 * expert * visits
    routed += 2.0 * wide * text.num_experts_per_tok  # Their outputs, weighted and added up.
    shared = expert * text.n_shared_experts
    return [
        Blocks(1, attention + 3 * dense, dense, pair, spread, cached),
        Blocks(text.num_hidden_layers - 1, routed, shared, pair, spread, cached),
    ]
