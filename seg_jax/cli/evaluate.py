"""Evaluates a model on held-out scenes, by random questions or all those of a named protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import json as files
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from seg_jax.cli import console, runs
from seg_jax.cli.asked import Asked
from seg_jax.data import pipeline
from seg_jax.data.sources import Scenes
from seg_jax.grammar import chat
from seg_jax.inference import (
    answers,
    evaluation,
    gallery,
    judging,
    pictures,
    protocols,
    report,
    scores,
    tables,
)
from seg_jax.inference.judging import Row
from seg_jax.inference.predictor import Predictor
from seg_jax.inference.protocols import Protocol
from seg_jax.models import decode, sharding
from seg_jax.records import Prompts
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import stations

HELD_OUT = 7
"""Seed of the held-out scenes; training refuses it nowhere, so choose others there."""


FILES = ("answers.jsonl", "summary.json", "table.md", "gallery.html")
"""What a protocol writes to --out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Asked):
    """An evaluation."""

    checkpoint: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Folder of a trained model, as runs/quickstart/checkpoint, or one of Hugging Face's."""
    protocol: protocols.Name | None = None
    """All questions of a benchmark instead of one random question about each scene, judged at the
    pictures' own resolution: res, rec, gres, reasonseg, point_mask or box_mask; text4seg is res
    and rec with the defects of the released evaluators."""
    scenes: int = 512
    """Held-out scenes, one question each."""
    seed: int = HELD_OUT
    """Of the scenes; training uses others."""
    source: Scenes = dataclasses.field(default_factory=Scenes)
    """Kind of the scenes; `scenes` and `seed` override its count and seed."""
    mixture: Mixture = Mixture()
    """Questions that are asked without a protocol."""
    form: int = 0
    """Number of the form of all questions of a protocol: 0 to 6 are the released ones."""
    answers: Path | None = None
    """File of answers to judge, as a protocol writes it; a checkpoint is asked for those that are
    not in it."""
    out: Path | None = None
    """Folder for answers.jsonl, summary.json, table.md and gallery.html of a protocol."""
    gallery: int = 4
    """Most pictures in each part of the gallery."""
    name: str = ""
    """Of the model in tables; left out: where its checkpoint or its answers lie."""
    split: str = "scenes"
    """Of the set in tables, as refcoco-val, refcoco+-testA or refcocog-test."""
    beside: tuple[Path, ...] = ()
    """Folders (--out) of other evaluations, whose numbers stand in the same tables."""
    batch: int = 64
    rows: int = 0
    """Answers of a batch decoded at once, on all devices together; one that ends leaves its row
    to the next. 0: all of them. With a batch of many times more the longest keep few waiting."""
    mesh: stations.Mesh = stations.Mesh()
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        self.mixture.check_judged()
        if self.scenes < 1 or self.batch < 1 or self.seed < 0 or self.rows < 0:
            raise ValueError(
                "expected scenes and batch >= 1, a seed and rows >= 0, "
                f"got {self.scenes} scenes, batch {self.batch}, seed {self.seed}, rows {self.rows}"
            )
        self._check_protocol()

    def _check_protocol(self) -> None:
        """Raises ValueError for options that do not go together."""
        if self.checkpoint is None and (self.answers is None or self.protocol is None):
            raise ValueError(
                "expected --checkpoint FOLDER, got none; give the folder of a trained model, or "
                "--protocol with --answers FILE"
            )
        given = {"answers": self.answers, "out": self.out, "beside": self.beside}
        if self.protocol is None and any(given.values()):
            names = ", ".join(f"--{name}" for name, value in given.items() if value)
            raise ValueError(f"expected --protocol beside {names}, got none; name a protocol")
        forms = len(chat.QUESTIONS)
        if not 0 <= self.form < forms or self.gallery < 0:
            raise ValueError(
                f"expected a form from 0 to {forms - 1} and a gallery >= 0, got form {self.form}, "
                f"gallery {self.gallery}"
            )
        if self.protocol == "gres" and self.grammar:
            raise ValueError(
                "protocol gres: expected answers that may say that there is no target, got "
                "--grammar, under which each holds a polygon; leave it out"
            )


def main(config: Config) -> int:
    """Prints the numbers as a table and, on standard output, as JSON if no file is given."""
    if config.protocol is not None:
        return _by_protocol(config, protocols.PROTOCOLS[config.protocol])
    mesh = config.mesh.build()
    refill = decode.Refill(rows=config.rows) if config.rows else None
    predictor = config.predictor(on=mesh, refill=refill)
    runs.check_json(config.json)
    outcome = run(
        predictor,
        held_out(config),
        title="evaluate",
        mixture=config.mixture,
        batch=config.batch,
        mesh=mesh,
    )
    summary = evaluation.summarise(outcome)
    summary |= {
        "checkpoint": str(config.checkpoint),
        "seed": config.seed,
        "grammar": config.grammar,
        "devices": mesh.size,
        "versions": runs.versions(),
    }
    console.table(str(config.checkpoint), ("", "mean", "95 % interval"), lines(summary))
    runs.tell_json(summary, config.json)
    return 0


def held_out(config: Config) -> Scenes:
    """Returns the scenes of an evaluation."""
    return dataclasses.replace(config.source, seed=config.seed, count=config.scenes)


def run(
    predictor: Predictor,
    source: Scenes,
    *,
    title: str,
    mixture: Mixture,
    batch: int,
    params: Any = None,
    mesh: Mesh | None = None,
) -> evaluation.Outcome:
    """Returns the outcome of greedy answers on the source, with a progress bar.

    Args:
      predictor: the model.
      source: of the questions.
      title: of the progress bar.
      mixture: questions that are asked.
      batch: questions at once; as many more as the devices of the mesh need.
      params: other weights of the same model.
      mesh: that the weights lie on; None: the default device.
    """
    bundle = predictor.bundle
    task = dataclasses.replace(bundle.task, mixture=mixture)
    count = _rows(min(batch, len(source)), mesh)
    prompts = pipeline.in_order(source, task, bundle.encoder, batch=count)
    with console.progress(title, len(source)) as move:
        return evaluation.run(
            _asking(predictor, count, mesh, params),
            prompts,
            bundle.tokenizer.decode,
            lambda done: move(done, len(source), ""),
        )


def _rows(batch: int, mesh: Mesh | None) -> int:
    """Returns the rows of a batch, as many more as the devices need."""
    return batch if mesh is None else batch + -batch % sharding.row_parts(mesh)


def _asking(
    predictor: Predictor, count: int, mesh: Mesh | None, params: Any = None
) -> Callable[[Prompts], Any]:
    """Returns a function that puts prompts on the devices of the mesh and answers them."""
    rows = None if mesh is None else sharding.batch(mesh)

    def answer(batch: Prompts) -> Any:
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            if rows is not None:
                batch = pipeline.to_device(batch, rows, rows=count)
            return predictor.answer(batch, params)

    return answer


def _by_protocol(config: Config, protocol: Protocol) -> int:
    """Asks and judges all questions of a protocol; prints its tables and writes its files."""
    runs.check_json(config.json)
    others = [_summary(folder) for folder in config.beside]
    saved = None if config.answers is None else answers.Saved(config.answers)
    digits, answered, mesh = Referring.digits, saved, None
    if config.checkpoint is not None:
        mesh = config.mesh.build()
        refill = decode.Refill(rows=config.rows) if config.rows else None
        predictor, count = config.predictor(on=mesh, refill=refill), _rows(config.batch, mesh)
        answer, digits = _asking(predictor, count, mesh), predictor.bundle.task.digits
        encoder = predictor.bundle.encoder
        answered = answers.Model(lambda p: answer(p)[0], encoder, batch=count, saved=saved)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
    rows = list(_judged(config, protocol, answered, digits))
    summary = {
        "model": config.name or str(config.checkpoint or config.answers),
        "split": config.split,
        **scores.summarise(rows, protocol),
        "too_long": getattr(answered, "too_long", 0),
        "seed": config.seed,
        "grammar": config.grammar,
        "form": config.form,
        "devices": 1 if mesh is None else mesh.size,
        "versions": runs.versions(),
    }
    told: dict[str, list[dict[str, Any]]] = {}
    for each in [*others, summary]:
        told.setdefault(each["model"], []).append(each)
    markdown = tables.markdown(told)
    console.table(
        f"{protocol.title}: {config.split}", ("", "mean", "95 % interval"), lines(summary)
    )
    if config.out is not None:
        runs.write_json(config.out / "summary.json", summary)
        pictures.store(config.out / "table.md", markdown.encode())
        page = _page(config, protocol, rows, summary, digits)
        report.write(config.out / "gallery.html", page)
        console.say(f"{config.out}: {', '.join(FILES)}")
    runs.tell_json(summary, config.json)
    return 0


def _questions(
    config: Config,
    protocol: Protocol,
    source: Scenes,
    digits: int,
    indices: Sequence[int] | None = None,
) -> Iterator[protocols.Question]:
    """Yields the questions of a protocol about all or some samples of the source."""
    return protocols.questions(
        protocol, source, digits=digits, form=config.form, seed=config.seed, indices=indices
    )


def _judged(config: Config, protocol: Protocol, answered: Any, digits: int) -> Iterator[Row]:
    """Yields the rows of a protocol, each written as soon as it is known."""
    source = held_out(config)
    asked = _questions(config, protocol, source, digits)
    partial = None if config.out is None else config.out / "answers.partial.jsonl"
    with contextlib.ExitStack() as stack:
        move = stack.enter_context(console.progress(protocol.name, len(source)))
        file = partial and stack.enter_context(partial.open("w", encoding="utf-8"))
        for question, text, tokens in answered(asked):
            row = judging.judge(protocol, question, text, tokens)
            if file:
                file.write(files.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")
                file.flush()
            move(row.index + 1, len(source), "")
            yield row
    if partial is not None:
        partial.replace(partial.with_name(FILES[0]))


def _page(
    config: Config, protocol: Protocol, rows: list[Row], summary: dict[str, Any], digits: int
) -> report.Report:
    """Returns the numbers with the best, median, worst and failed answers."""
    source = held_out(config)

    def question(row: Row) -> protocols.Question:
        asked = _questions(config, protocol, source, digits, [row.index])
        wanted = (row.which, row.given, row.kind, row.phrase)
        return next(q for q in asked if (q.which, q.given, q.kind.name.lower(), q.phrase) == wanted)

    chosen = gallery.groups(rows, each=config.gallery)
    return report.Report(
        title=f"{protocol.title}: {config.split}",
        summary_rows=gallery.table(summary, protocol),
        curves=None,
        exhibits=gallery.exhibits(chosen, protocol, question),
        config=runs.plain(config),
        versions=summary["versions"],
        notes=(
            f"{summary['model']} answers {summary['questions']:,} questions about "
            f"{summary['pictures']:,} pictures, greedily.",
        ),
    )


def _summary(folder: Path) -> dict[str, Any]:
    """Returns the numbers of another evaluation.

    Raises:
      ValueError: the folder holds none of a protocol.
    """
    found = runs.read_json(folder / "summary.json")
    needed = {"model", "split", "protocol", "questions"}
    if not isinstance(found, dict) or not needed <= found.keys():
        raise ValueError(
            f"{folder}: expected the folder of an evaluation, got no summary.json of one; give "
            "what was --out beside --protocol"
        )
    return found


def lines(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the rows of a table: name, mean, interval."""
    rows = []
    for name, value in summary.items():
        if isinstance(value, dict) and "mean" in value:
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            rows.append((name, f"{value['mean']:.3f}", interval))
    for kind, faults in summary.get("faults", {}).items():
        for fault, found in faults.items():
            lost = f"{found['lost']:.3f} of IoU"
            rows.append((f"{kind} fault {fault}", str(found["count"]), lost))
    verdicts = summary.get("verdicts", {})
    rows += [(f"verdict {name}", str(count), "") for name, count in verdicts.items() if count]
    return rows
