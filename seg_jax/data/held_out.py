"""Holds images out of a source, always the same ones, to ask about them while a run trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from seg_jax.data import split_files
from seg_jax.data.fitting import Chosen
from seg_jax.data.sources import Built, Mixed, Scenes, Source
from seg_jax.tasks.task import Unfit

SEED = 8
"""Seed of held-out scenes: neither that of a run of ours nor that of the scenes that `evaluate`
asks about. A run that learns from scenes of this seed holds out those of the next one."""

Fit = Callable[[Source], Source]
"""Leaves out of a source what cannot be asked about."""


class HeldOut(NamedTuple):
    """A source in two."""

    training: Source
    asked: Source


def hold_out(
    source: Source, samples: int, *, split: str | None = None, fit: Fit = lambda source: source
) -> HeldOut:
    """Returns a source without the images that are held out of it, and these.

    Where there are several data sets, an image that is asked about is learnt from in none: images
    are compared by their file names, for which every record is read once.

    Args:
      source: that a run learns from.
      samples: number of images that are held out.
      split: as in `choose`.
      fit: as in `choose`.

    Raises:
      ValueError: as `choose`.
    """
    parts = _parts(source)
    asked = choose(source, samples, split=split, fit=fit)
    chosen = [part for part in asked if isinstance(part, Chosen)]
    folders = {folder for part in parts if isinstance(part, Built) for folder in part.folders}
    names: Collection[str] = ()
    if len(folders) > 1:
        names = {name for part in chosen for name in map(_namer(part), part.numbers)} - {""}
    learnt = [_without(p, chosen, names) if isinstance(p, Built) else p for p in parts]
    if not isinstance(source, Mixed):
        return HeldOut(learnt[0], asked[0])
    return HeldOut(
        dataclasses.replace(source, parts=tuple(learnt)),
        Mixed(parts=tuple(asked), weights=(1.0,) * len(asked)),
    )


def choose(
    source: Source, samples: int, *, split: str | None = None, fit: Fit = lambda source: source
) -> list[Scenes | Chosen]:
    """Returns the images that are to be held out, of each part of a source as its weight says.

    Drawn scenes are of another seed. Images of data sets are drawn by lot, the same ones every
    time, of a split of their own or of the one that is learnt from.

    Args:
      source: that a run learns from.
      samples: number of images that are held out.
      split: of the data sets; None: the one that is learnt from, of which at most half is taken.
      fit: leaves out of a source what cannot be asked about.

    Raises:
      ValueError: there are too few images, no such split, or it is a source of another kind.
    """
    parts = _parts(source)
    if split is not None and not any(isinstance(part, Built) for part in parts):
        raise ValueError(
            f"validate.split: expected data sets, got {split!r} of drawn scenes, which are held "
            "out by their seed; do: leave it out"
        )
    weights = np.array(source.weights if isinstance(source, Mixed) else (1.0,))
    shares = samples * weights / weights.sum()
    counts = shares.astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: samples - counts.sum()]] += 1
    taken = {part.seed for part in parts if isinstance(part, Scenes)}
    seed = min({*range(SEED, SEED + len(taken) + 1)} - taken)
    asked: list[Scenes | Chosen] = []
    for part, count in zip(parts, counts.tolist(), strict=True):
        if not count:
            continue
        if isinstance(part, Scenes):
            asked.append(dataclasses.replace(part, seed=seed, count=count))
        elif isinstance(part, Built):
            asked.append(_draw(part, count, split, fit))
        else:
            raise ValueError(
                "validate.samples: expected drawn scenes or built data sets, of which images can "
                f"be held out, got a source {type(part).__name__!r}; do: leave it out"
            )
    return asked


def _draw(part: Built, count: int, split: str | None, fit: Fit) -> Chosen:
    """Returns so many images of data sets.

    Raises:
      ValueError: there are too few, or no such split.
    """
    whole = Built(
        folders=part.folders, split=split or part.split, absent=part.absent, singly=part.singly
    )
    for folder in part.folders if split is not None else ():
        there = [one.name for one in split_files.read_info(folder).splits]
        if split not in there:
            raise ValueError(
                f"validate.split: expected one of {', '.join(there)}, which {folder} has, got "
                f"{split!r}; do: give one of these, or leave it out"
            )
    numbers, most, of = {*_numbers(fit(whole))}, len(whole), "the"
    if split is None:
        numbers, most, of = numbers & {*_numbers(part)}, len(part) // 2, "half of the"
    if count > (most := min(most, len(numbers))):
        raise ValueError(
            f"validate.samples: expected at most {most}, {of} images of {whole.split} in "
            f"{', '.join(map(str, part.folders))} that can be asked about, got {count}; do: lower "
            "it, or give another --validate.split"
        )
    order = np.random.default_rng(SEED).permutation(sorted(numbers))
    return _some(whole, sorted(order[:count].tolist()))


def _without(part: Built, chosen: Sequence[Chosen], names: Collection[str]) -> Built:
    """Returns data sets without the images that are asked about."""
    held = {
        number
        for one in chosen
        if (one.folders, one.split, one.absent) == (part.folders, part.split, part.absent)
        for number in one.numbers
    }
    name = _namer(part)
    left = [
        number
        for number in _numbers(part)
        if number not in held and not (names and name(number) in names)
    ]
    return part if len(left) == len(part) else _some(part, left)


def _parts(source: Source) -> tuple[Source, ...]:
    return source.parts if isinstance(source, Mixed) else (source,)


def _numbers(part: Source) -> Iterable[int]:
    """Returns the numbers that the images of data sets have among all of the split."""
    return part.numbers if isinstance(part, Chosen) else range(len(part))


def _some(part: Built, numbers: Sequence[int]) -> Chosen:
    """Returns some images of data sets, by their numbers among all of the split."""
    return Chosen(
        folders=part.folders,
        split=part.split,
        absent=part.absent,
        singly=part.singly,
        numbers=tuple(numbers),
    )


def _namer(part: Built) -> Callable[[int], str]:
    """Returns what gives the file name of an image by its number; empty where it is damaged."""
    whole = Built(folders=part.folders, split=part.split, absent=part.absent, singly=part.singly)

    def name(number: int) -> str:
        try:
            return whole.record(number).name
        except Unfit:
            return ""

    return name
