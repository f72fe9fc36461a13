"""A task asks about a sample, says what is true, and reads and judges what a model answers."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from seg_jax.grammar.chat import Clue
from seg_jax.records import Array, Automaton, Ring, Rollout, Sample, Verdict


class Unfit(ValueError):
    """What cannot become a row of a batch: runs pass over it, count it and say why."""


class TooLong(Unfit):
    """An example does not fit its row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One question about an image with its true answer (host).

    A task adds what its truth record is made of.
    """

    key: str
    """Key of the sample that the question is about."""
    image: UInt8[np.ndarray, "H W 3"]
    question: str
    answer: str
    """The true answer; empty where a user asks and nobody knows it."""
    category: str = ""
    """Kind of thing that is asked about, by which numbers are told apart; empty where unknown."""
    system: str | None = None
    """What the system turn before the question says; None: what the chat template has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """An answer to one question as a user gets it (host); a task adds what it read."""

    question: str
    text: str
    """What the model wrote."""
    verdict: Verdict
    rings_unit: tuple[Ring, ...] = ()
    """What can be drawn on the image."""

    def as_json(self) -> dict[str, Any]:
        """Returns plain values."""
        return {"question": self.question, "text": self.text, "verdict": self.verdict.name}


class Judgement(NamedTuple):
    """How good answers are, each entry `[*n]` (device)."""

    scores: Mapping[str, Float[Array, "*n"]]
    """Named scores in 0..1, higher is better; a reward is their weighted sum."""
    measures: Mapping[str, Array]
    """What metrics over many answers need of each one beside its scores, such as union pixels."""
    verdict: Int[Array, "*n"]
    """The `Verdict` of the reader."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of many questions, in the order of the source (host)."""

    examples: Sequence[Example]
    texts: Sequence[str]
    scores: Mapping[str, Float[np.ndarray, " n"]]
    measures: Mapping[str, np.ndarray]
    """The measures of `Judgement`, an array [n] for each name."""
    verdicts: Int[np.ndarray, " n"]


class Metric(NamedTuple):
    """A number of many answers (host): a mean, or with weights a ratio of two sums."""

    name: str
    values: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"] | None = None
    """The metric is sum(values) / sum(weights); None: the mean of the values."""


Need = Literal["text", "place", "absent", "trace"]
"""What a question needs of a sample: an expression of an object, an object alone, which a point or
box can mean, an expression of what is not there, or a conversation as somebody wrote it."""

Reader = Callable[[Int[Array, "*n L"], Bool[Array, "*n L"], Any], tuple[Any, Int[Array, "*n"]]]
"""(ids, used tokens, truth) -> (what the answers say, a tree [*n ..], and their verdicts)."""

Segment = Callable[[Any, Any], Any]
"""(truth [B ..], what the answers say [B G ..]) -> masks [B G ..] of what they point at.

A model that draws, handed to a task that prompts one: it sees each image once with all answers.
"""


class Pointed(NamedTuple):
    """One prompt of a model that draws (host)."""

    box_unit: Float[np.ndarray, " 4"] | None
    """None: there is none."""
    points_unit: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    """1 for a click on the object, 0 for one beside it."""


Add = Callable[[Any, Any, Judgement], Judgement]
"""(what the answers say [*n ..], truth [*n ..], judgement) -> one with scores beside the task's."""

Draw = Callable[[UInt8[np.ndarray, "H W 3"], Sequence[Pointed]], Bool[np.ndarray, "H W"]]
"""(image, prompts) -> all that a model draws of the prompts in the image, as one mask (host)."""


class Task(abc.ABC):
    """What training, evaluation and serving share: there is no second way to ask or judge.

    A task is a frozen dataclass of its options, which is stored with a model under its name. Its
    truth record is a tree of arrays that belongs to it alone: whoever carries prompts stacks it,
    spreads it over devices and hands it back.
    """

    name: ClassVar[str]
    """Name under which the task is stored with a model."""
    kind_names: ClassVar[tuple[str, ...]] = ("answer",)
    """The kinds of its answers; their numbers are those of the grammar's starts."""
    reward_weights: ClassVar[Mapping[str, float]]
    """The names of its scores with their usual weights in a reward; the first is the main one."""
    needs_segmenter: ClassVar[bool] = False
    """Whether its scores are of masks that a model draws of answers, judged with a `Segment`."""

    @property
    def channels(self) -> Literal["rgb", "bgr"]:
        """The order of colours that such a model is shown images in."""
        return "rgb"

    asks_whole: ClassVar[bool] = False
    """Whether a user may ask about an image as a whole, by a blank expression."""

    @property
    def kinds(self) -> tuple[int, ...]:
        """The numbers of the kinds of answers that are asked for and judged."""
        return tuple(range(len(self.kind_names)))

    def kind_number(self, name: str | None) -> int | None:
        """Returns the number of the kind of answer of a name; None of none.

        Raises:
          ValueError: there is no such kind.
        """
        if name is None:
            return None
        if name not in self.kind_names:
            raise ValueError(
                f"answer: expected one of {', '.join(self.kind_names)}, got {name!r}; "
                "do: choose one, or leave it out"
            )
        return self.kind_names.index(name)

    @property
    def decimals(self) -> int | None:
        """The decimals of the coordinates that are asked with and answered; None: there are none.

        A tokenizer of our own has tokens for such numbers.
        """
        return None

    @property
    def needs(self) -> Mapping[str, Need]:
        """The questions that are asked, by their names, with what each needs of a sample.

        A source is made or refused by them; without any, every sample will do.
        """
        return {}

    def without_unjudged(self) -> Task:
        """Returns the task without the questions that nothing judges: what can be reinforced."""
        return self

    def with_questions_of(self, before: Task) -> Task:
        """Returns what is stored with a model that was taught this task after another one."""
        del before
        return self

    def size_px(self, truth: Any) -> Int[Array, "*n 2"]:
        """Returns height and width in pixels of the images that truths [*n ..] stand for.

        Raises:
          ValueError: the record does not have them.
        """
        if (size := getattr(truth, "size", None)) is None:
            raise ValueError(
                f"reward: expected a task whose truth has the image's size, got {self.name!r}, "
                "whose truth has none; do: define size_px of the task"
            )
        return size

    # What is asked (host).

    @abc.abstractmethod
    def example(self, sample: Sample, rng: np.random.Generator) -> Example:
        """Returns a question about the sample and its true answer.

        Raises:
          Unfit: the sample allows for no question; another one takes its place.
        """

    @abc.abstractmethod
    def ask(
        self, image: UInt8[np.ndarray, "H W 3"], clue: Clue, kind: int | None = None
    ) -> Example:
        """Returns the question of a user, without an answer.

        Args:
          image: that is asked about.
          clue: an expression, a point (x, y) or a box (x0, y0, x1, y1), unit.
          kind: number of the kind of answer that is wanted; None: the usual one.

        Raises:
          ValueError: the task has no such question.
        """

    @abc.abstractmethod
    def truth(self, example: Example, *, canvas: tuple[int, int]) -> Any:
        """Returns the truth record of an example: arrays whose shapes do not depend on it.

        Args:
          example: made by this task; of a user's question the record is blank.
          canvas: height and width that true masks are packed on.

        Raises:
          TooLong: it does not fit the canvas.
          ValueError: nothing judges the answer to this question.
        """

    def sentences(self, expressions: Iterable[str]) -> Iterator[str]:
        """Yields the words that a tokenizer should know to ask about expressions and answer."""
        yield from expressions

    # How an answer is read and judged (device).

    @abc.abstractmethod
    def reader(self, pieces: Sequence[bytes | None]) -> Reader:
        """Returns what reads answers on the device.

        Args:
          pieces: bytes of each token (`Tokenizer.pieces`); None for tokens without text.
        """

    @abc.abstractmethod
    def judge(
        self, answer: Any, verdict: Int[Array, "*n"], truth: Any, *, masks: Any = None
    ) -> Judgement:
        """Returns what answers are worth.

        Args:
          answer: what the reader read, a tree [*n ..].
          verdict: the reader's.
          truth: one record for each answer, a tree [*n ..].
          masks: what a `Segment` made of the answers, if one was handed over.
        """

    def grammar(
        self, pieces: Sequence[bytes | None], ends: Sequence[int], *, nothing: bool | None = None
    ) -> Automaton:
        """Returns what answers can be held to while they are drawn.

        Args:
          pieces: bytes of each token, as in `automaton.table`.
          ends: tokens that end an answer.
          nothing: whether an answer may say that there is nothing; None: as the task has it.

        Raises:
          ValueError: the task has no grammar, or as `automaton.table`.
        """
        del pieces, ends, nothing
        raise ValueError(
            f"grammar: expected a task with a grammar, got {self.name!r}, whose answers cannot be "
            "held to one; do: switch it off"
        )

    def grammar_start(self, truth: Any) -> Int[Array, " B"]:
        """Returns the kind of answer that each prompt asks for, where the grammar starts."""
        return jnp.zeros(jax.tree.leaves(truth)[0].shape[:1], jnp.int32)

    # What is shown of it (host).

    @abc.abstractmethod
    def predict(self, example: Example, text: str, *, draw: Draw | None = None) -> Prediction:
        """Returns what the answer to a question says.

        Args:
          example: the question.
          text: of the answer.
          draw: draws the mask of what it points at, handed to a task that prompts such a model.
        """

    def agreement(self, example: Example, text: str, *, truth: Any = None) -> float | None:
        """Returns how well an answer agrees with what is annotated, at the image's own size, 0..1.

        It is for people who look at what is learnt from; nothing is trained on it.

        Args:
          example: the question, with what was annotated.
          text: of the answer.
          truth: record of the example in a row, if there is one: the worse of both counts.

        Returns:
          None where there is nothing to compare.
        """
        del example, text, truth
        return None

    def losses(self, example: Example) -> Sequence[str]:
        """Returns what the options of the task cost a true answer, in fixed phrases."""
        del example
        return ()

    @abc.abstractmethod
    def metrics(self, outcome: Outcome) -> list[Metric]:
        """Returns the numbers that tell how good many answers are."""

    def answer_rings(self, text: str, truth: Any, *, mask: Any = None) -> list[np.ndarray]:
        """Returns what an answer draws on the image, in unit coordinates.

        Args:
          text: of the answer.
          truth: record of its prompt, without an axis of prompts.
          mask: what a `Segment` drew of it, if one was handed over.
        """
        del text, truth, mask
        return []

    def truth_rings(self, truth: Any) -> list[np.ndarray]:
        """Returns what the true answer draws on the image, in unit coordinates."""
        del truth
        return []


def judge(
    task: Task,
    rollout: Rollout,
    truth: Any,
    *,
    reader: Reader,
    segment: Segment | None = None,
    by_rows: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    add: Add | None = None,
) -> Judgement:
    """Returns what sampled answers [B G ..] are worth: tokens to scores on the device.

    Args:
      task: that judges.
      rollout: G answers per prompt.
      truth: one record per prompt.
      reader: of the task, for the tokenizer that the answers are written in.
      segment: draws what the answers point at, where the task needs that.
      by_rows: makes every device read and judge its own prompts alone.
      add: adds scores beside the task's; None: there are no others.
    """

    def read(rollout: Rollout, truth: Any) -> tuple[Any, Int[Array, "B G"]]:
        return reader(rollout.ids, rollout.used, _repeat(truth, rollout.ids.shape[1]))

    def score(answer: Any, verdict: Int[Array, "B G"], truth: Any, masks: Any) -> Judgement:
        truth = _repeat(truth, verdict.shape[1])
        judged = task.judge(answer, verdict, truth, masks=masks)
        return judged if add is None else add(answer, truth, judged)

    if segment is None:
        read_and_score = by_rows(lambda rollout, truth: score(*read(rollout, truth), truth, None))
        return read_and_score(rollout, truth)
    answer, verdict = by_rows(read)(rollout, truth)
    return by_rows(score)(answer, verdict, truth, segment(truth, answer))


def _repeat(tree: Any, answers: int) -> Any:
    """Returns a tree [B ..] as [B G ..]: every answer has its prompt's."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[:, None], (leaf.shape[0], answers, *leaf.shape[1:])),
        tree,
    )
