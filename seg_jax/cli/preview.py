"""Shows what a model will get of a data set or of a run: its rows, read back, the worst first."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro

from seg_jax import files
from seg_jax.cli import arguments
from seg_jax.data import pipeline, sources, split_files
from seg_jax.data.encode import VISUAL_TOKENS, Encoder, Layout
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built, Scenes
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.records import Verdict
from seg_jax.report import html_page
from seg_jax.report.html_page import Cell
from seg_jax.report.row_exhibits import Looks
from seg_jax.runs import batches, console, datasets, reinforcement, run_folder, start, supervised
from seg_jax.runs.training_run import TrainingRun, differences
from seg_jax.tasks import prompted
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.tasks.task import Task

PAGE, ROWS = "preview.html", "preview_rows.jsonl"
"""Names of the page and of its numbers, a line for every question, in the folder of the page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Look:
    """What every look has."""

    images: int = 256
    """Images that are looked at: the first ones that a run draws."""
    shown: int = 64
    """Questions whose images are on the page, the worst ones; the numbers are of all."""

    def __post_init__(self):
        if self.images < 1 or self.shown < 1:
            raise ValueError(
                f"preview: expected images and shown >= 1, got {self.images} images and "
                f"{self.shown} shown; do: give 1 or more of each"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_Look):
    """A look at a data set, or at the rows of a run: seg-jax preview CONFIG.py with its options."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of a data set that `seg-jax build` or `seg-jax annotate` made; or the configuration
    file of a run, whose options that decide on rows may follow."""
    split: str | None = None
    """Split of the data set; left out: train, or the only one."""
    checkpoint: Path | None = None
    """Model whose tokenizer, sizes and questions rows are made with; left out: as `seg-jax finetune
    --data FOLDER` makes them, with room for any length of text."""
    out: Path | None = None
    """Folder of the page; left out: that of the data set."""

    def __post_init__(self):
        super().__post_init__()
        if self.out is not None and self.out.suffix == ".html":
            raise ValueError(
                f"out: expected a folder, which gets {PAGE}, got {self.out}; do: --out "
                f"{self.out.parent}"
            )

    @classmethod
    def of_run(cls, run: Any) -> _OfRun:
        """Returns the default look at a run; its class has the run's options.

        Raises:
          UsageError: it is no run that reads rows.
        """
        if not isinstance(run, supervised.Config | reinforcement.Config):
            raise arguments.UsageError(
                "command line: expected a configuration of finetune or reinforce, got one of "
                f"{type(run)}; do: give such a file, as configs/simpleseg/tiny_sft.py"
            )
        run = dataclasses.replace(run, out=Path("runs/preview"))
        named = Annotated[type(run), tyro.conf.arg(name="")]
        fields = [("run", named, dataclasses.field(default=run))]
        kind = dataclasses.make_dataclass(
            "Config", fields, bases=(_OfRun,), frozen=True, kw_only=True
        )
        kind.__doc__, kind.given = _OfRun.__doc__, run
        return kind()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OfRun(_Look):
    """A look at the rows of a run; the options of the run are laid over its configuration.

    What no row depends on is refused; `out` is the folder of the page.
    """

    given: ClassVar[Any] = None
    """The run as its configuration file has it."""
    run: Any = None

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> _OfRun:
        """Returns the look with its run as the checkpoint completes it."""
        return dataclasses.replace(self, run=self.run.completed(checkpoint, check=check))


def main(config: Config | _OfRun) -> int:
    """Writes the page, says what was left out or changed, and prints the page's path."""
    if isinstance(config, _OfRun):
        _check_options(config)
        run, out, met = config.run.completed(), config.run.out, {}
    else:
        run, out = _run_of_data(config), config.out or config.data
        built, limits = split_files.read_findings(config.data)
        met = {"built": built, "limits": limits}
    looks, left_out = look(run, images=config.images, shown=config.shown)
    met |= {"read": left_out, "rows": looks.met}
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(one.as_json(), ensure_ascii=False) for one in looks.ranked()]
    files.write_text(out / ROWS, "".join(f"{line}\n" for line in lines))
    html_page.write(
        out / PAGE,
        html_page.Report(
            title=_title(run),
            summary_rows=[*_rows(met)],
            curves=None,
            exhibits=looks.exhibits(),
            versions=run_folder.versions(),
            notes=_notes(run, looks),
            shapes=True,
        ),
    )
    for when, findings in met.items():
        for line in findings.lines():
            console.say(line if when == "rows" else f"warning: {line}")
    console.tell(out / PAGE)
    return 0


def look(run: Any, *, images: int, shown: int) -> tuple[Looks, Findings]:
    """Returns a look at the first rows that a run draws, and what was passed over.

    Args:
      run: fine-tuning or reinforcement, completed.
      images: at most so many are looked at, none of a finite source twice.
      shown: questions whose images are kept.
    """
    kind = "prompts" if isinstance(run, reinforcement.Config) else "sft"
    run = datasets.with_source(run)
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder(_tokenizer(run, Path(folder)), run.layout)
        source, _, left_out = batches.divided_source(run, encoder, rows=kind)
        looks = Looks(run.task, encoder, shown=shown)
        rows = pipeline.rows_in_order(
            source,
            run.task,
            encoder,
            feed=run.feed,
            rows=kind,
            met=left_out,
            answer_tokens=run.answer_tokens,
        )
        most = min(images, len(source))
        with console.progress("rows", most, shown=True) as move:
            while looks.images < most:
                looks.add(next(rows))
                move(min(looks.images, most), most, "")
        rows.close()
    return looks, left_out


def _tokenizer(run: Any, folder: Path) -> Tokenizer:
    """Returns the tokenizer of a run's checkpoint, or one as its random weights would have."""
    if run.checkpoint is not None:
        return start.blank_from_checkpoint(run).tokenizer
    return start.make_tokenizer(run.source, run.task, folder / "tokenizer")


_DECIDE = (
    "out",
    "data",
    "data_weights",
    "split",
    "checkpoint",
    "source",
    "task",
    "layout",
    "feed.questions",
    "feed.packed_rows",
    "feed.packed_tokens",
    "feed.pack",
    "feed.seed",
    "validate.samples",
    "validate.split",
)
"""Options of a run that decide on its rows, or on the page."""


def _check_options(config: _OfRun) -> None:
    """Raises ValueError for an option that no row depends on."""
    run, given = config.run.completed(), config.given.completed(config.run.checkpoint, check=False)
    decide = _DECIDE
    if run.feed.pack is not None:  # Rows of a batch are lanes of their own.
        decide += ("feed.batch",)
    if run.answer_tokens is not None:
        decide += ("sampling.max_tokens",)
    if isinstance(run, reinforcement.Config):
        decide += ("policy.truth",)
    if run.checkpoint is not None:
        decide += ("adapter.folder",)
    unread = ("layout.buckets",)
    if not isinstance(run, reinforcement.Config):
        unread += ("layout.canvas",)
    if isinstance(run.source, Scenes) and not run.data:  # Held-out scenes are of another seed.
        unread += ("validate",)
    for name, ours, _ in differences(run, given, ""):
        name = name.removeprefix(".")
        if not _is_below(name, decide) or _is_below(name, unread):
            raise ValueError(
                f"{name}: expected options that rows depend on, got {ours}, which changes none; "
                "do: leave it out"
            )


def _is_below(name: str, options: Sequence[str]) -> bool:
    """Returns whether an option is one of some, or a part of one."""
    return any(name == one or name.startswith(f"{one}.") for one in options)


def _run_of_data(config: Config) -> supervised.Config:
    """Returns the fine-tuning that a data set is looked at by, completed."""
    split = config.split or _usual_split(config.data)
    run = supervised.Config(data=(config.data,), split=split, checkpoint=config.checkpoint)
    if config.checkpoint is None:
        task = _task_of(config.data, split)
        run = dataclasses.replace(run, task=task, layout=_ROOMY)
    return run.completed()


_ROOMY = Layout(max_question=2048, max_prompt=VISUAL_TOKENS + 4096, max_answer=8192)
"""Rows with room for whatever is written: what a small tokenizer does not know, it spells."""


def _task_of(folder: Path, split: str) -> Task:
    """Returns the questions that a data set allows for: outlines, or written conversations."""
    source = Built(folders=(folder,), split=split, absent=True)
    offered = source.question_kinds({"text", "place", "absent", "trace"})
    if offered == {"trace"}:
        mixture = prompted.Mixture(whole=0.0, trace=1.0)
        return prompted.Prompted(stage="sft", mixture=mixture)
    shares = {"text_mask": 1.0} if "text" in offered else {"text_mask": 0.0, "point_mask": 1.0}
    absent = 0.2 * ("absent" in offered)
    return Referring(mixture=Mixture(**shares, absent=absent))


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
    "read": "passed over by these rows",
    "rows": "changed on the way to the model",
}


def _rows(met: dict[str, Findings]) -> Iterator[dict[str, Cell]]:
    """Yields a row for each reason, with its first example and what to do about it."""
    for when, findings in met.items():
        for reason, one in findings.as_json().items():
            example = next(iter(one["examples"]), "")
            row = {"reason": reason, "when": _TOLD[when], "cases": one["count"], "first": example}
            yield row | {"do": one.get("do", "")}


def _notes(run: TrainingRun, looks: Looks) -> list[str]:
    """Returns the paragraphs under the title."""
    asked, kept = len(looks.all), looks.exhibits()
    found = [one.agreement for one in looks.all if one.agreement is not None]
    wrong = sum(one.picture_error > 0 for one in looks.all)
    odd = sum(one.verdict not in (None, Verdict.OK) for one in looks.all)
    numbers = ""
    if found:
        least, low, middle = np.quantile(found, [0, 0.05, 0.5])
        numbers = (
            f" What the targets say agrees with the annotation by {np.mean(found):.4f} on average "
            f"(IoU, where outlines are asked for); median {middle:.4f}, one in twenty below "
            f"{low:.4f}, worst {least:.4f}."
        )
    return [
        f"{asked:,} questions about {looks.images:,} images, the first that a run draws; "
        f"the {len(kept):,} worst are shown, the worst first.{numbers}",
        f"{wrong:,} images differ from the annotation's own, resized anew; {odd:,} answers are not "
        "wholly read. Left: the image put together again from the row's patches, with what its "
        "target tokens say; right: the annotation's image and mask at full size.",
        f"Tokens are counted by {_words_of(run)}. The same numbers of every question: {ROWS}.",
    ]


def _words_of(run: TrainingRun) -> str:
    if run.checkpoint is not None:
        return f"the tokenizer of {run.checkpoint}"
    return "a small tokenizer made of the data's own words, as a model with random weights has it"


def _title(run: TrainingRun) -> str:
    """Returns what is looked at in a few words."""
    if run.data:
        return f"{', '.join(map(sources.set_name, run.data))}: {run.split}"
    program = "reinforce" if isinstance(run, reinforcement.Config) else "finetune"
    return f"What seg-jax {program} gets of its {type(run.source).__name__.lower()}"
