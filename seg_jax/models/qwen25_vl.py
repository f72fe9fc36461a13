"""Qwen2.5-VL in Flax NNX: windowed vision tower, merger and text decoder with M-RoPE.

Source: Qwen2.5-VL technical report, arXiv 2502.13923, section 2.1; config names of
`transformers` (`Qwen2_5_VLConfig`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from seg_jax.models import layers, sharding, vlm
from seg_jax.records import Array, Packing, Pictures, Tokens

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
    ("depth", "hidden_size", "intermediate_size", "num_heads"),
)
"""What a `config.json` must say of text and vision: a default would be another model's."""


def _head(width: int, heads: int, where: str) -> int:
    if width % heads:
        raise ValueError(f"{where}: expected heads that divide width {width}, got {heads}")
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
        head = _head(self.hidden_size, self.num_attention_heads, "text")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"text.num_key_value_heads: expected a divisor of {self.num_attention_heads} "
                f"heads, got {self.num_key_value_heads}"
            )
        if 2 * sum(self.mrope_section) != head or len(self.mrope_section) != 3:
            raise ValueError(
                f"text.mrope_section: expected three numbers that add up to {head // 2} (half the "
                f"head width), got {self.mrope_section}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision tower (`vision_config`) and the normalisation of its pictures."""

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
        if _head(self.hidden_size, self.num_heads, "vision") % 4:
            raise ValueError(
                f"vision: expected a head width that four divides, got "
                f"{self.hidden_size // self.num_heads}: height and width turn half of it each"
            )
        if self.window_cells < 1:
            raise ValueError(
                f"vision.window_size: expected at least {self.patch_size} x "
                f"{self.spatial_merge_size} pixels, got {self.window_size}"
            )

    @property
    def window_cells(self) -> int:
        """Side of an attention window in merged cells."""
        return self.window_size // self.spatial_merge_size // self.patch_size


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
        if hf.get("model_type", "qwen2_5_vl") != "qwen2_5_vl":
            raise ValueError(f"model_type: expected 'qwen2_5_vl', got {hf['model_type']!r}")
        nested = hf.get("text_config") or hf
        rope = nested.get("rope_parameters") or nested.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise ValueError(f"rope_scaling: expected type 'mrope' or 'default', got {kind!r}")
        if nested.get("use_sliding_window"):
            raise ValueError("use_sliding_window: expected false, got true: not supported")
        vision = hf.get("vision_config") or {}
        if lost := [name for name in _SIZES[0] if name not in nested] + [
            f"vision_config.{name}" for name in _SIZES[1] if name not in vision
        ]:
            raise ValueError(f"config.json: expected all sizes of a model, got no {lost}")
        if vision.get("in_channels", 3) != 3:
            raise ValueError(f"vision_config.in_channels: expected 3, got {vision['in_channels']}")
        text = _pick(Text, nested)
        text["rope_theta"] = rope.get("rope_theta", nested.get("rope_theta", 1e6))
        text["mrope_section"] = tuple(rope.get("mrope_section", (16, 24, 24)))
        # The class default of transformers; checkpoints say 1e-6.
        text.setdefault("rms_norm_eps", 1e-5)
        vision = _pick(Vision, vision)
        if "fullatt_block_indexes" in vision:
            vision["fullatt_block_indexes"] = tuple(vision["fullatt_block_indexes"])
        ids = {name: hf[name] for name in hf if name in _names(cls) and name.endswith("_id")}
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
        rest = {name: getattr(self, name) for name in _names(Config) - {"text", "vision"}}
        return rest | {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "text_config": text,
            "vision_config": vision,
        }


class VisionTower(nnx.Module):
    """Patches to cells."""

    def __init__(self, config: Config, *, compute: layers.Compute, rngs: nnx.Rngs):
        self.config, self.compute = config.vision, compute
        vision = self.config

        def linear(size: tuple[int, int], bias: bool) -> layers.Linear:
            std, dtype = vision.initializer_range, compute.param_dtype
            return layers.Linear(size, bias=bias, stack=0, std=std, dtype=dtype, rngs=rngs)

        # Rows in torch's order: channel, frame, row, column.
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        self.patch = linear((pixels, vision.hidden_size), bias=False)
        shape = layers.Shape(
            width=vision.hidden_size,
            heads=vision.num_heads,
            kv_heads=vision.num_heads,
            ffn=vision.intermediate_size,
            eps=VISION_EPS,
            std=vision.initializer_range,
            out_bias=True,
            ffn_bias=True,
        )
        self.blocks = layers.Block(shape, stack=vision.depth, compute=compute, rngs=rngs)
        cell = vision.hidden_size * vision.spatial_merge_size**2
        self.norm = layers.RMSNorm(
            vision.hidden_size, eps=VISION_EPS, stack=0, dtype=compute.param_dtype
        )
        self.merge_in = linear((cell, cell), bias=True)
        self.merge_out = linear((cell, config.text.hidden_size), bias=True)

    def __call__(self, pictures: Pictures) -> Float[Array, "B cells D"]:
        """Returns one vector per cell of merge x merge patches."""
        vision = self.config
        x = self._embed(pictures.patches)
        head = vision.hidden_size // vision.num_heads
        spin = layers.frequencies(head // 4, VISION_THETA)
        place = pictures.place.astype(jnp.float32)
        turn = layers.rotary(jnp.concatenate([place[..., :1] * spin, place[..., 1:] * spin], -1))

        def step(block, x, full):
            segments = jnp.where(full, pictures.picture, pictures.window)
            return block(x, turn, lambda h: (layers.attend(h, segments, causal=False), None))

        full = np.isin(np.arange(vision.depth), vision.fullatt_block_indexes)
        x, _ = layers.through(self.blocks, x, step, each=full, compute=self.compute)
        cells = self.norm(x).reshape(x.shape[0], -1, self.merge_in.kernel.shape[-2])
        return self.merge_out(jax.nn.gelu(self.merge_in(cells), approximate=False))

    def _embed(self, patches: Array) -> Float[Array, "B S D"]:
        """Returns the patch embedding: both frames of a still are equal, so kernels add up."""
        vision = self.config
        area = vision.patch_size**2
        mean = np.repeat(np.array(vision.image_mean, np.float32), area) * 255
        std = np.repeat(np.array(vision.image_std, np.float32), area) * 255
        x = ((patches.astype(jnp.float32) - mean) / std).astype(self.compute.dtype)
        kernel = self.patch.kernel[...]
        frames = kernel.reshape(3, vision.temporal_patch_size, area, -1)
        return jnp.dot(x, frames.sum(1).reshape(3 * area, -1).astype(x.dtype))


class Qwen25VL(nnx.Module):
    """The model; see `vlm.VLM` for what its methods mean."""

    def __init__(
        self,
        config: Config,
        *,
        compute: layers.Compute = layers.Compute(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        """Draws a model: normal weights, zero biases, norms at one."""
        self.config, self.compute = config, compute
        text = config.text
        size = (text.vocab_size, text.hidden_size)
        std, dtype = text.initializer_range, compute.param_dtype
        self.vision = VisionTower(config, compute=compute, rngs=rngs)
        self.embed = layers.Embedding(size, std=std, dtype=dtype, rngs=rngs)
        shape = layers.Shape(
            width=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            ffn=text.intermediate_size,
            eps=text.rms_norm_eps,
            std=std,
            out_bias=False,
            ffn_bias=False,
        )
        self.blocks = layers.Block(shape, stack=text.num_hidden_layers, compute=compute, rngs=rngs)
        self.norm = layers.RMSNorm(text.hidden_size, eps=text.rms_norm_eps, stack=0, dtype=dtype)
        self.head = (
            None
            if config.tie_word_embeddings
            else layers.Embedding(size, std=std, dtype=dtype, rngs=rngs)
        )

    def encode(self, pictures: Pictures) -> Float[Array, "B cells D"]:
        """Returns the cells of each row's pictures."""
        return self.vision(pictures)

    def hidden(self, tokens: Tokens, pictures: Pictures | None) -> Float[Array, "B T D"]:
        """Returns the outputs at every token."""
        turn = self._turn(tokens.positions)

        def step(block, x, _):
            return block(x, turn, lambda h: (layers.attend(h, tokens.segments, causal=True), None))

        x = self._inputs(tokens, pictures)
        x, _ = layers.through(self.blocks, x, step, each=None, compute=self.compute)
        return self.norm(x)

    def prefill(self, tokens: Tokens, pictures: Pictures | None) -> vlm.Prefix:
        """Returns the prompts as read."""
        turn = self._turn(tokens.positions)

        def mix(heads):
            return layers.attend(heads, tokens.segments, causal=True), layers.shared(heads)

        def step(block, x, _):
            return block(x, turn, mix)

        x = self._inputs(tokens, pictures)
        x, shared = layers.through(self.blocks, x, step, each=None, compute=self.compute)
        used = tokens.segments == tokens.segments[:, -1:]
        last = jnp.max(jnp.where(used[:, None], tokens.positions, -1), (1, 2))
        return vlm.Prefix(shared, used, last + 1, self.norm(x[:, -1]))

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: vlm.Prefix, packing: Packing | None = None
    ) -> Float[Array, "B G Q D"]:
        """Returns the outputs at whole answers."""
        columns = np.arange(ids.shape[-1])
        seen = columns[:, None] >= columns
        if packing is not None:
            columns, segments = packing.columns, packing.segments
            seen = seen & (segments[..., :, None] == segments[..., None, :])
        turn = self._answer_turn(prefix, columns)

        def step(block, x, prompt):
            def mix(heads):
                own = layers.own(heads)
                return layers.attend_shared(heads.q, prompt, own, used=prefix.used, seen=seen), None

            return block(x, turn, mix)

        x, _ = layers.through(
            self.blocks, self._words(ids), step, each=prefix.cache, compute=self.compute
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
        return jnp.einsum(
            "...d,vd->...v",
            hidden,
            self.unembed().astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )

    def _words(self, ids: Int[Array, "*n"]) -> Float[Array, "*n D"]:
        return sharding.rows(self.embed.embedding[...][ids].astype(self.compute.dtype))

    def _inputs(self, tokens: Tokens, pictures: Pictures | None) -> Float[Array, "B T D"]:
        """Returns token embeddings with the cells of pictures in their places."""
        words = self._words(tokens.ids)
        if pictures is None or pictures.patches.shape[1] == 0:
            return words
        at = jnp.maximum(tokens.cells, 0)[..., None]
        cells = jnp.take_along_axis(self.encode(pictures), at, axis=1)
        return jnp.where(tokens.cells[..., None] >= 0, cells.astype(words.dtype), words)

    def _turn(self, positions: Int[Array, "B 3 T"]) -> layers.Rotary:
        """Returns the rotation of every token: a section of the channels turns with each axis."""
        section = self.config.text.mrope_section
        spin = layers.frequencies(sum(section), self.config.text.rope_theta)
        axis = np.repeat(np.arange(3), section)
        return layers.rotary(positions[:, axis].swapaxes(1, 2).astype(jnp.float32) * spin)

    def _answer_turn(self, prefix: vlm.Prefix, columns: Int[Array, "*n Q"]) -> layers.Rotary:
        """Returns the rotation at columns [Q] or [B G Q]: text turns alike on all axes."""
        spin = layers.frequencies(sum(self.config.text.mrope_section), self.config.text.rope_theta)
        place = (prefix.following[:, None, None] + columns)[..., None]  # B (1 or G) Q 1
        return layers.rotary(place.astype(jnp.float32) * spin)


class Decoder:
    """Qwen2.5-VL laid out for decoding: layers apart, weights in the compute dtype."""

    def __init__(self, model: Qwen25VL):
        def cast(path, leaf):
            matrix = any(getattr(k, "key", None) in ("kernel", "embedding") for k in path)
            return leaf.astype(model.compute.dtype) if matrix else leaf

        graph, params = nnx.split(model)
        self.model = nnx.merge(graph, jax.tree_util.tree_map_with_path(cast, params))
        self.blocks = layers.unstack(self.model.blocks)

    def empty(self, prefix: vlm.Prefix, *, answers: int, length: int) -> vlm.Suffix:
        """Returns the empty cache of answers of at most `length` tokens."""
        k, v = prefix.cache
        _, batch, kv, head, _ = k.shape
        own = layers.Own(
            jnp.zeros((batch, kv, answers, head, length), k.dtype),
            jnp.zeros((batch, kv, answers, length, head), v.dtype),
        )
        return vlm.Suffix((own,) * len(self.blocks), jnp.int32(0))

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: vlm.Prefix, suffix: vlm.Suffix
    ) -> tuple[Float[Array, "B G Q D"], vlm.Suffix]:
        """Returns the outputs at the next Q tokens of each answer, and the longer cache."""
        columns = suffix.length + jnp.arange(ids.shape[-1])
        turn = self.model._answer_turn(prefix, columns)
        seen = columns[:, None] >= jnp.arange(suffix.own[0].v.shape[-2])
        x = self.model._words(ids)
        filled, write = [], jax.lax.dynamic_update_slice_in_dim
        for i, (block, own) in enumerate(zip(self.blocks, suffix.own, strict=True)):

            def mix(heads, i=i, own=own):
                new = layers.own(heads)
                own = layers.Own(
                    write(own.k, new.k, suffix.length, 4), write(own.v, new.v, suffix.length, 3)
                )
                prompt = layers.Shared(prefix.cache.k[i], prefix.cache.v[i])
                return layers.attend_shared(heads.q, prompt, own, used=prefix.used, seen=seen), own

            x, own = block(x, turn, mix)
            filled.append(own)
        return self.model.norm(x), vlm.Suffix(tuple(filled), suffix.length + ids.shape[-1])

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token."""
        return self.model.logits(hidden)


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _pick(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the entries that are fields of a config class; of several end tokens the first."""
    found = {name: values[name] for name in _names(kind) if name in values}
    if isinstance(found.get("eos_token_id"), list):
        found["eos_token_id"] = found["eos_token_id"][0]
    return found
