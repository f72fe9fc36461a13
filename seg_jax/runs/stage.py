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
from seg_jax.data.findings import Findings
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models.parallel import sharding
from seg_jax.runs import console, run_folder
from seg_jax.runs.start import Start
from seg_jax.training import loop, optimizers, processes, state
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Board, Log, SilentLog


class Trained(NamedTuple):
    """What a stage ends with."""

    state: state.State
    seconds: float
    """Time that its steps took, those before an interruption included."""


class Place(NamedTuple):
    """Where a stage writes."""

    folder: Path
    """Folder of the run; checkpoints of the stage lie in FOLDER/state/STAGE."""
    stage: str
    log: Log


@contextlib.contextmanager
def hold_folder(run: Any, *, reads: Collection[Path]) -> Iterator[None]:
    """Holds the folder of a run for all of its processes; the first of them has the lock."""
    hold = functools.partial(
        run_folder.hold, run.out, run, resume=run.resume, anew=run.anew, reads=reads
    )
    with contextlib.ExitStack() as held:
        processes.run_on_first(lambda: held.enter_context(hold()))
        yield


def open_log(folder: Path, board: Board | None = None) -> Log:
    """Returns the log of a run, in all processes but the first one that writes nothing."""
    return Log(folder, board or Board()) if processes.is_first() else SilentLog()


def save_model(folder: Path, bundle: Bundle, trained: state.State) -> None:
    """Saves the model of a run in FOLDER/checkpoint, by the first of its processes."""
    params = sharding.gather(trained.params)
    processes.run_on_first(
        lambda: bundles.save(dataclasses.replace(bundle, params=params), folder / "checkpoint")
    )


def run_stage(
    run: Any,
    body: loop.Body,
    start: Start,
    *,
    batches: Any,
    place: Place,
    mesh: jax.sharding.Mesh,
    best_seconds: float | None = None,
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
    """
    plan: loop.Loop = run.loop
    folder, stage, log = place
    checkpoints = Checkpoints(folder / "state" / stage, keep=plan.keep, keep_best=plan.keep_best)
    seconds, first = 0.0, processes.is_first()
    say = console.say if first else _say_nothing
    versions, transform = run_folder.versions(), optimizers.build(run.optimizer)
    where = {"on": mesh, "offload": run.offload}
    if checkpoints.latest() is None:
        current = state.fresh(start.weights(), transform, horizon=plan.steps, **where)
    else:
        like = state.shapes(start.bundle.params, transform, **where)
        current, record = checkpoints.restore(like, batches, warn=say)
        seconds = float(record["seconds"])
        say(f"{stage}: resuming after step {int(current.step)}")
        say_changed_versions(stage, record.get("versions", {}), versions, say=say)
    log.forget_after(stage, int(current.step))
    record = {"config": run_folder.plain(run), "versions": versions}
    passed = _PassedOver(batches, stage, say)
    with console.progress(stage, plan.steps, shown=first) as move, jax.set_mesh(mesh):
        try:
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
                best_seconds=best_seconds,
            )
        finally:
            checkpoints.close()
    passed.write(folder)
    return Trained(end, seconds)


class _PassedOver:
    """Says what the batches of a stage pass over: each reason when it comes up, all at the end."""

    def __init__(self, batches: Any, stage: str, say: Callable[[str], None]):
        self._findings: Findings = getattr(batches, "findings", Findings())
        self._stage, self._say, self._said = stage, say, set[str]()
        self.say_new()

    def say_new(self) -> None:
        """Says the reasons that were not said before."""
        for reason, count in self._findings.counts.items():
            if reason not in self._said:
                (line,) = Findings({reason: count}, self._findings.examples).lines()
                self._say(f"{self._stage}: {line}")
                self._said.add(reason)

    def saying_after(self, move: loop.Progress) -> loop.Progress:
        """Returns a function that moves a bar, then says the new reasons."""

        def progress(done: int, total: int, text: str) -> None:
            move(done, total, text)
            self.say_new()

        return progress

    def write(self, folder: Path) -> None:
        """Says all reasons of all processes, and writes them with their examples."""
        every = Findings()
        for one in processes.gather_from_all(self._findings.as_json()):
            every.merge(Findings.from_json(one))
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
