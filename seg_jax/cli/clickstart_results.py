"""What the clickstart tells: numbers, the table, the report with its picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from seg_jax.data import image_files
from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.bootstrap import Interval
from seg_jax.records import Verdict
from seg_jax.report import exhibits, html_page, metrics_log, panels
from seg_jax.runs import console, pointing
from seg_jax.runs.pointing import Answered, Blind, Prompt, Questions
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks.prompted import clicker

OVER_BLIND = 0.3
"""The least gain of the reward after reinforcement over that of the best blind prompt."""
TIMES = 2.0
"""The least reward after reinforcement, in rewards before."""
CAPTIONS = {
    "before": "before",
    "after": "after RL",
    "shuffled": "after RL, shown another picture",
    "blind": "best blind clicks",
    "blind_box": "best blind box",
    "perfect": "a click in the middle of the truth",
}
"""The rows of the table."""


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A blind prompt, and what it is worth on the unseen scenes."""

    chosen: Blind
    judged: Answered


@dataclasses.dataclass(frozen=True)
class Story:
    """All that came of a clickstart; answers are to the same questions about unseen scenes."""

    questions: Questions
    before: Answered
    """The model that knows the format only."""
    after: Answered
    shuffled: Answered
    """The model after reinforcement, shown the picture of another question."""
    blind: Fixed
    blind_box: Fixed
    perfect: Answered
    """A click at the deepest place of each true mask."""
    steps: int
    """Steps of reinforcement, each of so many prompts with so many answers."""
    prompts: int
    answers: int

    @property
    def judged(self) -> dict[str, Answered]:
        """What all who were asked made of the questions."""
        every = {name: getattr(self, name) for name in CAPTIONS}
        return {k: one.judged if isinstance(one, Fixed) else one for k, one in every.items()}


def fixed_prompt(questions: Questions, blind: Blind) -> Fixed:
    """Returns a blind prompt with what it is worth about each picture."""
    return Fixed(blind, questions.worth_of_own([blind.prompt] * len(questions.examples)))


def true_clicks(questions: Questions) -> list[Prompt]:
    """Returns for each question a click at the deepest place of the true mask."""
    found = []
    for index in range(len(questions.examples)):
        edge = questions.task.frame
        mask = packed_masks.unpack(np.asarray(questions.truth(index).words), (edge, edge))
        x, y = clicker.trace(mask, clicks=1).points_unit[0]
        found.append(Prompt(((float(x), float(y)),), (1,)))
    return found


def summary(story: Story, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Returns the numbers of the run as `summary.json` holds them."""
    rewards = {name: one.scores["reward"] for name, one in story.judged.items()}
    numbers: dict[str, Any] = {
        name: {score: _interval(values) for score, values in one.scores.items()}
        for name, one in story.judged.items()
    }
    for name, fixed in (("blind", story.blind), ("blind_box", story.blind_box)):
        chosen = dataclasses.asdict(fixed.chosen.prompt)
        numbers[name] |= {"prompt": chosen, "reward_where_chosen": round(fixed.chosen.reward, 4)}
    for other in ("before", "shuffled", "blind", "blind_box"):
        numbers["after"][f"gain_over_{other}"] = _gain(rewards[other], rewards["after"])
    return {
        "seconds": round(seconds["all"], 1),
        "stage_seconds": {name: round(value, 1) for name, value in seconds.items()},
        "scenes": len(story.questions.examples),
        "steps": story.steps,
        "answers_tried": story.steps * story.prompts * story.answers,
        "answers_of_a_question": story.answers,
        **numbers,
        "gate": gate({name: float(values.mean()) for name, values in rewards.items()}),
    }


def gate(means: Mapping[str, float]) -> dict[str, Any]:
    """Returns what the demonstration has to show, and whether it does.

    Args:
      means: the mean reward of masks before, after, and of the best blind prompts.
    """
    times = means["after"] / max(means["before"], 1e-9)
    over = means["after"] - max(means["blind"], means["blind_box"])
    return {
        "times_before": round(times, 3),
        "over_blind": round(over, 4),
        "passed": bool(times >= TIMES and over >= OVER_BLIND),
    }


def _interval(values: Float[np.ndarray, " n"]) -> dict[str, float]:
    return _as_json(bootstrap.mean_interval(np.asarray(values, np.float64), seed=0))


def _gain(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> dict[str, float]:
    return _as_json(bootstrap.gain_interval(one, other, seed=0))


def _as_json(interval: Interval) -> dict[str, float]:
    return {key: round(float(value), 4) for key, value in dataclasses.asdict(interval).items()}


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the headline table: a row for each who was asked."""
    rows = []
    for name, caption in CAPTIONS.items():
        told, gained = summary[name], summary["after"].get(f"gain_over_{name}")
        rows.append({"clicks": caption, "reward": Interval(**told["reward"])})
        for score in ("iou", "structure"):
            rows[-1][score] = f"{told[score]['mean']:.3f}" if score in told else ""
        rows[-1]["after RL is better by"] = Interval(**gained) if gained else ""
    return rows


def say(summary: Mapping[str, Any]) -> None:
    """Prints the table and what it means."""
    rows = table_rows(summary)
    header = tuple(rows[0])
    console.table("clickstart", header, [[str(row[name]) for name in header] for row in rows])
    for line in sentences(summary):
        console.say(line)


def sentences(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the numbers say, for a reader who knows nothing of it."""
    after, passed = summary["after"], summary["gate"]
    means = {name: summary[name]["reward"]["mean"] for name in CAPTIONS}
    gain = Interval(**after["gain_over_before"])
    told = (
        "A model is shown two things and asked where one of them is, by name; it answers with a "
        "click. Another model, a SAM 2 at toy size, draws what lies under the click; it is "
        "never told what was asked for. The first model sees, but at the beginning it knows only "
        f"how a click is written: its clicks are worth {means['before']:.3f}, where 1 is a mask "
        f"that is the thing. No right answer is ever shown to it. In {summary['steps']} steps it "
        f"tried {summary['answers_of_a_question']} clicks for each question, and those whose masks "
        "covered more of what was asked for became likelier. Afterwards its clicks, on "
        f"{summary['scenes']} scenes that it has not seen, are worth {means['after']:.3f}, {gain} "
        "more. Who clicks without looking, always at the best place, has "
        f"{means['blind']:.3f} (with a box {means['blind_box']:.3f}); the same model, shown "
        f"another picture, {means['shuffled']:.3f}. A click in the middle of the true mask is "
        f"worth {means['perfect']:.3f}, as this SAM 2 draws."
    )
    return (
        told,
        f"After RL the reward is {passed['times_before']:.1f} times that before, and "
        f"{passed['over_blind']:+.3f} over the best blind prompt; expected are {TIMES:g} times and "
        f"+{OVER_BLIND:g}: {'passed' if passed['passed'] else 'not passed'}.",
    )


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
        image_files.write(folder / "gallery.png", panels.sheet(shown[:3]))
    html_page.write(
        folder / "report.html",
        html_page.Report(
            title="seg-jax clickstart",
            summary_rows=table_rows(summary),
            curves=metrics_log.read(folder / "metrics.jsonl"),
            exhibits=shown,
            config={**summary["config"], **configs},
            versions=summary["versions"] | {"seed": summary["seed"]},
            notes=sentences(summary),
            commands=(command,),
        ),
    )


def _exhibit(story: Story, index: int) -> exhibits.Exhibit:
    """Returns an unseen scene with its truth and the clicks and masks of all who were asked."""
    asked = story.questions
    example, task, truth = asked.examples[index], asked.task, asked.truth(index)

    def outlines(one: Answered) -> Sequence[np.ndarray]:
        return task.truth_rings(truth._replace(words=one.masks[index]))

    shown = [exhibits.Panel("truth", task.truth_rings(truth))]
    blind = np.array(story.blind.chosen.prompt.points_unit)[:, None]
    shown.append(
        exhibits.Panel(
            CAPTIONS["blind"],
            [*outlines(story.blind.judged), *blind],
            iou=_iou(story.blind.judged, truth, index),
            verdict=Verdict.OK,
        )
    )
    for name in ("before", "after"):
        one: Answered = getattr(story, name)
        text = one.texts[index]
        shown.append(
            exhibits.Panel(
                CAPTIONS[name],
                [*outlines(one), *task.answer_rings(text, truth)],
                iou=_iou(one, truth, index),
                verdict=task.predict(example, text).verdict,
                text=text,
            )
        )
    return exhibits.Exhibit(example.image, example.question, shown)


def _iou(one: Answered, truth: Any, index: int) -> float:
    """Returns the IoU of a mask as it was drawn."""
    return pointing.iou(one.masks[index], truth.words)
