"""Evaluates a model on held-out scenes or data sets, by random questions or a named protocol's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from seg_jax.cli import scene_options
from seg_jax.cli.model_options import ModelOptions
from seg_jax.cli.scene_options import SceneOptions
from seg_jax.data import fitting, split_files
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built, Scenes, Source, set_name
from seg_jax.evaluation import bootstrap, task_metrics
from seg_jax.evaluation.foreground import maps as map_answers
from seg_jax.evaluation.foreground import protocols as foreground_protocols
from seg_jax.evaluation.foreground import scoring as foreground_scoring
from seg_jax.evaluation.referring import protocols
from seg_jax.evaluation.referring.answers import Model, Saved
from seg_jax.grammar import chat
from seg_jax.models.vlm import sampler
from seg_jax.records import check_least
from seg_jax.runs import (
    console,
    datasets,
    evaluation,
    foreground,
    protocol,
    run_folder,
    sampled_answers,
)
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelOptions, SceneOptions):
    """An evaluation."""

    protocol: Literal[protocols.Name, foreground_protocols.Name] | None = None
    """All questions of a benchmark instead of one random question about each image, judged at the
    images' own resolution: res, rec, gres, reasonseg, point_mask or box_mask; text4seg is res
    and rec with the defects of the released evaluators; cod and sod judge maps of camouflaged and
    salient objects by S, E, F and MAE."""
    maps: Path | None = None
    """Folder of grey maps that cod or sod judges, named as the images, in place of a model; those
    of several data sets in folders of their names."""
    released: bool = False
    """Whether cod and sod count as Seg-R1's code does: maps of another size are scaled by the
    nearest pixel, S is 0 where a quarter of the image is empty, and the reward has 1 - area in the
    place of S."""
    data: tuple[Path, ...] = ()
    """Data sets that `seg-jax build` made, one after the other, all of a split, instead of scenes:
    of each the folder with dataset_info.json in it."""
    split: str = "val"
    """Split of the data sets."""
    mixture: Mixture = Mixture()
    """Questions that are asked without a protocol."""
    samples: int = 0
    """Answers drawn for each question beside the greedy one, at least 2; their mean and their best
    by truth indicate what reinforcement can win, by kind of thing too. 0: none."""
    temperature: float = 1.0
    """Temperature at which they are drawn."""
    form: int = 0
    """Number of the form of all questions of a protocol: 0 to 6 are the released ones."""
    answers: Path | None = None
    """File of answers to judge, as a protocol writes it; a checkpoint is asked for those that are
    not in it."""
    out: Path | None = None
    """Folder for answers.jsonl, summary.json, table.md and gallery.html of a protocol."""
    gallery: int = 4
    """Most images in each part of the gallery."""
    name: str = ""
    """Name of the model in tables; left out: where its checkpoint or its answers lie."""
    set_name: str = ""
    """Name of the scenes or data in tables; left out: as refcoco-val, refcoco+-testA,
    refcocog-test, which stand in the paper's."""
    beside: tuple[Path, ...] = ()
    """Folders (--out) of other evaluations, whose numbers stand in the same tables."""
    batch: int = 64
    rows: int = 0
    """Answers of a batch decoded at once, on all devices together; one that ends leaves its row
    to the next. 0: all of them. With a batch of many times more the longest keep few waiting."""
    mesh: steps.Mesh = steps.Mesh()
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        self.mixture.check_judged()
        check_least(self, "evaluate", scenes=1, batch=1, seed=0, rows=0, absent=0)
        if self.data and self.world is not None:
            raise ValueError(
                f"data: expected data or a world, got both {self.data[0]} and {self.world}"
                "; do: leave out --data or --world"
            )
        if self.samples < 0 or self.samples == 1:
            raise ValueError(
                f"samples: expected 0 or at least 2, got {self.samples}; do: --samples 8"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature: expected > 0, got {self.temperature}; do: give one above 0, as 1.0"
            )
        self._check_form()
        self._check_read()

    def _check_read(self) -> None:
        """Raises ValueError for an option that this kind of evaluation does not read."""
        of_protocols = ("answers", "out", "beside", "name", "form", "gallery")
        of_models = ("adapter", "grammar", "dtype", "visual_tokens", "task")
        of_models += ("batch", "rows", "mesh")
        of_scenes = ("scenes", "source", "world", *scene_options.CHANGES)
        if self._is_foreground:
            self._check_foreground()
        else:
            for name in ("maps", "released"):
                got = self.protocol or "none"
                self._refuse((name,), "--protocol cod or sod", got=got, advice="leave it out")
        if self.protocol is None:
            self._refuse(of_protocols, "--protocol", got="none", advice="name a protocol")
            if self.data:
                self._refuse(("seed",), "--protocol", got="--data alone", advice="leave it out")
        else:
            asked = ("mixture", "samples")
            self._refuse(asked, "no --protocol", got=self.protocol, advice="leave one out")
            points = self.rules and any(given == "point" for given, _ in self.rules.asks)
            if self.data and not points:
                self._refuse(
                    ("seed",),
                    "--protocol point_mask",
                    got=f"{self.protocol} on data",
                    advice="leave it out",
                )
        if not self.samples:
            self._refuse(("temperature",), "--samples", got="none", advice="leave it out")
        if self.out is None:
            self._refuse(("beside", "gallery"), "--out", got="none", advice="give a folder")
        if self.data:
            self._refuse(of_scenes, "no --data", got=self.data[0], advice="leave one out")
        else:
            self._refuse(("split",), "--data", got="none", advice="give data sets")
        if self.world is not None:
            self._refuse(("source",), "no --world", got=self.world, advice="leave one out")
        if not self._asks_by_text:
            advice = "leave it out, or ask about what text tells of"
            got = self.protocol or "no share of text_mask, text_box or text_point"
            self._refuse(scene_options.CHANGES, "questions with text", got=got, advice=advice)
        if self.protocol is None and not self.mixture.absent:
            self._refuse(
                ("absent",), "--mixture.absent or --protocol", got="neither", advice="give one"
            )
        if self.answers is not None and self.checkpoint is None:
            self._refuse(of_models, "--checkpoint", got="--answers alone", advice="leave it out")
        for name, instead in (("seed", "seed"), ("count", "scenes")):
            if getattr(self.source, name) != getattr(Scenes(), name):
                raise ValueError(
                    f"source.{name}: expected --{instead} in its place, got "
                    f"{getattr(self.source, name)}; do: give --{instead}"
                )

    @property
    def _asks_by_text(self) -> bool:
        """Whether any question has an expression."""
        if self.rules is not None:
            return not self.rules.singly
        if self.protocol is not None:
            return True
        return any(self.mixture.text_shares)

    @property
    def rules(self) -> protocols.Protocol | None:
        """The protocol of questions, None without one and where maps are judged."""
        every = (one for one in protocols.PROTOCOLS.values() if one.name == self.protocol)
        return next(every, None)

    @property
    def _is_foreground(self) -> bool:
        return self.protocol in foreground_protocols.PROTOCOLS

    def _check_foreground(self) -> None:
        """Raises ValueError for an option that has no meaning where maps are judged."""
        if not self.data:
            raise ValueError(
                f"protocol {self.protocol}: expected data sets of masks as --data, got none; do: "
                "give what seg-jax build cod10k, camo, duts, .. made"
            )
        here = ("gallery", "set_name")
        self._refuse(here, "another protocol", got=self.protocol, advice="leave it out")
        if self.maps is not None:
            of_models = ("checkpoint", "adapter", "answers", "form", "grammar", "dtype")
            more = ("visual_tokens", "task", "batch", "rows", "mesh")
            self._refuse((*of_models, *more), "no --maps", got=self.maps, advice="leave one out")

    def _refuse(self, names: Sequence[str], required: str, *, got: object, advice: str) -> None:
        """Raises ValueError if one of the options has another value than its default."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name in names:
            field = fields[name]
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if getattr(self, name) != default:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option}: expected {required} beside it, got {got}; do: {advice}"
                )

    def _check_form(self) -> None:
        """Raises ValueError for a number of a form, or a size of the gallery, out of range."""
        forms = len(chat.QUESTIONS)
        if not 0 <= self.form < forms or self.gallery < 0:
            raise ValueError(
                f"evaluate: expected a form from 0 to {forms - 1} and a gallery >= 0, got form "
                f"{self.form}, gallery {self.gallery}"
                "; do: give a --form and a --gallery in these ranges"
            )


def main(config: Config) -> int:
    """Prints the numbers as a table and, on standard output, as JSON if no file is given."""
    if config.rules is not None:
        return _by_protocol(config, config.rules)
    if config.protocol is not None:
        return _by_foreground(config, foreground_protocols.PROTOCOLS[config.protocol])
    run_folder.check_json(config.json)
    mesh, source = config.mesh.build(), held_out(config)
    refill = sampler.Refill(rows=config.rows) if config.rows else None
    nothing = True if config.mixture.absent else None
    predictor = config.predictor(on=mesh, nothing=nothing, refill=refill)
    task = evaluation.with_mixture(predictor.bundle.task, config.mixture)
    source, met = fitting.fitting_source(source, predictor.bundle.encoder, rows="prompts")
    outcome = evaluation.answer_greedily(
        predictor,
        source,
        title="evaluate",
        task=task,
        batch=config.batch,
        mesh=mesh,
        findings=met,
    )
    summary = task_metrics.summarise(task, outcome)
    summary |= {
        "checkpoint": config.title,
        "set": _set_name(config),
        "seed": config.seed,
        "grammar": config.grammar,
        "devices": mesh.size,
        "passed_over": met.as_json(),
        "versions": run_folder.versions(),
    }
    drawn = {}
    if config.samples:
        drawn = summary["sampled"] = sampled_answers.beside_greedy(
            predictor,
            source,
            outcome,
            task=task,
            sampling=_sampling(config, predictor.bundle.layout.max_answer),
            batch=config.batch,
            mesh=mesh,
        )
    _say_passed_over(met)
    console.table(config.title, ("", "mean", f"{bootstrap.level()} interval"), lines(summary))
    if drawn:
        sampled_answers.tell(drawn, main=next(iter(task.reward_weights)))
    run_folder.tell_json(summary, config.json)
    return 0


def _model_title(config: Config) -> str:
    """Returns how a table names the model, or the answers that were given."""
    ours = config.checkpoint is not None or config.answers is None
    return config.title if ours else str(config.answers)


def _sampling(config: Config, longest: int) -> steps.Sampling:
    """Returns how answers are drawn beside the greedy ones, none longer than so many tokens."""
    return steps.Sampling(
        answers=config.samples,
        temperature=config.temperature,
        max_tokens=longest,
        grammar=config.grammar,
        rows=config.rows,
    )


def _say_passed_over(met: Findings, questions: int | None = None) -> None:
    """Says which samples and questions did not reach the model, a line a reason.

    Raises:
      ValueError: for this reason no question is left.
    """
    for line in met.lines():
        console.say(f"warning: {line}")
    if questions == 0 and met.counts:
        raise ValueError(
            "evaluation: expected at least one question, got none, for all was passed over: "
            f"{met.commonest()}; do: mend the data, build it again, or give another set"
        )


def held_out(config: Config) -> Source:
    """Returns the samples of an evaluation."""
    if config.data:
        return _built_source(config)
    ours = config.checkpoint is None and config.answers is None
    name = "nano" if ours and config.source == Scenes() else None
    scenes = config.named_scenes(config.world or name)
    if config.protocol is None:
        fitting_scenes = datasets.fitting(scenes, config.mixture.needs)
        assert isinstance(fitting_scenes, Scenes)
        scenes = fitting_scenes
    return config.unseen(scenes)


def _built_source(config: Config) -> Built:
    """Returns the data sets of an evaluation.

    Raises:
      ValueError: a folder holds none, or lacks what a protocol asks for.
    """
    rules = config.rules
    absent, singly = (rules.absent, rules.singly) if rules else (config.mixture.absent > 0, False)
    source = Built(folders=config.data, split=config.split, absent=absent, singly=singly)
    len(source)  # What is wrong with a folder is told before weights are read.
    if absent and not source.absent_count():
        who, else_ = "mixture.absent", "leave it out"
        if rules:
            who, else_ = f"protocol {config.protocol}", "ask --protocol res"
        raise ValueError(
            f"{who}: expected expressions without a target in {config.split}, got none; do: give a "
            f"build of grefcoco_unc as --data, or {else_}"
        )
    return source


def _set_name(config: Config) -> str:
    """Returns how tables call the scenes or data."""
    if config.set_name or not config.data:
        asked = ("held_out_looks", "held_out_wordings")
        parts = [name.replace("_", " ") for name in asked if getattr(config, name)]
        return config.set_name or ", ".join(["scenes", *parts])
    known = {"refcoco_unc": "refcoco", "refcocoplus_unc": "refcoco+", "refcocog_umd": "refcocog"}
    names = [split_files.read_info(folder).name for folder in config.data]
    return " + ".join(f"{known.get(name, name)}-{config.split}" for name in names)


def _by_protocol(config: Config, rules: protocols.Protocol) -> int:
    """Asks and judges all questions of a protocol; prints its numbers and writes its files."""
    run_folder.check_json(config.json)
    others = [protocol.read(folder) for folder in config.beside]
    saved = None if config.answers is None else Saved(config.answers)
    source, set_name = held_out(config), _set_name(config)
    mesh, task = None, Referring()
    if saved is not None and config.checkpoint is None:
        answered = saved
    else:
        mesh = config.mesh.build()
        answered, task = answering(config, mesh, saved)
    if rules.name == "text4seg" and config.data:
        console.say(
            "text4seg: data sets hold masks, not polygons: holes where polygons of one object "
            "overlap are left out, the other defects are there"
        )
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
    asking = protocol.Asking(
        protocol=rules,
        source=source,
        task=task,
        form=config.form,
        seed=config.seed,
    )
    met = Findings()
    rows = list(protocol.answer_and_judge(asking, answered, config.out, findings=met))
    if answered is not saved:
        met.merge(answered.findings())
    _say_passed_over(met, questions=len(rows))
    summary = protocol.numbers(
        rows,
        asking,
        model=config.name or _model_title(config),
        split=set_name,
        too_long=answered.too_long,
        passed_over=met.as_json(),
        seed=config.seed,
        grammar=config.grammar,
        form=config.form,
        devices=1 if mesh is None else mesh.size,
        versions=run_folder.versions(),
    )
    if saved is not None:
        for line in saved.findings().lines():
            console.say(f"warning: {line}")
    title = f"{asking.protocol.title}: {set_name}"
    console.table(title, ("", "mean", f"{bootstrap.level()} interval"), lines(summary))
    if config.out is not None:
        protocol.write(
            config.out,
            asking,
            rows,
            summary=summary,
            others=others,
            each=config.gallery,
            config=run_folder.plain(config),
        )
    run_folder.tell_json(summary, config.json)
    return 0


def _by_foreground(config: Config, rules: foreground_protocols.Protocol) -> int:
    """Judges the maps of a folder, or those of a model's outlines; prints and writes numbers."""
    run_folder.check_json(config.json)
    others = [foreground.read(folder) for folder in config.beside]
    source, met, released = _built_source(config), Findings(), config.released
    if config.maps is not None:
        folder = map_answers.MapFolder(config.maps, [*map(set_name, config.data)])
        mapped, model = folder.answers(source, met, released=released), str(config.maps)
    else:
        answered, task = _answers(config)
        asked = protocols.questions(
            protocols.PROTOCOLS["res"], source, task=task, form=config.form, findings=met
        )
        mapped = map_answers.of_outlines(answered(asked))
        model = _model_title(config)
    rows = foreground.judged_rows(mapped, len(source), name=rules.name, released=released)
    _say_passed_over(met, questions=len(rows))
    summary = {
        "model": config.name or model,
        "protocol": rules.name,
        "released": released,
        **foreground_scoring.summarise(rows),
        "passed_over": met.as_json(),
        "versions": run_folder.versions(),
    }
    foreground.show(summary, rules.title)
    if config.out is not None:
        foreground.write(config.out, rows, summary=summary, others=others)
    run_folder.tell_json(summary, config.json)
    return 0


def _answers(config: Config) -> tuple[Model | Saved, Referring]:
    """Returns what answers in outlines, a model or a file, and the task that asks."""
    saved = None if config.answers is None else Saved(config.answers)
    if saved is not None and config.checkpoint is None:
        return saved, Referring()
    return answering(config, config.mesh.build(), saved)


def answering(config: Config, mesh: Mesh, saved: Saved | None = None) -> tuple[Model, Referring]:
    """Returns the model of a configuration, ready to be asked, and its task.

    Args:
      config: of the evaluation.
      mesh: to lay the model over.
      saved: answers that are known and not asked for again.
    """
    refill = sampler.Refill(rows=config.rows) if config.rows else None
    rules = config.rules
    nothing = True if rules and rules.absent else None
    predictor = config.predictor(on=mesh, nothing=nothing, refill=refill)
    count, bundle = evaluation.whole_rows(config.batch, mesh), predictor.bundle
    answer = evaluation.answer_on(predictor, count, mesh=mesh)
    task = bundle.task
    if not isinstance(task, Referring):
        raise ValueError(
            f"protocol {config.protocol}: expected a model of the task 'referring', got one of "
            f"{task.name!r}; do: leave --protocol out"
        )
    model = Model(lambda p: answer(p)[0], bundle.encoder, task, batch=count, saved=saved)
    return model, task


def lines(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of a table: name, mean, interval."""
    rows = []
    for name, value in summary.items():
        if isinstance(value, dict) and "mean" in value:
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            rows.append((name, f"{value['mean']:.3f}", interval))
    for kind, faults in summary.get("faults", {}).items():
        for fault, cost in faults.items():
            lost = f"{cost['lost']:.3f} of IoU"
            rows.append((f"{kind} fault {fault}", str(cost["count"]), lost))
    verdicts = summary.get("verdicts", {})
    rows += [(f"verdict {name}", str(count), "") for name, count in verdicts.items() if count]
    return rows
