"""Shows a built data set as a page: images with their outlines, and what was left out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from seg_jax.data import sources, split_files
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built
from seg_jax.records import Sample
from seg_jax.report import gallery, html_page
from seg_jax.report.exhibits import Exhibit, Panel
from seg_jax.report.html_page import Cell
from seg_jax.runs import console, run_folder

PAGE = "preview.html"
"""Name of the page in the folder of a data set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A look at a data set."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of a data set that `seg-jax build` or `seg-jax annotate` made."""
    split: str | None = None
    """Split of the data set; left out: train, or the only one."""
    images: int = 24
    """Number of images, taken evenly from all of the split."""
    masks: int = 4
    """Most masks that are shown of an image."""
    out: Path | None = None
    """File of the page; left out: preview.html in the folder of the data set."""

    def __post_init__(self):
        if self.images < 1 or self.masks < 1:
            raise ValueError(
                f"preview: expected images and masks >= 1, got {self.images} images and "
                f"{self.masks} masks; do: give 1 or more of each"
            )


def main(config: Config) -> int:
    """Writes the page, says what was left out of the data, and prints the page's path."""
    split = config.split or _usual_split(config.data)
    source = Built(folders=(config.data,), split=split, absent=True)
    built, limits = split_files.read_findings(config.data)
    met = {"built": built, "limits": limits, "read": Findings()}
    for _, of in source.parts():
        of.lost_records(met["read"])
    count = min(config.images, len(source))
    numbers = np.unique(np.linspace(0, len(source) - 1, count).astype(int)).tolist()
    shown = tuple(
        _exhibit(sample, config.masks)
        for _, sample in sources.readable(source, numbers, met["read"])
    )
    page = html_page.Report(
        title=f"{sources.set_name(config.data)}: {split}",
        summary_rows=[*_rows(met)],
        curves=None,
        exhibits=shown,
        versions=run_folder.versions(),
        notes=(f"{len(shown)} of {len(source):,} images, taken evenly.",),
    )
    path = config.out or config.data / PAGE
    html_page.write(path, page)
    for findings in met.values():
        for line in findings.lines():
            console.say(f"warning: {line}")
    console.tell(path)
    return 0


def _usual_split(folder: Path) -> str:
    """Returns train if a data set has it, or its only split.

    Raises:
      ValueError: it has several others.
    """
    splits = [one.name for one in split_files.read_info(folder).splits]
    if "train" in splits:
        return "train"
    if len(splits) != 1:
        raise ValueError(
            f"{folder}: expected --split, as there are {', '.join(splits) or 'no splits'}, got "
            f"none; do: --split {splits[0] if splits else 'SPLIT'}"
        )
    return splits[0]


_TOLD = {
    "built": "left out or changed when it was built",
    "limits": "passed over by some runs",
    "read": "cannot be read now",
}


def _rows(met: dict[str, Findings]) -> Iterator[dict[str, Cell]]:
    """Yields a row for each reason, with its first example and what to do about it."""
    for when, findings in met.items():
        for reason, one in findings.as_json().items():
            example = next(iter(one["examples"]), "")
            row = {"reason": reason, "when": _TOLD[when], "cases": one["count"], "first": example}
            yield row | {"do": one.get("do", "")}


def _exhibit(sample: Sample, most: int) -> Exhibit:
    """Returns an image with the outlines of its first masks, and its first conversations."""
    panels = [
        Panel(
            f"mask {which + 1}",
            gallery.outlines(mask),
            text="\n".join([*sample.phrases[which], *sample.names[which : which + 1]]),
        )
        for which, mask in enumerate(sample.masks[:most])
    ]
    # Of a written conversation boxes and clicks are text: in which frame, a task says.
    panels += [
        Panel(f"conversation {which + 1}", [], text="\n".join(trace))
        for which, trace in enumerate(sample.traces[:most])
    ]
    height, width = sample.image.shape[:2]
    return Exhibit(
        sample.image,
        sample.key,
        panels or [Panel("no mask", [])],
        note=f"{width} x {height} pixels, {len(sample.masks)} masks",
    )
