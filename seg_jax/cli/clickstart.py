"""Pure reinforcement in minutes: a model that sees learns to point, by what SAM 2 draws of it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seg_jax import files
from seg_jax.cli import clickstart_results as results
from seg_jax.data.sources import Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.inference.bundle import Bundle
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.records import check_least
from seg_jax.runs import (
    chapters,
    console,
    experiments,
    pointing,
    reinforcement,
    run_folder,
    start,
    supervised,
)
from seg_jax.runs.pointing import Questions
from seg_jax.runs.stage import Place
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import steps as jitted_steps
from seg_jax.training.log import Log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The clickstart; its stages take the clickstart's configurations with these changes."""

    out: Path = Path("runs/clickstart")
    """Folder of everything that comes out."""
    seed: int = 0
    """Seed of the pictures and of every stage."""
    minutes: float = 10.0
    """Time of all on a slow machine, of which the steps take three quarters; a faster one has done
    them earlier."""
    start: Path = experiments.CLICKSTART_START
    """Folder of the model that learns to point: one that sees."""
    segmenter: Path = experiments.TOY_SAM2
    """Folder of the model that draws what is pointed at; its weights stay as they are."""
    scenes: int = 512
    """Unseen scenes of each evaluation."""
    blind_scenes: int = 64
    """Scenes to learn from on which the best blind clicks are chosen."""
    gallery: int = 12
    """Unseen scenes shown in the report, at most `scenes`."""
    sft_steps: int = 120
    rl_steps: int = 400
    mesh: jitted_steps.Mesh = jitted_steps.Mesh(data=-1, fsdp=1)
    """The models are small: every device has all of them."""
    resume: bool = False
    """Go on where a run in OUT stopped."""
    anew: bool = False
    """Replace the run in OUT."""

    def __post_init__(self):
        least = {"scenes": 2, "blind_scenes": 2, "sft_steps": 1, "rl_steps": 1}
        check_least(self, "clickstart", **least, gallery=0, seed=0)
        if not self.minutes > 0:  # Put so that nan is refused.
            raise ValueError(
                f"clickstart.minutes: expected > 0, got {self.minutes}; do: give minutes above 0"
            )
        if self.gallery > self.scenes:
            raise ValueError(
                f"clickstart.gallery: expected at most the {self.scenes} scenes, got "
                f"{self.gallery}; do: lower --gallery, or raise --scenes"
            )


SFT, RL = "seg_r1/clickstart_sft.py", "seg_r1/clickstart_rl.py"
"""Configurations of the stages."""
SFT_SHARE, RL_SHARE = 0.1, 0.65
"""Shares of the time; compilation and evaluation have the rest."""
GRID = 6
"""Places of a side where blind clicks are tried."""
BOX_GRID = 5
"""Cells of a side between whose lines blind boxes are tried."""


def main(config: Config) -> int:
    """Tells the story and prints a table and where the report is."""
    begin = time.monotonic()
    models = _models(config)  # Known to be whole before a folder is made and minutes are spent.
    with run_folder.hold(
        config.out,
        config,
        resume=config.resume,
        anew=config.anew,
        models={"start": config.start, "segmenter": config.segmenter},
    ):
        _tell_story(config, models, begin)
    return 0


class _Models(NamedTuple):
    """What the story begins with, on its mesh."""

    mesh: Mesh
    start: Bundle
    segmenter: Frozen


def _models(config: Config) -> _Models:
    """Returns the models, read from their folders."""
    mesh = config.mesh.build()
    return _Models(
        mesh,
        bundles.load(config.start, compute=_sft(config).compute, on=mesh),
        frozen_segmenter.load(_task(), config.segmenter, on=mesh),
    )


def _tell_story(config: Config, models: _Models, begin: float) -> None:
    """Writes everything of the run into its folder, and prints the table."""
    with Log(config.out) as log:
        story, seconds = _story(config, models, log)
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
        configs={"sft": run_folder.plain(_sft(config)), "rl": run_folder.plain(_rl(config))},
        command=f"seg-jax clickstart --seed {config.seed} --minutes {config.minutes:g}",
    )
    results.say(summary)
    console.say(f"in {summary['seconds'] / 60:.1f} minutes; open {config.out / 'report.html'}")


def _story(config: Config, models: _Models, log: Log) -> tuple[results.Story, dict[str, float]]:
    """Runs both stages and all evaluations."""
    sft, rl, task = _sft(config), _rl(config), _task()
    mesh, read, frozen = models
    model = dataclasses.replace(read, task=sft.task, layout=sft.layout)

    console.say("1 of 2: how a click is written, from clicks anywhere (SFT)")
    begin = start.Start(model, lambda: model.params)
    written = supervised.train(sft, begin, Place(config.out, "sft", log))
    knows_format = dataclasses.replace(model, params=written.state.params, task=task)
    bundles.save(knows_format, config.out / "sft")
    unseen = chapters.held_out(config.scenes, like=_scenes(config))
    asked = Questions(knows_format, unseen, frozen=frozen, mesh=mesh)
    before = asked.answered(knows_format.params, title="  before")
    tried = [_scenes(config)[index] for index in range(config.blind_scenes)]
    learnt_from = Questions(knows_format, tried, frozen=frozen, mesh=mesh)
    blind = pointing.best_blind(learnt_from, grid=GRID)
    boxed = pointing.best_blind(learnt_from, grid=BOX_GRID, boxed=True)

    console.say("2 of 2: where to click, from the masks that are drawn of its clicks (RL)")
    # The weights were needed until here: the stage overwrites them.
    again = start.Start(knows_format, lambda: jax.tree.map(jnp.copy, knows_format.params))
    trained = reinforcement.train(rl, again, Place(config.out, "rl", log))
    params: Any = trained.state.params
    bundles.save(dataclasses.replace(knows_format, params=params), config.out / "checkpoint")
    story = results.Story(
        questions=asked,
        before=before,
        after=asked.answered(params, title="  after"),
        shuffled=asked.answered(params, title="  pictures shuffled", shuffled=True),
        blind=results.fixed_prompt(asked, blind),
        blind_box=results.fixed_prompt(asked, boxed),
        perfect=asked.worth_of_own(results.true_clicks(asked)),
        steps=int(trained.state.step),
        answers=rl.sampling.answers,
        prompts=rl.feed.batch,
    )
    return story, {"sft": written.seconds, "rl": trained.seconds}


def _task() -> Prompted:
    """Returns the task: a click on what an expression means."""
    return experiments.load(SFT).TASK


def _scenes(config: Config) -> Scenes:
    """Returns the scenes that are learnt from, without end."""
    source = experiments.load(RL).config(seed=config.seed).source
    assert isinstance(source, Scenes)
    return source


def _sft(config: Config) -> supervised.Config:
    base = experiments.load(SFT).config(seed=config.seed)
    minutes = config.minutes * SFT_SHARE
    return _stage(
        config, base, dataclasses.replace(base.loop, steps=config.sft_steps, minutes=minutes)
    )


def _rl(config: Config) -> reinforcement.Config:
    base = experiments.load(RL).config(seed=config.seed)
    base = dataclasses.replace(base, probe=0, segmenter=config.segmenter)
    minutes = config.minutes * RL_SHARE
    return _stage(
        config, base, dataclasses.replace(base.loop, steps=config.rl_steps, minutes=minutes)
    )


def _stage(config: Config, base: Any, plan: Any) -> Any:
    """Returns a stage's configuration with what both stages share."""
    return dataclasses.replace(
        base, out=config.out, checkpoint=config.start, loop=plan, mesh=config.mesh
    )
