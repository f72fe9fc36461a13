"""A model at work: greedy answers to questions about images, read and judged by its task."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from seg_jax.data.encode import TooLong
from seg_jax.grammar import automaton, chat
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import NOTHING, Frozen
from seg_jax.inference.segmenter import Segmenter
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import sampler
from seg_jax.records import Prompts, Rollout
from seg_jax.tasks.task import Judgement, Prediction, judge


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

    def predict(
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
        task, encoder = self.bundle.task, self.bundle.encoder
        example = task.ask(image, clue, kind)
        try:
            prompt = encoder.prompt_row(task, example)
        except TooLong as error:
            reason = str(error).split(";")[0]
            raise ValueError(f"{example.question!r}: {reason}; do: ask in fewer words") from error
        rollout, _ = self.answer(jax.tree.map(lambda leaf: np.asarray(leaf)[None], prompt))
        ids = np.asarray(rollout.ids)[0, 0][np.asarray(rollout.used)[0, 0]]
        text = self.bundle.tokenizer.decode(ids)
        if self._segmenter is None:
            return task.predict(example, text)
        return task.predict(example, text, draw=self._segmenter.union)

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
