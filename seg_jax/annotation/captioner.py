"""Describes objects by a vision-language model of this package, from a run's or a hub's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from seg_jax.annotation.stages import Answer, Failed, Question, Unusable
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models import families
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import sampler
from seg_jax.records import Images, Rollout, Tokens
from seg_jax.tasks.task import Unfit

BATCH = 4
"""Number of questions in a batch; always the same, as each number compiles its own program."""


class Captioner:
    """A describer that decodes greedily."""

    def __init__(self, bundle: Bundle, *, max_tokens: int = 96):
        """Makes it ready.

        Args:
          bundle: the model.
          max_tokens: most tokens of a description.
        """
        self._bundle, self._max_tokens = bundle, max_tokens
        self._generate = jax.jit(self._generate_answers)

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int = 96) -> Captioner:
        """Reads the model of a folder.

        Raises:
          Unusable: the folder holds no model, or a file in it is broken.
        """
        try:
            dtype = families.noted_dtype(folder)
            compute = Compute(dtype=dtype, param_dtype=dtype)
            return cls(bundles.load(folder, compute=compute), max_tokens=max_tokens)
        except ValueError as error:
            raise Unusable(f"describer: {error}") from error

    def describe(self, questions: Sequence[Question]) -> list[Answer]:
        """Returns the answers.

        Raises:
          Failed: a question or its image does not fit the model's rows.
        """
        encoder = self._bundle.encoder
        try:
            rows = [encoder.question(one.view, one.text) for one in questions]
        except Unfit as error:
            raise Failed(str(error)) from None
        answers: list[Answer] = []
        for begin in range(0, len(rows), BATCH):
            some = rows[begin : begin + BATCH]
            full = [*some, *some[-1:] * (BATCH - len(some))]
            tokens, images = jax.tree.map(lambda *leaves: np.stack(leaves), *full)
            rollout = jax.device_get(self._generate(self._bundle.params, tokens, images))
            answers += [self._answer(rollout, row) for row in range(len(some))]
        return answers

    def _answer(self, rollout: Rollout, row: int) -> Answer:
        ids = np.asarray(rollout.ids)[row, 0][np.asarray(rollout.used)[row, 0]]
        ended = bool(len(ids)) and int(ids[-1]) in self._bundle.end_ids
        return Answer(self._bundle.tokenizer.decode(ids), ended)

    def _generate_answers(self, params: Any, tokens: Tokens, images: Images) -> Rollout:
        return sampler.generate(
            nnx.merge(self._bundle.graph, params),
            tokens,
            images,
            answers=1,
            max_tokens=self._max_tokens,
            sampler=sampler.Greedy(),
            end_ids=self._bundle.end_ids,
            pad_id=self._bundle.tokenizer.pad_id,
            key=jax.random.key(0),
        )
