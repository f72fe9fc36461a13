"""Leaves out of a source what the rows of a run cannot hold, by stored sizes, before it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

from seg_jax.data import limits, packing
from seg_jax.data.encode import Encoder
from seg_jax.data.findings import MOST_EXAMPLES, Findings, reason_of
from seg_jax.data.packing import Pack
from seg_jax.data.record_schema import Size
from seg_jax.data.sources import Built, Mixed, Source
from seg_jax.tasks.task import Unfit

BYTES_PER_TOKEN = 8
"""No tokenizer of ours has words as long as this on average: longer text needs more tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen(Built):
    """Some images of data sets: those that rows can hold."""

    numbers: tuple[int, ...]
    """Their numbers among all."""

    def __len__(self) -> int:
        return len(self.numbers)

    def _place(self, index: int) -> tuple[int, int]:
        return super()._place(self.numbers[index])


def fitting_source(
    source: Source,
    encoder: Encoder,
    *,
    rows: Literal["sft", "prompts"],
    pack: Pack | None = None,
) -> tuple[Source, Findings]:
    """Returns a source without what rows cannot hold, and what that is.

    No image is decoded: of data sets that `seg-jax build` made the sizes are stored, of others all
    records are read once; files that are missing or cut short show. What else turns up is passed
    over while rows are made.

    Args:
      source: of the samples; drawn scenes are all of one size.
      encoder: that makes rows of them.
      rows: questions with their answers, or prompts alone, whose true masks need a canvas.
      pack: size of rows of several images, if there are such.

    Raises:
      ValueError: rows can hold nothing of a data set.
    """
    met, check = Findings(), _checker(encoder, rows, pack)
    if isinstance(source, Built):
        return _fitting_part(source, check, encoder, met), met
    if isinstance(source, Mixed):
        parts = tuple(
            _fitting_part(part, check, encoder, met) if isinstance(part, Built) else part
            for part in source.parts
        )
        return dataclasses.replace(source, parts=parts), met
    return source, met


def _fitting_part(
    source: Built, check: Callable[[Size], None], encoder: Encoder, met: Findings
) -> Built:
    """Returns data sets without what rows cannot hold."""
    keep = np.ones(len(source), bool)
    why = "their files are missing or cut short"
    longest = BYTES_PER_TOKEN * encoder.layout.max_question
    for numbers, of in source.parts():
        for lost in of.lost_records(met):
            if lost < len(numbers):
                keep[numbers[lost]] = False
        stored = of.sizes()
        sizes = of.sizes_of_records() if stored is None else iter(stored)
        for number, size in zip(numbers, sizes, strict=False):
            if isinstance(size, Unfit):
                if keep[number]:  # Its file is not one of those that are lost.
                    keep[number] = False
                    why = str(size)
                    _tell(met, f"passed over: {reason_of(size)}", (source, number), why)
                continue
            if size.text > longest:
                told = f"{size.text} bytes; do: raise layout.max_question or shorten it"
                _tell(met, _LONG_TEXT, (source, number), told)
            try:
                check(size)
            except Unfit as error:
                keep[number] = False
                why = str(error)
                _tell(met, f"passed over: {reason_of(error)}", (source, number), why)
    if keep.all():
        return source
    if not keep.any():
        raise ValueError(
            f"{source.folders[0]}: expected images that rows can hold, got none of {len(keep)} in "
            f"{source.split}; do: see to this: {why}"
        )
    return Chosen(**source.__getstate__(), numbers=tuple(np.flatnonzero(keep).tolist()))


_LONG_TEXT = "expression longer than layout.max_question, passed over when it is drawn"


def _tell(met: Findings, reason: str, image: tuple[Built, int], told: str) -> None:
    """Tells of an image; only of those that become examples the names are read.

    Args:
      met: is told.
      reason: which cases are counted by.
      image: a source, and the number in it.
      told: what was got, and what to do.
    """
    told, _, advice = told.partition("; do: ")
    if len(met.examples.get(reason, ())) < MOST_EXAMPLES:
        source, number = image
        try:
            record = source.record(number)
            told = f"{record.key} ({record.name}): {told}"
        except Unfit as error:
            told = f"{str(error).partition(': expected')[0]}: {told}"
    met.add(reason, told, advice=advice)


def _checker(
    encoder: Encoder, rows: Literal["sft", "prompts"], pack: Pack | None
) -> Callable[[Size], None]:
    """Returns what raises Unfit for sizes that rows cannot hold; of equal ones it knows already."""
    known: dict[tuple[int, int], Unfit | None] = {}

    def check_shape(size: Size) -> None:
        shared = rows == "sft" and pack is None
        least = encoder.least_size(size.height, size.width, shared=shared)
        if pack is not None:
            packing.check_fits(packing.Size(*least), pack)
        if rows == "prompts":
            limits.check_canvas(encoder.layout, size)

    def check(size: Size) -> None:
        limits.check_masks(size)
        shape = size.height, size.width
        if shape not in known:
            try:
                known[shape] = check_shape(size)
            except Unfit as error:
                known[shape] = error
        if error := known[shape]:
            raise error

    return check
