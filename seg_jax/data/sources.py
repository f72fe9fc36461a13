"""Sources of samples with random access: item i never changes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from seg_jax.data import limits, record_schema
from seg_jax.data.findings import Findings
from seg_jax.data.formats.annotations import Role
from seg_jax.data.split_files import SplitFiles
from seg_jax.geometry import bitmask
from seg_jax.records import Sample
from seg_jax.scenes import draw, phrases, sets, world
from seg_jax.tasks.task import Unfit

ENDLESS = 1_000_000
"""Number of the scenes that are drawn without end: more than a run of ours asks for."""


@runtime_checkable
class Source(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """Returns how many samples there are."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Returns one sample; raises IndexError beyond the last."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """Drawn scenes: scene i of a seed, the same whenever it is drawn."""

    world: world.Config = dataclasses.field(default_factory=world.easy)
    style: phrases.Style = phrases.Style()
    """Which expressions name the objects, and in how many wordings."""
    seed: int = 0
    count: int | None = None
    """Scenes of a finite set, which runs go over pass by pass; None: fresh ones without end."""

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise ValueError(f"scenes: expected a count >= 1, got {self.count}; do: give 1 or more")

    def __len__(self) -> int:
        return ENDLESS if self.count is None else self.count

    def __getitem__(self, index: int) -> Sample:
        """Returns scene `index`.

        Raises:
          IndexError: the index is not in 0..len - 1.
        """
        if not 0 <= index < len(self):
            raise IndexError(
                f"scenes: expected an index in 0..{len(self) - 1}, got {index}"
                "; do: take an index below the length"
            )
        made = world.make(self.world, scene_seed(self.seed, index))
        image, masks = draw.render(made)
        sample = Sample(
            key=f"scene-{self.seed}-{index}",
            image=image,
            masks=masks,
            phrases=phrases.describe(made, masks, style=self.style),
            names=tuple(f"{thing.colour} {thing.kind}" for thing in made.things),
            categories=tuple(str(thing.kind) for thing in made.things),
        )
        if not self.style.has_groups:
            return sample
        return _with_groups(
            sample, sets.find_groups(made, masks, config=self.world, style=self.style)
        )


def _with_groups(sample: Sample, found: Sequence[sets.Group]) -> Sample:
    """Returns a scene with a further mask for each group of things, the empty one included."""
    unions = [sample.masks[list(group.things)].any(0) for group in found]
    more = np.array(unions, bool).reshape(-1, *sample.masks.shape[1:])
    names = [" and ".join(sorted({sample.names[i] for i in group.things})) for group in found]
    kinds = [_only({sample.categories[i] for i in group.things}) for group in found]
    return dataclasses.replace(
        sample,
        masks=np.concatenate([sample.masks, more]),
        phrases=(*sample.phrases, *(group.phrases for group in found)),
        names=(*sample.names, *names),
        categories=(*sample.categories, *kinds),
        together=(*[False] * len(sample.masks), *(len(group.things) > 1 for group in found)),
    )


def scene_seed(seed: int, index: int) -> int:
    """Returns one number for (seed, index); distinct pairs below 2**40 never meet."""
    return seed * 2**40 + index


def set_name(folder: Path) -> str:
    """Returns the name of a data set's folder, which `.` and `..` have too."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Built:
    """Data sets that `seg-jax build` made, or TFDS's ref_coco, one after the other.

    A sample is an image with a mask for each object, or group of objects, that expressions mean.
    An expression that was annotated twice appears twice, as benchmarks count it.
    """

    folders: tuple[Path, ...]
    """Folders of the data sets; each holds a dataset_info.json."""
    split: str = "train"
    absent: bool = False
    """Whether expressions that fit nothing in their image (gRefCOCO's) are included, with empty
    masks."""
    singly: bool = False
    """Whether each object stands by itself, with the expressions that mean it alone, perhaps none:
    for questions by a point or a box. Else a name of COCO means all objects of that category."""

    def __post_init__(self):
        if not self.folders:
            raise ValueError(
                "source.folders: expected the folder of a built data set, got none; do: give a "
                "folder that seg-jax build wrote"
            )
        # Keys begin with the name of the folder: two samples would share one.
        names = [set_name(folder) for folder in self.folders]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            alike = [str(folder) for folder in self.folders if set_name(folder) == twice[0]]
            raise ValueError(
                f"source.folders: expected data sets with different names, got {alike[0]!r} and "
                f"{alike[1]!r}; do: rename a folder, or take one at a time"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Returns image `index`.

        Raises:
          IndexError: the index is not in 0..len - 1.
          Unfit: what is stored is damaged, no image of a data set, or too large for a sample.
        """
        record = self.record(index)
        try:
            return self.sample(index, record, record.pixels())
        except (ValueError, OSError) as error:
            place, within = self._place(index)
            raise self.split_files[place].unfit(within, error) from None

    def sample(
        self, index: int, record: record_schema.Record, image: UInt8[np.ndarray, "H W 3"]
    ) -> Sample:
        """Returns image `index` from its record and pixels, which were read before.

        Raises:
          ValueError: masks are broken, or too many.
        """
        limits.check_masks(record_schema.size_of(record))
        groups = _objects(record) if self.singly else _groups(record, absent=self.absent)
        # Columns lie together, as in run lengths.
        masks = np.zeros((len(groups), record.width, record.height), bool).swapaxes(1, 2)
        for mask, which in zip(masks, groups, strict=True):
            for object_ in which:
                mask |= bitmask.from_rle(record.rle(object_))
        named = [_name(record, which) for which in groups]
        nameless = any(which and not name for which, name in zip(groups, named, strict=True))
        return Sample(
            key=f"{set_name(self.folders[self._place(index)[0]])}/{record.key}",
            image=image,
            masks=masks,
            phrases=tuple(tuple(texts) for texts in groups.values()),
            sentences=frozenset(one.text for one in record.expressions if one.sentence),
            names=() if nameless else tuple(named),
            categories=tuple(_only({record.names[one] for one in which}) for which in groups),
            together=tuple(len(which) > 1 for which in groups),
            ignored=_ignored_pixels(record, list(groups)),
            traces=record.traces,
        )

    def record(self, index: int) -> record_schema.Record:
        """Returns all that is stored of image `index`: boxes, numbers, roles, each expression.

        Raises:
          IndexError: the index is not in 0..len - 1.
          Unfit: what is stored is damaged, or no image of a data set.
        """
        place, within = self._place(index)
        return self.split_files[place].read(within)

    def parts(self) -> list[tuple[range, SplitFiles]]:
        """Returns the files of each folder, with the numbers of the images that are used of it."""
        begins = [0, *self._ends]
        numbers = (range(one, two) for one, two in itertools.pairwise(begins))
        return [*zip(numbers, self.split_files, strict=True)]

    def absent_count(self) -> int:
        """Returns how many expressions of the split fit nothing in their image."""
        every = (one.counts for one in self.split_files)
        return sum(counts.get("expressions_without_object", 0) for counts in every)

    def question_kinds(self, wanted: Collection[str], *, most: int = 256) -> set[str]:
        """Returns which kinds of questions the first images allow.

        "text": expressions of objects; "place": single objects, which a point or a box can name;
        "absent": expressions that fit nothing in their image; "trace": written conversations.

        Args:
          wanted: kinds to look for; once all were seen, no further image is read.
          most: the largest number of images that are read.
        """
        seen: set[str] = set()
        for index in range(min(len(self), most)):
            try:
                record = self.record(index)
            except Unfit:
                continue
            groups = _objects(record) if self.singly else _groups(record, absent=True)
            has = {
                "text": any(which and texts for which, texts in groups.items()),
                "place": any(len(which) == 1 for which in groups),
                "absent": () in groups,
                "trace": bool(record.traces),
            }
            seen |= {name for name, there in has.items() if there}
            if seen.issuperset(wanted):
                break
        return seen

    def _place(self, index: int) -> tuple[int, int]:
        """Returns which folder an image is in, and which of its images it is."""
        count = self._ends[-1]
        if not 0 <= index < count:
            raise IndexError(
                f"built: expected an index in 0..{count - 1}, got {index}"
                "; do: take an index below the length"
            )
        place = int(np.searchsorted(self._ends, index, side="right"))
        return place, index - (self._ends[place - 1] if place else 0)

    # These are computed at first use, in each process; they are no part of the configuration.
    @functools.cached_property
    def split_files(self) -> tuple[SplitFiles, ...]:
        """The files of each folder."""
        return tuple(SplitFiles.find(path, self.split) for path in self.folders)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return np.cumsum([self._used(one) for one in self.split_files]).tolist()

    def _used(self, of: SplitFiles) -> int:
        """Returns how many images of a split are used; they come first."""
        count = len(of)
        if not self.absent and of.counts:
            count = min(count, of.counts.get("records_with_objects", 0))
        if not count and (nameless := of.counts.get("objects", 0)):
            raise ValueError(
                f"{of.folder}: expected expressions that mean objects in the split {self.split}, "
                f"got none for {nameless} objects; do: name them in the annotations and build anew "
                f"({record_schema.REPORT} tells what was left out)"
            )
        if not count:
            raise ValueError(
                f"{of.folder}: expected images with objects in the split {self.split}, got none; "
                "do: choose another split, or ask about absent objects too"
            )
        return count

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """Sources by weights: each has its share of every stretch of a run and goes its own rounds.

    As a source it is one after the other; the pipeline draws by the weights.
    """

    parts: tuple[Scenes | Built, ...]
    weights: tuple[float, ...]
    """Weight of each part, relative to the others."""

    def __post_init__(self):
        if not self.parts or len(self.parts) != len(self.weights):
            raise ValueError(
                f"source: expected a weight for each of {len(self.parts)} sources, got "
                f"{len(self.weights)}; do: give one weight for each source"
            )
        if not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(
                f"source: expected weights > 0, got {self.weights}; do: leave out the "
                "sources that are not wanted"
            )

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Sample:
        """Returns sample `index` of all parts one after the other.

        Raises:
          IndexError: the index is not in 0..len - 1.
        """
        within = index
        for part in self.parts:
            if 0 <= within < len(part):
                return part[within]
            within -= len(part)
        raise IndexError(
            f"mixed: expected an index in 0..{len(self) - 1}, got {index}"
            "; do: take an index below the length"
        )


def _groups(record: record_schema.Record, *, absent: bool) -> dict[tuple[int, ...], list[str]]:
    """Returns the expressions of an image by the objects that they mean together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for one in record.expressions:
        if one.objects or absent:
            groups.setdefault(tuple(sorted({*one.objects})), []).append(one.text)
    return groups


def _objects(record: record_schema.Record) -> dict[tuple[int, ...], list[str]]:
    """Returns each object of an image with the expressions that mean it alone."""
    groups = _groups(record, absent=False)
    alone = [(place,) for place, role in enumerate(record.roles) if role is Role.OBJECT]
    return {which: groups.get(which, []) for which in alone}


def _ignored_pixels(
    record: record_schema.Record, groups: Sequence[tuple[int, ...]]
) -> Bool[np.ndarray, "M H W"] | None:
    """Returns for each group the pixels that count for nothing, None where there are none.

    These are the regions that ReasonSeg marks as ignored, except for a group that means them.
    Crowds are not ignored: COCO ignores detections of a crowd's category on it, because it cannot
    count them, but here a category's name means its crowds too.
    """
    regions = [place for place, role in enumerate(record.roles) if role is Role.IGNORED]
    if not regions:
        return None
    ignored = np.zeros((len(groups), record.height, record.width), bool)
    for mask, which in zip(ignored, groups, strict=True):
        for region in sorted({*regions} - {*which}):
            mask |= bitmask.from_rle(record.rle(region))
    return ignored


def _name(record: record_schema.Record, which: Sequence[int]) -> str:
    """Returns the names of a group of objects, or an empty text if one of them has none."""
    names = sorted({record.names[place] for place in which})
    return " and ".join(names) if all(names) else ""


def _only(names: Collection[str]) -> str:
    """Returns the one name of a set, or an empty text where there are several or none."""
    return next(iter(names)) if len(names) == 1 else ""


def readable(
    source: Source | Sequence[Sample], indices: Iterable[int], met: Findings | None = None
) -> Iterator[tuple[int, Sample]]:
    """Yields the samples that can be read, each with its index.

    Args:
      source: where they come from.
      indices: of the samples.
      met: is told which ones were passed over, and why.
    """
    for index in indices:
        try:
            sample = source[index]
        except Unfit as error:
            if met is not None:
                met.add_error("passed over", error)
        else:
            yield index, sample


def pass_length(source: Source) -> int | None:
    """Returns the number of samples of a pass over a source; None where there are no passes.

    Fresh scenes have no end, and each part of a mixture goes its own rounds.
    """
    if isinstance(source, Mixed) or (isinstance(source, Scenes) and source.count is None):
        return None
    return len(source)


def corpus(source: Source, count: int = 2000) -> list[str]:
    """Returns some of a source's expressions, for training a tokenizer.

    Args:
      source: where the samples come from.
      count: the largest number of expressions; of several sources about so many, of scenes exactly.
    """
    if isinstance(source, Mixed):
        shares = [count * weight / sum(source.weights) for weight in source.weights]
        pairs = zip(source.parts, shares, strict=True)
        return [text for part, share in pairs for text in corpus(part, math.ceil(share))]
    if isinstance(source, Scenes) and not source.style.has_groups:
        return list(_phrases_of_worlds(source.world, source.style, count))
    texts: list[str] = []
    for _, sample in readable(source, range(len(source))):
        texts += [text for some in sample.phrases for text in some]
        if len(texts) >= count:
            break
    return texts[:count]


@functools.cache
def _phrases_of_worlds(config: world.Config, style: phrases.Style, count: int) -> tuple[str, ...]:
    """Returns phrases of drawn worlds; the result is cached."""
    rng = np.random.default_rng(0)
    return tuple(phrases.corpus(rng, count, config=config, style=style))
