"""The whole story on one machine: SFT from random weights, GSPO, an honest control, a report."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from seg_jax.cli import console, evaluate, finetune, reinforce, runs, tiny
from seg_jax.grammar import outline
from seg_jax.inference import bundle as bundles
from seg_jax.inference import evaluation, report, statistics
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Kind, Verdict
from seg_jax.tasks.referring import Mixture, rings_unit
from seg_jax.training import loop, stations
from seg_jax.training.log import Log

START = Path(__file__).parent / "quickstart_start"
"""Weights that GSPO starts from: the tiny model after longer SFT (README says how)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The quickstart; its stages take the tiny configurations with these changes."""

    out: Path = Path("runs/quickstart")
    """Folder of everything that comes out."""
    seed: int = 0
    minutes: float = 13.2
    """Time for all stages together on a slow machine; a faster one is done earlier."""
    start: Path = START
    """Model folder that GSPO and the control start from."""
    scenes: int = 4096
    """Held-out scenes of each evaluation."""
    gallery: int = 24
    """Held-out scenes shown in the report."""
    sft_steps: int = 1800
    gspo_steps: int = 400
    mesh: stations.Mesh = stations.Mesh()
    resume: bool = False
    """Go on where a run in OUT stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        # Put so that nan is refused.
        if not (self.minutes > 0 and self.scenes >= 2 and min(self.sft_steps, self.gspo_steps) > 0):
            raise ValueError(f"expected positive minutes, scenes and steps, got {self}")


# Shares of the time: the rest goes to compilation and evaluation.
SFT_SHARE, GSPO_SHARE = 0.44, 0.23

_SHOWN = ("model", "gIoU", "parses", "paired gain")
"""Columns of the table at the end; the report has all."""


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A trained model and how it did on the held-out scenes."""

    caption: str
    bundle: Bundle
    outcome: evaluation.Outcome
    summary: dict[str, Any]


def main(config: Config) -> int:
    """Tells the story and prints a table and where the report is."""
    begin = time.monotonic()
    bundles.load(config.start)  # Known to be whole before minutes are spent.
    runs.claim(config.out, config, resume=config.resume, anew=config.anew, reads=config.start)
    with Log(config.out) as log:
        chapters, seconds = _chapters(config, log)
    bundles.save(chapters["gspo"].bundle, config.out / "checkpoint")
    summary = _summary(config, chapters, seconds | {"all": time.monotonic() - begin})
    runs.write_json(config.out / "summary.json", summary)
    rows = _rows(chapters, summary)
    _report(config, chapters, summary, rows)
    console.table("quickstart", _SHOWN, [[str(row[name]) for name in _SHOWN] for row in rows])
    console.say(f"in {summary['seconds'] / 60:.1f} minutes; open {config.out / 'report.html'}")
    return 0


def _chapters(config: Config, log: Log) -> tuple[dict[str, Chapter], dict[str, float]]:
    """Runs all stages and evaluations."""
    sft, gspo = _sft(config), _gspo(config)
    console.say("1 of 3: supervised fine-tuning (SFT) from random weights")
    random = finetune.start(sft, config.out / "tokenizer")
    trained, sft_seconds = finetune.train(sft, random, folder=config.out, stage="sft", log=log)
    chapters = {"sft": _chapter(config, "after SFT", random, trained.params)}
    bundles.save(chapters["sft"].bundle, config.out / "sft")

    console.say("2 of 3: reinforcement (GSPO) from weights that were fine-tuned for longer")
    start = bundles.load(config.start, compute=tiny.compute())
    chapters["start"] = _chapter(config, "GSPO starts here", start, start.params)
    trained, gspo_seconds = reinforce.train(gspo, start, folder=config.out, stage="gspo", log=log)
    chapters["gspo"] = _chapter(config, "after GSPO", start, trained.params)

    console.say("3 of 3: the control, SFT from the same weights for the same time")
    control = _control(config, gspo_seconds)
    trained, control_seconds = finetune.train(
        control, start, folder=config.out, stage="control", log=log
    )
    chapters["control"] = _chapter(config, "control: more SFT", start, trained.params)
    return chapters, {"sft": sft_seconds, "gspo": gspo_seconds, "control": control_seconds}


def _sft(config: Config) -> finetune.Config:
    base = tiny.sft_config(out=config.out, seed=config.seed)
    minutes = config.minutes * SFT_SHARE
    plan = dataclasses.replace(base.loop, steps=config.sft_steps, minutes=minutes)
    return dataclasses.replace(base, loop=plan, mesh=config.mesh)


def _gspo(config: Config) -> reinforce.Config:
    base = tiny.gspo_config(out=config.out, seed=config.seed)
    minutes = config.minutes * GSPO_SHARE
    plan = dataclasses.replace(base.loop, steps=config.gspo_steps, minutes=minutes)
    return dataclasses.replace(base, loop=plan, mesh=config.mesh)


def _control(config: Config, seconds: float) -> finetune.Config:
    """Returns more SFT of the start weights for the seconds that GSPO took."""
    base = tiny.control_config(out=config.out, seed=config.seed)
    plan = loop.Loop(steps=tiny.MANY_STEPS, minutes=seconds / 60)
    return dataclasses.replace(base, loop=plan, mesh=config.mesh)


def _chapter(config: Config, caption: str, bundle: Bundle, params: Any) -> Chapter:
    bundle = dataclasses.replace(bundle, params=params)
    outcome = evaluate.run(
        Predictor(bundle),
        _held_out(config),
        title=f"  {caption}",
        mixture=Mixture(),
        batch=128,
    )
    return Chapter(caption, bundle, outcome, evaluation.summarise(outcome))


def _held_out(config: Config):
    return dataclasses.replace(tiny.scenes(seed=evaluate.HELD_OUT), count=config.scenes)


def _summary(
    config: Config, chapters: dict[str, Chapter], seconds: dict[str, float]
) -> dict[str, Any]:
    """Returns the numbers of the run as `summary.json` holds them."""
    start, gspo, control = (chapters[name] for name in ("start", "gspo", "control"))
    gain = statistics.paired(start.outcome.iou, gspo.outcome.iou, seed=0)
    over = statistics.paired(control.outcome.iou, gspo.outcome.iou, seed=0)
    reward = _sampled_reward(config.out / "metrics.jsonl")
    return {
        "seconds": round(seconds["all"], 1),
        "stage_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seed": config.seed,
        "scenes": config.scenes,
        "sft": _numbers(chapters["sft"]),
        "gspo": {
            **_numbers(gspo),
            "start_giou": round(start.summary["giou"]["mean"], 4),
            "gain_over_start": dataclasses.asdict(gain),
            "gain_over_control": dataclasses.asdict(over),
            "first_reward": reward[0],
            "last_reward": reward[1],
        },
        "start": _numbers(start),
        "control": _numbers(control),
        "config": runs.plain(config),
        "versions": runs.versions(),
    }


def _numbers(chapter: Chapter) -> dict[str, Any]:
    summary = chapter.summary
    return {
        "giou": round(summary["giou"]["mean"], 4),
        "parse_rate": round(summary["parse_rate"]["mean"], 4),
        "evaluation": summary,
    }


def _sampled_reward(path: Path) -> tuple[float, float]:
    """Returns the mean sampled reward over the first and the last tenth of GSPO's records."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    values = np.array([record["reward"] for record in records if record["stage"] == "gspo"])
    tenth = max(1, math.ceil(len(values) / 10))
    return round(float(values[:tenth].mean()), 4), round(float(values[-tenth:].mean()), 4)


def _rows(chapters: dict[str, Chapter], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the headline table, one row per trained model."""
    rows = []
    for name, chapter in chapters.items():
        numbers = chapter.summary
        intervals = {
            key: statistics.Interval(**numbers[key]) for key in ("giou", "ciou", "p_at_0.5")
        }
        gain = summary["gspo"]["gain_over_start"] if name == "gspo" else None
        rows.append(
            {
                "model": chapter.caption,
                "gIoU": intervals["giou"],
                "cIoU": intervals["ciou"],
                "P@0.5": intervals["p_at_0.5"],
                "parses": f"{numbers['parse_rate']['mean']:.1%}",
                "tokens": f"{numbers['tokens']['mean']:.1f}",
                "paired gain": statistics.Interval(**gain) if gain else "",
            }
        )
    return rows


def _report(
    config: Config,
    chapters: dict[str, Chapter],
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Writes the report beside the numbers."""
    over = statistics.Interval(**summary["gspo"]["gain_over_control"])
    report.write(
        config.out / "report.html",
        report.Report(
            title="seg-jax quickstart",
            summary_rows=rows,
            curves=report.curves_from(config.out / "metrics.jsonl"),
            exhibits=[
                _exhibit(chapters, index) for index in range(min(config.gallery, config.scenes))
            ],
            config={name: summary["config"][name] for name in summary["config"]}
            | {"sft": runs.plain(_sft(config)), "gspo": runs.plain(_gspo(config))},
            versions=summary["versions"] | {"seed": config.seed},
            notes=(
                f"Every model answers the same {config.scenes} held-out questions, greedily. "
                f"GSPO against the control (SFT for the same time): {over} gIoU.",
            ),
            commands=(f"seg-jax quickstart --seed {config.seed} --minutes {config.minutes:g}",),
        ),
    )


def _exhibit(chapters: dict[str, Chapter], index: int) -> report.Exhibit:
    """Returns a held-out scene with its truth and the answers of all models."""
    first = chapters["sft"]
    example = first.outcome.examples[index]
    truth = report.Panel("truth", rings_unit(example.mask, first.bundle.task))
    panels = [truth]
    for name in ("sft", "start", "gspo"):
        outcome = chapters[name].outcome
        reading = outline.read(outcome.texts[index], Kind.MASK)
        panels.append(
            report.Panel(
                chapters[name].caption,
                reading.rings,
                iou=float(outcome.iou[index]),
                verdict=Verdict(int(outcome.verdicts[index])),
                text=outcome.texts[index],
            )
        )
    return report.Exhibit(example.image, example.question, panels)
