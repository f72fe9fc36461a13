"""Answers to the questions of a protocol: a model's, or those of a file (host)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data import buckets
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import Findings
from seg_jax.evaluation.referring.protocols import Question
from seg_jax.records import Prompts, Rollout
from seg_jax.tasks.task import Task, Unfit

Answered = tuple[Question, str, int]
"""A question, its answer and the tokens of that, end token included."""

MOST_BYTES = 1 << 30
"""The largest file of answers: to some millions of questions."""
_ADVICE = "give the answers.jsonl of an evaluation"
_Count = Annotated[int, Meta(ge=0, le=2**31)]


class Line(schemas.Record, frozen=True):
    """An answer to one question; a file of answers holds one a line."""

    key: schemas.Text
    """Name of the sample."""
    which: _Count
    """Which of its masks."""
    given: schemas.Text
    """What the question named the object by: "text", "point" or "box"."""
    kind: schemas.Text
    """What was asked for: "mask", "box" or "point"."""
    phrase: schemas.Text
    """The expression, empty where a point or box was told."""
    text: Annotated[str, Meta(max_length=1_000_000)]
    """The answer as the model wrote it."""
    tokens: _Count = 0
    """Its tokens, where they are known."""

    @property
    def question(self) -> tuple[Any, ...]:
        """What tells the question from others."""
        return self.key, self.which, self.given, self.kind, self.phrase


class Saved:
    """Answers of a file, in place of a model."""

    def __init__(self, path: Path):
        """Reads the file.

        A last line that breaks off, as an interrupted evaluation leaves it, is left out and told
        in `findings`.

        Raises:
          ValueError: a line is none of answers, or answers a question differently than one before.
        """
        self._path, self.too_long = path, 0
        self._unasked: set[tuple[Any, ...]] = set()
        self._answers: dict[tuple[Any, ...], tuple[str, int]] = {}
        self._findings = Findings()
        text = files.read_text(path, most=MOST_BYTES, expected="answers, a JSON object a line")
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._add(line, f"{path}, line {number}", last=number == len(lines))
        self._unasked.update(self._answers)

    def _add(self, text: str, where: str, *, last: bool) -> None:
        """Adds the answer of a line; the last one, without an end, may be half of one."""
        try:
            value = files.parse_json(text, where=where, advice=_ADVICE)
        except ValueError:
            if not last:
                raise
            self._findings.add("a last line that breaks off is left out", where)
            return
        line = schemas.check(value, Line, where=where, advice=_ADVICE)
        # Half a surrogate, which no file can hold, is the model's mistake: its verdict's matter.
        answer = line.text.encode("utf-8", "replace").decode(), line.tokens
        if self._answers.setdefault(line.question, answer) != answer:
            raise ValueError(
                f"{where}: expected one answer to a question, got another to "
                f"{schemas.short_repr(line.key)}, {schemas.short_repr(line.phrase)}; do: remove "
                "one of them"
            )

    def find(self, question: Question) -> tuple[str, int] | None:
        """Returns the answer to a question with its tokens, None where there is none."""
        name = _name(question)
        self._unasked.discard(name)
        return self._answers.get(name)

    def findings(self) -> Findings:
        """Returns what of the file was left out: also answers to what nobody has asked so far."""
        met = Findings()
        met.merge(self._findings)
        for key, which, given, kind, phrase in sorted(self._unasked):
            what = f"{key}, mask {which}, {kind} by {given} {schemas.short_repr(phrase)}"
            reason = "an answer to no question of this protocol and source is left out"
            met.add(reason, what, advice="check --protocol, --data and --split, if it should count")
        return met

    def __call__(self, asked: Iterable[Question]) -> Iterator[Answered]:
        """Yields each question with its answer.

        Raises:
          ValueError: a question has none.
        """
        for question in asked:
            found = self.find(question)
            if found is None:
                raise ValueError(
                    f"{self._path}: expected an answer to every question, got none to "
                    f"{_name(question)}; do: give answers of the same protocol, source and seed, "
                    "or a "
                    "--checkpoint that answers the rest"
                )
            yield question, *found


class Model:
    """Asks a model batch by batch; a question that no row can hold gets an empty answer."""

    def __init__(
        self,
        ask: Callable[[Prompts], Rollout],
        encoder: Encoder,
        task: Task,
        *,
        batch: int,
        saved: Saved | None = None,
    ):
        """Makes it ready.

        Args:
          ask: prompts on the host, always `batch` of them, to one greedy answer each.
          encoder: of the model.
          task: of the model, which asks.
          batch: questions at once.
          saved: answers that are known and not asked for again.
        """
        self._ask, self._encoder, self._task = ask, encoder, task
        self._batch, self._saved = batch, saved
        self.too_long = 0
        """Questions that did not fit."""
        self._findings = Findings()
        self._latest: dict[tuple[Any, ...], tuple[str, int]] = {}

    def __call__(self, asked: Iterable[Question]) -> Iterator[Answered]:
        """Yields each question with its answer."""
        group: list[tuple[Question, tuple[str, int] | Prompts]] = []
        for question in asked:
            group.append((question, self._known(question) or self._row(question)))
            waiting = sum(isinstance(told, Prompts) for _, told in group)
            if waiting == self._batch or len(group) == _GROUP * self._batch:
                yield from self._answered(group)
                group = []
        yield from self._answered(group)

    def findings(self) -> Findings:
        """Returns why questions did not fit."""
        return self._findings

    def _known(self, question: Question) -> tuple[str, int] | None:
        return None if self._saved is None else self._saved.find(question)

    def _row(self, question: Question) -> Prompts | tuple[str, int]:
        try:
            return self._encoder.prompt_row(self._task, question.example)
        except Unfit as error:
            self.too_long += 1
            told = type(error)(f"{question.sample.key}: {error}")
            self._findings.add_error("answered by nothing", told)
            return "", 0

    def _answered(self, group: list) -> Iterator[Answered]:
        new = iter(self._answers([told for _, told in group if isinstance(told, Prompts)]))
        for question, told in group:
            answer = next(new) if isinstance(told, Prompts) else told
            yield question, *self._once(question, answer)

    def _once(self, question: Question, answer: tuple[str, int]) -> tuple[str, int]:
        """Returns the answer that a question about the latest sample had before, else this one.

        Data sets hold some expressions twice; rounding must not give two answers to them.
        """
        if self._latest and next(iter(self._latest))[0] != question.sample.key:
            self._latest.clear()
        return self._latest.setdefault(_name(question), answer)

    def _answers(self, rows: list[Prompts]) -> list[tuple[str, int]]:
        if not rows:
            return []
        padded = rows + [rows[-1]] * (self._batch - len(rows))
        rollout = self._ask(buckets.batch_of_rows(padded, self._encoder.layout))
        ids, used = np.asarray(rollout.ids)[:, 0], np.asarray(rollout.used)[:, 0]
        decode = self._encoder.tokenizer.decode
        return [
            (decode(ids[row][used[row]].tolist()), int(used[row].sum())) for row in range(len(rows))
        ]


_GROUP = 4
"""So many batches of questions are held at most; their images lie in memory."""


def _name(question: Question) -> tuple[Any, ...]:
    """Returns what tells a question from others: the fields before the text."""
    kind = question.kind.name.lower()
    return question.sample.key, question.which, question.given, kind, question.phrase
