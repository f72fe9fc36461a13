"""Answers questions about many pictures, in shards that are written whole or not at all.

A shard is some whole pictures. What it depends on (model and options, its pictures' sizes and
times, its questions) is in its digest: shards that are there stay, others are answered. A shard's
questions always go to the device in the same batches, so that a run that was interrupted ends
with the bytes of one that was not.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seg_jax import files, schemas
from seg_jax.data import image_files, shard_files
from seg_jax.data.build import claims, record_files
from seg_jax.data.exports import answers, table
from seg_jax.data.exports.answers import Answer, Category, Picture
from seg_jax.data.exports.table import Format
from seg_jax.data.findings import Findings
from seg_jax.data.question_lists import Question
from seg_jax.inference.predictor import Predictor, Row
from seg_jax.runs import console

LINES, FAILED, SUMMARY = "answers.jsonl", "failed.jsonl", "summary.json"
"""An answer a line; what could not be answered, and why; counts."""
DONE, EXPORTED = ".answered", ".exported"
"""Folders of finished shards, and of notes which files each has been exported to."""
BATCHES = 4
"""Batches of a shard: the most that a kill can cost."""
_FOLDERS = ("yolo", "labelme", "voc", "svg", "masks", "overlays")
_MADE = (
    LINES,
    FAILED,
    SUMMARY,
    "gallery.html",
    *(whole.path for whole in table.WHOLE.values()),
    f"{DONE}/*.jsonl",
    f"{EXPORTED}/*.json",
    *(f"{folder}/**/*" for folder in _FOLDERS),
)
"""Patterns of what a run makes in its folder."""
_FORMAT = 1
"""Format of shards; it grows when older ones can no longer be read."""
_NO_MASK = "answer without a mask: formats of masks leave it out"


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


def run(job: Job, load: Callable[[], Predictor], *, anew: bool) -> dict[str, Any]:
    """Answers what is not answered yet, writes everything, and returns the summary.

    Args:
      job: what is asked.
      load: loads the model; it is called if something is left to ask.
      anew: whether what an earlier run has left in the folder is replaced.

    Raises:
      ValueError: the folder holds something else, or no question could be answered.
      OSError: a file cannot be written.
    """
    with claims.claim_folder(
        job.out,
        {"name": "predictions", **job.identity},
        anew=anew,
        reads=[one.path for one in job.pictures],
        made=_MADE,
    ):
        shards = cut_shards(job)
        _answer(job, shards, load)
        _remove_others(job.out / DONE, {_shard_path(shard, job) for shard in shards})
        unheld = _export(job, shards)
        summary = _compose(job, shards, unheld)
    if not summary["answered"]:
        raise ValueError(
            f"{job.out}: expected an answer at least, got none to {summary['questions']} questions"
            f", {Findings.from_json(summary['findings']).commonest()}; do: see {job.out / FAILED}"
        )
    return summary


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shard_digest(shard: Shard, job: Job) -> str:
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
    return _digest([_FORMAT, job.identity, job.batch, pictures])


def _state(path: Path) -> list[int] | None:
    """Returns size and time of a file; None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns]


def _shard_path(shard: Shard, job: Job) -> Path:
    return job.out / DONE / f"{shard.index:06d}.jsonl"


def _answer(job: Job, shards: Sequence[Shard], load: Callable[[], Predictor]) -> None:
    """Answers the shards that are not there; while the device works, the next one is read."""
    digests = [_shard_digest(shard, job) for shard in shards]
    missing = [
        place
        for place, shard in enumerate(shards)
        if not shard_files.is_of(_shard_path(shard, job), digests[place])
    ]
    done = job.count - sum(shards[place].count for place in missing)
    if done:
        console.say(f"{done} of {job.count} questions were answered before")
    if not missing:
        return
    predictor = load()
    # One thread: readers of pictures turn off warnings for the whole process.
    with ThreadPoolExecutor(1) as pool, console.progress("questions", job.count) as move:
        move(done, job.count, "")
        ahead = pool.submit(_prepare, job, shards[missing[0]], predictor)
        for number, place in enumerate(missing):
            rows, findings = ahead.result()
            if number + 1 < len(missing):
                ahead = pool.submit(_prepare, job, shards[missing[number + 1]], predictor)
            lines = _lines(rows, predictor, job.batch)
            failed = sum(len(line["failed"]) for line in lines)
            shard = shards[place]
            shard_files.write(
                _shard_path(shard, job),
                lines,
                digest=digests[place],
                counts={"questions": shard.count, "failed": failed},
                findings=findings,
                aside=job.out / record_files.UNFINISHED,
            )
            done += shard.count
            move(done, job.count, "")


def _prepare(
    job: Job, shard: Shard, predictor: Predictor
) -> tuple[list[list[Row | dict[str, str]]], Findings]:
    """Returns each picture's rows, or in the place of one why there is none."""
    met = Findings()
    found: list[list[Row | dict[str, str]]] = []
    for one in shard.pictures:
        try:
            image = image_files.read(one.path, where=repr(one.key))
        except image_files.Unreadable as error:
            met.add_error("picture left out", error)
            found.append([_fault(error)] * len(one.questions))
            continue
        rows: list[Row | dict[str, str]] = []
        for question in one.questions:
            kind = None if question.answer is None else job.kinds[question.answer]
            try:
                example, prompt = predictor.row(image, question.asked_clue, kind)
            except ValueError as error:
                met.add_error("question left out", ValueError(f"{one.key}: {error}"))
                rows.append(_fault(error))
                continue
            if not predictor.draws:  # Only the size of the image is needed from here on.
                flat = np.broadcast_to(np.uint8(0), image.shape)
                example = dataclasses.replace(example, image=flat)
            rows.append((example, prompt))
        found.append(rows)
    return found, met


def _fault(error: ValueError) -> dict[str, str]:
    told, _, advice = str(error).partition("; do: ")
    return {"fault": told, "do": advice}


def _lines(
    pictures: Sequence[Sequence[Row | dict[str, str]]], predictor: Predictor, batch: int
) -> list[dict[str, Any]]:
    """Returns a line for each picture: its answers, null in the place of those that failed."""
    rows = [row for some in pictures for row in some if not isinstance(row, dict)]
    found = iter(predictor.answer_rows(rows, batch=batch))
    lines = []
    for some in pictures:
        told: list[dict[str, Any] | None] = []
        failed = []
        for place, row in enumerate(some):
            if isinstance(row, dict):
                told.append(None)
                failed.append({"place": place, **row})
                continue
            one = next(found)
            more = {"score": round(one.score, 6), "tokens": one.tokens}
            told.append(one.prediction.as_json() | more)
        lines.append({"answers": told, "failed": failed})
    return lines


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


class _Note(schemas.Record, frozen=True):
    """What a finished shard has been exported to."""

    digest: schemas.Text
    files: list[schemas.FileName]
    findings: Any


def _export(job: Job, shards: Sequence[Shard]) -> Findings:
    """Writes the files of single pictures that are not there; those of no picture are removed."""
    formats: list[Format] = [one for one in job.formats if one not in table.WHOLE]
    met, wanted = Findings(), set[str]()
    if not formats:
        return met
    with console.progress("exports", len(shards)) as move:
        for shard in shards:
            note = _exported(shard, job, formats)
            met.merge(Findings.from_json(note.findings, where=job.out.as_posix()))
            wanted.update(note.files)
            move(shard.index + 1, len(shards), "")
    names = [one.name for one in job.pictures if f"voc/SegmentationClass/{one.name}.png" in wanted]
    for path, make in table.of_all(job.categories, names, formats):
        _write_file(job, path, make())
        wanted.add(path)
    for folder in formats:
        _remove_others(job.out / folder, {job.out / name for name in wanted})
    _remove_others(job.out / EXPORTED, {_note_path(shard, job) for shard in shards})
    return met


def _exported(shard: Shard, job: Job, formats: Sequence[Format]) -> _Note:
    """Returns what a shard has been exported to, after that is done."""
    path, whole = _note_path(shard, job), _read_whole(shard, job)
    told = [[one.name, one.number, one.first] for one in shard.pictures]
    labels = [one.name for one in job.categories]
    digest = _digest([_FORMAT, whole.digest, formats, labels, told])
    try:
        value = files.read_json(path)
        known = schemas.check(value, _Note, where=str(path))
        if known.digest == digest and all((job.out / one).is_file() for one in known.files):
            return known
    except ValueError:  # There is none, or half of one.
        pass
    met, written = Findings(), []
    for picture in pictures_of(shard, job, whole.lines):
        for name, make in table.of_picture(picture, formats, job.out):
            try:
                _write_file(job, name, make())
            except image_files.Unreadable as error:
                met.add_error("file of an export left out", error)
                continue
            written.append(name)
    value = {"digest": digest, "files": written, "findings": met.as_json()}
    _write_file(job, path.relative_to(job.out).as_posix(), json.dumps(value).encode())
    return _Note(digest=digest, files=written, findings=value["findings"])


def _note_path(shard: Shard, job: Job) -> Path:
    return job.out / EXPORTED / f"{shard.index:06d}.json"


def _remove_others(folder: Path, wanted: Collection[Path]) -> None:
    """Removes what an earlier run with other questions has left in a folder of ours."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()


def _write_file(job: Job, name: str, data: bytes) -> None:
    """Writes a file of the run, whole or not at all."""
    path = job.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data, aside=job.out / record_files.UNFINISHED)


def _read_whole(shard: Shard, job: Job) -> shard_files.Whole:
    return shard_files.read(_shard_path(shard, job))


def all_pictures(job: Job, shards: Sequence[Shard]) -> Iterator[Picture]:
    """Yields the pictures of all shards that have answers, in order; one shard is in memory."""
    for shard in shards:
        yield from pictures_of(shard, job, _read_whole(shard, job).lines)


def _compose(job: Job, shards: Sequence[Shard], met: Findings) -> dict[str, Any]:
    """Writes the files of all answers, and the summary, which it returns."""
    counts: collections.Counter[str] = collections.Counter()
    aside = job.out / record_files.UNFINISHED
    with files.open_whole(job.out / FAILED, aside=aside) as file:
        for shard in shards:
            whole = _read_whole(shard, job)
            met.merge(whole.findings)
            for one in _failed(shard, whole.lines):
                counts["failed"] += 1
                file.write(f"{json.dumps(one)}\n")
    verdicts: collections.Counter[str] = collections.Counter()
    with files.open_whole(job.out / LINES, aside=aside) as file:
        for picture in all_pictures(job, shards):
            counts["pictures"] += 1
            for one in picture.answers:
                file.write(f"{json.dumps(one.told)}\n")
                verdicts[one.told["verdict"]] += 1
                counts["masks"] += one.is_mask
                if not one.is_mask and job.formats:
                    met.add(_NO_MASK, f"{picture.key}: {one.label}, a {one.kind}")
    for name in job.formats:
        if name in table.WHOLE:
            path, write = table.WHOLE[name]
            with files.open_whole(job.out / path, aside=aside) as file:
                write(file, all_pictures(job, shards), job.categories)
    summary = {
        "questions": job.count,
        "answered": sum(verdicts.values()),
        "failed": counts["failed"],
        "pictures": len(job.pictures),
        "pictures_answered": counts["pictures"],
        "masks": counts["masks"],
        "verdicts": dict(sorted(verdicts.items())),
        "formats": [*job.formats],
        "findings": met.as_json(),
    }
    files.write_bytes(
        job.out / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode(), aside=aside
    )
    return summary


def _failed(shard: Shard, lines: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yields what could not be answered, as lines of failed.jsonl."""
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
