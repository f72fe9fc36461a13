"""Trains variants of one setting and compares them on the same unseen scenes: an ablation."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import Suppress

from seg_jax import files
from seg_jax.cli.arguments import UsageError
from seg_jax.data.sources import Scenes
from seg_jax.evaluation import bootstrap, task_metrics
from seg_jax.evaluation.referring import tables
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.predictor import Predictor
from seg_jax.models.adapters import lora
from seg_jax.records import Sample, check_least
from seg_jax.runs import (
    chapters,
    console,
    experiments,
    reinforcement,
    run_folder,
    start,
    supervised,
)
from seg_jax.runs.chapters import Chapter
from seg_jax.runs.stage import Place
from seg_jax.training import steps
from seg_jax.training.log import Log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a study: stages that follow each other, each of which may be missing."""

    name: str
    sft: supervised.Config | None = None
    """Fine-tuning of the start. Variants with the same one share what came of it."""
    gspo: reinforcement.Config | None = None
    """Reinforcement of what that gave, or of the start."""
    more_sft: supervised.Config | None = None
    """More fine-tuning of what `sft` gave, instead of reinforcement: a control."""

    def __post_init__(self):
        if not (self.sft or self.gspo) or (self.gspo and self.more_sft):
            raise ValueError(
                f"study, {self.name}: expected sft or gspo, and more_sft only without gspo, got "
                "others; do: correct the stages of this variant"
            )
        for run in (self.sft, self.gspo, self.more_sft):
            if run is not None and (lora.is_wanted(run.adapter) or run.parts != lora.Parts()):
                raise ValueError(
                    f"study, {self.name}: expected stages that train all weights, got adapters or "
                    "frozen parts; do: compare these by finetune and evaluate"
                )
            if run is not None and run.fit:
                raise ValueError(
                    f"study, {self.name}: expected stages with options that fit as they are, got "
                    "fit; do: find them by seg-jax compile"
                )
        if self.gspo is not None and self.gspo.reward:
            raise ValueError(
                f"study, {self.name}: expected the task's scores alone, whose texts no study "
                f"keeps, got the reward {self.gspo.reward[0]}; do: compare these by reinforce and "
                "evaluate"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What a configuration file of `study` returns from its function `config()`."""

    title: str
    variants: tuple[Variant, ...]
    """The first one is what the others are compared with."""
    asked: Scenes | None = None
    """Kind of the unseen scenes, whatever their seed and number; None: the quickstart's."""

    def __post_init__(self):
        names = [one.name for one in self.variants]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"study: expected variants with different names, got {names}; do: rename them"
            )
        slugs = [_slug(name).lower() for name in names]  # They name the folders of stages.
        if not all(slugs) or len(set(slugs)) < len(names):
            raise ValueError(
                f"study: expected variants whose names differ in letters or digits, got {names}; "
                "do: rename them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A comparison of variants; a configuration file lists them."""

    study: Annotated[Study | None, Suppress] = None
    out: Path = Path("runs/study")
    """Folder of everything that comes out."""
    start: Path = experiments.QUICKSTART_START
    """Model folder that every variant starts from."""
    minutes: float | None = None
    """Time for the steps of each stage; None: as the file has it."""
    only: tuple[str, ...] = ()
    """Names of the variants that are run; none: all."""
    scenes: int = 2048
    """Unseen scenes of each evaluation."""
    mesh: steps.Mesh = steps.Mesh(data=-1, fsdp=1)
    """The models are small: every device has all of them."""
    resume: bool = False
    """Go on where a study in OUT stopped."""
    anew: bool = False
    """Replace the study in OUT."""

    def __post_init__(self):
        check_least(self, "study", scenes=2)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(
                f"study.minutes: expected > 0, got {self.minutes}; do: give minutes above 0"
            )
        known = [one.name for one in self.study.variants] if self.study else []
        if self.study and (unknown := sorted({*self.only} - {*known})):
            raise ValueError(
                f"study.only: expected some of {', '.join(known)}, got {unknown[0]!r}; do: correct "
                "it"
            )

    @classmethod
    def of_run(cls, study: Any) -> Config:
        """Returns the configuration with the variants of a file.

        Raises:
          UsageError: the file has none.
        """
        if not isinstance(study, Study):
            raise UsageError(
                f"command line: expected a configuration of study, got one of {type(study)}; do: "
                "give such a file, as configs/simpleseg/study_points.py"
            )
        return cls(study=study)


def main(config: Config) -> int:
    """Trains all variants and prints the table."""
    if config.study is None:
        raise UsageError(
            "command line: expected a configuration file with variants, got none; do: give one, as "
            "configs/simpleseg/study_points.py"
        )
    bundles.load(config.start)  # Known to be whole before minutes are spent.
    begin = time.monotonic()
    with (
        run_folder.hold(
            config.out,
            config,
            resume=config.resume,
            anew=config.anew,
            models={"start": config.start},
        ),
        Log(config.out) as log,
    ):
        held_out = chapters.held_out(config.scenes, config.study.asked)
        runner = _Runner(config, held_out, log)
        variants = [v for v in config.study.variants if not config.only or v.name in config.only]
        rows = [runner.row(variant) for variant in variants]
        table = _table(rows)
        summary = {
            "title": config.study.title,
            "scenes": config.scenes,
            "seconds": round(time.monotonic() - begin, 1),
            "rows": table,
            "config": run_folder.plain(config),
            "versions": run_folder.versions(),
        }
        files.write_json(config.out / "summary.json", summary)
        rows_of_text = [[*row.values()] for row in table]
        markdown = tables.markdown_table([*table[0]], rows_of_text)
        files.write_text(config.out / "table.md", f"{markdown}\n{_note()}\n")
    names = list(table[0])
    console.table(config.study.title, names, [[row[name] for name in names] for row in table])
    console.say(_note())
    return 0


@dataclasses.dataclass(frozen=True)
class _Row:
    """A variant with its first and its last model."""

    name: str
    first: Chapter | None
    """After fine-tuning; None where the variant begins with something else."""
    last: Chapter
    teacher: task_metrics.Outcome


class _Runner:
    """Trains the stages of variants, equal ones once."""

    def __init__(self, config: Config, held_out: list[Sample], log: Log):
        self._config, self._held_out, self._log = config, held_out, log
        self._mesh = config.mesh.build()
        self._fine_tuned: dict[str, Chapter] = {}

    def row(self, variant: Variant) -> _Row:
        """Returns what came of a variant."""
        first = None if variant.sft is None else self._after_sft(variant.sft, variant.name)
        last = first
        stage = variant.gspo or variant.more_sft
        if stage is not None:
            kind = "gspo" if variant.gspo else "more-sft"
            model = self._model(stage) if first is None else first.bundle
            last = self._train(stage, model, f"{_slug(variant.name)}-{kind}", variant.name)
        assert last is not None
        return _Row(variant.name, first, last, chapters.teacher(last))

    def _after_sft(self, run: supervised.Config, name: str) -> Chapter:
        key = json.dumps(run_folder.plain(run), sort_keys=True)
        if key not in self._fine_tuned:
            stage = f"{_slug(name)}-sft"
            self._fine_tuned[key] = self._train(run, self._model(run), stage, name)
        return self._fine_tuned[key]

    def _model(self, run: supervised.Config | reinforcement.Config) -> Bundle:
        """Returns the start with the task and the layout of a run."""
        model = bundles.load(self._config.start, compute=run.compute, on=self._mesh)
        assert run.task is not None
        assert run.layout is not None
        return dataclasses.replace(model, task=run.task, layout=run.layout)

    def _train(
        self,
        run: supervised.Config | reinforcement.Config,
        model: Bundle,
        stage: str,
        name: str,
    ) -> Chapter:
        """Returns what comes of a stage that begins with a model, which is kept."""
        config = self._config
        assert run.task is not None
        assert run.layout is not None
        plan = run.loop
        if config.minutes is not None:
            plan = dataclasses.replace(plan, minutes=config.minutes)
        run = dataclasses.replace(
            run, out=config.out, checkpoint=config.start, loop=plan, mesh=config.mesh
        )
        model = dataclasses.replace(model, task=run.task, layout=run.layout)
        begin = start.Start(model, lambda: jax.tree.map(jnp.copy, model.params))
        console.say(f"{name}: {stage}")
        place = Place(config.out, stage, self._log)
        trained = (
            supervised.train(run, begin, place)
            if isinstance(run, supervised.Config)
            else reinforcement.train(run, begin, place)
        )
        return chapters.chapter(
            name, Predictor(model), trained, samples=self._held_out, mesh=self._mesh
        )


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")


def _table(rows: list[_Row]) -> list[dict[str, str]]:
    """Returns the rows of the table as text; gains are paired, with their intervals."""
    base = rows[0].last.outcome.scores["iou"]
    summaries = [row.last.summary for row in rows]
    more = [name for name in _MORE if any(name in summary for summary in summaries)]
    return [
        _cells(row, None if row is rows[0] else base)
        | {_MORE[name]: _mean(row.last.summary.get(name)) for name in more}
        for row in rows
    ]


_MORE = {
    "n_acc_said": "N-acc",
    "t_acc_said": "T-acc",
    "several_giou": "gIoU, several",
    "several_recall": "recall, several",
    "several_duplicates": "repeated outlines",
}
"""Further columns, where absent or several things were asked about."""


def _mean(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else f"{interval['mean']:.3f}"


def _cells(row: _Row, base: np.ndarray | None) -> dict[str, str]:
    last, first = row.last.outcome, None if row.first is None else row.first.outcome
    curved = chapters.is_curved(last.examples)
    straight = np.array([bool(one.category) for one in last.examples], bool) & ~curved

    def mean(outcome: task_metrics.Outcome | None, among: Any = slice(None)) -> str:
        if outcome is None or not len(asked := outcome.scores["iou"][among]):
            return ""
        return f"{asked.mean():.3f}"

    def gain(before: np.ndarray | None) -> str:
        if before is None:
            return ""
        return str(bootstrap.gain_interval(before, last.scores["iou"], seed=0))

    moved = first is not None and first is not last
    return {
        "variant": row.name,
        "teacher": mean(row.teacher),
        "after SFT": mean(first),
        "at the end": mean(last),
        "curved": mean(last, curved),
        "straight": mean(last, straight),
        "tokens": f"{last.tokens.mean():.1f}",
        "seconds": f"{row.last.trained.seconds:.0f}",
        "over SFT": gain(first.scores["iou"]) if moved and first is not None else "",
        "over the first": gain(base),
    }


def _note() -> str:
    """Returns what the table does not say of its gains."""
    return (
        "Over SFT, over the first row: differences of the mean IoU on the same scenes, paired, "
        f"with {bootstrap.level()} bootstrap intervals."
    )
