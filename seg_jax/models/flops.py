"""Counts the arithmetic of a model from its sizes: one multiplication with one addition is two.

Counted are matrix products as the ports compute them: whole static rows with their padding, every
pair of tokens in attention, masked or not. Norms, softmax and the like are left out.

Source: a product [m k] [k n] is 2 m k n operations, its gradient twice that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from seg_jax.models import families
from seg_jax.models.facts.arithmetic import Arithmetic, Blocks
from seg_jax.models.nn import xla_attention
from seg_jax.models.nn.compute import Compute

Flops = dict[str, float]
"""Operations by what they are spent on: vision, text, head; backward, recomputed, ..."""

NEEDED = ("vision", "text", "head", "backward")
"""What a step cannot do without; a share of the peak (MFU) counts these."""


class Part(NamedTuple):
    """Operations of a pass through one part of a model."""

    name: str
    forward: float
    backward: float
    """Operations of the gradient, where the pass is differentiated."""
    again: float
    """Operations that the backward pass then computes a second time."""
    pairs: float = 0.0
    """Operations of the forward pass that multiply no weights: those of attention."""


def without_gradient(parts: Iterable[Part]) -> Flops:
    """Returns the operations of passes without a gradient."""
    done: Flops = {}
    for part in parts:
        done[part.name] = done.get(part.name, 0.0) + part.forward
    return done


def with_gradient(parts: Iterable[Part], modes: Mapping[str, str] | None = None) -> Flops:
    """Returns the operations of passes and of their gradient.

    Args:
      parts: passes.
      modes: of vision, merger and text: `frozen`, `adapted` or `trained`; None: all are trained.
        Weights that do not learn have no gradient; the products of adapters are left out.
    """
    parts = list(parts)
    backward, again = sum(_backward(p, modes) for p in parts), sum(p.again for p in parts)
    if modes is not None and _is_apart(modes):
        again = sum(p.again for p in parts if p.name != "vision")
    return without_gradient(parts) | {"backward": backward, "recomputed": again}


def _backward(part: Part, modes: Mapping[str, str] | None) -> float:
    """Returns the operations of the gradient of a pass."""
    if modes is None or modes["vision" if part.name == "vision" else "text"] == "trained":
        return part.backward
    if part.name == "vision" and _is_apart(modes):
        return 0.0
    return part.forward + part.pairs  # Of a product with frozen weights one factor's alone.


def _is_apart(modes: Mapping[str, str]) -> bool:
    """Returns whether nothing in the tower learns, so that no gradient goes back through it."""
    return modes["vision"] == "frozen"


@dataclasses.dataclass(frozen=True)
class Counter:
    """Counts the operations of passes through a vision-language model."""

    config: Any
    """Config of a model of any family that has `vlm` facts."""
    compute: Compute

    @property
    def arithmetic(self) -> Arithmetic:
        """What the model computes for a token and for a patch."""
        return families.vlm_facts(self.config).arithmetic(self.config)

    def read(self, rows: int, tokens: int, patches: int) -> list[Part]:
        """Returns the operations on prompts of `tokens` tokens, images included."""
        return [
            self._images(rows, patches),
            self._blocks("text", self.arithmetic.decoder, rows=rows, tokens=tokens),
        ]

    def extend(self, rows: int, answers: int, length: int, *, behind: int) -> Part:
        """Returns the operations on whole answers that look at prompts of `behind` tokens."""
        done = again = pairs = 0.0
        for stack in self.arithmetic.decoder:
            tokens = rows * answers * length
            scores = stack.pair * tokens * (behind + length) * stack.count
            spread = stack.spread * rows * behind * stack.count
            weights = stack.weights * tokens * stack.count
            done += weights + scores + spread
            again += self._recomputed(weights + spread, stack.last * tokens * stack.count, scores)
            pairs += scores
        return Part("text", done, 2 * done, again, pairs)

    def head(self, rows: int, length: int, chunk: int | None) -> Part:
        """Returns the operations on the scores of the next token at every token of rows."""
        columns = length if chunk is None else math.ceil(length / chunk) * chunk
        done = rows * columns * self.arithmetic.head
        return Part("head", done, 2 * done, 0.0 if chunk is None else done)

    def decode(self, rows: int, answers: int, length: int, *, behind: int) -> list[Part]:
        """Returns the operations on answers drawn token by token, none ending before `length`."""
        done, passes = 0.0, length - 1
        for stack in self.arithmetic.decoder:
            seen = (stack.cached_pair or stack.pair) * (behind + max(passes, 1))
            done += stack.count * (stack.weights + seen)
        done *= rows * answers * passes
        # The first token of all answers comes of one score of the prompt.
        head = (rows + rows * answers * passes) * self.arithmetic.head
        return [Part("text", done, 0.0, 0.0), Part("head", head, 0.0, 0.0)]

    def _images(self, rows: int, patches: int) -> Part:
        model = self.arithmetic
        part = self._blocks("vision", model.tower, rows=rows, tokens=patches)
        embed, merge = model.embed * rows * patches, model.merge * rows * patches
        # Pixels want no gradient.
        return Part(
            "vision",
            part.forward + embed + merge,
            part.backward + embed + 2 * merge,
            part.again,
            part.pairs,
        )

    def _blocks(self, name: str, stacks: list[Blocks], *, rows: int, tokens: int) -> Part:
        done = again = looked = 0.0
        for stack in stacks:
            weights = stack.weights * rows * tokens * stack.count
            pairs, divided = _pairs(tokens, stack.reach)
            scores = stack.pair * rows * pairs * stack.count
            looked += scores
            done += weights + scores
            again += self._recomputed(weights, stack.last * rows * tokens * stack.count, scores)
            again += scores if divided else 0.0
        return Part(name, done, 2 * done, again, looked)

    def _recomputed(self, weights: float, last: float, scores: float) -> float:
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
