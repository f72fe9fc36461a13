"""The data sets of a run as the command line names them, fit for the questions that are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from tyro.conf import subcommand

from seg_jax.data.sources import Built, Mixed, Scenes
from seg_jax.tasks.task import Need

ConfigT = TypeVar("ConfigT", bound="Data")

TRAIN = "train"
"""Split that runs learn from unless they name another."""

Source = (
    Annotated[Scenes, subcommand("scenes")]
    | Annotated[Built, subcommand("built")]
    | Annotated[Mixed, subcommand("mixed")]
)
"""Where the samples of a run come from: drawn scenes, data sets that `seg-jax build` made, or
several of these by weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data sets in the place of a run's source."""

    REPLACES: ClassVar[dict[str, str]] = {"data": "source"}
    """Options that take the place of others, which are not given beside them."""

    data: tuple[Path, ...] = ()
    """Data sets that `seg-jax build` made, in place of `source`: of each the folder with
    dataset_info.json in it."""
    data_weights: tuple[float, ...] = ()
    """Shares of the data sets in the images of a run, relative to each other; left out: all
    images have the same chance."""
    split: str = TRAIN
    """Split of the data sets."""

    def __post_init__(self):
        if self.data_weights and len(self.data_weights) != len(self.data):
            raise ValueError(
                f"data_weights: expected one for each of {len(self.data)} data sets, got "
                f"{len(self.data_weights)}; do: give as many --data-weights as --data"
            )
        if not self.data and self.split != TRAIN:
            raise ValueError(
                f"split: expected data sets beside it, got {self.split!r} alone; do: give --data "
                "FOLDER"
            )


def with_source(config: ConfigT) -> ConfigT:
    """Returns the configuration with the source that its data sets make, fit for the questions.

    Args:
      config: of a completed run, with a `source` and a `task`.

    Raises:
      ValueError: a folder is no data set, weights are not above 0, or there is nothing of what is
        asked about.
    """
    source, needs = getattr(config, "source"), getattr(config, "task").needs  # noqa: B009
    absent = "absent" in needs.values()
    if config.data:
        source = _command_line_source(config, needs)
    source = fitting(source, needs)
    parts = source.parts if isinstance(source, Mixed) else (source,)
    built = [part for part in parts if isinstance(part, Built)]
    offers = [_offers(part, needs) for part in built]
    if absent and len(built) == len(parts) and not any(offers):
        names = ", ".join(str(folder) for part in built for folder in part.folders)
        raise ValueError(
            f"mixture.absent: expected expressions without a target in {built[0].split} of "
            f"{names}, got none; do: give a build of grefcoco_unc too, or set this share to 0"
        )
    changes: dict[str, Any] = {"source": source, "data": (), "data_weights": (), "split": TRAIN}
    return dataclasses.replace(config, **changes)


def folders_read(config: Any) -> list[Path]:
    """Returns the folders of the data sets that a run reads.

    Args:
      config: of a run, with its `source`.
    """
    source = config.source
    parts = source.parts if isinstance(source, Mixed) else (source,)
    return [folder for part in parts if isinstance(part, Built) for folder in part.folders]


def fitting(source: Scenes | Built | Mixed, needs: Mapping[str, Need]) -> Scenes | Built | Mixed:
    """Returns the source such that it gives what the questions are about.

    Expressions without a target are given if they are asked about, of scenes one at least.
    """
    if "absent" not in needs.values():
        return source
    if isinstance(source, Mixed):
        return dataclasses.replace(source, parts=tuple(map(_with_absent, source.parts)))
    return _with_absent(source)


def _with_absent(source: Scenes | Built) -> Scenes | Built:
    if isinstance(source, Built):
        # Of single objects nothing is told that is not there.
        return dataclasses.replace(source, absent=source.absent or not source.singly)
    style = dataclasses.replace(source.style, absent=max(source.style.absent, 1))
    return dataclasses.replace(source, style=style)


def _command_line_source(config: Data, needs: Mapping[str, Need]) -> Built | Mixed:
    """Returns the data sets of the command line as a source."""
    singly = bool(needs) and "text" not in needs.values()
    sets = [Built(folders=(path,), split=config.split, singly=singly) for path in config.data]
    if not config.data_weights:
        return dataclasses.replace(sets[0], folders=config.data)
    return Mixed(parts=tuple(sets), weights=config.data_weights)


_WORDS = {
    "text": "expressions of objects",
    "place": "single objects",
    "absent": "expressions without a target",
    "trace": "written conversations",
}


def _offers(source: Built, needs: Mapping[str, Need]) -> bool:
    """Returns whether data sets have expressions without a target, if these are asked about.

    Raises:
      ValueError: one of the data sets has nothing that is asked about.
    """
    wanted = set(needs.values())
    len(source)  # What is wrong with a folder is told first.
    if not wanted:
        return True
    offered_kinds: set[str] = set()
    for folder in source.folders:
        offered = dataclasses.replace(source, folders=(folder,)).question_kinds(wanted)
        if not wanted & offered:
            needed, there = (_list(names) for names in (wanted, offered))
            raise ValueError(
                f"{folder}: expected {needed} in {source.split} for {', '.join(needs)}, got "
                f"{there or 'neither'}; do: leave the data set out or ask other questions (mixture)"
            )
        offered_kinds |= offered
    return "absent" in offered_kinds or bool("absent" in wanted and source.absent_count())


def _list(needs: Iterable[str]) -> str:
    return " or ".join(_WORDS[name] for name in sorted(needs))
