"""Counts the arithmetic of a model from its sizes: one multiplication with one addition is two.

Counted are matrix products as the ports compute them: whole static rows with their padding, every
pair of tokens in attention, masked or not. Norms, softmax and the like are left out.

Source: a product [m k] [k n] is 2 m k n operations, its gradient twice that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from seg_jax.models.nn import xla_attention
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import kimi_vl, qwen3_vl, qwen25_vl

Work = dict[str, float]
"""Operations by what they are spent on: vision, text, head; backward, recomputed, ..."""

NEEDED = ("vision", "text", "head", "backward")
"""What a step cannot do without; a share of the peak (MFU) counts these."""


class Part(NamedTuple):
    """Of a pass through one part of a model."""

    name: str
    forward: float
    backward: float
    """Where the pass is differentiated."""
    again: float
    """What the backward pass then computes a second time."""


def forward(parts: Iterable[Part]) -> Work:
    """Returns the operations of passes without a gradient."""
    done: Work = {}
    for part in parts:
        done[part.name] = done.get(part.name, 0.0) + part.forward
    return done


def trained(parts: Iterable[Part]) -> Work:
    """Returns the operations of passes and of their gradient."""
    parts = list(parts)
    backward, again = sum(p.backward for p in parts), sum(p.again for p in parts)
    return forward(parts) | {"backward": backward, "recomputed": again}


class _Blocks(NamedTuple):
    """Equal blocks of a stack."""

    count: int
    weights: float
    """Operations with weights for a token."""
    last: float
    """Of these what no gradient needs the result of: the last product."""
    pair: float
    """Of attention for a query and a key."""
    spread: float = 0.0
    """For a token of a prompt, each time that answers look at it (latent attention)."""
    near: float = 0.0
    """Of attention for a query and a key of a cache; as `pair` if 0."""
    reach: int = 0
    """Patches of a window, where blocks look no further."""


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts passes of a model."""

    config: Any
    """Of any family."""
    compute: Compute

    def read(self, rows: int, tokens: int, patches: int) -> list[Part]:
        """Returns the work on prompts of `tokens` tokens, images included."""
        return [
            self._images(rows, patches),
            self._blocks("text", _decoder(self.config), rows, tokens),
        ]

    def extend(self, rows: int, answers: int, length: int, *, behind: int) -> Part:
        """Returns the work on whole answers that look at prompts of `behind` tokens."""
        done = again = 0.0
        for stack in _decoder(self.config):
            tokens = rows * answers * length
            scores = stack.pair * tokens * (behind + length) * stack.count
            spread = stack.spread * rows * behind * stack.count
            weights = stack.weights * tokens * stack.count
            done += weights + scores + spread
            again += self._again(weights + spread, stack.last * tokens * stack.count, scores)
        return Part("text", done, 2 * done, again)

    def head(self, rows: int, length: int, chunk: int | None) -> Part:
        """Returns the work on the scores of the next token at every token of rows."""
        text = self.config.text
        columns = length if chunk is None else math.ceil(length / chunk) * chunk
        done = 2.0 * rows * columns * text.hidden_size * text.vocab_size
        return Part("head", done, 2 * done, 0.0 if chunk is None else done)

    def decode(self, rows: int, answers: int, length: int, *, behind: int) -> list[Part]:
        """Returns the work on answers drawn token by token, none ending before `length`."""
        done, passes = 0.0, length - 1
        for stack in _decoder(self.config):
            seen = (stack.near or stack.pair) * (behind + max(passes, 1))
            done += stack.count * (stack.weights + seen)
        done *= rows * answers * passes
        text = self.config.text
        # The first token of all answers comes of one score of the prompt.
        scored = rows + rows * answers * passes
        head = 2.0 * scored * text.hidden_size * text.vocab_size
        return [Part("text", done, 0.0, 0.0), Part("head", head, 0.0, 0.0)]

    def _images(self, rows: int, patches: int) -> Part:
        blocks, embed, merge = _tower(self.config)
        part = self._blocks("vision", blocks, rows, patches)
        embed, merge = embed * rows * patches, merge * rows * patches
        # Pixels want no gradient.
        return Part(
            "vision",
            part.forward + embed + merge,
            part.backward + embed + 2 * merge,
            part.again,
        )

    def _blocks(self, name: str, stacks: list[_Blocks], rows: int, tokens: int) -> Part:
        done = again = 0.0
        for stack in stacks:
            weights = stack.weights * rows * tokens * stack.count
            pairs, divided = _pairs(tokens, stack.reach)
            scores = stack.pair * rows * pairs * stack.count
            done += weights + scores
            again += self._again(weights, stack.last * rows * tokens * stack.count, scores)
            again += scores if divided else 0.0
        return Part(name, done, 2 * done, again)

    def _again(self, weights: float, last: float, scores: float) -> float:
        """Returns what `Compute.remat` makes the backward pass compute a second time."""
        whole = weights - last + scores
        return {"none": 0.0, "dots": scores, "full": whole}[self.compute.remat]


def _pairs(tokens: int, reach: int) -> tuple[int, bool]:
    """Returns queries times keys of attention in a row, and whether it is worked off in parts."""
    if reach and tokens > max(xla_attention.LONG_ROW, 3 * reach):
        return math.ceil(tokens / reach) * reach * 3 * reach, False
    if tokens <= xla_attention.LONG_ROW:
        return tokens * tokens, False
    parts = math.ceil(tokens / (xla_attention.LONG_ROW // 2))
    return parts * math.ceil(tokens / parts) * tokens, True


def _decoder(config: Any) -> list[_Blocks]:
    """Returns the blocks of a decoder."""
    text, wide = config.text, config.text.hidden_size
    if isinstance(config, kimi_vl.Config):
        return _latent(text)
    head = getattr(text, "head_dim", wide // text.num_attention_heads)
    heads, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    attention = 2.0 * wide * (heads + 2 * keys) + 2.0 * heads * wide
    last = 2.0 * wide * text.intermediate_size
    return [_Blocks(text.num_hidden_layers, attention + 3 * last, last, 4.0 * heads)]


def _latent(text: kimi_vl.Text) -> list[_Blocks]:
    """Returns Kimi-VL's blocks: the first is dense, in all others tokens visit experts."""
    wide, heads, rank = text.hidden_size, text.num_attention_heads, text.kv_lora_rank
    plain, turning, value = text.qk_nope_head_dim, text.qk_rope_head_dim, text.v_head_dim
    spread = 2.0 * rank * heads * (plain + value)
    attention = 2.0 * wide * (heads * (plain + turning) + rank + turning) + spread
    attention += 2.0 * heads * value * wide
    pair = 2.0 * heads * (plain + turning + value)
    near = 2.0 * heads * (2 * rank + turning)
    dense = 2.0 * wide * text.intermediate_size
    expert = 2.0 * wide * text.moe_intermediate_size
    visits = text.num_experts_per_tok + text.n_shared_experts
    routed = attention + 2.0 * wide * text.n_routed_experts + 3 * expert * visits
    routed += 2.0 * wide * text.num_experts_per_tok  # Their outputs, weighted and added up.
    shared = expert * text.n_shared_experts
    return [
        _Blocks(1, attention + 3 * dense, dense, pair, spread, near),
        _Blocks(text.num_hidden_layers - 1, routed, shared, pair, spread, near),
    ]


def _tower(config: Any) -> tuple[list[_Blocks], float, float]:
    """Returns the blocks of a vision tower, and what embedding and merging cost for a patch."""
    vision, out = config.vision, config.text.hidden_size
    wide, unit = vision.hidden_size, vision.spatial_merge_size**2
    embed = 2.0 * 3 * vision.patch_size**2 * wide
    merge = 2.0 * (wide * unit) * (wide * unit + out) / unit
    last = 2.0 * wide * vision.intermediate_size
    attention = 8.0 * wide * wide
    if isinstance(config, qwen25_vl.Config):
        full = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
        one = _Blocks(full, attention + 3 * last, last, 4.0 * wide)
        windowed = one._replace(count=vision.depth - full, reach=vision.window_patches)
        return [one, windowed], embed, merge
    if isinstance(config, qwen3_vl.Config):
        merge *= 1 + len(vision.deepstack_visual_indexes)
    depth = vision.depth if isinstance(config, qwen3_vl.Config) else vision.num_hidden_layers
    return [_Blocks(depth, attention + 2 * last, last, 4.0 * wide)], embed, merge
