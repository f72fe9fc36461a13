"""Runs a protocol of foreground objects: maps judged, rows written, numbers and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from seg_jax import files, schemas
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.foreground import protocols, scoring, tables
from seg_jax.evaluation.foreground.maps import Mapped
from seg_jax.evaluation.foreground.protocols import Row
from seg_jax.evaluation.referring.answers import Answered
from seg_jax.runs import console

ROWS, SUMMARY, TABLE = FILES = ("rows.jsonl", "summary.json", "table.md")
"""What is written to the folder of an evaluation."""
ANSWERS = "answers.jsonl"
"""And this, where a model answers."""


def noted_answers(answered: Iterable[Answered], folder: Path) -> Iterator[Answered]:
    """Yields questions with their answers, each written as soon as it is known.

    Until the last one is, the file is called answers.partial.jsonl; `--answers` takes either.
    """
    files.make_folder(folder, "the answers")
    partial = folder / "answers.partial.jsonl"
    with partial.open("w", encoding="utf-8") as file:
        for question, text, tokens in answered:
            line = {
                "key": question.sample.key,
                "which": question.which,
                "given": question.given,
                "kind": question.kind.name.lower(),
                "phrase": question.phrase,
                "text": text,
                "tokens": tokens,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            yield question, text, tokens
    partial.replace(folder / ANSWERS)


def judged_rows(mapped: Iterable[Mapped], count: int, *, name: str, released: bool) -> list[Row]:
    """Returns what each map is worth, with a progress bar.

    Args:
      mapped: samples with their maps.
      count: how many there are.
      name: of the protocol.
      released: as in `protocols.judge`.

    Raises:
      ValueError: a sample has not one mask.
    """
    rows = []
    with console.progress(name, count) as move:
        for sample, grey in mapped:
            rows.append(protocols.judge(sample, grey, released=released))
            move(len(rows), count, "")
    return rows


def write(
    folder: Path,
    rows: Sequence[Row],
    *,
    summary: dict[str, Any],
    others: Sequence[dict[str, Any]],
) -> None:
    """Writes rows, numbers and tables.

    Args:
      folder: of the evaluation.
      rows: what came of each image.
      summary: of `scoring.summarise`, with "model" beside.
      others: the same of other evaluations, which stand in the same tables.
    """
    files.make_folder(folder, "the numbers")
    lines = (json.dumps(row.as_json(), ensure_ascii=False) + "\n" for row in rows)
    files.write_text(folder / ROWS, "".join(lines))
    files.write_json(folder / SUMMARY, summary)
    files.write_text(folder / TABLE, tables.markdown([*others, summary]))
    console.say(f"{folder}: {', '.join(FILES)}")


class _Interval(schemas.Record, frozen=True):
    """A number with its interval."""

    mean: schemas.Finite
    low: schemas.Finite
    high: schemas.Finite


class _Images(schemas.Record, frozen=True):
    """How many images numbers are of."""

    images: Annotated[int, Meta(ge=1, le=2**53)]


class _Summary(schemas.Record, frozen=True):
    """What tables need of an evaluation beside its numbers."""

    model: schemas.Text
    protocol: protocols.Name
    sets: dict[str, dict[str, Any]]


def read(folder: Path) -> dict[str, Any]:
    """Returns the numbers of another evaluation.

    Raises:
      ValueError: the folder holds none of a protocol of foreground objects.
    """
    path, advice = folder / SUMMARY, "give what was --out beside --protocol cod or sod"
    summary = files.read_json_object(path, advice=advice)
    known = schemas.check(summary, _Summary, where=str(path), advice=advice)
    for name, told in known.sets.items():
        _check_numbers(told, scoring.TITLES, where=f"{path}, {name}", advice=advice)
        groups = schemas.check(
            told.get("groups"), dict[str, dict[str, Any]], where=f"{path}, {name}", advice=advice
        )
        for group, of_group in groups.items():
            place = f"{path}, {name}, {group}"
            _check_numbers(of_group, scoring.OF_GROUPS, where=place, advice=advice)
    return summary


def _check_numbers(told: dict[str, Any], names: Iterable[str], *, where: str, advice: str) -> None:
    """Raises ValueError if one of some numbers is none."""
    schemas.check(told, _Images, where=where, advice=advice)
    for name in names:
        schemas.check(told.get(name), _Interval, where=f"{where}, {name}", advice=advice)


def show(summary: dict[str, Any], title: str) -> None:
    """Shows the numbers of each data set as a table."""
    for name, told in summary["sets"].items():
        rows = [
            (
                scoring.TITLES[key],
                f"{told[key]['mean']:.3f}",
                f"{told[key]['low']:.3f} to {told[key]['high']:.3f}",
            )
            for key in scoring.TITLES
        ]
        header = ("", "mean", f"{bootstrap.level()} interval")
        console.table(f"{title}: {name}, {told['images']:,} images", header, rows)
