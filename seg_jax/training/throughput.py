"""Measures the speed of a run: seconds of a step, waiting for data, MFU, a trace (host)."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import jax

from seg_jax.data.findings import Findings
from seg_jax.models.parallel import chips


def best_seconds(operations: float) -> float | None:
    """Returns the seconds that all devices take at their peak, or None where it is not known."""
    devices = jax.devices()
    chip = chips.of_kind(devices[0].device_kind)
    return None if chip is None else operations / (chip.flops * len(devices))


class Throughput:
    """Measures the mean time of steps between two records of the log."""

    def __init__(
        self, batches: Any, best: float | None = None, *, steps_per_pass: float | None = None
    ):
        """Begins to measure.

        Args:
          batches: iterator of the batches; its `waited`, if any, is the seconds spent on drawing,
            its `findings` what was passed over, its `turns` how many batches' samples had their
            turn, where that may be another number than that of the steps.
          best: seconds of a step whose devices do the necessary arithmetic at their peak.
          steps_per_pass: steps of a batch each in a pass over the source; None: it has no end.
        """
        self._steps_per_pass = steps_per_pass
        self._batches, self._best = batches, best
        self._before: tuple[int, float, float] | None = None

    def step_metrics(self, step: int) -> dict[str, float]:
        """Returns seconds of a step, the share in which it waited for data, and MFU if known.

        Where samples were passed over, it returns their number too; of a finite source the passes
        over it (`epoch`).

        It is called when the devices have finished the step. The first call returns no seconds,
        because programs were compiled before it.
        """
        passes = {}
        if self._steps_per_pass is not None:
            passes["epoch"] = getattr(self._batches, "turns", step) / self._steps_per_pass
        now = time.monotonic()
        waited = getattr(self._batches, "waited", 0.0)
        before, self._before = self._before, (step, now, waited)
        if before is None or step == before[0] or now <= before[1]:
            return passes
        seconds = (now - before[1]) / (step - before[0])
        wait = (waited - before[2]) / (now - before[1])
        metrics = passes | {"seconds/step": seconds, "data_wait": wait}
        if passed := sum(getattr(self._batches, "findings", Findings()).counts.values()):
            metrics["passed_over"] = float(passed)
        return metrics if self._best is None else metrics | {"mfu": self._best / seconds}

    def leave_out(self, seconds: float) -> None:
        """Leaves time out that no step has taken."""
        if self._before is not None:
            step, begin, waited = self._before
            self._before = step, begin + seconds, waited


class Trace:
    """Writes a trace of some steps for TensorBoard's profiler or Perfetto."""

    def __init__(self, steps: str, folder: Path):
        """Plans the trace.

        Args:
          steps: START:STOP, the first step and the last one; empty for none.
          folder: folder that the trace is written to.
        """
        self._first, self._last = read_steps(steps)
        self._folder, self._running = folder, False

    def begin_step(self, step: int, state: Any) -> None:
        """Begins the trace if this is its first step."""
        if step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def end_step(self, step: int, state: Any) -> None:
        """Ends the trace if this was its last step."""
        if self._running and step >= self._last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Writes what there is of the trace."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def read_steps(text: str) -> tuple[int, int]:
    """Returns the first and the last step of START:STOP; (0, 0) for an empty text.

    Raises:
      ValueError: the text is anything else.
    """
    found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if found is None or int(found.group(1)) > int(found.group(2)):
        if not text:
            return 0, 0
        raise ValueError(
            f"profile: expected START:STOP, the first and the last step, got {text!r}; do: give "
            "numbers as 10:12"
        )
    return int(found.group(1)), int(found.group(2))
