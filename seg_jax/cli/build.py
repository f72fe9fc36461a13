"""Builds a public data set, or your own: files that Grain and TFDS read, without TensorFlow."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from seg_jax import files
from seg_jax.data import sources
from seg_jax.data.build import beam, dataset, readers, record_files, token_budget
from seg_jax.data.build import leaks as build_leaks
from seg_jax.data.findings import Findings
from seg_jax.data.formats import mask_folders, refer
from seg_jax.runs import console, run_folder
from seg_jax.tasks.referring import Referring

STATS = "stats.json"
"""File of a data set with what its outlines cost."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(dataset.Plan):
    """A build; killed at any time, the same command goes on where it was."""

    name: Annotated[dataset.Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the data set, which decides its format; "folder" for your own."""
    workers: int | None = None
    """Number of processes that make files; None: one for each processor."""
    runner: str | None = None
    """Engine of Apache Beam that makes them instead, as DirectRunner or DataflowRunner; its workers
    must see SOURCE and OUT under the same paths."""
    runner_options: tuple[str, ...] = ()
    """The engine's own options without their dashes, as region=europe-west4."""
    stats: int = 0
    """Number of objects whose outlines are measured at several tolerances: their tokens, and how
    much of the masks they keep; the numbers go to OUT/stats.json."""
    anew: bool = False
    """Whether the build in OUT is replaced."""
    json: Path | None = None
    """File for the report, which OUT/build.json holds too."""

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise ValueError(
                f"workers: expected at least 1, got {self.workers}; do: raise --workers"
            )
        beam.check_options(self.runner, self.runner_options)
        if self.runner is not None and self.workers is not None:
            raise ValueError(
                f"workers: expected none beside --runner {self.runner}, which has its own, got "
                f"{self.workers}; do: leave it out"
            )
        if self.name.startswith("coco_") and self.family is None:
            for name in ("paper", "held_out"):
                if value := getattr(self, name):
                    raise ValueError(
                        f"{name}: expected --family DIR beside it, whose val and test images "
                        f"it is about, got {value} alone; do: give --family, or leave it out"
                    )
        self._check_folders()
        readers.check_options(self)
        if self.name not in refer.FAMILY and not self.name.startswith("coco_"):
            for name in ("paper", "family", "held_out"):
                if value := getattr(self, name):
                    raise ValueError(
                        f"{name}: expected none for {self.name}, whose images belong to no family "
                        f"of data sets, got {value}; do: leave it out"
                    )

    def _check_folders(self) -> None:
        """Raises ValueError for a folder of images or masks where the data set has its own."""
        if self.name in ("reasonseg", "fcot", "huggingface") and self.images is not None:
            raise ValueError(
                f"images: expected none for {self.name}, whose images lie beside their "
                f"annotations, got {self.images}; do: leave it out"
            )
        layout = mask_folders.LAYOUTS.get(self.name)
        for name, allowed in (
            ("images", layout is None or len(layout.splits) == 1),
            ("masks", layout is not None and len(layout.splits) == 1),
        ):
            if (value := getattr(self, name)) is not None and not allowed:
                why = "masks in a folder of their own"
                if layout is not None:
                    why = f"one split; {self.name} has {', '.join(layout.splits)}"
                raise ValueError(
                    f"{name}: expected a data set of {why}, got {value} for {self.name}; do: leave "
                    "it out"
                )

    def plan(self) -> dataset.Plan:
        """Returns what is built, without the options of how."""
        names = [field.name for field in dataclasses.fields(dataset.Plan)]
        return dataset.Plan(**{name: getattr(self, name) for name in names})


def main(config: Config) -> int:
    """Builds; reports what is odd about the data, and prints the folder."""
    run_folder.check_json(config.json)
    begin = time.monotonic()
    with dataset.claim_build(config, anew=config.anew):
        console.say(f"{config.name}: reading annotations")
        try:
            planned = dataset.plan_files(config)
            say_leaks(planned.report)
            report = dataset.finish_build(config, planned, _make_files(config, planned))
        except dataset.NothingKept as error:
            for line in error.findings.lines():
                console.say(f"warning: {line}")
            raise
    show(config.name, report)
    if config.stats:
        _measure_outlines(config, report)
    if config.json is not None:
        seconds = round(time.monotonic() - begin, 3)
        files.write_json(
            config.json, report | {"seconds": seconds, "versions": run_folder.versions()}
        )
    console.tell(config.out)
    return 0


def _make_files(config: Config, planned: dataset.FilePlan) -> list[dict[str, Any]]:
    """Makes the files, says which were damaged, and returns what is known about each."""
    parts = _parts(config, planned)
    for task, part in zip(planned.tasks, parts, strict=False):
        if part.get(record_files.DAMAGED):
            console.say(f"record file {task.file_path.name} was damaged or gone: made again")
    return parts


def _parts(config: Config, planned: dataset.FilePlan) -> list[dict[str, Any]]:
    if config.runner is not None:
        plan = config.plan()
        options = config.runner_options
        return beam.make_files(plan, planned.tasks, runner=config.runner, options=options)
    total = sum(len(task.images) for task in planned.tasks)
    with console.progress(config.name, total) as move:
        return dataset.make_files(
            planned.tasks,
            workers=config.workers or os.cpu_count() or 1,
            progress=lambda done: move(done, total, ""),
        )


def say_leaks(report: dict[str, Any]) -> None:
    """Says how the annotations differ from what was published, and which images leak."""
    for warning in report["warnings"]:
        console.say(f"warning: {warning}")
    leaks = report["leaks"]
    for split, one in leaks.get("train", {}).items():
        console.say(
            f"{split}: {one['images']} of {one['of']} images stand in a val or test split of "
            f"{', '.join(leaks['looked_through'])}: {leaks['filter']}"
        )
    if leaks.get("not_there"):
        console.say(f"warning: not looked through, not there: {', '.join(leaks['not_there'])}")
    if "train" not in leaks and leaks["filter"] != build_leaks.NONE_SHARED:
        console.say(f"leak filter: {leaks['filter']}")


def _measure_outlines(config: Config, report: dict[str, Any]) -> None:
    """Measures outlines, of train if it is there, and shows what they cost."""
    splits = sorted(report["splits"], key=lambda split: not split.startswith("train"))
    source = sources.Built(folders=(config.out,), split=splits[0])
    with console.progress("outlines", config.stats) as move:
        rows = token_budget.measure(
            source,
            Referring(max_points=100_000, max_rings=1000),
            objects=config.stats,
            progress=lambda done: move(done, config.stats, ""),
        )
    files.write_json(
        config.out / STATS, {"split": splits[0], "edges": token_budget.EDGES, "rows": rows}
    )
    columns = ("points", "tokens_qwen", "tokens_kimi", "tokens_qwen_p95", "iou", "iou_p5")
    header = ("epsilon", *(column.replace("_", " ") for column in columns))
    lines = [
        (
            f"{row['epsilon']:g}",
            *(f"{row[c]:.3f}" if "iou" in c else f"{row[c]:.1f}" for c in columns),
        )
        for row in rows
    ]
    console.table(f"outlines of {rows[0]['objects']} objects of {splits[0]}", header, lines)


def show(name: str, report: dict[str, Any]) -> None:
    """Shows what was built."""
    columns = ("records", "objects", "expressions", "skipped", "files")
    rows = [
        (split, *(str(one.get(column, 0)) for column in columns))
        for split, one in report["splits"].items()
    ]
    console.table(name, ("split", *columns), rows)
    for split, one in report["splits"].items():
        if count := one.get("images_converted"):
            console.say(f"note: images of {split} converted to PNG of 8-bit RGB: {count}")
    for where, count in report["images_repeated"].items():
        console.say(f"warning: {count} images with the same bytes in {where}")
    say_findings(report)


def say_findings(report: dict[str, Any]) -> None:
    """Says what was left out or changed, and what runs will pass over: a line a reason."""
    met = [Findings.from_json(report[name]) for name in ("findings", "limits")]
    for line in met[0].lines():
        console.say(f"warning: {line}")
    for line in met[1].lines():
        console.say(f"note: {line}")
