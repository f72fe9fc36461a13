"""Answers questions about many pictures, in shards that are written whole or not at all.

A shard is some whole pictures. What it depends on (model and options, its pictures' sizes and
times, its questions) is in its digest: shards that are there stay, others are answered. A shard's
questions always go to the device in the same batches, so that a run that was interrupted ends
with the bytes of one that was not.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from seg_jax import files
from seg_jax.data import image_files, shard_files
from seg_jax.data.build import claims, record_files
from seg_jax.data.exports import table
from seg_jax.data.findings import Findings
from seg_jax.inference.predictor import Answered, Predictor, Row
from seg_jax.runs import console, prediction_exports, prediction_jobs
from seg_jax.runs.prediction_exports import EXPORTED
from seg_jax.runs.prediction_jobs import DONE, Job, Shard

LINES, FAILED, SUMMARY = "answers.jsonl", "failed.jsonl", "summary.json"
"""An answer a line; what could not be answered, and why; counts."""
_MADE = (
    LINES,
    FAILED,
    SUMMARY,
    *(whole.path for whole in table.WHOLE.values()),
    f"{DONE}/*.jsonl",
    f"{EXPORTED}/*.json",
    *(f"{folder}/**/*" for folder in table.FOLDERS),
)
"""Patterns of what a run makes in its folder."""
_NO_MASK = "answer without a mask: formats of masks leave it out"


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
        shards = prediction_jobs.cut_shards(job)
        job = dataclasses.replace(job, formats=table.with_present(job.formats, job.out))
        _answer(job, shards, load)
        prediction_exports.remove_others(
            job.out / DONE, {prediction_jobs.shard_path(shard, job) for shard in shards}
        )
        unheld = prediction_exports.write(job, shards)
        summary = _compose(job, shards, unheld)
    if not summary["answered"]:
        raise ValueError(
            f"{job.out}: expected an answer at least, got none to {summary['questions']} questions"
            f", {Findings.from_json(summary['findings']).commonest()}; do: see {job.out / FAILED}"
        )
    return summary


def _answer(job: Job, shards: Sequence[Shard], load: Callable[[], Predictor]) -> None:
    """Answers the shards that are not there; while the device works, the next one is read."""
    digests = [prediction_jobs.shard_digest(shard, job) for shard in shards]
    missing = [
        place
        for place, shard in enumerate(shards)
        if not shard_files.is_of(prediction_jobs.shard_path(shard, job), digests[place])
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
            begun = done
            lines = _lines(
                rows, predictor, job.batch, lambda n, begun=begun: move(begun + n, job.count, "")
            )
            failed = sum(len(line["failed"]) for line in lines)
            shard = shards[place]
            shard_files.write(
                prediction_jobs.shard_path(shard, job),
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
    pictures: Sequence[Sequence[Row | dict[str, str]]],
    predictor: Predictor,
    batch: int,
    tell: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Returns a line for each picture: its answers, null in the place of those that failed.

    Args:
      pictures: rows, or why there is none.
      predictor: that is asked.
      batch: questions at once.
      tell: is told after each batch how many have been answered.
    """
    rows = [row for some in pictures for row in some if not isinstance(row, dict)]
    answered: list[Answered] = []
    for begin in range(0, len(rows), batch):
        answered += predictor.answer_rows(rows[begin : begin + batch], batch=batch)
        tell(len(answered))
    found = iter(answered)
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


def _compose(job: Job, shards: Sequence[Shard], met: Findings) -> dict[str, Any]:
    """Writes the files of all answers, and the summary, which it returns."""
    counts: collections.Counter[str] = collections.Counter()
    aside = job.out / record_files.UNFINISHED
    with files.open_whole(job.out / FAILED, aside=aside) as file:
        for shard in shards:
            whole = prediction_jobs.read_whole(shard, job)
            met.merge(whole.findings)
            for one in prediction_jobs.failed_of(shard, whole.lines):
                counts["failed"] += 1
                file.write(f"{json.dumps(one)}\n")
    verdicts: collections.Counter[str] = collections.Counter()
    with files.open_whole(job.out / LINES, aside=aside) as file:
        for picture in prediction_jobs.all_pictures(job, shards):
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
                write(file, prediction_jobs.all_pictures(job, shards), job.categories)
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
