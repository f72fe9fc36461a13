"""Kimi-VL in Flax NNX: MoonViT before the Moonlight decoder with latents and experts.

Source: Kimi-VL technical report, arXiv 2504.07491, section 2.1; config and weight names of the
published checkpoints (`kimi_vl`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.facts import arithmetic, hub_config, image_layout
from seg_jax.models.facts.arithmetic import Arithmetic
from seg_jax.models.facts.family import VLM, Family, SpecialTokens
from seg_jax.models.nn import (
    attention,
    batching,
    layer_stack,
    linear,
    rotary,
)
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Embedding
from seg_jax.models.nn.norms import RMSNorm
from seg_jax.models.nn.rotary import Rotary
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import decoding, moonlight, moonvit, protocol
from seg_jax.records import Array, Images, Packing, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The whole model; the defaults are Kimi-VL-A3B."""

    text: moonlight.Text = moonlight.Text()
    vision: moonvit.Vision = moonvit.Vision()
    tie_word_embeddings: bool = False
    media_placeholder_token_id: int = 163_605

    @property
    def image_token_id(self) -> int:
        """Token whose place a visual token takes."""
        return self.media_placeholder_token_id

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> Config:
        """Returns the config that a `config.json` of the hub describes."""
        hub_config.check_model_type(hf, "kimi_vl")
        text, vision = hf.get("text_config") or {}, hf.get("vision_config") or {}
        hub_config.check_present(
            {"text_config.": (text, moonlight.SIZES), "vision_config.": (vision, moonvit.SIZES)}
        )
        hub_config.check_fixed(text, moonlight.FIXED, where="text_config")
        rope, kind = hub_config.rotary(text)
        if kind != "default":
            raise ValueError(
                f"text_config.rope_scaling: expected none, got {kind!r}"
                "; do: take a model without it, scaled positions are not supported"
            )
        if "rope_theta" in rope:
            text = text | {"rope_theta": rope["rope_theta"]}
        text = hub_config.pick_fields(moonlight.Text, text)
        vision = hub_config.pick_fields(moonvit.Vision, vision)
        if "merge_kernel_size" in vision:
            vision["merge_kernel_size"] = tuple(vision["merge_kernel_size"])
        named = ("tie_word_embeddings", "media_placeholder_token_id")
        rest = {name: hf[name] for name in named if name in hf}
        return cls(text=moonlight.Text(**text), vision=moonvit.Vision(**vision), **rest)

    def to_hf(self) -> dict[str, Any]:
        """Returns a `config.json` as the hub has it, without pointers to remote code."""
        text = dataclasses.asdict(self.text) | moonlight.FIXED
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


_VISION = "vision_tower.encoder.blocks.{}"

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
    **moonlight.NAMES,
    "norm/scale": "language_model.model.norm.weight",
    "head/embedding": "language_model.lm_head.weight",
}
"""Ours to theirs. `{}` is the layer (ours are stacked), `{+1}` the layer of a stack that begins at
their layer 1, `{e}` the expert (ours on the next axis), `*` is kernel and weight or bias and bias,
`[i/n]` the i-th of n equal parts of the rows of theirs. Kernels are transposed weights."""


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
        self.first = moonlight.Block(text, dense=True, stack=1, compute=compute, rngs=rngs)
        rest = text.num_hidden_layers - 1
        self.blocks = moonlight.Block(text, dense=False, stack=rest, compute=compute, rngs=rngs)
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

        turn = self._turn(moonlight.count_tokens(tokens.segments))
        return self._through(self._inputs(tokens, images), turn, mix, each=(None, None))[0]

    def prefill(self, tokens: Tokens, images: Images | None) -> protocol.Prefix:
        """Returns the prompts as read; of each token its latents are kept."""

        def mix(attention, q, latents):
            return attention.attend(q, latents, tokens.segments), latents

        place = moonlight.count_tokens(tokens.segments)
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
        seen = attention.visibility(prefix.used, ids.shape[-1], packing)

        def mix(layer, q, latents, prompt):
            return layer.attend_spread(q, prompt, latents, seen=seen), None

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
        return sharding.constrain_rows(self.embed.embedding[...][ids].astype(self.compute.dtype))

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


class Decoder(nnx.Module):
    """Kimi-VL laid out for decoding: layers apart, weights in the compute dtype."""

    def __init__(self, model: KimiVL):
        def cast(path, leaf):
            names = [getattr(key, "key", None) for key in path]
            matrix = any(name in linear.MATRICES for name in names) and "router" not in names
            return leaf.astype(model.compute.dtype) if matrix else leaf

        graph, params = nnx.split(model)
        params = jax.tree_util.tree_map_with_path(cast, params)
        read = nnx.State({name: part for name, part in params.items() if name != "vision"})
        lies = sharding.decoding_layout(read, gib=model.compute.decode_gib, divides=False)
        stacks = nnx.merge(graph, params)
        self.blocks = nnx.List(
            [*layer_stack.unstack(stacks.first, lies), *layer_stack.unstack(stacks.blocks, lies)]
        )
        if lies is not None:
            stacked = ("first", "blocks")
            rest = nnx.State({name: part for name, part in read.items() if name not in stacked})
            params = nnx.State({**params, **lies(rest)})
        self.model = nnx.merge(graph, params)

    def empty(
        self, prefix: protocol.Prefix, *, answers: int, length: int, queues: int | None = None
    ) -> protocol.Suffix:
        """Returns the empty cache of answers of at most `length` tokens."""
        batch, _, wide = (latents := prefix.cache[0][0]).shape
        own = jnp.zeros((queues or batch, answers, length, wide), latents.dtype)
        turn = self.model._turn(prefix.following[:, None] + jnp.arange(length))
        return protocol.Suffix((own,) * len(self.blocks), jnp.int32(0), turn)

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: protocol.Prefix, suffix: protocol.Suffix
    ) -> tuple[Float[Array, "B G Q D"], protocol.Suffix]:
        """Returns the outputs at the next Q tokens of each answer, and the longer cache."""
        prompts = [layer for stack in prefix.cache for layer in stack]

        def mix(number, own, view, attention, q, latents):
            own = jax.lax.dynamic_update_slice_in_dim(own, latents, view.at, 2)
            used, seen, slots = prefix.used, view.seen, suffix.slots
            prompt = prompts[number]
            return attention.attend_latent(q, prompt, own, used=used, seen=seen, slots=slots), own

        reach = suffix.own[0].shape[2]
        x = self.model._words(ids)
        x, suffix = decoding.extend(self.blocks, x, suffix, reach=reach, mix=mix)
        return self.model.norm(x), suffix

    def prolonged(
        self, prefix: protocol.Prefix, suffix: protocol.Suffix, count: Int[Array, " B"]
    ) -> tuple[tuple[Array, ...], ...]:
        """Returns the cache of prompts with the first tokens of their one answer at their ends."""
        length, own = prefix.used.shape[1], iter(suffix.own)
        return tuple(
            tuple(
                batching.slice_rows(
                    jnp.concatenate([prompt, next(own)[:, 0]], 1), count, length=length, axis=1
                )
                for prompt in stack
            )
            for stack in prefix.cache
        )

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token."""
        return self.model.logits(hidden)


def with_tokens(config: Config, tokenizer: SpecialTokens) -> Config:
    """Returns a config with the special tokens of a tokenizer."""
    ends = {"bos_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.end_id}
    text = dataclasses.replace(config.text, **ends)
    return dataclasses.replace(config, text=text, media_placeholder_token_id=tokenizer.image_id)


def count_products(config: Config) -> Arithmetic:
    """Returns what a model computes for a token and for a patch."""
    vision = config.vision
    return arithmetic.of_model(
        config,
        decoder=moonlight.count_products(config.text),
        tower=[arithmetic.of_tower(vision, depth=vision.num_hidden_layers, products=2)],
    )


def patch_kernel(config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of the hub's kernel of patches: channel, row, column."""
    side = config.vision.patch_size
    return {"vision/patch/kernel": (3, side, side)}


FAMILY = Family(
    model_type="kimi_vl",
    config=Config,
    model=KimiVL,
    names=NAMES,
    convolutions=patch_kernel,
    repeated=lambda config: (NAMES["head/embedding"],) if config.tie_word_embeddings else (),
    with_preprocessor=hub_config.with_pixel_statistics,
    vlm=VLM(
        tokenizer="moonshot",
        with_tokens=with_tokens,
        image_layout=image_layout.native_layout,
        preprocessor=image_layout.native_preprocessor,
        arithmetic=count_products,
        merger=("vision/merge_norm", "vision/merge_in", "vision/merge_out"),
    ),
)
