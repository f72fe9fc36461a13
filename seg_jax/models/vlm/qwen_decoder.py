"""The decoder that Qwen's dense models share, behind the vision tower of each."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models.facts.family import SpecialTokens
from seg_jax.models.nn import (
    attention,
    blocks,
    cached_attention,
    layer_stack,
    linear,
    patches,
    rotary,
)
from seg_jax.models.nn.compute import Compute
from seg_jax.models.nn.linear import Embedding, Linear
from seg_jax.models.nn.norms import RMSNorm
from seg_jax.models.nn.rotary import Rotary
from seg_jax.models.nn.xla_attention import Heads
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import decoding, protocol
from seg_jax.records import Array, Images, Packing, Tokens

TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Special tokens of images and videos in a `config.json`, outside of its two parts."""


class Seen(NamedTuple):
    """What a vision tower hands to the decoder."""

    visual_tokens: Float[Array, "B visual_tokens D"]
    """One vector per visual token, in the place of a token's embedding."""
    deep: Float[Array, "K B visual_tokens D"] | None = None
    """Vectors that are added to the visual tokens' outputs of the first K layers, or nothing."""


def stills(patch: Linear, vision: Any, images: Images, *, dtype: str) -> Float[Array, "B S D"]:
    """Returns the embeddings of patches by a layer that was made for videos.

    All frames of a still are equal, so that the layer's kernels for them add up.

    Args:
      patch: rows of its kernel lie in torch's order: channel, frame, row, column.
      vision: sizes of patches, pixel statistics in 0..1.
      images: raw pixels.
      dtype: of the product.
    """
    area = vision.patch_size**2
    x = patches.standardise(
        images.patches,
        mean=vision.image_mean,
        std=vision.image_std,
        patch_size=vision.patch_size,
    ).astype(dtype)
    frames = patch.kernel[...].reshape(3, vision.temporal_patch_size, area, -1)
    x = jnp.dot(x, frames.sum(1).reshape(3 * area, -1).astype(x.dtype))
    return x if patch.bias is None else x + patch.bias[...].astype(x.dtype)


def block_shape(text: Any, **more: Any) -> blocks.Shape:
    """Returns the sizes of the blocks of a config's `text`; more are fields that a port changes."""
    usual: dict[str, Any] = {
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "ffn": text.intermediate_size,
        "eps": text.rms_norm_eps,
        "std": text.initializer_range,
        "out_bias": False,
        "ffn_bias": False,
    }
    return blocks.Shape(**usual, **more)


class Dense(nnx.Module):
    """Words and visual tokens through blocks of grouped-query attention with M-RoPE; see `vlm.VLM`.

    A port gives it a config whose `text` has `axes` (for each pair of channels the axis of the
    position that it turns with) and `rope_theta`, and a vision tower that returns `Seen`.
    """

    def __init__(
        self,
        config: Any,
        shape: blocks.Shape,
        *,
        vision: Any,
        compute: Compute,
        rngs: nnx.Rngs,
    ):
        """Draws the decoder: normal weights, zero biases, norms at one."""
        self.config, self.compute, self.vision = config, compute, vision
        text = config.text
        size = (text.vocab_size, text.hidden_size)
        std, dtype = text.initializer_range, compute.param_dtype
        self.embed = Embedding(size, std=std, dtype=dtype, rngs=rngs)
        self.blocks = blocks.Block(shape, stack=text.num_hidden_layers, compute=compute, rngs=rngs)
        self.norm = RMSNorm(text.hidden_size, eps=text.rms_norm_eps, stack=0, dtype=dtype)
        self.head = (
            None if config.tie_word_embeddings else Embedding(size, std=std, dtype=dtype, rngs=rngs)
        )

    def encode(self, images: Images) -> Float[Array, "B visual_tokens D"]:
        """Returns the visual tokens of each row's images."""
        return self.vision(images).visual_tokens

    def hidden(self, tokens: Tokens, images: Images | None) -> Float[Array, "B T D"]:
        """Returns the outputs at every token."""

        def mix(heads):
            return self._attend(heads, tokens.segments), None

        return self._read(tokens, images, mix)[0]

    def prefill(self, tokens: Tokens, images: Images | None) -> protocol.Prefix:
        """Returns the prompts as read."""

        def mix(heads):
            return self._attend(heads, tokens.segments), cached_attention.prompt_cache(heads)

        hidden, shared = self._read(tokens, images, mix)
        used = tokens.segments == tokens.segments[:, -1:]
        last = jnp.max(jnp.where(used[:, None], tokens.positions, -1), (1, 2))
        return protocol.Prefix(shared, used, last + 1, hidden[:, -1])

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: protocol.Prefix, packing: Packing | None = None
    ) -> Float[Array, "B G Q D"]:
        """Returns the outputs at whole answers."""
        columns = jnp.arange(ids.shape[-1]) if packing is None else packing.columns
        turn = self.answer_turn(prefix.following[:, None, None] + columns)
        seen, kind = (
            attention.visibility(prefix.used, ids.shape[-1], packing),
            self.compute.attention,
        )

        def step(block, x, prompt):
            def mix(heads):
                return attention.attend_answers(heads, prompt, seen, kind=kind), None

            return block(x, turn, mix)

        x, _ = layer_stack.apply(
            self.blocks, self.words(ids), step, each=prefix.cache, compute=self.compute
        )
        return self.norm(x)

    def decoder(self) -> Decoder:
        """Returns the model laid out for decoding."""
        return Decoder(self)

    def unembed(self) -> Float[Array, "V D"]:
        """Returns the output head."""
        return (self.head or self.embed).embedding[...]

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token, in float32."""
        return linear.logits(hidden, self.unembed())

    def words(self, ids: Int[Array, "*n"]) -> Float[Array, "*n D"]:
        """Returns the embeddings of tokens."""
        return sharding.constrain_rows(self.embed.embedding[...][ids].astype(self.compute.dtype))

    def turn(self, positions: Int[Array, "B 3 T"]) -> Rotary:
        """Returns the rotation of every token: each pair of channels turns with one axis."""
        axes = self.config.text.axes
        spin = rotary.frequencies(len(axes), self.config.text.rope_theta)
        return rotary.from_angles(positions[:, axes].swapaxes(1, 2).astype(jnp.float32) * spin)

    def answer_turn(self, place: Int[Array, "*n Q"]) -> Rotary:
        """Returns the rotation at positions: text turns alike on all axes."""
        spin = rotary.frequencies(len(self.config.text.axes), self.config.text.rope_theta)
        return rotary.from_angles(place[..., None].astype(jnp.float32) * spin)

    def _attend(self, heads: Heads, segments: Int[Array, "B T"]) -> Float[Array, "B T heads hd"]:
        return attention.attend(heads, segments, causal=True, kind=self.compute.attention)

    def _read(
        self, tokens: Tokens, images: Images | None, mix: blocks.Mix
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the outputs at every token and what `mix` returned in each layer."""
        turn = self.turn(tokens.positions)
        x, deep = self.words(tokens.ids), None
        if images is not None and images.patches.shape[1]:
            seen = self.vision(images)
            at, is_visual = (
                jnp.maximum(tokens.visual_tokens, 0)[..., None],
                tokens.visual_tokens[..., None] >= 0,
            )
            x = jnp.where(
                is_visual, jnp.take_along_axis(seen.visual_tokens, at, 1).astype(x.dtype), x
            )
            if seen.deep is not None:
                found = jnp.take_along_axis(seen.deep, at[None], 2).astype(x.dtype)
                deep = jnp.where(is_visual, found, 0)

        def step(block, x, number):
            x, extra = block(x, turn, mix)
            if deep is not None:
                more = deep[jnp.minimum(number, len(deep) - 1)]
                x = x + jnp.where(number < len(deep), more, 0)
            return x, extra

        numbers = None if deep is None else np.arange(self.config.text.num_hidden_layers)
        x, extra = layer_stack.apply(self.blocks, x, step, each=numbers, compute=self.compute)
        return self.norm(x), extra


class Decoder(nnx.Module):
    """A dense model laid out for decoding: layers apart, weights in the compute dtype."""

    def __init__(self, model: Dense):
        def cast(path, leaf):
            matrix = any(getattr(k, "key", None) in linear.MATRICES for k in path)
            return leaf.astype(model.compute.dtype) if matrix else leaf

        graph, params = nnx.split(model)
        params = jax.tree_util.tree_map_with_path(cast, params)
        read = nnx.State({name: part for name, part in params.items() if name != "vision"})
        lies = sharding.decoding_layout(read, gib=model.compute.decode_gib, divides=True)
        self.blocks = nnx.List(layer_stack.unstack(nnx.merge(graph, params).blocks, lies))
        if lies is not None:
            for block in self.blocks:
                block.travel = lies.tokens_travel
            rest = nnx.State({name: part for name, part in read.items() if name != "blocks"})
            params = nnx.State({**params, **lies(rest)})
        self.model = nnx.merge(graph, params)

    def empty(
        self, prefix: protocol.Prefix, *, answers: int, length: int, queues: int | None = None
    ) -> protocol.Suffix:
        """Returns the empty cache of answers of at most `length` tokens."""
        k, v = (layers[0] for layers in prefix.cache)
        batch, kv, head, _ = k.shape
        batch = queues or batch
        own = cached_attention.AnswerCache(
            jnp.zeros((batch, kv, answers, head, length), k.dtype),
            jnp.zeros((batch, kv, answers, length, head), v.dtype),
        )
        turn = self.model.answer_turn(prefix.following[:, None] + jnp.arange(length))
        return protocol.Suffix((own,) * len(self.blocks), jnp.int32(0), turn)

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: protocol.Prefix, suffix: protocol.Suffix
    ) -> tuple[Float[Array, "B G Q D"], protocol.Suffix]:
        """Returns the outputs at the next Q tokens of each answer, and the longer cache."""
        write = jax.lax.dynamic_update_slice_in_dim

        def mix(number, own, view, heads):
            more = cached_attention.answer_cache(heads)
            own = cached_attention.AnswerCache(
                write(own.k, more.k, view.at, 4), write(own.v, more.v, view.at, 3)
            )
            k, v = (part[number] for part in (prefix.cache.k, prefix.cache.v))
            prompt = cached_attention.PromptCache(k, v)
            used, seen, slots = prefix.used, view.seen, suffix.slots
            return cached_attention.attend_slots(
                heads.q, prompt, own, used=used, seen=seen, slots=slots
            ), own

        reach = suffix.own[0].v.shape[-2]
        x = self.model.words(ids)
        x, suffix = decoding.extend(self.blocks, x, suffix, reach=reach, mix=mix)
        return self.model.norm(x), suffix

    def prolonged(
        self, prefix: protocol.Prefix, suffix: protocol.Suffix, count: Int[Array, " B"]
    ) -> Any:
        """Returns the cache of prompts with the first tokens of their one answer at their ends."""
        prompts = map(cached_attention.PromptCache, *prefix.cache)
        found = [
            cached_attention.prolonged(prompt, own, count)
            for prompt, own in zip(prompts, suffix.own, strict=True)
        ]
        k, v = ([one[part] for one in found] for part in range(2))
        return prefix.cache._replace(k=tuple(k), v=tuple(v))

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token."""
        return self.model.logits(hidden)


def with_tokens(config: Any, tokenizer: SpecialTokens) -> Any:
    """Returns a config with the special tokens of a tokenizer."""
    ends = {"bos_token_id": tokenizer.pad_id, "eos_token_id": tokenizer.end_id}
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, **ends),
        image_token_id=tokenizer.image_id,
        video_token_id=tokenizer.id("<|video_pad|>"),
        vision_start_token_id=tokenizer.id("<|vision_start|>"),
        vision_end_token_id=tokenizer.id("<|vision_end|>"),
    )


def video_kernel(config: Any) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of the hub's kernel of patches: channel, frame, row, column."""
    vision = config.vision
    sides = (vision.patch_size, vision.patch_size)
    return {"vision/patch/kernel": (3, vision.temporal_patch_size, *sides)}
