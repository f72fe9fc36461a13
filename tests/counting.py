"""A second task in one file, counting, which nothing outside it knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from seg_jax.grammar import automaton
from seg_jax.records import Array, Automaton, Sample, Verdict
from seg_jax.tasks import task
from seg_jax.tasks.task import Judgement, Metric, Outcome, Task


class Truth(NamedTuple):
    """What a count is judged by (device)."""

    count: Int[Array, "*n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountExample(task.Example):
    """A question for a number (host)."""

    count: int
    """The true number; -1 where nobody knows it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountPrediction(task.Prediction):
    """A number that a user asked for (host)."""

    number: int | None

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return super().as_json() | {"number": self.number}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Task):
    """Counts things: an image -> a number of one digit."""

    name: ClassVar[str] = "counting"
    kind_names: ClassVar[tuple[str, ...]] = ("number",)
    reward_weights: ClassVar[Mapping[str, float]] = {"exact": 1.0, "near": 0.5}

    most: int = 9
    """The largest number."""

    def example(self, sample: Sample, rng: np.random.Generator) -> CountExample:
        """Returns the question and the number of things with pixels."""
        count = min(sum(bool(mask.any()) for mask in sample.masks), self.most)
        things = ("things", "objects")[int(rng.integers(2))]
        return self._asked(sample.image, things, key=sample.key, count=count)

    def ask(self, image, clue, kind: int | None = None) -> CountExample:
        """Returns the question of a user: how many of what a word says."""
        if not isinstance(clue, str):
            raise ValueError(f"counting: expected a word, got {clue}; do: give --text")
        return self._asked(image, clue, key="", count=-1)

    def _asked(self, image, things: str, *, key: str, count: int) -> CountExample:
        question, answer = f"How many {things}?", f"{count}." if count >= 0 else ""
        return CountExample(key=key, image=image, question=question, answer=answer, count=count)

    def truth(self, example: task.Example, *, canvas: tuple[int, int]) -> Truth:
        """Returns the true number."""
        assert isinstance(example, CountExample)
        return Truth(np.array(example.count, np.int32))

    def sentences(self, expressions: Iterable[str]) -> Iterator[str]:
        """Yields the words of questions and answers."""
        yield from ("How many things?", "How many objects?", "0.")

    def reader(self, pieces: Sequence[bytes | None]) -> task.Reader:
        """Returns the reader of the first digit."""
        digits = [int(p.strip()) if p and p.strip().isdigit() else -1 for p in pieces]
        table = np.array([digit if digit <= self.most else -1 for digit in digits], np.int32)

        def read(ids: Array, used: Array, truth: Truth) -> tuple[Array, Array]:
            known = (ids >= 0) & (ids < len(table)) & used
            values = jnp.where(known, jnp.asarray(table)[jnp.clip(ids, 0, len(table) - 1)], -1)
            first = jnp.argmax(values >= 0, -1)
            number = jnp.take_along_axis(values, first[..., None], -1)[..., 0]
            return number, jnp.where(number >= 0, int(Verdict.OK), int(Verdict.EMPTY))

        return read

    def judge(self, answer: Array, verdict: Array, truth: Truth, *, masks: Any = None) -> Judgement:
        """Returns whether numbers are exact and how near they are."""
        good = verdict == Verdict.OK
        error = jnp.where(good, jnp.abs(answer - truth.count), self.most)
        near = 1.0 - jnp.minimum(error, self.most) / self.most
        if masks is not None:  # Of a stand-in for a model that draws.
            near = masks
        return Judgement(
            scores={"exact": (good & (error == 0)).astype(jnp.float32), "near": near},
            measures={"error": error},
            verdict=verdict,
        )

    def grammar(self, pieces, ends, *, nothing: bool | None = None) -> Automaton:
        """Returns the automaton of a digit and a full stop."""
        machine = automaton.machine_of_texts([[f"{n}." for n in range(self.most + 1)]])
        return automaton.table(pieces, ends=ends, machine=machine)

    def predict(self, example: task.Example, text: str) -> CountPrediction:
        """Returns the first digit."""
        digits = [int(letter) for letter in text if letter in "0123456789"]
        return CountPrediction(
            question=example.question,
            text=text,
            verdict=Verdict.OK if digits else Verdict.EMPTY,
            number=digits[0] if digits else None,
        )

    def metrics(self, outcome: Outcome) -> list[Metric]:
        """Returns the accuracy and how wrong all numbers are together."""
        counts = np.array([vars(example)["count"] for example in outcome.examples], np.float64)
        error = np.asarray(outcome.measures["error"], np.float64)
        return [
            Metric("accuracy", outcome.scores["exact"]),
            Metric("relative_error", error, counts),
        ]
