"""What a run offers to whoever compiles or measures its steps: functions of abstract arguments."""

from __future__ import annotations

import abc
import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from seg_jax.models import flops


@dataclasses.dataclass(frozen=True)
class Step:
    """One program of a run, ready to be lowered."""

    name: str
    function: Any
    """Jitted."""
    arguments: tuple[Any, ...]
    """Shapes with their shardings."""
    work: flops.Flops
    """Operations of one call, all devices together."""
    beside: Any = None
    """What lies in memory meanwhile without being an argument: shapes with their shardings."""
    advice: tuple[str, ...] = ()
    """Options of the run that may make the step fit a device, what costs least first."""
    passes: int = 0
    """How often the first argument, weights, is read from memory because one token waits for the
    one before it; 0: not counted."""


class Plan(abc.ABC):
    """A run's model and steps over a mesh, as shapes: no weight exists."""

    mesh: jax.sharding.Mesh
    """The devices."""

    @property
    @abc.abstractmethod
    def params(self) -> Any:
        """Shapes of the weights, a tree."""

    @property
    @abc.abstractmethod
    def state(self) -> Any:
        """What lies on the devices between steps: shapes with their shardings."""

    @abc.abstractmethod
    def steps(self) -> Mapping[str, Callable[[], Step]]:
        """Returns what makes each step of the run, by name."""


@runtime_checkable
class Lowerable(Protocol):
    """A run, of whatever model, whose steps can be compiled for devices that are not here."""

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Lowerable:
        """Returns the run with what its checkpoint says wherever it says nothing itself."""
        ...

    def unlowered(self) -> tuple[str, ...]:
        """Returns the names of the options that no step depends on."""
        ...

    def plan(self, devices: Sequence[Any]) -> Plan:
        """Returns the plan of the run over some devices."""
        ...


class Measured(NamedTuple):
    """A step of training that can be run alone."""

    step: Step
    """Returns (state, metrics) of (state, ..); the metrics have the `loss`."""
    draw: Callable[[], tuple[Any, ...]]
    """Draws arguments on the devices, with random weights; called within the plan's mesh."""
    dtype: str
    """That products of matrices are computed in."""


@runtime_checkable
class Measurable(Lowerable, Protocol):
    """A run whose step of training can be measured on drawn arguments."""

    def measured_step(self, plan: Any) -> Measured:
        """Returns that step of a plan of the run's."""
        ...


def check_options(run: Lowerable, given: Lowerable) -> None:
    """Raises ValueError for an option that was laid over a run and that no step depends on.

    Args:
      run: with the options.
      given: the run of the configuration file.
    """
    for name in dict.fromkeys((*given.unlowered(), *run.unlowered())):
        value = operator.attrgetter(name)
        if value(run) != value(given):
            raise ValueError(
                f"{name}: expected options that a step depends on, got one that changes none; "
                "do: leave it out"
            )
