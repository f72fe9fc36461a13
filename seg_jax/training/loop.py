"""The loop of a stage: steps until the horizon, with log, progress, budget and checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seg_jax.models.parallel import sharding
from seg_jax.records import check_least
from seg_jax.training import processes
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Log
from seg_jax.training.state import State
from seg_jax.training.throughput import Throughput, Trace, read_steps
from seg_jax.training.validation import Validator

Body = Callable[[State], tuple[State, Mapping[str, Any]]]
"""Runs one step on the next batch and returns device metrics without waiting for them."""

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a short text) after every logged step."""


STEPS = 1000
"""Steps of a stage that says nothing of them."""
WATCHED = ("reward", "loss", "grad_norm")
"""Metrics that end a run when they are not finite; the likelier cause comes first."""


class Stopped(KeyboardInterrupt):
    """A signal has stopped a run between steps; all of it is saved."""

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.number = number


class Diverged(ValueError):
    """A reward, loss or gradient is not finite; what is still good of the run is saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """How long a stage runs and how often it reports and saves."""

    steps: int | None = None
    """Steps at most; None: 1000, or as many as `epochs` make."""
    epochs: int | None = None
    """Passes over a finite source, such as a data set; in the place of `steps`."""
    minutes: float = math.inf
    """Wall-clock budget, compilation and validation apart; when the machine is too slow for
    `steps`, the horizon is shortened so that the schedule still ends on time."""
    log_every: int = 10
    """Steps between two records of the log."""
    save_minutes: float = 2.0
    """Time between checkpoints."""
    keep: int = 2
    """Number of the newest checkpoints that are kept."""
    keep_best: int = 0
    """Number of the best checkpoints that are kept beside them, by the mean reward, or else loss,
    of the steps since the checkpoint before."""
    profile: str = ""
    """START:STOP: a trace of these steps is written to OUT/profile."""

    def __post_init__(self):
        read_steps(self.profile)
        check_least(self, "loop", log_every=1, keep=1, keep_best=0)
        given = [name for name in ("steps", "epochs") if getattr(self, name) is not None]
        check_least(self, "loop", **dict.fromkeys(given, 1))
        if len(given) > 1:
            raise ValueError(
                f"loop.epochs: expected no loop.steps beside it, got {self.epochs} and "
                f"{self.steps} steps; do: leave one out, or give --loop.steps None"
            )
        # Both are false for nan.
        for name, good in (("minutes", self.minutes > 0), ("save_minutes", self.save_minutes >= 0)):
            if not good:
                raise ValueError(
                    f"loop.{name}: expected {'> 0' if name == 'minutes' else '0 or more'}, got "
                    f"{getattr(self, name)}; do: give a number of minutes in this range"
                )

    def planned(self, samples: int | None, batch: int) -> Loop:
        """Returns the loop with its number of steps.

        Args:
          samples: of a pass over the source; None: it has no end.
          batch: samples of a step.

        Raises:
          ValueError: passes are asked for of a source that has none.
        """
        if self.epochs is None:
            return dataclasses.replace(self, steps=self.steps or STEPS)
        if samples is None:
            raise ValueError(
                f"loop.epochs: expected a finite source, got {self.epochs} passes over one without "
                "end; do: give loop.steps, a number of scenes (source.count), or data sets without "
                "weights"
            )
        return dataclasses.replace(self, steps=-(-self.epochs * samples // batch), epochs=None)


@dataclasses.dataclass
class Pace:
    """Keeps the horizon within the budget by the measured time of a step."""

    loop: Loop
    start: float = 0.0
    """Time of the first call; by then the step is compiled."""
    begin: int = 0
    """Step of the first call."""

    def horizon(self, step: int, horizon: int, seconds_before: float) -> int:
        """Returns the horizon after `step` steps: unchanged, or moved to where the time ends.

        It never lies beyond the configured steps; once it is reached it stays.
        """
        if math.isinf(self.loop.minutes) or step >= horizon:
            return horizon
        if self.start == 0.0:
            self.start, self.begin = time.monotonic(), step
            return horizon
        done = step - self.begin
        if done < 10:
            return horizon
        each = (time.monotonic() - self.start) / done
        left = self.loop.minutes * 60.0 - seconds_before - (time.monotonic() - self.start)
        reachable = step + max(1, int(left / each))
        reachable = min(reachable, self.loop.steps or STEPS)
        # A few steps too many or too few are cheaper than a horizon that moves all the time.
        return horizon if 0.97 * horizon <= reachable <= 1.1 * horizon else reachable

    def leave_out(self, seconds: float) -> None:
        """Leaves time out that no step has taken."""
        if self.start:
            self.start += seconds


def run(
    loop: Loop,
    body: Body,
    state: State,
    *,
    stage: str,
    log: Log,
    checkpoints: Checkpoints,
    iterator: Any,
    record: dict[str, Any],
    progress: Progress,
    seconds_before: float = 0.0,
    traces: Path = Path("profile"),
    throughput: Throughput | None = None,
    validator: Validator | None = None,
) -> tuple[State, float]:
    """Returns the state at the horizon and the seconds that the stage's steps have taken.

    Traces go to the folder `traces`; the log has what `throughput` tells. A `validator` measures
    the weights, its best are saved at once, and it ends the stage where it has lost hope; its time
    is not the steps'.

    Raises:
      Stopped: Ctrl-C or SIGTERM came to any process; the running step was finished and saved.
      Diverged: the reward, loss or gradient of a step is not finite. It is noticed when the next
        step is logged or saved; weights that are still finite, as steps leave them, are saved.
    """
    step, horizon = int(state.step), int(state.horizon)
    pace, recent = Pace(loop), _RecentSteps()
    throughput, trace = throughput or Throughput(iterator), Trace(loop.profile, traces)
    validation = _Validation(validator, functools.partial(log.write, stage), (pace, throughput))
    saver = _Saver(checkpoints, iterator, record, recent, validation, seconds_before)
    with Interruption() as interruption, contextlib.closing(trace):
        if validation.is_due_at_start(step) and validation.measure(step, state):
            saver.save(state)
        while step < horizon:
            trace.begin_step(step + 1, state)
            state, metrics = body(state)
            step += 1
            trace.end_step(step, state)
            recent.add(metrics)
            due = saver.is_due(loop.save_minutes)
            stop, due = processes.agree_on_stop(interruption.signal, due=due)
            last = step >= horizon
            logs, saves = step % loop.log_every == 0 or last, last or stop or due
            validates = validation.is_due(step, last=last)
            # Before any save: a broken state must not take the place of the last good one.
            if (logs or saves or validates) and (broken := recent.find_not_finite(step)):
                raise Diverged(broken.line(stage, _save_if_finite(state, saver.save, checkpoints)))
            if validates:
                saves = validation.measure(step, state) or saves
                if validation.is_hopeless():
                    horizon, logs, saves = step, True, True
            if logs:
                values = {name: float(x) for name, x in jax.device_get(dict(metrics)).items()}
                log.write(stage, step, values | throughput.step_metrics(step))
                progress(step, horizon, _short_text(values))
                new = pace.horizon(step, horizon, seconds_before)
                horizon = processes.broadcast_from_first(new)
                state = _with_horizon(state, horizon)
            if saves:
                saver.save(state)
            if stop:
                checkpoints.wait()
                raise Stopped(stop, f"{stage} stopped after step {step}, which is saved")
    checkpoints.wait()
    return state, saver.seconds()


class _Validation:
    """The validator of a stage within its loop, if it has one; its time is left out of clocks."""

    def __init__(
        self,
        validator: Validator | None,
        write: Callable[[int, dict[str, float]], None],
        clocks: Sequence[Pace | Throughput],
    ):
        self._validator, self._write, self._clocks = validator, write, clocks
        self.seconds = 0.0
        """Time that was spent on it since the loop began."""

    def is_due_at_start(self, step: int) -> bool:
        """Returns whether the weights are to be measured before the next step is the first one."""
        return step == 0 and self._validator is not None and not self._validator.history

    def is_due(self, step: int, *, last: bool) -> bool:
        """Returns whether the weights after a step are to be measured."""
        return self._validator is not None and self._validator.is_due(step, last=last)

    def measure(self, step: int, state: State) -> bool:
        """Measures weights and logs what they are worth; returns whether they are the best."""
        validator = self._validator
        assert validator is not None
        jax.block_until_ready(state.params)  # What the steps before took is theirs.
        begin = time.monotonic()
        self._write(step, validator.measure(step, state.params))
        spent = time.monotonic() - begin
        self.seconds += spent
        for clock in self._clocks:
            clock.leave_out(spent)
        best = validator.best
        return best is not None and best.step == step

    def is_hopeless(self) -> bool:
        """Returns whether the stage is to end here."""
        return self._validator is not None and self._validator.is_hopeless

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of it."""
        return {} if self._validator is None else {"validation": self._validator.get_state()}


class _NotFinite(NamedTuple):
    """A number that broke a run."""

    name: str
    value: float
    step: int

    def line(self, stage: str, advice: str) -> str:
        """Returns the line about it."""
        return (
            f"{stage}: expected a finite {self.name}, got {self.value} at step {self.step}; "
            f"do: {advice}"
        )


class _RecentSteps:
    """The watched metrics of steps that were not looked at yet, and the scores since a save."""

    def __init__(self):
        self._watched: list[Mapping[str, Any]] = []
        self._scores: list[float] = []

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the watched metrics of a step without waiting for the device."""
        self._watched.append({name: metrics[name] for name in WATCHED if name in metrics})

    def find_not_finite(self, step: int) -> _NotFinite | None:
        """Returns the first number of a step that is not finite, or None if all are.

        It waits for the device, and turns the steps up to `step` into scores.
        """
        watched = jax.device_get(self._watched)
        self._watched.clear()
        first = step - len(watched) + 1
        for number, values in enumerate(watched, start=first):
            for name, value in values.items():
                if not math.isfinite(value):
                    return _NotFinite(name, float(value), number)
        self._scores += [_score(values) for values in watched]
        return None

    def mean_score(self) -> float:
        """Returns the mean score of the steps since the last save; the worst without any."""
        return statistics.fmean(self._scores) if self._scores else -sys.float_info.max

    def forget_scores(self) -> None:
        """Begins anew with scores, after a save."""
        self._scores.clear()


class _Saver:
    """Saves the state of a stage with all that goes on, and knows how long its steps took."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        iterator: Any,
        record: dict[str, Any],
        recent: _RecentSteps,
        validation: _Validation,
        seconds_before: float,
    ):
        self._checkpoints, self._iterator, self._record = checkpoints, iterator, record
        self._recent, self._validation = recent, validation
        self._begin = self._saved = time.monotonic()
        self._seconds_before = seconds_before

    def seconds(self) -> float:
        """Returns the time that all steps took, validation apart."""
        return self._seconds_before + time.monotonic() - self._begin - self._validation.seconds

    def is_due(self, minutes: float) -> bool:
        """Returns whether the last save is longer ago."""
        return time.monotonic() - self._saved > minutes * 60

    def save(self, state: State) -> None:
        """Saves a state, and begins anew with the scores of steps."""
        values = self._record | {"seconds": self.seconds()} | self._validation.record()
        self._checkpoints.save(state, self._iterator, values, score=self._recent.mean_score())
        self._saved = time.monotonic()
        self._recent.forget_scores()


def _with_horizon(state: State, horizon: int) -> State:
    """Returns the state with another horizon, laid out like the old one."""
    old: Any = state.horizon
    if int(old) == horizon:
        return state
    filled = np.full(old.shape, horizon, old.dtype)
    return state._replace(horizon=sharding.place(filled, old.sharding))


class Interruption:
    """Holds Ctrl-C and SIGTERM back until the running step is done and saved.

    A second signal is obeyed at once. A step donates its state: stopping inside it would lose it.
    """

    def __init__(self):
        self.signal = 0
        """Number of the signal that came; 0 if none."""

    def __enter__(self) -> Interruption:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            signals = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._note_signal) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note_signal(self, number: int, frame: Any) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


def _score(watched: Mapping[str, Any]) -> float:
    """Returns how good a step was: its reward, or else its negative loss."""
    return float(watched["reward"]) if "reward" in watched else -float(watched.get("loss", 0.0))


def _save_if_finite(state: State, save: Callable[[State], None], checkpoints: Checkpoints) -> str:
    """Saves a state whose numbers are finite; returns how to go on."""
    leaves = jax.tree.leaves((state.params, state.moments))
    finite = [jnp.isfinite(sharding.to_device_memory(leaf)).all() for leaf in leaves]
    if all(jax.device_get(finite)):
        save(state)
        checkpoints.wait()
    latest = checkpoints.latest()
    if latest is None:
        return "start --anew with a lower optimizer.lr, as nothing was saved before"
    return (
        f"go on with --resume, as good weights are saved as of step {latest}, or start --anew with "
        "a lower optimizer.lr"
    )


def _short_text(values: Mapping[str, float]) -> str:
    # A policy's loss says nothing; a line of eighty characters has room for two numbers.
    shown = [name for name in ("reward", "scores/iou", "loss") if name in values][:2]
    return "  ".join(f"{name.split('/')[-1]} {values[name]:.3f}" for name in shown)
