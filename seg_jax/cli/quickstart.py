"""The whole story on one machine: SFT, GSPO beyond its teacher, an honest control, a report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from seg_jax import files
from seg_jax.cli import quickstart_results as results
from seg_jax.data import pipeline
from seg_jax.evaluation import best_of
from seg_jax.inference import bundle as bundles
from seg_jax.inference.predictor import Predictor
from seg_jax.records import Sample, check_least
from seg_jax.runs import (
    chapters,
    console,
    evaluation,
    experiments,
    reinforcement,
    run_folder,
    sampled_answers,
    start,
    supervised,
)
from seg_jax.runs.chapters import Chapter
from seg_jax.runs.stage import Place, Trained
from seg_jax.training import loop
from seg_jax.training import steps as jitted_steps
from seg_jax.training.log import Log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The quickstart; its stages take the quickstart's configurations with these changes."""

    out: Path = Path("runs/quickstart")
    """Folder of everything that comes out."""
    seed: int = 0
    """Seed of the labelled pictures and of every stage."""
    minutes: float = 12.0
    """Time for the steps of all stages on a slow machine; a faster one has done them earlier.
    Compilation, validation and evaluation take some three minutes beside."""
    start: Path = experiments.QUICKSTART_START
    """Model folder that fine-tuning starts from."""
    labelled: int = 1000
    """Labelled pictures, the same for every stage."""
    validation: int = 256
    """Further pictures, by which each stage knows its best weights."""
    scenes: int = 3072
    """Unseen scenes of each evaluation."""
    sampled_scenes: int = 512
    """Scenes, at most `scenes`, about which answers are sampled before and after GSPO."""
    gallery: int = 24
    """Unseen scenes shown in the report, at most `scenes`."""
    sft_steps: int = 1300
    gspo_steps: int = 500
    mesh: jitted_steps.Mesh = jitted_steps.Mesh(data=-1, fsdp=1)
    """The model is small: every device has all of it."""
    resume: bool = False
    """Go on where a run in OUT stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        least = {"scenes": 2, "sampled_scenes": 2, "sft_steps": 1, "gspo_steps": 1, "gallery": 0}
        check_least(self, "quickstart", **least, labelled=1, validation=1)
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


SFT, GSPO = "simpleseg/quickstart_sft.py", "simpleseg/quickstart_gspo.py"
"""Configurations of the stages."""
MANY_STEPS = 100_000
"""For a stage that ends by its minutes."""

# Shares of the time; the control takes as long as GSPO.
SFT_SHARE, GSPO_SHARE = 0.23, 0.385


def main(config: Config) -> int:
    """Tells the story and prints a table and where the report is."""
    begin = time.monotonic()
    bundles.load(config.start)  # Known to be whole before minutes are spent.
    with run_folder.hold(
        config.out,
        config,
        resume=config.resume,
        anew=config.anew,
        models={"start": config.start},
    ):
        _tell_story(config, begin)
    return 0


def _tell_story(config: Config, begin: float) -> None:
    """Writes everything of the run into its folder, and prints the table."""
    unseen = chapters.held_out(config.scenes)
    with Log(config.out) as log:
        told, seconds = _chapters(config, unseen, log)
    bundles.save(told["gspo"].bundle, config.out / "checkpoint")
    sampled = _sampled(config, told, unseen[: config.sampled_scenes])
    story = results.Story(told, chapters.teacher(told["sft"]), sampled, unseen)
    summary = results.summary(story, seconds | {"all": time.monotonic() - begin}) | {
        "seed": config.seed,
        "config": run_folder.plain(config),
        "versions": run_folder.versions(),
    }
    files.write_json(config.out / "summary.json", summary)
    results.write_report(
        story,
        summary,
        config.out,
        gallery=config.gallery,
        configs={"sft": run_folder.plain(_sft(config)), "gspo": run_folder.plain(_gspo(config))},
        command=f"seg-jax quickstart --seed {config.seed} --minutes {config.minutes:g}",
    )
    results.say(story, summary)
    console.say(f"in {summary['seconds'] / 60:.1f} minutes; open {config.out / 'report.html'}")


def _chapters(
    config: Config, unseen: list[Sample], log: Log
) -> tuple[dict[str, Chapter], dict[str, float]]:
    """Runs all stages and evaluations."""
    sft, gspo, mesh = _sft(config), _gspo(config), config.mesh.build()
    read = bundles.load(config.start, compute=sft.compute, on=mesh)
    model = dataclasses.replace(read, task=sft.task, layout=sft.layout)
    predictor = Predictor(model)

    def tell(caption: str, trained: Trained) -> Chapter:
        return chapters.chapter(caption, predictor, trained, samples=unseen, mesh=mesh)

    console.say(f"1 of 3: fine-tuning (SFT) on {config.labelled} pictures, outlines of 4 points")
    begin = start.Start(model, lambda: model.params)
    trained = supervised.train(sft, begin, Place(config.out, "sft", log))
    told = {"sft": tell("after SFT", trained)}
    seconds = {"sft": trained.seconds}
    fine_tuned = told["sft"].bundle
    bundles.save(fine_tuned, config.out / "sft")

    def again() -> start.Start:
        # The weights are needed until the end: each stage that begins with them gets a copy.
        return start.Start(fine_tuned, lambda: jax.tree.map(jnp.copy, fine_tuned.params))

    console.say("2 of 3: reinforcement (GSPO) of that model on the same pictures")
    trained = reinforcement.train(gspo, again(), Place(config.out, "gspo", log))
    told["gspo"] = tell("after GSPO", trained)
    seconds["gspo"] = trained.seconds

    console.say("3 of 3: the control, more SFT of that model on the same pictures, as long")
    control = _control(config, trained.seconds)
    trained = supervised.train(control, again(), Place(config.out, "control", log))
    told["control"] = tell("more SFT", trained)
    seconds["control"] = trained.seconds
    return told, seconds


def _sft(config: Config) -> supervised.Config:
    base = experiments.load(SFT).config(seed=config.seed)
    minutes = config.minutes * SFT_SHARE
    plan = dataclasses.replace(base.loop, steps=config.sft_steps, minutes=minutes)
    return _stage(config, base, plan)


def _gspo(config: Config) -> reinforcement.Config:
    base = experiments.load(GSPO).config(seed=config.seed)
    minutes = config.minutes * GSPO_SHARE
    plan = dataclasses.replace(base.loop, steps=config.gspo_steps, minutes=minutes)
    return _stage(config, dataclasses.replace(base, probe=0), plan)


def _control(config: Config, seconds: float) -> supervised.Config:
    """Returns more SFT for the time of GSPO's steps, with its own best weights by validation.

    Both count from when their step is compiled; GSPO may have had all its steps sooner.
    """
    base = experiments.load(SFT).config(seed=config.seed)
    minutes = min(config.minutes * GSPO_SHARE, seconds / 60)
    # A lower rate than that of `sft`, and no giving up: the control is to have its best chance.
    base = dataclasses.replace(
        base,
        optimizer=dataclasses.replace(base.optimizer, lr=5e-4),
        validate=dataclasses.replace(base.validate, patience=None),
    )
    return _stage(config, base, loop.Loop(steps=MANY_STEPS, minutes=minutes))


def _stage(config: Config, base, plan: loop.Loop):
    """Returns a stage's configuration with what all stages share."""
    return dataclasses.replace(
        base,
        out=config.out,
        checkpoint=config.start,
        loop=plan,
        mesh=config.mesh,
        source=dataclasses.replace(base.source, count=config.labelled),
        validate=dataclasses.replace(base.validate, samples=config.validation),
    )


def _sampled(
    config: Config, told: dict[str, Chapter], samples: list[Sample]
) -> dict[str, best_of.Groups]:
    """Returns what answers are worth before and after GSPO, sampled as it samples."""
    gspo, bundle, mesh = _gspo(config), told["sft"].bundle, config.mesh.build()
    names = ("sft", "gspo")
    rows = evaluation.whole_rows(min(gspo.feed.batch, len(samples)), mesh)
    drawn = sampled_answers.worths(
        bundle,
        pipeline.batches_in_order(samples, bundle.task, bundle.encoder, batch=rows),
        task=bundle.task,
        sampling=gspo.sampling,
        weights=gspo.weights or bundle.task.reward_weights,
        seed=config.seed,
        rows=rows,
        mesh=mesh,
        models=[told[name].bundle.params for name in names],
    )
    return dict(zip(names, drawn, strict=True))
