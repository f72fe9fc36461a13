"""Reads rows back: which questions and answers their tokens hold, and about which image (host)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from seg_jax.data.encode import Encoder
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.records import Array, Batch, PackedBatch, Prompts


class Conversation(NamedTuple):
    """A question and its answer as the tokens of a row say them."""

    image: int
    """Number of the image within the row."""
    question: str
    answer: str | None
    """What the targets that count say; None: the row has no answer."""
    visual_tokens: int
    question_tokens: int
    """Tokens of the prompt that are no image's."""
    answer_tokens: int
    """With the one that ends it."""


def conversations(encoder: Encoder, row: Batch | PackedBatch | Prompts) -> list[Conversation]:
    """Returns the conversations of a row (no batch axis), in their order.

    Answers are read off the targets that have weights, not off the tokens that are read.
    """
    if isinstance(row, PackedBatch):
        return [*_of_packed(encoder, row)]
    if isinstance(row, Batch):
        return [*_of_batch(encoder.tokenizer, row)]
    ids = row.tokens.ids[row.tokens.segments > 0]
    answer = None if row.answer is None else row.answer.ids[row.answer.used]
    return [_read(encoder.tokenizer, ids, _visual(row.tokens), answer)]


def _of_batch(tokenizer: Tokenizer, row: Batch) -> Iterator[Conversation]:
    """Yields the questions that follow one image."""
    head, visual = row.tokens.ids[row.tokens.segments > 0], _visual(row.tokens)
    parts = zip(row.ids, row.targets, row.weights, row.packing.segments, strict=True)
    for ids, targets, weights, segments in parts:
        for number in range(1, int(segments.max(initial=0)) + 1):
            mine = segments == number
            asked = ids[mine][: _question_length(weights[mine])]
            answer = targets[mine & (weights > 0)]
            yield _read(tokenizer, np.append(head, asked), visual, answer)


def _of_packed(encoder: Encoder, row: PackedBatch) -> Iterator[Conversation]:
    """Yields the conversations of a row of several images."""
    tokens, merged = row.tokens, encoder.layout.merge**2
    for number in range(1, int(tokens.segments.max(initial=0)) + 1):
        mine = tokens.segments == number
        visual = tokens.visual_tokens[mine]
        ids = tokens.ids[mine][: _question_length(row.weights[mine])]
        image = int(row.images.image[visual.max() * merged])
        read = _read(
            encoder.tokenizer, ids, visual[: len(ids)] >= 0, row.targets[mine & (row.weights > 0)]
        )
        yield read._replace(image=image)


def _visual(tokens) -> Bool[np.ndarray, " n"]:
    """Returns which tokens of a prompt, padding left out, are an image's."""
    return tokens.visual_tokens[tokens.segments > 0] >= 0


def _question_length(weights) -> int:
    """Returns the tokens of a question: the last one is what the answer's first follows."""
    return int(np.argmax(weights > 0)) + 1


def _read(
    tokenizer: Tokenizer,
    ids: Int[Array, " n"],
    visual: Bool[Array, " _"],
    answer: Int[Array, " m"] | None,
) -> Conversation:
    """Returns what a prompt and an answer say; `visual` may end before the prompt does."""
    after = np.asarray(ids)[int(np.flatnonzero(visual)[-1]) + 1 :]
    return Conversation(
        image=0,
        question=question_text(tokenizer, after),
        answer=None if answer is None else tokenizer.decode(np.asarray(answer)),
        visual_tokens=(count := int(visual.sum())),
        question_tokens=len(ids) - count,
        answer_tokens=0 if answer is None else len(answer),
    )


def question_text(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Returns what is asked after an image, up to the end of the turn.

    Args:
      tokenizer: of the prompt.
      ids: the tokens of the prompt after those of the image.
    """
    after = np.asarray(ids)
    ends = np.flatnonzero(after == tokenizer.end_id)
    return tokenizer.decode(after[: ends[0]] if len(ends) else after).strip()
