"""Evaluates a model on held-out scenes or data sets, by random questions or a named protocol's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from seg_jax.cli.evaluation_options import Config
from seg_jax.data import fitting, split_files
from seg_jax.data.findings import Findings
from seg_jax.data.sources import Built, Scenes, Source, set_name
from seg_jax.evaluation import bootstrap, task_metrics
from seg_jax.evaluation.foreground import maps as map_answers
from seg_jax.evaluation.foreground import protocols as foreground_protocols
from seg_jax.evaluation.foreground import scoring as foreground_scoring
from seg_jax.evaluation.foreground.maps import Mapped
from seg_jax.evaluation.referring import judging, pointed, protocols
from seg_jax.evaluation.referring.answers import Answered, Model, Saved
from seg_jax.inference import frozen_segmenter
from seg_jax.inference import segmenter as segmenters
from seg_jax.inference.segmenter import Segmenter
from seg_jax.models.vlm import sampler
from seg_jax.runs import (
    console,
    datasets,
    evaluation,
    foreground,
    protocol,
    run_folder,
    sampled_answers,
)
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task
from seg_jax.training import steps

__all__ = ["Config", "main"]


def main(config: Config) -> int:
    """Prints the numbers as a table and, on standard output, as JSON if no file is given."""
    if config.rules is not None:
        return _by_protocol(config, config.rules)
    if config.protocol is not None:
        return _by_foreground(config, foreground_protocols.PROTOCOLS[config.protocol])
    run_folder.check_json(config.json)
    asked = _with_release(config, config.asked_task())
    task = evaluation.with_mixture(asked.without_unjudged(), config.mixture)
    frozen_segmenter.check_given(task, config.segmenter)
    mesh, source = config.mesh.build(), held_out(config, task)
    refill = sampler.Refill(rows=config.rows) if config.rows else None
    nothing = True if config.mixture.absent else None
    predictor = config.predictor(
        on=mesh, asked=asked, draws="scores", nothing=nothing, refill=refill
    )
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
        **_drawn_by(config),
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
    _show(config.title, summary)
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


def _drawn_by(config: Config) -> dict[str, Any]:
    """Returns what a summary says of the model that draws, if there is one."""
    return {} if config.segmenter is None else {"segmenter": str(config.segmenter)}


def _with_release(config: Config, task: Task) -> Task:
    """Returns a task with the quirks of its release, if these are asked for.

    Raises:
      ValueError: it has none.
    """
    if not config.released:
        return task
    if not isinstance(task, Prompted):
        raise ValueError(
            f"--released: expected a model of the task 'prompted', got one of {task.name!r}; do: "
            "leave it out"
        )
    return dataclasses.replace(task, released=True)


def held_out(config: Config, task: Task | None = None) -> Source:
    """Returns the samples of an evaluation.

    Args:
      config: of the evaluation.
      task: of the model that is asked without a protocol.
    """
    needs = config.mixture.needs if task is None else task.needs
    if config.data:
        # As training has them: what is asked about an image as a whole is of its single objects.
        whole = task is not None and task.needs_segmenter and "text" not in needs.values()
        return _built_source(config, singly=whole)
    ours = config.checkpoint is None and config.answers is None
    name = "nano" if ours and config.source == Scenes() else None
    scenes = config.named_scenes(config.world or name)
    if config.protocol is None:
        fitting_scenes = datasets.fitting(scenes, needs)
        assert isinstance(fitting_scenes, Scenes)
        scenes = fitting_scenes
    return config.unseen(scenes)


def _built_source(config: Config, *, singly: bool = False) -> Built:
    """Returns the data sets of an evaluation.

    Args:
      config: of the evaluation.
      singly: whether each object is asked about by itself where there is no protocol.

    Raises:
      ValueError: a folder holds none, or lacks what a protocol asks for.
    """
    rules = config.rules
    absent = rules.absent if rules else config.mixture.absent > 0
    singly = rules.singly if rules else singly
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
    task, mesh = protocol_task(config), None
    if saved is not None and config.answers_alone:
        answered = saved
    else:
        mesh = config.mesh.build()
        answered = answering(config, task, mesh=mesh, saved=saved)
    _prepare(config, rules)
    asking = protocol.Asking(
        protocol=rules,
        source=source,
        task=task,
        form=config.form,
        seed=config.seed,
        pointed=_drawing(config, rules, task),
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
        **_drawn_by(config),
        grammar=config.grammar,
        form=config.form,
        devices=1 if mesh is None else mesh.size,
        versions=run_folder.versions(),
    )
    if saved is not None:
        for line in saved.findings().lines():
            console.say(f"warning: {line}")
    _show(f"{asking.protocol.title}: {set_name}", summary)
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


def _prepare(config: Config, rules: protocols.Protocol) -> None:
    """Says what a protocol cannot repeat of its release, and makes the folder for its files."""
    if rules.name == "text4seg" and config.data:
        console.say(
            "text4seg: data sets hold masks, not polygons: holes where polygons of one object "
            "overlap are left out, the other defects are there"
        )
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)


def _by_foreground(config: Config, rules: foreground_protocols.Protocol) -> int:
    """Judges the maps of a folder, or those of a model's outlines; prints and writes numbers."""
    run_folder.check_json(config.json)
    others = [foreground.read(folder) for folder in config.beside]
    source, met, released = _built_source(config), Findings(), config.released
    if config.maps is not None:
        folder = map_answers.MapFolder(config.maps, [*map(set_name, config.data)])
        mapped, model = folder.answers(source, met, released=released), str(config.maps)
        answered = None
    else:
        mapped, answered = _maps_of_answers(config, source, met)
        model = _model_title(config)
    rows = foreground.judged_rows(mapped, len(source), name=rules.name, released=released)
    if isinstance(answered, Model):
        met.merge(answered.findings())
    _say_passed_over(met, questions=len(rows))
    summary = {
        "model": config.name or model,
        "protocol": rules.name,
        "released": released,
        **_drawn_by(config),
        **foreground_scoring.summarise(rows),
        "passed_over": met.as_json(),
        "versions": run_folder.versions(),
    }
    foreground.show(summary, rules.title)
    if config.out is not None:
        foreground.write(config.out, rows, summary=summary, others=others)
    run_folder.tell_json(summary, config.json)
    return 0


def _maps_of_answers(
    config: Config, source: Source, met: Findings
) -> tuple[Iterator[Mapped], Model | Saved]:
    """Returns samples with the maps of what a model, or a file, answers, and which that is."""
    saved, task = None if config.answers is None else Saved(config.answers), protocol_task(config)
    if saved is None or not config.answers_alone:
        answered = answering(config, task, mesh=config.mesh.build(), saved=saved)
    else:
        answered = saved
    if isinstance(task, Referring):
        rules = protocols.PROTOCOLS["res"]
        asked = protocols.questions(rules, source, task=task, form=config.form, findings=met)
        return map_answers.of_outlines(_noted_answers(config, answered(asked))), answered
    asked = map_answers.pointing_questions(source, task, met)
    found = _noted_answers(config, answered(asked))
    return map_answers.of_clicks(found, task, _segmenter(config).union), answered


def _noted_answers(config: Config, answered: Iterator[Answered]) -> Iterator[Answered]:
    """Returns answers, which are written too where there is a folder for them."""
    return answered if config.out is None else foreground.noted_answers(answered, config.out)


def protocol_task(config: Config) -> Referring | Prompted:
    """Returns the task whose answers a protocol judges: outlines, or boxes and clicks.

    Raises:
      ValueError: it is another one, cannot answer this protocol, or needs a segmenter.
    """
    if config.answers_alone:
        task = Referring() if config.segmenter is None else config.plain_task()
    else:
        task = config.asked_task()
    task = _with_release(config, task) if config.segmenter is not None else task
    if isinstance(task, Referring):
        return task
    rules = config.rules
    if not isinstance(task, Prompted) or (rules is not None and not rules.pointed):
        raise ValueError(
            f"protocol {config.protocol}: expected a model of the task 'referring', got one of "
            f"{task.name!r}; do: leave --protocol out"
        )
    frozen_segmenter.check_given(task, config.segmenter)
    return task


def _drawing(
    config: Config, rules: protocols.Protocol, task: Referring | Prompted
) -> judging.Draw | None:
    """Returns what draws answers of boxes and clicks; None for outlines."""
    if isinstance(task, Referring):
        return None
    return pointed.drawing(rules, task, _segmenter(config).union)


def _segmenter(config: Config) -> Segmenter:
    """Returns the model that draws, which is there."""
    assert config.segmenter is not None
    return segmenters.load(config.segmenter)


def answering(config: Config, task: Task, *, mesh: Mesh, saved: Saved | None = None) -> Model:
    """Returns the model of a configuration, ready to be asked.

    Args:
      config: of the evaluation.
      task: that asks it.
      mesh: to lay the model over.
      saved: answers that are known and not asked for again.
    """
    refill = sampler.Refill(rows=config.rows) if config.rows else None
    rules = config.rules
    nothing = True if rules and rules.absent else None
    predictor = config.predictor(on=mesh, asked=task, nothing=nothing, refill=refill)
    count = evaluation.whole_rows(config.batch, mesh)
    answer = evaluation.answer_on(predictor, count, mesh=mesh)
    return Model(lambda p: answer(p)[0], predictor.bundle.encoder, task, batch=count, saved=saved)


def _show(title: str, summary: dict[str, Any]) -> None:
    """Shows the numbers of a summary as a table."""
    console.table(title, ("", "mean", f"{bootstrap.level()} interval"), lines(summary))


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
