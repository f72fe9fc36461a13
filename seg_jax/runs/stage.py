"""A stage of a run: its folder is held, its steps run and resume, its model is saved."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seg_jax import files
from seg_jax.data import passing
from seg_jax.inference import bundle as bundles
from seg_jax.models.parallel import sharding
from seg_jax.runs import console, run_folder
from seg_jax.runs.start import Start
from seg_jax.runs.user_functions import UserFunction
from seg_jax.tasks.task import Task
from seg_jax.training import loop, optimizers, processes, state
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Board, Log, SilentLog
from seg_jax.training.throughput import Throughput
from seg_jax.training.validation import Entry, Validator


class Trained(NamedTuple):
    """What a stage ends with."""

    state: state.State
    """The one of the last step, or where the run keeps the best of its validations, that one."""
    seconds: float
    """Time that its steps took, validation apart, those before an interruption included."""
    validations: tuple[Entry, ...] = ()
    """Step and score of every validation, in order."""
    best: Entry | None = None
    """The validation with the highest score."""
    validation_seconds: float = 0.0
    """Time that validation took."""


class Place(NamedTuple):
    """Where a stage writes."""

    folder: Path
    """Folder of the run; checkpoints of the stage lie in FOLDER/state/STAGE."""
    stage: str
    log: Log


@contextlib.contextmanager
def hold_folder(
    run: Any, *, reads: Collection[Path] = (), rewards: Collection[UserFunction] = ()
) -> Iterator[None]:
    """Holds the folder of a run for all of its processes; the first of them has the lock.

    Args:
      run: its configuration.
      reads: folders that it reads beside its models.
      rewards: functions of the user that it is rewarded by.
    """
    hold = functools.partial(
        run_folder.hold,
        run.out,
        run,
        resume=run.resume,
        anew=run.anew,
        reads=reads,
        models=models_read(run),
        rewards=rewards,
    )
    with contextlib.ExitStack() as held:
        processes.run_on_first(lambda: held.enter_context(hold()))
        yield


def models_read(run: Any) -> dict[str, Path]:
    """Returns the folders of the models that a run reads, its adapter too, by their options."""
    adapter = getattr(run, "adapter", None)
    found = {name: getattr(run, name, None) for name in ("checkpoint", "segmenter")}
    found["adapter.folder"] = None if adapter is None else adapter.folder
    return {name: folder for name, folder in found.items() if folder is not None}


def open_log(folder: Path, board: Board | None = None) -> Log:
    """Returns the log of a run, in all processes but the first one that writes nothing."""
    return Log(folder, board or Board()) if processes.is_first() else SilentLog()


def save_model(run: Any, start: Start, trained: state.State, *, task: Task | None = None) -> None:
    """Saves what a run has made in OUT/checkpoint, by the first of its processes.

    That is a whole model or, of a run with adapters, all that has learnt beside its base.

    Args:
      run: its configuration.
      start: what it began with.
      trained: the state that it ended with.
      task: that the model knows; None: as it began.
    """
    folder, bundle, learning = run.out / "checkpoint", start.bundle, start.learning
    bundle = dataclasses.replace(bundle, task=task or bundle.task)
    adapts = learning is not None and learning.adapted
    params = sharding.gather(trained.params if adapts else start.all_weights(trained.params))

    def save() -> None:
        if learning is not None and adapts:
            bundles.save_adapter(
                bundle, folder, learning=learning, learned=params, base=run.checkpoint
            )
        else:
            bundles.save(dataclasses.replace(bundle, params=params), folder)

    processes.run_on_first(save)


def tell_best(folder: Path, stage: str, trained: Trained) -> str:
    """Writes and says what a stage's validations came to, by the first of its processes.

    Returns:
      A sentence for a report; empty without any validation.
    """
    best = trained.best
    if best is None:
        return ""
    text = f"Best validation: {best.score:.4f} after step {best.step}."
    if processes.is_first():
        console.say(f"{stage}: {text[0].lower()}{text[1:]}")
        files.write_json(
            folder / "summary.json",
            {
                "stage": stage,
                "seconds": round(trained.seconds, 1),
                "validation": {
                    "best": best._asdict(),
                    "history": [entry._asdict() for entry in trained.validations],
                    "seconds": round(trained.validation_seconds, 1),
                },
                "model_of_step": int(trained.state.step),
            },
        )
    return text


def run_stage(
    run: Any,
    body: loop.Body,
    start: Start,
    *,
    batches: Any,
    place: Place,
    mesh: jax.sharding.Mesh,
    best_seconds: float | None = None,
    samples: int | None = None,
    validator: Validator | None = None,
) -> Trained:
    """Runs a stage from its newest checkpoint, or afresh.

    Args:
      run: its configuration.
      body: a step on the next batch.
      start: the model that it begins with.
      batches: the iterator, whose position is saved.
      place: where the stage writes.
      mesh: that its state lies on.
      best_seconds: of a step at the peak of the devices, if it is known.
      samples: of a pass over the source; None: it has no end.
      validator: measures the weights while the steps run.

    Raises:
      ValueError: passes are to be made over a source that has no end.
    """
    plan: loop.Loop = run.loop.planned(samples, run.feed.batch)
    folder, stage, log = place
    checkpoints = Checkpoints(folder / "state" / stage, keep=plan.keep, keep_best=plan.keep_best)
    seconds, first = 0.0, processes.is_first()
    say = console.say if first else _say_nothing
    versions, transform = run_folder.versions(), optimizers.build(run.optimizer)
    where = {"on": mesh, "offload": run.offload}
    like = state.shapes(start.learned, transform, mesh, offload=run.offload)
    if checkpoints.latest() is None:
        log.forget_after(stage, -1)  # A validation may have been told before the first save.
        current = state.fresh(start.weights(), transform, horizon=plan.steps or 0, **where)
    else:
        current, record = checkpoints.restore(like, batches, warn=say)
        seconds = float(record["seconds"])
        say(f"{stage}: resuming after step {int(current.step)}")
        say_changed_versions(stage, record.get("versions", {}), versions, say=say)
        log.forget_after(stage, int(current.step))
        if validator is not None and "validation" in record:
            validator.set_state(record["validation"])
    record = {"config": run_folder.plain(run), "versions": versions}
    passed = _PassedOver(batches, stage, say)
    per_pass = None if samples is None or run.feed.pack else samples / run.feed.batch
    with contextlib.closing(checkpoints):
        with console.progress(stage, plan.steps or 0, shown=first) as move, jax.set_mesh(mesh):
            end, seconds = loop.run(
                plan,
                body,
                current,
                stage=stage,
                log=log,
                checkpoints=checkpoints,
                iterator=batches,
                record=record,
                progress=passed.saying_after(move),
                seconds_before=seconds,
                traces=folder / "profile" / stage,
                throughput=Throughput(batches, best_seconds, steps_per_pass=per_pass),
                validator=validator,
            )
        passed.write(folder)
        if validator is None or validator.best is None:
            return Trained(end, seconds)
        best = validator.best
        if validator.keeps_best and best.step != int(end.step):
            jax.tree.map(lambda leaf: leaf.delete(), end)  # There may be no room for two.
            end = checkpoints.read(best.step, like)
    return Trained(end, seconds, tuple(validator.history), best, validator.seconds)


class _PassedOver:
    """Says what the batches of a stage pass over: each reason when it comes up, all at the end."""

    def __init__(self, batches: Any, stage: str, say: Callable[[str], None]):
        self._tally: passing.Tally = getattr(batches, "tally", passing.Tally())
        self._stage, self._say, self._said = stage, say, set[str]()
        self.say_new()

    def say_new(self) -> None:
        """Says the reasons that were not said before."""
        met = self._tally.findings
        for reason in met.counts:
            if reason not in self._said:
                self._say(f"{self._stage}: {met.line(reason)}")
                self._said.add(reason)

    def saying_after(self, move: loop.Progress) -> loop.Progress:
        """Returns a function that moves a bar, then says the new reasons."""

        def progress(done: int, total: int, text: str) -> None:
            move(done, total, text)
            self.say_new()

        return progress

    def write(self, folder: Path) -> None:
        """Says all reasons of all processes, and writes them with their examples."""
        drawn = processes.gather_from_all(self._tally.drawn.as_json())
        every = self._tally.everywhere(drawn)
        for line in every.lines():
            self._say(f"{self._stage}: {line}")
        if every.counts and processes.is_first():
            files.write_json(folder / f"passed_over_{self._stage}.json", every.as_json())


def say_changed_versions(
    stage: str, before: dict[str, str], now: dict[str, str], *, say: Callable[[str], None]
) -> None:
    """Says which versions a run has changed since its checkpoint: its numbers may change too."""
    changed = [
        f"{name} {before[name]} -> {now[name]}"
        for name in ("seg-jax", "commit", "jax", "device")
        if name in before and before[name] != now[name]
    ]
    if changed:
        say(f"{stage}: goes on with other versions or devices: {', '.join(changed)}")


def _say_nothing(text: str) -> None:
    """Stays silent: the first process speaks."""
