"""The files of a split of a built data set: which there are, and what is read of them."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from seg_jax import checksums, files, schemas
from seg_jax.data import record_schema
from seg_jax.data.findings import Findings
from seg_jax.data.record_schema import Record, Size
from seg_jax.tasks.task import Unfit

REPAIR = "run the same seg-jax build again, which makes damaged files anew"

UNTOLD = "nobody knows what was left out: the data set has no report of its build"
"""Reason of a data set of TFDS, or one whose report is gone."""

_Name = Annotated[str, Meta(pattern=r"^[\w+.-]{1,200}$")]
"""What is part of a file's name, and never leads to another folder."""
_Count = Annotated[int, Meta(ge=0, le=2**40)]


class _Split(schemas.Record, frozen=True):
    name: _Name
    shardLengths: list[Annotated[str, Meta(pattern=r"^\d{1,12}$")]]


class Info(schemas.Record, frozen=True):
    """What `dataset_info.json` says, as far as it is read here; the names are TFDS's."""

    name: _Name
    splits: list[_Split]
    fileFormat: str = "none"


class _File(schemas.Record, frozen=True):
    size: _Count


class _Report(schemas.Record, frozen=True):
    splits: dict[str, dict[str, int]]
    files: dict[str, _File] = msgspec.field(default_factory=dict)
    xxh3_of_sizes: str | None = None
    xxh3_of_features: str | None = None
    findings: Any = msgspec.field(default_factory=dict)
    limits: Any = msgspec.field(default_factory=dict)


def read_info(folder: Path) -> Info:
    """Returns what a data set says of itself: its name, splits and files.

    Raises:
      ValueError: the folder holds no whole data set.
    """
    path = folder / record_schema.INFO
    if not path.exists():
        raise ValueError(
            f"{folder}: expected a data set with dataset_info.json, got none; do: seg-jax build, "
            "until it ends"
        )
    return schemas.check(files.read_json(path, advice=REPAIR), Info, where=str(path), advice=REPAIR)


def _read_report(folder: Path) -> _Report | None:
    """Returns what a build's report says of splits and files; a data set of TFDS has none."""
    path = folder / record_schema.REPORT
    if not path.exists():
        return None
    value = files.read_json(path, advice=REPAIR)
    return schemas.check(value, _Report, where=str(path), advice=REPAIR)


def _read_as_built(path: Path, xxh3: str) -> bytes:
    """Returns the bytes of a file; raises ValueError for others than the build wrote."""
    data = files.read_bytes(path, advice=REPAIR)
    if checksums.of_bytes(data) != xxh3:
        raise ValueError(f"{path}: expected it as it was built, got other bytes; do: {REPAIR}")
    return data


def read_findings(folder: Path) -> tuple[Findings, Findings]:
    """Returns what a build left out or changed, and what runs will pass over of what it kept.

    Where there is no report, that is told.

    Raises:
      ValueError: the report of the build is damaged.
    """
    report, where = _read_report(folder), str(folder / record_schema.REPORT)
    if report is None:
        met = Findings()
        met.add(UNTOLD, f"{where}: no such file", advice=REPAIR)
        return met, Findings()
    kinds = report.findings, report.limits
    left_out, limited = (Findings.from_json(one, where=where) for one in kinds)
    return left_out, limited


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """The files of a split; they are opened at first use, in each process and thread alike."""

    folder: Path
    split: str
    paths: tuple[Path, ...]
    lengths: tuple[int, ...]
    """Number of records of each file."""
    counts: dict[str, int]
    """The split's counts in the build's report; none for a data set of TFDS."""
    bytes: tuple[int | None, ...]
    """Bytes that each file had when it was built; None where that is not known."""
    sizes_xxh3: str | None

    @classmethod
    def find(cls, folder: Path, split: str) -> SplitFiles:
        """Returns the files of a split of a data set.

        Raises:
          ValueError: the folder holds no whole data set in ArrayRecord, or no such split, or its
            sizes are damaged.
        """
        info = read_info(folder)
        if info.fileFormat != record_schema.FILE_FORMAT:
            raise ValueError(
                f"{folder}: expected files in {record_schema.FILE_FORMAT}, got "
                f"{schemas.short_repr(info.fileFormat)}; do: tfds build --file_format=array_record"
            )
        splits = {one.name: one for one in info.splits}
        if split not in splits:
            raise ValueError(
                f"{folder}: expected one of the splits {', '.join(splits)}, got {split!r}"
                f"; do: --split {next(iter(splits), 'SPLIT')}, or the split of the configuration"
            )
        lengths = tuple(int(length) for length in splits[split].shardLengths)
        names = [
            record_schema.file_name(info.name, split, index=index, count=len(lengths))
            for index in range(len(lengths))
        ]
        report = _read_report(folder)
        known = {} if report is None else report.files
        found = cls(
            folder=folder,
            split=split,
            paths=tuple(folder / name for name in names),
            lengths=lengths,
            counts={} if report is None else report.splits.get(split, {}),
            bytes=tuple(known[name].size if name in known else None for name in names),
            sizes_xxh3=None if report is None else report.xxh3_of_sizes,
        )
        found._sizes_data()
        if report is not None and report.xxh3_of_features is not None:
            _read_as_built(folder / record_schema.FEATURES, report.xxh3_of_features)
        return found

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def where(self, index: int) -> str:
        """Returns how messages name a record: its file, and its number in it from 0."""
        place, within = self._place(index)
        return f"{self.paths[place]}, record {within}"

    def read(self, index: int) -> Record:
        """Returns what is stored as record `index`.

        Raises:
          Unfit: it is damaged, its file is missing, or what is stored is no image of a data set.
        """
        try:
            # Its reader checks the hash that each record carries (Riegeli's).
            return record_schema.decode(self._reader[index])
        except (ValueError, RuntimeError, OSError) as error:
            raise self.unfit(index, error) from None

    def unfit(self, index: int, error: Exception) -> Unfit:
        """Returns the error of a record that no sample can be made of, for the error that told."""
        why = " ".join(str(error).split()).partition("; do: ")[0][:300]
        return Unfit(
            f"{self.where(index)}: expected a whole record of an image, got {why}; do: {REPAIR}"
        )

    def sizes(self) -> list[Size] | None:
        """Returns the size of each record, None where the data set tells none.

        Raises:
          ValueError: the file that holds them is damaged.
        """
        path = self.folder / record_schema.SIZES
        if (data := self._sizes_data()) is None:
            return None
        value = files.parse_json(data, where=str(path), advice=REPAIR)
        kind = dict[str, list[tuple[_Count, _Count, _Count, _Count]]]
        found = schemas.check(value, kind, where=str(path), advice=REPAIR).get(self.split, [])
        if len(found) != len(self):
            raise ValueError(
                f"{path}: expected {len(self)} sizes of {self.split}, got {len(found)}; do: "
                f"{REPAIR}"
            )
        return [Size(*one) for one in found]

    def sizes_of_records(self) -> Iterator[Size | Unfit]:
        """Yields the size of each record as its bytes tell it, or why it is none.

        For data sets of TFDS and of older builds, which store no sizes: all files are read once, no
        image and no mask is decoded.
        """
        for index in range(len(self)):
            try:
                yield record_schema.size_of_bytes(self._reader[index])
            except (ValueError, RuntimeError, OSError) as error:
                yield self.unfit(index, error)

    def _sizes_data(self) -> bytes | None:
        """Returns the bytes of the file that holds the sizes; raises ValueError for others."""
        if self.sizes_xxh3 is None:
            return None
        return _read_as_built(self.folder / record_schema.SIZES, self.sizes_xxh3)

    def lost_records(self, met: Findings) -> list[int]:
        """Returns the records of files that are missing or not as long as built; tells of them.

        Damage that leaves a file its length shows when its records are read.
        """
        lost: list[int] = []
        for path, end, length, wanted in zip(
            self.paths, self._ends, self.lengths, self.bytes, strict=True
        ):
            has = path.stat().st_size if path.is_file() else None
            if length and (has is None or wanted not in (None, has)):
                lost += range(end - length, end)
                got = "none" if has is None else f"{has} bytes"
                wanted = "a file" if wanted is None else f"{wanted} bytes"
                met.add(
                    "record passed over, as its file is missing or not whole",
                    f"{path}: expected {wanted}, got {got}",
                    count=length,
                    advice=REPAIR,
                )
        return lost

    @functools.cached_property
    def _ends(self) -> list[int]:
        return [*itertools.accumulate(self.lengths)]

    def _place(self, index: int) -> tuple[int, int]:
        """Returns which file a record is in, and which of its records it is."""
        place = bisect.bisect_right(self._ends, index)
        return place, index - (self._ends[place - 1] if place else 0)

    @functools.cached_property
    def _reader(self) -> Any:
        """The records by number; it opens each file at first use."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        instructions: Any = [
            _Instruction(str(path), 0, length, length)
            for path, length in zip(self.paths, self.lengths, strict=True)
            if length
        ]
        return ArrayRecordDataSource(instructions)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A file as the reader of ArrayRecord wants it described, so that it opens none too early."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int
