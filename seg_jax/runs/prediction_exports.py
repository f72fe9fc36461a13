"""Writes the answers of finished shards in the formats of other tools; what is there stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from seg_jax import files, schemas
from seg_jax.data import image_files
from seg_jax.data.build import record_files
from seg_jax.data.exports import html_gallery, table
from seg_jax.data.exports.table import Format
from seg_jax.data.findings import Findings
from seg_jax.runs import console, prediction_jobs
from seg_jax.runs.prediction_jobs import FORMAT, Job, Shard

EXPORTED = ".exported"
"""Folder of notes: which files a shard has been exported to."""


class _Note(schemas.Record, frozen=True):
    """What a finished shard has been exported to."""

    digest: schemas.Text
    files: list[schemas.FileName]
    findings: Any


def write(job: Job, shards: Sequence[Shard]) -> Findings:
    """Writes the files that are not there, and removes those of pictures that are not asked about.

    Formats that are one file of all answers are passed over.

    Raises:
      OSError: a file cannot be written.
    """
    formats: list[Format] = [one for one in job.formats if one not in table.WHOLE]
    met, wanted = Findings(), set[str]()
    if not formats:
        return met
    pages = _pages(job, shards) if table.GALLERY in formats else []
    notes: list[_Note] = []
    with console.progress("exports", len(shards) + len(pages)) as move:
        for note in _notes(job, shards, formats, pages):
            notes.append(note)
            met.merge(Findings.from_json(note.findings, where=job.out.as_posix()))
            wanted.update(note.files)
            move(len(notes), len(shards) + len(pages), "")
    names = [one.name for one in job.pictures if f"voc/SegmentationClass/{one.name}.png" in wanted]
    for path, make in table.of_all(job.categories, names, formats):
        _write_file(job, path, make())
        wanted.add(path)
    for folder in formats:
        remove_others(job.out / folder, {job.out / name for name in wanted})
    kept = [_shard_note(shard) for shard in shards]
    kept += [_page_note(number) for number in range(len(pages))]
    remove_others(job.out / EXPORTED, {job.out / EXPORTED / name for name in kept})
    return met


def _notes(
    job: Job, shards: Sequence[Shard], formats: Sequence[Format], pages: Sequence[Sequence[Shard]]
) -> Iterator[_Note]:
    """Yields what each shard, and each page of the gallery, has been written to."""
    single: list[Format] = [one for one in formats if one != table.GALLERY]
    for shard in shards:
        yield _exported(shard, job, single)
    for number, some in enumerate(pages):
        yield _written_page(some, job, number=number, count=len(pages))


def _exported(shard: Shard, job: Job, formats: Sequence[Format]) -> _Note:
    """Returns what a shard has been exported to, after that is done."""
    whole = prediction_jobs.read_whole(shard, job)
    told = [[one.name, one.number, one.first] for one in shard.pictures]
    labels = [one.name for one in job.categories]

    def make(met: Findings) -> Iterator[tuple[str, bytes]]:
        for picture in prediction_jobs.pictures_of(shard, job, whole.lines):
            for name, make in table.of_picture(picture, formats, job.out):
                try:
                    yield name, make()
                except image_files.Unreadable as error:
                    met.add_error("file of an export left out", error)

    digest = prediction_jobs.digest([FORMAT, whole.digest, formats, labels, told])
    return _noted(job, _shard_note(shard), digest, make)


def _pages(job: Job, shards: Sequence[Shard]) -> list[list[Shard]]:
    """Returns the shards of each page of the gallery."""
    pages: list[list[Shard]] = []
    for shard in shards:
        if not pages or sum(len(one.pictures) for one in pages[-1]) >= html_gallery.PICTURES:
            pages.append([])
        pages[-1].append(shard)
    return pages


def _written_page(shards: Sequence[Shard], job: Job, *, number: int, count: int) -> _Note:
    """Returns the file of a page of the gallery, after it is written."""
    wholes = [prediction_jobs.read_whole(shard, job) for shard in shards]

    def make(met: Findings) -> Iterator[tuple[str, bytes]]:
        pairs = [*zip(shards, wholes, strict=True)]
        text = html_gallery.page(
            prediction_jobs.all_pictures(job, shards),
            [line for one, whole in pairs for line in prediction_jobs.failed_of(one, whole.lines)],
            number=number,
            count=count,
            findings=met,
        )
        yield f"{table.GALLERY}/{html_gallery.file_name(number)}", text.encode()

    digest = prediction_jobs.digest([FORMAT, number, count, [one.digest for one in wholes]])
    return _noted(job, _page_note(number), digest, make)


def _noted(
    job: Job, name: str, digest: str, make: Callable[[Findings], Iterator[tuple[str, bytes]]]
) -> _Note:
    """Returns the note of files that depend on just this, after they are written if need be."""
    path = job.out / EXPORTED / name
    try:
        value = files.read_json(path)
        known = schemas.check(value, _Note, where=str(path))
        Findings.from_json(known.findings)
        if known.digest == digest and all((job.out / one).is_file() for one in known.files):
            return known
    except ValueError:  # There is none, or half of one.
        pass
    met, written = Findings(), []
    for file, data in make(met):
        _write_file(job, file, data)
        written.append(file)
    value = {"digest": digest, "files": written, "findings": met.as_json()}
    _write_file(job, f"{EXPORTED}/{name}", json.dumps(value).encode())
    return _Note(digest=digest, files=written, findings=value["findings"])


def _shard_note(shard: Shard) -> str:
    return f"{shard.index:06d}.json"


def _page_note(number: int) -> str:
    return f"page-{number:06d}.json"


def remove_others(folder: Path, wanted: Collection[Path]) -> None:
    """Removes what an earlier run with other questions has left in a folder of ours."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()


def _write_file(job: Job, name: str, data: bytes) -> None:
    """Writes a file of the run, whole or not at all."""
    path = job.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data, aside=job.out / record_files.UNFINISHED)
