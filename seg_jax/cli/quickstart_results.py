"""What the quickstart tells: numbers, the table, the report with its picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from seg_jax.data import image_files
from seg_jax.evaluation import best_of, bootstrap, task_metrics
from seg_jax.evaluation.task_metrics import Outcome
from seg_jax.records import Sample, Verdict
from seg_jax.report import exhibits, html_page, metrics_log, panels
from seg_jax.runs import chapters, console
from seg_jax.runs.chapters import Chapter
from seg_jax.tasks import referring

_SHOWN = ("model", "gIoU", "curved", "straight", "paired gain")
"""Columns of the table at the end; the report has all."""


@dataclasses.dataclass(frozen=True)
class Story:
    """All that came of a quickstart."""

    chapters: Mapping[str, Chapter]
    """The trained models: sft, gspo and control."""
    teacher: Outcome
    """The answers that the model is taught, to the same questions."""
    sampled: Mapping[str, best_of.Groups]
    """Sampled answers of sft and gspo to some of the questions."""
    samples: Sequence[Sample]
    """The unseen scenes, one of each question."""

    @property
    def curved(self) -> Bool[np.ndarray, " n"]:
        """Which questions are about things with a curved outline."""
        return chapters.is_curved(self.teacher.examples)


def summary(story: Story, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Returns the numbers of the run as `summary.json` holds them."""
    curved = story.curved
    iou = {name: one.outcome.scores["iou"] for name, one in story.chapters.items()}
    iou["teacher"] = story.teacher.scores["iou"]
    before, after = (story.sampled[name] for name in ("sft", "gspo"))
    numbers = {name: _numbers(one) for name, one in story.chapters.items()}
    numbers["gspo"] |= {
        "start_giou": numbers["sft"]["giou"],
        "gain_over_start": _gain(iou["sft"], iou["gspo"]),
        "gain_over_control": _gain(iou["control"], iou["gspo"]),
        "start_reward": round(float(before.reward.mean()), 4),
        "reward": round(float(after.reward.mean()), 4),
        "reward_gain": _gain(before.reward.mean(1), after.reward.mean(1)),
        "start_best_of_8": round(float(before.scores["iou"].max(1).mean()), 4),
        "best_of_8": round(float(after.scores["iou"].max(1).mean()), 4),
    }
    parts = {"curved": curved, "straight": ~curved}
    return {
        "seconds": round(seconds["all"], 1),
        "stage_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "scenes": len(story.samples),
        **numbers,
        "teacher": {"giou": round(float(iou["teacher"].mean()), 4)},
        "by_kind": _by_kind(story),
        "parts": {
            name: {
                "questions": int(rows.sum()),
                **{who: round(float(values[rows].mean()), 4) for who, values in iou.items()},
                "gspo_over_control": _gain(iou["control"][rows], iou["gspo"][rows]),
                "gspo_over_teacher": _gain(iou["teacher"][rows], iou["gspo"][rows]),
            }
            for name, rows in parts.items()
            if rows.sum() > 1
        },
    }


def _gain(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> dict[str, float]:
    return dataclasses.asdict(bootstrap.gain_interval(one, other, seed=0))


def _numbers(chapter: Chapter) -> dict[str, Any]:
    summary, best = chapter.summary, chapter.trained.best
    assert best is not None
    return {
        "giou": round(summary["giou"]["mean"], 4),
        "parse_rate": round(summary["parse_rate"]["mean"], 4),
        "best_step": best.step,
        "best_validation": round(best.score, 4),
        "validations": [list(entry) for entry in chapter.trained.validations],
        "evaluation": summary,
    }


def _by_kind(story: Story) -> dict[str, Any]:
    """Returns for each kind of thing the mean IoU of all answers, and of those that find it."""
    outcomes = {name: chapter.outcome for name, chapter in story.chapters.items()}
    everyone = {"teacher": story.teacher, **outcomes}
    whole = {name: task_metrics.by_kind(outcome) for name, outcome in everyone.items()}
    found = {
        name: task_metrics.by_kind(outcome, among=chapters.finds_the_thing(outcome, story.samples))
        for name, outcome in outcomes.items()
    }
    rows = task_metrics.rows_by_kind(story.teacher.examples)
    return {
        kind: {
            "curved": bool(story.curved[places[0]]),
            "questions": len(places),
            **{name: round(means[kind], 4) for name, means in whole.items()},
            "found": {n: round(means[kind], 4) for n, means in found.items() if kind in means},
        }
        for kind, places in rows.items()
    }


def table_rows(story: Story, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the headline table: the teacher, then a row for each trained model."""
    parts, gspo = summary["parts"], summary["gspo"]
    rows: list[dict[str, Any]] = [
        {"model": "its teacher", "gIoU": f"{summary['teacher']['giou']:.3f}"}
    ]
    for name, chapter in story.chapters.items():
        numbers = chapter.summary
        rows.append(
            {
                "model": chapter.caption,
                "gIoU": bootstrap.Interval(**numbers["giou"]),
                "P@0.5": bootstrap.Interval(**numbers["p_at_0.5"]),
                "parses": f"{numbers['parse_rate']['mean']:.1%}",
                "best of 8": {"sft": f"{gspo['start_best_of_8']:.3f}"}.get(name, ""),
                "tokens": f"{numbers['tokens']['mean']:.1f}",
                "paired gain": "",
            }
        )
        if name == "gspo":
            gains = {"paired gain": bootstrap.Interval(**gspo["gain_over_start"])}
            rows[-1] |= gains | {"best of 8": f"{gspo['best_of_8']:.3f}"}
    for row, name in zip(rows, ("teacher", *story.chapters), strict=True):
        for part, numbers in parts.items():
            row[part] = f"{numbers[name]:.3f}"
    return rows


def say(story: Story, summary: Mapping[str, Any]) -> None:
    """Prints the table and what it means."""
    rows = table_rows(story, summary)
    cells = [[str(row.get(name, "")) for name in _SHOWN] for row in rows]
    console.table("quickstart", _SHOWN, cells)
    for line in sentences(summary):
        console.say(line)


def sentences(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the numbers say, for a reader who knows nothing of it."""
    gspo, parts = summary["gspo"], summary["parts"]
    over = bootstrap.Interval(**gspo["gain_over_control"])
    told = [
        f"Every model answers the same {summary['scenes']} questions about unseen scenes, greedily."
        " It was taught outlines of four points, which lie on the border: a curve is cut short, and"
        f" who copies its teacher perfectly reaches {summary['teacher']['giou']:.3f}. Fine-tuning"
        f" ended at {summary['sft']['giou']:.3f}, and more of it, for as long as GSPO took, at"
        f" {summary['control']['giou']:.3f}. GSPO sees no outline, only how well its own answers"
        f" cover the thing: {gspo['giou']:.3f}, {over} over more fine-tuning."
    ]
    if "curved" in parts:
        part = parts["curved"]
        gain = bootstrap.Interval(**part["gspo_over_teacher"])
        told.append(
            f"On curved things GSPO reaches {part['gspo']:.3f}, the teacher's own outlines"
            f" {part['teacher']:.3f}: it goes beyond its teacher ({gain})."
            if gain.low > 0
            else f"On curved things GSPO reaches {part['gspo']:.3f}, and the teacher's own outlines"
            f" are worth {part['teacher']:.3f}: it did not go beyond its teacher ({gain})."
        )
    told.append(
        f"The mean reward of sampled answers rose from {gspo['start_reward']:.3f} to"
        f" {gspo['reward']:.3f} by GSPO."
    )
    return tuple(told)


def write_report(
    story: Story,
    summary: Mapping[str, Any],
    folder: Path,
    *,
    gallery: int,
    configs: Mapping[str, Any],
    command: str,
) -> None:
    """Writes the report and its picture beside the numbers."""
    shown = [_exhibit(story, index) for index in range(gallery)]
    if shown:
        image_files.write(folder / "gallery.png", panels.sheet(shown[:5]))
    html_page.write(
        folder / "report.html",
        html_page.Report(
            title="seg-jax quickstart",
            summary_rows=table_rows(story, summary),
            curves=metrics_log.read(folder / "metrics.jsonl"),
            exhibits=shown,
            config={**summary["config"], **configs},
            versions=summary["versions"] | {"seed": summary["seed"]},
            notes=sentences(summary),
            commands=(command,),
        ),
    )


def _exhibit(story: Story, index: int) -> exhibits.Exhibit:
    """Returns an unseen scene with its truth, its teacher's outline and all models' answers."""
    first = story.chapters["sft"]
    example, task = first.outcome.examples[index], first.bundle.task
    truth = task.truth(example, canvas=first.bundle.layout.canvas)
    fine = referring.Referring(digits=3)
    shown = [
        exhibits.Panel("truth", fine.truth_rings(truth)),
        _panel("its teacher", story.teacher, task, truth, index),
    ]
    for name in ("sft", "control", "gspo"):
        chapter = story.chapters[name]
        shown.append(_panel(chapter.caption, chapter.outcome, task, truth, index))
    return exhibits.Exhibit(example.image, example.question, shown)


def _panel(caption: str, outcome: Outcome, task: Any, truth: Any, index: int) -> exhibits.Panel:
    return exhibits.Panel(
        caption,
        task.answer_rings(outcome.texts[index], truth),
        iou=float(outcome.scores["iou"][index]),
        verdict=Verdict(int(outcome.verdicts[index])),
        text=outcome.texts[index],
    )
