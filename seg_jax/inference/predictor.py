"""A model at work: greedy answers to questions about images, read and judged by its task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from seg_jax.data import buckets
from seg_jax.data.encode import TooLong
from seg_jax.grammar import automaton, chat
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.inference.segmenter import Segmenter
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import sampler
from seg_jax.records import Prompts, Rollout
from seg_jax.tasks.task import Example, Judgement, Prediction, judge

Row = tuple[Example, Prompts]
"""A question and its row (no batch axis), as the model reads it."""


class Answered(NamedTuple):
    """An answer to one of many questions."""

    prediction: Prediction
    score: float
    """Geometric mean of the probabilities of its tokens, 0..1; 0 where they are no numbers."""
    tokens: int
    """Tokens of the answer, its end included."""


def mean_probability(logp: float, tokens: int) -> float:
    """Returns the geometric mean of the probabilities of tokens; 0 where it is no number.

    Args:
      logp: sum of the logarithms of the probabilities.
      tokens: their count.
    """
    mean = logp / max(1, tokens)
    return math.exp(mean) if math.isfinite(mean) else 0.0


class Predictor:
    """Asks a model of a bundle; greedy, one answer per prompt."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        grammar: bool = False,
        nothing: bool | None = None,
        refill: sampler.Refill | None = None,
        frozen: Frozen = NOTHING,
        segmenter: Segmenter | None = None,
    ):
        """Makes it ready.

        Args:
          bundle: the model.
          grammar: whether answers are held to the grammar, so that each can be read.
          nothing: whether such an answer may say that there is nothing; None: as the task has it.
          refill: how many answers of a batch are decoded at once; None: all.
          frozen: draws what answers point at where they are judged, for a task whose scores are
            of masks; without it these are unknown.
          segmenter: draws the mask of what `predict` finds an answer to point at.
        """
        self.bundle = bundle
        self.frozen, self._refill, self._segmenter = frozen, refill, segmenter
        self._reader = bundle.task.reader(bundle.tokenizer.pieces)
        self._grammar = None
        if grammar:
            pieces, ends = bundle.tokenizer.pieces, bundle.end_ids
            self._grammar = bundle.task.grammar(pieces, ends, nothing=nothing)
        self.judged_answer = jax.jit(self._generate_and_judge)
        """(weights, prompts, those of the model that draws, if there is one) -> (rollout,
        judgement)."""
        self._params = bundle.params

    @property
    def draws(self) -> bool:
        """Whether a model draws what answers point at, and so needs their images again."""
        return self._segmenter is not None

    def answer(self, prompts: Prompts, params: Any = None) -> tuple[Rollout, Judgement]:
        """Returns greedy answers to a batch of prompts, judged against their truth.

        Args:
          prompts: rows of the bundle's layout.
          params: other weights of the same model.

        Raises:
          ValueError: with a grammar, its shortest answer is longer than the layout allows.
        """
        task = self.bundle.task
        if self._grammar is not None:
            kinds = np.unique(np.asarray(task.grammar_start(prompts.truth))).tolist()
            longest = self.bundle.layout.max_answer
            automaton.check_max_tokens(self._grammar, longest, kinds, names=task.kind_names)
        params = self._params if params is None else params
        return self.judged_answer(params, prompts, *self.frozen.argument)

    def predict_one(
        self, image: UInt8[np.ndarray, "H W 3"], clue: chat.Clue, kind: int | None = None
    ) -> Prediction:
        """Returns what the model answers about what an expression, point or box refers to.

        Args:
          image: that is asked about.
          clue: an expression, a point or a box.
          kind: number of the kind of answer that is wanted; None: the task's usual one.

        Raises:
          ValueError: the question does not fit the model's rows, or the task has none like it.
        """
        example, prompt = self.row(image, clue, kind)
        rollout, _ = self.answer(jax.tree.map(lambda leaf: np.asarray(leaf)[None], prompt))
        ids = np.asarray(rollout.ids)[0, 0][np.asarray(rollout.used)[0, 0]]
        return self._read(example, self.bundle.tokenizer.decode(ids))

    def row(
        self, image: UInt8[np.ndarray, "H W 3"], clue: chat.Clue, kind: int | None = None
    ) -> Row:
        """Returns a question as `answer_rows` takes it, see `predict_one`; the device rests.

        Raises:
          ValueError: the question does not fit the model's rows, or the task has none like it.
        """
        task = self.bundle.task
        example = task.ask(image, clue, kind)
        try:
            return example, self.bundle.encoder.prompt_row(task, example)
        except TooLong as error:
            reason = str(error).split(";")[0]
            raise ValueError(f"{example.question!r}: {reason}; do: ask in fewer words") from error

    def answer_rows(self, rows: Sequence[Row], *, batch: int) -> list[Answered]:
        """Returns the answers to questions, batch by batch.

        Equal rows in equal batches get equal answers; in other batches sums may be rounded
        otherwise.

        Args:
          rows: of `row`.
          batch: questions at once; what is missing of the last ones is filled up.
        """
        found: list[Answered] = []
        for begin in range(0, len(rows), batch):
            some = [*rows[begin : begin + batch]]
            prompts = [prompt for _, prompt in some]
            prompts += prompts[-1:] * (batch - len(some))
            rollout, _ = self.answer(buckets.batch_of_rows(prompts, self.bundle.layout))
            leaves = rollout.ids, rollout.used, rollout.logp
            ids, used, logp = (np.asarray(leaf)[:, 0] for leaf in leaves)
            for (example, _), each, kept, likely in zip(some, ids, used, logp, strict=False):
                text = self.bundle.tokenizer.decode(each[kept].tolist())
                count = int(kept.sum())
                score = mean_probability(float(likely[kept].sum(dtype=np.float64)), count)
                found.append(Answered(self._read(example, text), score, count))
        return found

    def _read(self, example: Example, text: str) -> Prediction:
        """Returns what an answer says, its mask drawn if there is a model for that."""
        if self._segmenter is None:
            return self.bundle.task.predict(example, text)
        return self.bundle.task.predict(example, text, draw=self._segmenter.union)

    def _generate_and_judge(
        self, params: Any, prompts: Prompts, drawing: Any = None
    ) -> tuple[Rollout, Judgement]:
        """Returns greedy answers and their judgement, as `jax.jit` traces it."""
        bundle = self.bundle
        rollout = sampler.generate(
            nnx.merge(bundle.graph, params),
            prompts.tokens,
            prompts.images,
            answers=1,
            max_tokens=bundle.layout.max_answer,
            sampler=sampler.Greedy(),
            end_ids=bundle.end_ids,
            pad_id=bundle.tokenizer.pad_id,
            key=jax.random.key(0),
            grammar=self._grammar,
            kinds=None if self._grammar is None else bundle.task.grammar_start(prompts.truth),
            refill=self._refill,
        )
        judged = judge(
            bundle.task,
            rollout,
            prompts.truth,
            reader=self._reader,
            segment=self.frozen.bound(drawing),
            by_rows=sharding.map_rows,
        )
        return rollout, judged
