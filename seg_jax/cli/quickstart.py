"""The whole story on one machine: SFT from random weights, GSPO, an honest control, a report."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax import files
from seg_jax.data import image_files, pipeline
from seg_jax.evaluation import bootstrap, task_metrics
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Sample, Verdict, check_least
from seg_jax.report import exhibits, html_page, metrics_log, panels
from seg_jax.runs import (
    console,
    evaluation,
    experiments,
    reinforcement,
    run_folder,
    sampled_answers,
    start,
    supervised,
)
from seg_jax.runs.stage import Place
from seg_jax.tasks.referring import Mixture
from seg_jax.training import loop
from seg_jax.training import steps as jitted_steps
from seg_jax.training.log import Log

START = Path(__file__).parent / "quickstart_start"
"""Weights that GSPO starts from: the tiny model after longer SFT (configs/simpleseg says how)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The quickstart; its stages take the tiny configurations with these changes."""

    out: Path = Path("runs/quickstart")
    """Folder of everything that comes out."""
    seed: int = 0
    minutes: float = 11.2
    """Time for the steps of all stages on a slow machine; a faster one has done them earlier.
    Compilation and evaluation take some three minutes beside."""
    start: Path = START
    """Model folder that GSPO and the control start from."""
    scenes: int = 3072
    """Held-out scenes of each evaluation."""
    sampled_scenes: int = 512
    """Scenes, at most `scenes`, whose sampled answers give the mean reward around GSPO."""
    gallery: int = 24
    """Held-out scenes shown in the report, at most `scenes`."""
    sft_steps: int = 1800
    gspo_steps: int = 400
    mesh: jitted_steps.Mesh = jitted_steps.Mesh(data=-1, fsdp=1)
    """The model is small: every device has all of it."""
    resume: bool = False
    """Go on where a run in OUT stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        least = {"scenes": 2, "sampled_scenes": 2, "sft_steps": 1, "gspo_steps": 1, "gallery": 0}
        check_least(self, "quickstart", **least)
        if not self.minutes > 0:  # Put so that nan is refused.
            raise ValueError(
                f"quickstart.minutes: expected > 0, got {self.minutes}; do: give minutes above 0"
            )
        for name in ("sampled_scenes", "gallery"):
            if (value := getattr(self, name)) > self.scenes:
                option = name.replace("_", "-")
                raise ValueError(
                    f"quickstart.{name}: expected at most the {self.scenes} scenes, got {value}; "
                    f"do: lower --{option}, or raise --scenes"
                )


SFT, GSPO = "simpleseg/tiny_sft.py", "simpleseg/tiny_gspo.py"
"""Configurations of the stages."""
MANY_STEPS = 100_000
"""For a stage that ends by its minutes."""

# Shares of the time; the control takes as long as GSPO.
SFT_SHARE, GSPO_SHARE = 0.47, 0.265

_SHOWN = ("model", "gIoU", "parses", "paired gain")
"""Columns of the table at the end; the report has all."""


@dataclasses.dataclass(frozen=True)
class Chapter:
    """A trained model and how it did on the held-out scenes."""

    caption: str
    bundle: Bundle
    outcome: task_metrics.Outcome
    summary: dict[str, Any]


def main(config: Config) -> int:
    """Tells the story and prints a table and where the report is."""
    begin = time.monotonic()
    bundles.load(config.start)  # Known to be whole before minutes are spent.
    with run_folder.hold(
        config.out, config, resume=config.resume, anew=config.anew, reads=[config.start]
    ):
        _tell_story(config, begin)
    return 0


def _tell_story(config: Config, begin: float) -> None:
    """Writes everything of the run into its folder, and prints the table."""
    held_out = _held_out(config)
    with Log(config.out) as log:
        chapters, seconds = _chapters(config, held_out, log)
    bundles.save(chapters["gspo"].bundle, config.out / "checkpoint")
    models = chapters["start"].bundle, chapters["gspo"].bundle
    rewards = _sampled_rewards(config, held_out[: config.sampled_scenes], *models)
    summary = _summary(config, chapters, rewards, seconds | {"all": time.monotonic() - begin})
    files.write_json(config.out / "summary.json", summary)
    rows = _rows(chapters, summary)
    _report(config, chapters, summary, rows)
    console.table("quickstart", _SHOWN, [[str(row[name]) for name in _SHOWN] for row in rows])
    reward = summary["gspo"]["start_reward"], summary["gspo"]["reward"]
    console.say(
        f"mean reward of sampled answers: {reward[0]:.3f} before GSPO, {reward[1]:.3f} after"
    )
    console.say(f"in {summary['seconds'] / 60:.1f} minutes; open {config.out / 'report.html'}")


def _chapters(
    config: Config, held_out: list[Sample], log: Log
) -> tuple[dict[str, Chapter], dict[str, float]]:
    """Runs all stages and evaluations."""
    sft, gspo = _sft(config), _gspo(config)
    tell = functools.partial(_chapter, config, held_out)
    console.say("1 of 3: supervised fine-tuning (SFT) from random weights")
    random = start.with_random_weights(sft, config.out / "tokenizer")
    trained, sft_seconds, *_ = supervised.train(sft, random, Place(config.out, "sft", log))
    chapters = {"sft": tell("after SFT", Predictor(random.bundle), trained.params)}
    bundles.save(chapters["sft"].bundle, config.out / "sft")

    console.say("2 of 3: reinforcement (GSPO) from weights that were fine-tuned for longer")
    model = bundles.load(config.start, compute=_gspo(config).compute, on=config.mesh.build())

    def begin_with(run: supervised.Config | reinforcement.Config) -> start.Start:
        # The weights are needed until the end: each stage that begins with them gets a copy.
        bundle = dataclasses.replace(model, task=run.task, layout=run.layout)
        return start.Start(bundle, lambda: jax.tree.map(jnp.copy, model.params))

    predictor = Predictor(model)
    chapters["start"] = tell("GSPO starts here", predictor, model.params)
    trained, gspo_seconds, *_ = reinforcement.train(
        gspo, begin_with(gspo), Place(config.out, "gspo", log)
    )
    chapters["gspo"] = tell("after GSPO", predictor, trained.params)

    console.say("3 of 3: the control, SFT from the same weights for the same time")
    control = _control(config, gspo_seconds)
    trained, control_seconds, *_ = supervised.train(
        control, begin_with(control), Place(config.out, "control", log)
    )
    chapters["control"] = tell("control: more SFT", predictor, trained.params)
    return chapters, {"sft": sft_seconds, "gspo": gspo_seconds, "control": control_seconds}


def _sft(config: Config) -> supervised.Config:
    base = experiments.load(SFT).config(seed=config.seed)
    minutes = config.minutes * SFT_SHARE
    plan = dataclasses.replace(base.loop, steps=config.sft_steps, minutes=minutes)
    return dataclasses.replace(base, out=config.out, loop=plan, mesh=config.mesh)


def _gspo(config: Config) -> reinforcement.Config:
    base = experiments.load(GSPO).config(seed=config.seed)
    minutes = config.minutes * GSPO_SHARE
    plan = dataclasses.replace(base.loop, steps=config.gspo_steps, minutes=minutes)
    layout, task = bundles.describe(config.start)
    task = evaluation.with_mixture(task, base.task.mixture)
    # Held-out scenes tell of its samples, before and after.
    return dataclasses.replace(
        base, out=config.out, loop=plan, mesh=config.mesh, task=task, layout=layout, probe=0
    )


def _control(config: Config, seconds: float) -> supervised.Config:
    """Returns more SFT of the start weights for the time of GSPO's steps.

    Both count from when their step is compiled; GSPO may have had all its steps sooner.
    """
    tiny = experiments.load(SFT)
    base = tiny.config(seed=config.seed)
    minutes = min(config.minutes * GSPO_SHARE, seconds / 60)
    plan = loop.Loop(steps=MANY_STEPS, minutes=minutes)
    layout, task = bundles.describe(config.start)
    return dataclasses.replace(
        base,
        out=config.out,
        source=tiny.scenes(seed=2000 + config.seed),
        optimizer=dataclasses.replace(base.optimizer, lr=1e-3),
        loop=plan,
        mesh=config.mesh,
        task=task,
        layout=layout,
    )


def _chapter(
    config: Config, held_out: list[Sample], caption: str, predictor: Predictor, params: Any
) -> Chapter:
    bundle = dataclasses.replace(predictor.bundle, params=params)
    task = evaluation.with_mixture(bundle.task, Mixture())
    outcome = evaluation.answer_greedily(
        predictor,
        held_out,
        title=f"  {caption}",
        task=task,
        batch=128,
        params=params,
        mesh=config.mesh.build(),
    )
    return Chapter(caption, bundle, outcome, task_metrics.summarise(task, outcome))


def _held_out(config: Config) -> list[Sample]:
    """Returns the held-out scenes, drawn once for all who ask about them."""
    source = experiments.load(SFT).scenes(seed=evaluation.HELD_OUT)
    return [source[index] for index in range(config.scenes)]


def _summary(
    config: Config,
    chapters: dict[str, Chapter],
    rewards: list[np.ndarray],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Returns the numbers of the run as `summary.json` holds them."""
    start, gspo, control = (chapters[name] for name in ("start", "gspo", "control"))
    gain = bootstrap.gain_interval(start.outcome.scores["iou"], gspo.outcome.scores["iou"], seed=0)
    over = bootstrap.gain_interval(
        control.outcome.scores["iou"], gspo.outcome.scores["iou"], seed=0
    )
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
            "start_reward": round(float(rewards[0].mean()), 4),
            "reward": round(float(rewards[1].mean()), 4),
            "reward_gain": dataclasses.asdict(bootstrap.gain_interval(*rewards, seed=0)),
        },
        "start": _numbers(start),
        "control": _numbers(control),
        "config": run_folder.plain(config),
        "versions": run_folder.versions(),
    }


def _numbers(chapter: Chapter) -> dict[str, Any]:
    summary = chapter.summary
    return {
        "giou": round(summary["giou"]["mean"], 4),
        "parse_rate": round(summary["parse_rate"]["mean"], 4),
        "evaluation": summary,
    }


def _sampled_rewards(config: Config, source: list[Sample], *models: Bundle) -> list[np.ndarray]:
    """Returns each model's mean reward for sampled answers to each of the held-out questions.

    The models share graph and task, and get the same questions and random numbers, sampled as
    GSPO samples.
    """
    gspo, bundle = _gspo(config), models[0]
    task, mesh = gspo.task or bundle.task, config.mesh.build()
    batch = evaluation.whole_rows(min(gspo.feed.batch, len(source)), mesh)
    drawn = sampled_answers.worths(
        bundle,
        pipeline.batches_in_order(source, task, bundle.encoder, batch=batch),
        task=task,
        sampling=gspo.sampling,
        weights=gspo.weights or task.reward_weights,
        seed=config.seed,
        rows=batch,
        mesh=mesh,
        models=[model.params for model in models],
    )
    return [one.reward.mean(1) for one in drawn]


def _rows(chapters: dict[str, Chapter], summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the headline table, one row per trained model."""
    rows = []
    for name, chapter in chapters.items():
        numbers = chapter.summary
        intervals = {
            key: bootstrap.Interval(**numbers[key]) for key in ("giou", "ciou", "p_at_0.5")
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
                "paired gain": bootstrap.Interval(**gain) if gain else "",
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
    over = bootstrap.Interval(**summary["gspo"]["gain_over_control"])
    reward = bootstrap.Interval(**summary["gspo"]["reward_gain"])
    shown = [_exhibit(chapters, index) for index in range(config.gallery)]
    if shown:
        image_files.write(config.out / "gallery.png", panels.sheet(shown[:5]))
    html_page.write(
        config.out / "report.html",
        html_page.Report(
            title="seg-jax quickstart",
            summary_rows=rows,
            curves=metrics_log.read(config.out / "metrics.jsonl"),
            exhibits=shown,
            config={name: summary["config"][name] for name in summary["config"]}
            | {"sft": run_folder.plain(_sft(config)), "gspo": run_folder.plain(_gspo(config))},
            versions=summary["versions"] | {"seed": config.seed},
            notes=(
                f"Every model answers the same {config.scenes} held-out questions, greedily. "
                f"GSPO against the control (SFT for the same time): {over} gIoU. "
                f"GSPO raises the mean reward of sampled answers by {reward}.",
            ),
            commands=(f"seg-jax quickstart --seed {config.seed} --minutes {config.minutes:g}",),
        ),
    )


def _exhibit(chapters: dict[str, Chapter], index: int) -> exhibits.Exhibit:
    """Returns a held-out scene with its truth and the answers of all models."""
    first = chapters["sft"]
    example, task = first.outcome.examples[index], first.bundle.task
    truth = task.truth(example, canvas=first.bundle.layout.canvas)
    shown = [exhibits.Panel("truth", task.truth_rings(truth))]
    for name in ("sft", "start", "gspo"):
        outcome = chapters[name].outcome
        shown.append(
            exhibits.Panel(
                chapters[name].caption,
                task.answer_rings(outcome.texts[index], truth),
                iou=float(outcome.scores["iou"][index]),
                verdict=Verdict(int(outcome.verdicts[index])),
                text=outcome.texts[index],
            )
        )
    return exhibits.Exhibit(example.image, example.question, shown)
