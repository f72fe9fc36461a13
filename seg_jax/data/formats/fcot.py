"""Reads FCoT: images with a question, a thought and an answer in clicks, in Parquet files.

The set of Seg-R1 (arXiv 2506.22624) for a first fine-tuning: `geshang/FCoT` of Hugging Face's hub,
data/train-*.parquet with the columns image, problem, thinking and solution. There are no masks.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from pathlib import Path

from seg_jax import schemas
from seg_jax.data.findings import Findings
from seg_jax.data.formats import annotations, foreign, parquet_rows
from seg_jax.data.formats.annotations import AnnotatedImage, Annotations
from seg_jax.records import Trace

COLUMNS = ("problem", "thinking", "solution")
_FILE = re.compile(
    r"(?P<split>\w+?)(?:-(?P<part>\d{1,9})-of-(?P<of>\d{1,9})(?:-[0-9a-f]{8,64})?)?\.parquet"
)
"""Names of the hub: train.parquet, train-00000-of-00002.parquet, older ones with a hash behind."""


class _Row(schemas.Record, frozen=True, kw_only=True):
    problem: schemas.Text
    thinking: schemas.Text | None = None
    solution: schemas.Text


def read(source: Path) -> Annotations:
    """Returns the images with their conversations; images are read when records are made.

    Raises:
      ValueError: there is no such file, one is damaged, or pyarrow is not there.
    """
    found = Annotations([])
    files = [*sorted((source / "data").glob("*.parquet")), *sorted(source.glob("*.parquet"))]
    named = _split_files(files, found.findings)
    if not named:
        what, advice = foreign.found_instead(source)
        raise ValueError(
            f"{source}: expected data/train-*.parquet, got {what}; do: give the folder that holds "
            f"data as --source, or {advice}"
        )
    for split, file in named:
        for number, value in enumerate(parquet_rows.texts(file, COLUMNS, "image")):
            if trace := _trace(value, f"{file}, row {number}", found.findings):
                found.images.append(
                    AnnotatedImage(
                        key=f"{split}/{file.stem}/{number}",
                        split=split,
                        image=file,
                        image_id=len(found.images),
                        objects=(),
                        expressions=(),
                        upright=False,
                        traces=(trace,),
                        row=number,
                    )
                )
    return found


def _split_files(files: Sequence[Path], met: Findings) -> list[tuple[str, Path]]:
    """Returns files with their splits; tells of those with other names, and of missing parts."""
    found: list[tuple[str, Path]] = []
    parts: dict[tuple[str, int], set[int]] = collections.defaultdict(set)
    for file in files:
        match = _FILE.fullmatch(file.name)
        if match is None:
            met.add(
                "file left out: its name is none of a split",
                str(file),
                advice="name it SPLIT.parquet or SPLIT-00000-of-00001.parquet",
            )
            continue
        found.append((match["split"], file))
        if match["of"]:
            parts[match["split"], int(match["of"])].add(int(match["part"]))
    for (split, count), there in parts.items():
        if len(there) < count:
            met.add(
                "files of a split are missing",
                f"{split}: {len(there)} of {count} are there",
                advice="fetch the others",
            )
    return found


def _trace(value: object, where: str, met: Findings) -> Trace | None:
    """Returns the conversation of a row; one that has no question or no answer is told."""
    try:
        row = annotations.check_annotation(value, _Row, where=where, findings=met)
    except schemas.Invalid as error:
        met.add_error("conversation left out", error)
        return None
    trace = Trace(row.problem.strip(), (row.thinking or "").strip(), row.solution.strip())
    if not trace.question or not trace.answer:
        met.add("conversation left out: it has no question or no answer", where)
        return None
    if not trace.thought:
        met.add("conversation without a thought", where)
    return trace
