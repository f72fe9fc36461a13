"""The protocol that training, decoding and evaluation ask of a vision-language model.

Axes here: `P` prompt tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int

from seg_jax.models.nn import batching
from seg_jax.models.nn.rotary import Rotary
from seg_jax.records import Array, Images, Packing, Tokens


class Prefix(NamedTuple):
    """A prompt that has been read: all that its answers need of it."""

    cache: Any
    """What the model's attention keeps of the prompt: a tree of arrays [layers B ..], or for a
    decoder of tuples with an array [B ..] for each layer."""
    used: Bool[Array, "B P"]
    """True where the prompt has a token."""
    following: Int[Array, " B"]
    """Rotary position of the first answer token, on all three axes."""
    hidden: Float[Array, "B D"]
    """Output at the prompt's last token, which predicts the first answer token."""


class Suffix(NamedTuple):
    """What attention keeps of answers on the way."""

    own: tuple[Any, ...]
    """One entry per layer, a tree of arrays [B ..]."""
    length: Int[Array, ""]
    """Tokens written, the same for every row; beyond the caches' end they go round."""
    turn: Rotary
    """Rotation at each column of a prompt's answers, [B L half]: worked out once, for XLA for CPUs
    makes sines in a loop again for every head of every layer."""
    slots: batching.Slots | None = None
    """Which answers are decoded; None: rows [B G] are the answers of their prompts."""


@runtime_checkable
class VLM(Protocol):
    """What a model can do. Hidden states come in the compute dtype, logits in float32.

    Prompts are right-aligned and hold one conversation; answers hold text only and continue at
    the rotary position after the prompt. All methods are pure, lower from shapes alone and may
    be differentiated, `prefill` and `extend` included.
    """

    def encode(self, images: Images) -> Float[Array, "B visual_tokens D"]:
        """Returns the visual tokens of each row's images, in the order of their patches."""
        ...

    def hidden(self, tokens: Tokens, images: Images | None) -> Float[Array, "B T D"]:
        """Returns the outputs at every token: causal within a segment, blind across segments."""
        ...

    def prefill(self, tokens: Tokens, images: Images | None) -> Prefix:
        """Returns the prompts as read once, for any number of answers."""
        ...

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: Prefix, packing: Packing | None = None
    ) -> Float[Array, "B G Q D"]:
        """Returns the outputs at whole answers, scored at once behind their shared prompt.

        Packed conversations of a row do not see each other; None: one conversation a row.
        """
        ...

    def decoder(self) -> Decoder:
        """Returns the model laid out for decoding: layers apart, weights cast and moved once."""
        ...

    def unembed(self) -> Float[Array, "V D"]:
        """Returns the output head; the token embedding itself where they are tied."""
        ...

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A model laid out for decoding token by token.

    It is an `nnx.Module`: a running batch keeps its weights from call to call.
    """

    def empty(
        self, prefix: Prefix, *, answers: int, length: int, queues: int | None = None
    ) -> Suffix:
        """Returns the empty cache of `answers` answers per prompt of at most `length` tokens.

        With `queues` it is that of as many queues of `answers` rows each.
        """
        ...

    def extend(
        self, ids: Int[Array, "B G Q"], prefix: Prefix, suffix: Suffix
    ) -> tuple[Float[Array, "B G Q D"], Suffix]:
        """Returns the outputs at the next Q tokens of each answer, and the longer cache.

        With slots rows are [S R] for [B G], of any number, and Q is 1.
        """
        ...

    def prolonged(self, prefix: Prefix, suffix: Suffix, count: Int[Array, " B"]) -> Any:
        """Returns the cache of prompts with the first tokens of their one answer at their ends.

        It has an array for each layer, as that of the prefix, and as many columns: those that
        fall off at the beginning, `count` of each prompt, must be padding.
        """
        ...

    def logits(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Returns the scores of the next token."""
        ...
