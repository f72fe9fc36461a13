"""What many pictures are asked, in shards of whole pictures that are answered and written together.

What a shard depends on (model and options, its pictures' sizes and times, its questions) is in its
digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seg_jax import schemas
from seg_jax.data import shard_files
from seg_jax.data.exports import answers, table
from seg_jax.data.exports.answers import Answer, Category, Picture
from seg_jax.data.exports.table import Format
from seg_jax.data.question_lists import Question

DONE = ".answered"
"""Folder of finished shards."""
BATCHES = 4
"""Batches of a shard: the most that a kill can cost."""
FORMAT = 1
"""Format of shards; it grows when older ones can no longer be read."""


class Asked(NamedTuple):
    """A picture with the questions about it."""

    key: str
    path: Path
    name: str
    number: int
    """In COCO's files."""
    first: int
    """Number of its first question in the run."""
    questions: tuple[Question, ...]


class Shard(NamedTuple):
    """Pictures that are answered together."""

    index: int
    pictures: tuple[Asked, ...]

    @property
    def count(self) -> int:
        """Questions in it."""
        return sum(len(one.questions) for one in self.pictures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked, how, and where the answers go."""

    pictures: tuple[Asked, ...]
    categories: tuple[Category, ...]
    places: Mapping[Any, int]
    """Place of each question's category, see `category_key`."""
    out: Path
    batch: int
    """Questions at once."""
    formats: tuple[Format, ...]
    identity: Mapping[str, Any]
    """The model, and all that answers depend on beside pictures and questions, as JSON values."""
    kinds: Mapping[str, int]
    """Numbers of the kinds of answers by name."""

    @property
    def count(self) -> int:
        """Questions in all."""
        return sum(len(one.questions) for one in self.pictures)


def category_key(question: Question) -> Any:
    """Returns what tells the category of a question: its number where it has one, or its label."""
    return question.label if question.category_id is None else question.category_id


def plan(
    questions: Sequence[Question],
    *,
    out: Path,
    batch: int,
    formats: Sequence[Format],
    identity: Mapping[str, Any],
    kinds: Sequence[str],
) -> Job:
    """Returns the job of questions, in the order of their pictures' first ones.

    Args:
      questions: at least one.
      out: folder of the run.
      batch: questions at once.
      formats: what answers are exported to.
      identity: see `Job`.
      kinds: names of the kinds of answers of the model's task.

    Raises:
      ValueError: a question asks for a kind that there is not, numbers for COCO's files do not fit
        together, or a format cannot hold so many categories.
    """
    by_key: dict[str, list[Question]] = {}
    for one in questions:
        by_key.setdefault(one.key, []).append(one)
        if one.answer is not None and one.answer not in kinds:
            raise ValueError(
                f"answer: expected one of {', '.join(kinds)}, got {schemas.short_repr(one.answer)} "
                f"for {one.key}; do: choose one, or leave it out"
            )
    categories, places = _categories(questions)
    table.check(categories, formats)
    numbers = _image_ids(by_key)
    firsts = itertools.accumulate(map(len, by_key.values()), initial=0)
    pictures = tuple(
        Asked(key, some[0].path, name, number, first, tuple(some))
        for (key, some), name, number, first in zip(
            by_key.items(), answers.unique_names([*by_key]), numbers, firsts, strict=False
        )
    )
    return Job(
        pictures=pictures,
        categories=categories,
        places=places,
        out=out,
        batch=batch,
        formats=tuple(dict.fromkeys(formats)),
        identity=identity,
        kinds={name: number for number, name in enumerate(kinds)},
    )


def _categories(
    questions: Sequence[Question],
) -> tuple[tuple[Category, ...], dict[Any, int]]:
    """Returns the categories in the order in which they are first asked for."""
    places: dict[Any, int] = {}
    found: list[Category] = []
    for one in questions:
        key = category_key(one)
        if key not in places:
            places[key] = len(found)
            number = len(found) + 1 if one.category_id is None else one.category_id
            found.append(Category(one.label, number))
    if len({one.number for one in found}) < len(found):
        raise ValueError(
            "questions: expected category_id in all of them or in none, got some with it; do: give "
            "it to all, or leave it out"
        )
    return tuple(found), places


def _image_ids(by_key: Mapping[str, Sequence[Question]]) -> list[int]:
    """Returns the number of each picture in COCO's files."""
    told = [{one.image_id for one in some} for some in by_key.values()]
    if all(some == {None} for some in told):
        return [*range(1, len(told) + 1)]
    numbers = [next(iter(some)) for some in told if len(some) == 1 and None not in some]
    if len({*numbers}) < len(told):
        raise ValueError(
            "questions: expected one image_id for each picture, another for each, or none at all, "
            "got others; do: correct them, or leave them out"
        )
    return [number for number in numbers if number is not None]


def cut_shards(job: Job) -> list[Shard]:
    """Returns the shards: whole pictures, with so many questions as some batches hold."""
    shards: list[Shard] = []
    some: list[Asked] = []
    count = 0
    for one in job.pictures:
        some.append(one)
        count += len(one.questions)
        if count >= BATCHES * job.batch:
            shards.append(Shard(len(shards), tuple(some)))
            some, count = [], 0
    return [*shards, Shard(len(shards), tuple(some))] if some else shards


def digest(value: Any) -> str:
    """Returns a digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shard_digest(shard: Shard, job: Job) -> str:
    """Returns a digest of all that the answers of a shard depend on."""
    pictures = [
        [
            one.key,
            str(one.path),
            _state(one.path),
            [[q.asked_json(), q.answer] for q in one.questions],
        ]
        for one in shard.pictures
    ]
    return digest([FORMAT, job.identity, job.batch, pictures])


def _state(path: Path) -> list[int] | None:
    """Returns size and time of a file; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def shard_path(shard: Shard, job: Job) -> Path:
    """Returns where a finished shard lies."""
    return job.out / DONE / f"{shard.index:06d}.jsonl"


def pictures_of(shard: Shard, job: Job, lines: Sequence[Any]) -> Iterator[Picture]:
    """Yields the pictures of a finished shard that have answers."""
    for one, line in zip(shard.pictures, lines, strict=True):
        found = tuple(
            Answer(
                {
                    "number": one.first + place,
                    **({} if question.id is None else {"id": question.id}),
                    "image": one.key,
                    "name": one.name,
                    "label": question.label,
                    "asked": question.asked_json(),
                    **told,
                },
                job.places[category_key(question)],
            )
            for place, (question, told) in enumerate(
                zip(one.questions, line["answers"], strict=True)
            )
            if told is not None
        )
        if found:
            yield Picture(
                key=one.key, path=one.path, name=one.name, number=one.number, answers=found
            )


def read_whole(shard: Shard, job: Job) -> shard_files.Whole:
    """Returns a finished shard.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    return shard_files.read(shard_path(shard, job))


def all_pictures(job: Job, shards: Sequence[Shard]) -> Iterator[Picture]:
    """Yields the pictures of all shards that have answers, in order; one shard is in memory."""
    for shard in shards:
        yield from pictures_of(shard, job, read_whole(shard, job).lines)


def failed_of(shard: Shard, lines: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields what could not be answered of a finished shard, as lines of failed.jsonl."""
    for one, line in zip(shard.pictures, lines, strict=True):
        for fault in line["failed"]:
            question = one.questions[fault["place"]]
            yield {
                "number": one.first + fault["place"],
                **({} if question.id is None else {"id": question.id}),
                "image": one.key,
                "asked": question.asked_json(),
                "fault": fault["fault"],
                "do": fault["do"],
            }
