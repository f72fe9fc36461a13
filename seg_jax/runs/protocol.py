"""Runs a protocol of referring: answers judged and written, numbers, tables, a gallery."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Source
from seg_jax.evaluation.referring import judging, protocols, scoring, tables
from seg_jax.evaluation.referring.answers import Answered
from seg_jax.evaluation.referring.judging import Row
from seg_jax.evaluation.referring.protocols import Protocol, Question
from seg_jax.report import gallery, html_page
from seg_jax.runs import console
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Referring

ANSWERS, SUMMARY, TABLE, GALLERY = FILES = (
    "answers.jsonl",
    "summary.json",
    "table.md",
    "gallery.html",
)
"""What is written to the folder of an evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """All that decides which questions are asked."""

    protocol: Protocol
    source: Source
    task: Referring | Prompted
    """Whose words and decimals the questions have."""
    form: int
    """Number of the form of all questions."""
    seed: int
    """Seed of the points that questions name."""
    pointed: judging.Draw | None = None
    """Draws what an answer of boxes and clicks points at; None: answers are outlines."""

    def questions(
        self, indices: Sequence[int] | None = None, findings: Findings | None = None
    ) -> Iterator[Question]:
        """Yields the questions about some samples, about all if None.

        Args:
          indices: of the samples.
          findings: is told of samples that cannot be read, which are passed over.
        """
        return protocols.questions(
            self.protocol,
            self.source,
            task=self.task,
            form=self.form,
            seed=self.seed,
            indices=indices,
            findings=findings,
        )

    def question_of(self, row: Row) -> Question:
        """Returns the question of a row."""
        wanted = (row.which, row.given, row.kind, row.phrase)
        return next(
            question
            for question in self.questions([row.index])
            if (question.which, question.given, question.kind.name.lower(), question.phrase)
            == wanted
        )


def answer_and_judge(
    asking: Asking,
    answered: Callable[[Iterable[Question]], Iterator[Answered]],
    folder: Path | None = None,
    *,
    findings: Findings | None = None,
) -> Iterator[Row]:
    """Yields the rows of a protocol, with a progress bar; each is written as soon as it is known.

    Until the last one is, the file in the folder is called answers.partial.jsonl.

    Args:
      asking: which questions are asked.
      answered: answers them.
      folder: that the rows are written to, if any.
      findings: is told of samples that cannot be read, which are passed over.
    """
    samples = len(asking.source)
    with contextlib.ExitStack() as stack:
        move = stack.enter_context(console.progress(asking.protocol.name, samples))
        partial = folder and folder / "answers.partial.jsonl"
        file = partial and stack.enter_context(partial.open("w", encoding="utf-8"))
        for question, text, tokens in answered(asking.questions(findings=findings)):
            row = judging.judge(
                asking.protocol, question, text, tokens=tokens, pointed=asking.pointed
            )
            if file:
                file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
                file.flush()
            move(row.index + 1, samples, "")
            yield row
    if partial:
        partial.replace(partial.with_name(ANSWERS))


def write(
    folder: Path,
    asking: Asking,
    rows: Sequence[Row],
    *,
    summary: dict[str, Any],
    others: Sequence[dict[str, Any]],
    each: int,
    config: object,
) -> None:
    """Writes numbers, tables and gallery beside the answers.

    Args:
      folder: of the evaluation.
      asking: which questions were asked.
      rows: what came of them.
      summary: of `scoring.summarise`, with "model", "split" and "versions".
      others: the same of other evaluations, which stand in the same tables.
      each: most images in each part of the gallery.
      config: of the run.
    """
    files.write_json(folder / SUMMARY, summary)
    by_model: dict[str, list[dict[str, Any]]] = {}
    for one in [*others, summary]:
        by_model.setdefault(one["model"], []).append(one)
    files.write_text(folder / TABLE, tables.markdown(by_model))
    page = html_page.Report(
        title=f"{asking.protocol.title}: {summary['split']}",
        summary_rows=gallery.table(summary, asking.protocol),
        curves=None,
        exhibits=gallery.exhibits(
            gallery.groups(rows, each=each),
            asking.protocol,
            asking.question_of,
            pointed=asking.pointed,
        ),
        config=config,
        versions=summary["versions"],
        notes=(
            f"{summary['model']} answers {summary['questions']:,} questions about "
            f"{summary['images']:,} images, greedily.",
        ),
    )
    html_page.write(folder / GALLERY, page)
    console.say(f"{folder}: {', '.join(FILES)}")


class _Interval(schemas.Record, frozen=True):
    """A number with its interval."""

    mean: schemas.Finite
    low: schemas.Finite
    high: schemas.Finite


class _Summary(schemas.Record, frozen=True):
    """What tables need of an evaluation beside its numbers."""

    model: schemas.Text
    split: schemas.Text
    protocol: protocols.Name
    questions: Annotated[int, Meta(ge=0, le=2**53)]


def read(folder: Path) -> dict[str, Any]:
    """Returns the numbers of another evaluation.

    Raises:
      ValueError: the folder holds none of a protocol.
    """
    path, advice = folder / SUMMARY, "give what was --out beside --protocol"
    summary = files.read_json_object(path, advice=advice)
    known = schemas.check(summary, _Summary, where=str(path), advice=advice)
    for name in protocols.PROTOCOLS[known.protocol].metrics:
        mean = summary.get(name, None if name in scoring.LATER else "nothing")
        if mean is not None:  # As where no question is of the kind that is counted.
            schemas.check(mean, _Interval, where=f"{path}, {name}", advice=advice)
    return summary


def numbers(rows: Sequence[Row], asking: Asking, **more: Any) -> dict[str, Any]:
    """Returns the numbers of the rows, with more about the run around them."""
    summary = scoring.summarise(rows, asking.protocol)
    return {"model": more.pop("model"), "split": more.pop("split"), **summary, **more}
