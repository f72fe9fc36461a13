"""Makes a data set from images without annotation: detects, segments, outlines, describes."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import seg_jax
from seg_jax import files
from seg_jax.annotation import endpoint, jobs, results, words
from seg_jax.annotation.annotator import Contour, Settings
from seg_jax.annotation.choice import Choice
from seg_jax.annotation.filters import Filters
from seg_jax.annotation.jobs import Job, Shard
from seg_jax.annotation.results import Splits
from seg_jax.annotation.words import Wording
from seg_jax.data import image_lists
from seg_jax.data.build import beam as build_beam
from seg_jax.data.build import dataset, record_files
from seg_jax.data.findings import Findings
from seg_jax.runs import console, run_folder

MOST_LABEL = 1000
"""Characters of a name: longer is a text without ends of lines, which no detector reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Choice):
    """An annotation; killed at any time, the same command goes on where it was."""

    images: str
    """Folder of images, pattern as "web/*/*.jpg", or text file with a path a line."""
    out: Path
    """Folder of the data set, which training and evaluation read; in it `annotations` as a plain
    folder with where each record came from, dead_letters.jsonl and summary.json."""
    labels: Path | None = None
    """Text file with what to look for, a name a line."""
    prompts: tuple[str, ...] = ()
    """Names to look for, as "a dog" "a cat"; instead of a file, or beside it."""
    filters: Filters = Filters()
    contour: Contour = Contour()
    wording: Wording = Wording()
    splits: Splits = Splits()
    records: int = 64
    """Images in a shard: the most that a kill can cost, in each process."""
    patience: int = 16
    """Number of images in succession that models may fail on before the run stops."""
    workers: int = 1
    """Number of processes, each with models of its own."""
    runner: str | None = None
    """Engine of Apache Beam that annotates instead, as DirectRunner or DataflowRunner; its workers
    must see OUT, images and models under the same paths."""
    runner_options: tuple[str, ...] = ()
    """The engine's own options without their dashes, as region=europe-west4."""
    retry_failed: bool = False
    """Whether shards in which a model or the endpoint failed are annotated again."""
    anew: bool = False
    """Whether the annotation in OUT is replaced."""
    json: Path | None = None
    """File for the summary, which OUT/summary.json holds too."""

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(
                f"workers: expected at least 1, got {self.workers}; do: raise --workers"
            )
        build_beam.check_options(self.runner, self.runner_options)
        if self.runner is not None and self.workers != 1:
            raise ValueError(
                f"workers: expected none beside --runner {self.runner}, which has its own, got "
                f"{self.workers}; do: leave it out"
            )
        if self.describer is None:
            for name, default in (("endpoint", endpoint.Settings()), ("wording", Wording())):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}: expected --describer beside --{name}.*, got none; do: give the "
                        "address of an endpoint or a model's folder, or leave these options out"
                    )
        if not self.splits.share and self.splits.val != Splits().val:
            raise ValueError(
                "splits.val: expected --splits.share above 0 beside it, got 0; do: give a share, "
                "or leave it out"
            )
        # A folder's model is asked here: of an endpoint's options it has the length of answers.
        alone = endpoint.Settings(max_tokens=self.endpoint.max_tokens)
        if self.describer is not None and "://" not in self.describer and self.endpoint != alone:
            raise ValueError(
                f"endpoint: expected --endpoint.max-tokens alone beside the folder {self.describer}"
                ", got options of an address; do: leave them out"
            )

    def choice(self) -> Choice:
        """Returns the models alone."""
        names = [field.name for field in dataclasses.fields(Choice)]
        return Choice(**{name: getattr(self, name) for name in names})


def main(config: Config) -> int:
    """Annotates; reports what was dropped and what failed, and prints the folder."""
    settings = Settings(
        labels=_labels(config),
        filters=config.filters,
        contour=config.contour,
        wording=config.wording,
    )
    run_folder.check_json(config.json)
    begin = time.monotonic()
    met = Findings()
    images = image_lists.list_images(config.images, met)
    _check_apart(config, images)
    console.say(f"{len(images)} images, {len(settings.labels)} labels")
    choice = config.choice()
    code = f"seg-jax {seg_jax.__version__} {run_folder.commit()}".strip()
    models = choice.models()
    job = Job(
        load=choice.with_endpoint_model(models),
        models=models,
        settings=settings,
        out=config.out,
        records=config.records,
        patience=config.patience,
        code=code,
    )
    with jobs.claim_folder(job, anew=config.anew):
        every = jobs.cut_into_shards(images, job.records)
        met.merge(jobs.damaged_shards(every, job))
        for line in met.lines():
            console.say(f"warning: {line}")
        if config.retry_failed and (gone := jobs.forget_failures(every, job)):
            console.say(f"{gone} of {len(every)} shards had failures of models: annotated again")
        _annotate(config, job, every)
        summary = results.gather_shards(every, job, config.splits)
        report = results.build_dataset(job, _builder(config))
    show(config, summary, report)
    if config.json is not None:
        seconds = round(time.monotonic() - begin, 3)
        files.write_json(
            config.json, summary | {"seconds": seconds, "versions": run_folder.versions()}
        )
    console.tell(config.out)
    return 0


def _labels(config: Config) -> tuple[str, ...]:
    """Returns what to look for, each name once."""
    lines = list(config.prompts)
    if config.labels is not None:
        expected = "a text file with a name a line"
        lines += files.read_text(config.labels, expected=expected).splitlines()
    every = [name for one in lines if (name := " ".join(one.split()))]
    names = tuple(dict.fromkeys(every))
    for name in names:
        if odd := words.odd_character(name):
            raise ValueError(
                f"labels: expected names in plain text, got the character {odd} in {name!a:.60}; "
                "do: write the name again"
            )
        if len(name) > MOST_LABEL:
            raise ValueError(
                f"labels: expected names of at most {MOST_LABEL} characters, got {len(name)}; do: "
                "write each on a line of its own"
            )
    if len(names) < len(every):
        console.say(f"{len(every) - len(names)} labels stand there twice and are taken once")
    if not names:
        raise ValueError(
            "labels: expected what to look for, got nothing; do: --labels FILE with a name a line, "
            'or --prompts "a dog" "a cat"'
        )
    return names


def _check_apart(config: Config, images: Sequence[image_lists.ImageFile]) -> None:
    """Raises if images lie where --anew would remove them."""
    out = config.out.resolve()
    if any(one.path.resolve().is_relative_to(out) for one in images):
        raise ValueError(
            f"{config.out}: expected a folder without images to annotate, got some in it; "
            "do: choose another --out"
        )


def _annotate(config: Config, job: Job, every: list[Shard]) -> None:
    """Annotates the shards, here or by Beam."""
    if config.runner is not None:
        from seg_jax.annotation import beam

        images = [one for shard in every for one in shard.images]
        jobs.write_list(images, job)
        beam.annotate_shards(every, job, runner=config.runner, options=config.runner_options)
        return
    total = sum(len(shard.images) for shard in every)
    with console.progress("annotated", total) as move:
        jobs.annotate_shards(
            every, job, workers=config.workers, progress=lambda done: move(done, total, "")
        )


def _builder(config: Config) -> Any:
    """Returns the function that makes the files of the data set."""

    def make(plan: dataset.Plan, tasks: Sequence[record_files.Task]) -> list[dict[str, Any]]:
        if config.runner is not None:
            return build_beam.make_files(
                plan, tasks, runner=config.runner, options=config.runner_options
            )
        workers = min(len(tasks), os.cpu_count() or 1)
        total = sum(len(task.images) for task in tasks)
        with console.progress("stored", total) as move:
            return dataset.make_files(
                tasks, workers=workers, progress=lambda done: move(done, total, "")
            )

    return make


def show(config: Config, summary: dict[str, Any], report: dict[str, Any]) -> None:
    """Shows what was annotated."""
    columns = ("images", "objects", "phrases")
    rows = [
        (split, *(str(one[column]) for column in columns))
        for split, one in summary["splits"].items()
    ]
    console.table(str(config.out), ("split", *columns), rows)
    for what in ("without_objects", "repeated", "failed"):
        if summary[what]:
            console.say(f"{summary[what]} of {summary['images']} images {what}".replace("_", " "))
    for line in Findings.from_json(summary["findings"]).lines():
        console.say(f"warning: {line}")
    if summary["dead_letters"]:
        counts = ", ".join(f"{count} {name}" for name, count in summary["dead_letters"].items())
        console.say(f"dead letters: {counts}; see {config.out / results.LETTERS}")
    for line in Findings.from_json(report["findings"]).lines():
        console.say(f"warning: {line}")
