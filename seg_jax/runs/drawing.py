"""Draws what a step of reinforcement learns from, batch after batch until it has enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from seg_jax.data import pipeline
from seg_jax.records import Prompts, Rollout
from seg_jax.training.clock import Clock
from seg_jax.training.state import State


class Drawn(NamedTuple):
    """What a step learns from."""

    prompts: Prompts
    rollout: Rollout
    shown: tuple[Prompts, Rollout]
    """The last batch, this process's prompts on the host, with its answers."""
    metrics: dict[str, Any]
    """How it was gathered."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What draws a step: one batch as it comes, or the groups that differ of several."""

    batches: Any
    """Iterator of prompts on the host."""
    to_device: Callable[[Any], Prompts]
    sample: Callable[..., Rollout]
    """(params, prompts, step, number of its prompts drawn before) -> answers."""
    clock: Clock
    gather: Callable[..., Any] | None = None
    """See `steps.gathering_step`; None: a batch is taken as it comes."""
    rounds: int = 1
    """Batches of a step at most."""
    prompts: int = 0
    """Prompts of a batch, in all processes."""

    def __call__(self, current: State) -> Drawn:
        """Returns the prompts and answers of the next step."""
        if self.gather is None:
            batch = next(self.batches)
            prompts = self.clock.lap("data", self.to_device(batch))
            rollout = self.sample(current.params, prompts, current.step)
            return Drawn(prompts, self.clock.lap("sampling", rollout), (batch, rollout), {})
        groups, told = None, []
        while True:
            batch = next(self.batches)
            prompts = self.clock.lap("data", self.to_device(batch))
            drawn = np.int32(len(told) * self.prompts)
            rollout = self.sample(current.params, prompts, current.step, drawn)
            rollout = self.clock.lap("sampling", rollout)
            groups, one = self.clock.lap("judging", self.gather(groups, prompts, rollout))
            told.append(one)
            if isinstance(self.batches, pipeline.PriorityBatches):
                self.batches.memory.note(np.asarray(one.solved))
            if len(told) == self.rounds or int(one.gathered) == self.prompts:
                break
        return Drawn(groups.prompts, groups.rollout, (batch, rollout), self._metrics(told))

    def _metrics(self, told: list[Any]) -> dict[str, Any]:
        """Returns how many batches it took, and what became of their groups."""
        found: dict[str, Any] = {}
        if self.rounds > 1:
            gathered = int(told[-1].gathered)
            found["rounds"] = len(told)
            found["rounds/differ"] = sum(float(one.differ) for one in told) / len(told)
            found["rounds/kept"] = gathered / (len(told) * self.prompts)
            found["rounds/full"] = gathered / self.prompts
            found["rounds/reward"] = sum(float(one.reward) for one in told) / len(told)
        if isinstance(self.batches, pipeline.PriorityBatches):
            found |= self.batches.memory.metrics()
        return found
