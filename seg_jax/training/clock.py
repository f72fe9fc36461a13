"""Times the parts of a step by waiting for them now and then (host)."""

from __future__ import annotations

import time
from typing import TypeVar

import jax

from seg_jax.training.state import State

Value = TypeVar("Value")


class Clock:
    """Takes the seconds of each part of every so-many-th step.

    A timed step begins when the one before has ended and waits for each of its parts, so that
    they do not overlap; all other steps run ahead of the device undisturbed. The first step of a
    process, which compiles, is not timed.
    """

    def __init__(self, every: int):
        self.seconds: dict[str, float] = {}
        """Seconds of the step that was started last, by part; empty if it is not timed."""
        self._every = every
        self._step: int | None = None
        self._timed = False
        self._last = 0.0

    def start(self, state: State) -> int:
        """Begins a step on the state; returns its number, from 1."""
        first = self._step is None
        # Read once: later it would wait for the device.
        self._step = int(state.step) + 1 if self._step is None else self._step + 1
        self._timed = not first and self._step % self._every == 0
        self.seconds = {}
        if self._timed:
            jax.block_until_ready(state)
            self._last = time.monotonic()
        return self._step

    def lap(self, phase: str, value: Value) -> Value:
        """Returns what a part has made; waits for it and takes its time if the step is timed.

        The times of a part that comes several times in a step add up.
        """
        if self._timed:
            jax.block_until_ready(value)
            now = time.monotonic()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
            self._last = now
        return value

    def step_metrics(self, tokens: float, *, batches: int = 1) -> dict[str, float]:
        """Returns seconds, and of parts that handle the answers' tokens how many a second.

        Args:
          tokens: of the answers that are learnt from.
          batches: of answers about as long that were sampled for them.
        """
        rates = {
            f"tokens_per_second/{part}": times * tokens / self.seconds[part]
            for part, times in (("sampling", batches), ("learning", 1))
            if part in self.seconds
        }
        return {f"seconds/{name}": value for name, value in self.seconds.items()} | rates
