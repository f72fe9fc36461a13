"""Compiles every step of a run ahead of time, for a machine that need not be here, from shapes."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
from tyro.conf import arg

from seg_jax import files
from seg_jax.cli import arguments
from seg_jax.models import flops
from seg_jax.runs import console, lowering, memory_fitting, run_folder, step_times
from seg_jax.runs.compilation import Result
from seg_jax.training import hlo, topology

GIB = topology.GIB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A compilation; the options of the run are laid over its configuration.

    What no step depends on, such as `out` and `loop`, is refused as an option.
    """

    given: ClassVar[Any] = None
    """The run as its configuration file has it."""
    run: Any = None
    topology: str = "cpu:8"
    """What to compile for: v5e:16x16, v5p:4x4x4, v6e:8x8, v4:4x4x4, h100:8, h200:32, or cpu:8 for
    virtual devices. TPUs need the package libtpu, GPUs JAX's plugin for CUDA, neither a device."""
    only: tuple[str, ...] = ()
    """Steps to compile, of sft, sample, gather, update, evaluate; all if left out."""
    hbm: float | None = None
    """GiB of a device to judge by; None: what the chip has."""
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        if self.hbm is not None and not self.hbm > 0:
            raise ValueError(
                f"hbm: expected GiB > 0 of a device, got {self.hbm}"
                "; do: give the GiB of one device, as --hbm 16"
            )

    @classmethod
    def of_run(cls, run: Any) -> Config:
        """Returns the default compilation of a run; its class has the run's options.

        Raises:
          UsageError: it is no run that trains.
        """
        if not isinstance(run, lowering.Lowerable):
            raise arguments.UsageError(
                f"command line: expected a configuration of finetune or reinforce, got one of "
                f"{type(run)}"
                "; do: give such a file, as configs/simpleseg/tiny_sft.py"
            )
        fields = [("run", Annotated[type(run), arg(name="")], dataclasses.field(default=run))]
        kind = dataclasses.make_dataclass("Config", fields, bases=(cls,), frozen=True, kw_only=True)
        kind.__doc__, kind.given = cls.__doc__, run
        return kind()

    def completed(self, checkpoint: Path | None = None, *, check: bool = True) -> Config:
        """Returns the configuration with its run as the checkpoint completes it."""
        if self.run is None:
            return self
        return dataclasses.replace(self, run=self.run.completed(checkpoint, check=check))

    def with_weights_named(self, options: Sequence[str]) -> Config:
        """Returns the compilation with a place for the weights of a user's own scores."""
        named = getattr(self.run, "with_weights_named", None)
        return self if named is None else dataclasses.replace(self, run=named(options))


def main(config: Config) -> int:
    """Prints what every step needs on a device; 1 if one does not fit."""
    if config.run is None:
        raise arguments.UsageError(
            "command line: expected a configuration file CONFIG.py of finetune or reinforce, got "
            "none"
            "; do: give one, as configs/simpleseg/tiny_sft.py"
        )
    lowering.check_options(config.run, config.given or config.run)
    run_folder.check_json(config.json)
    begin = time.monotonic()
    target = topology.from_name(config.topology)
    place = f"for {len(target.devices)} devices of {target.name}"
    found = memory_fitting.fit(
        config.run,
        target,
        only=config.only,
        hbm=config.hbm,
        tried="all" if getattr(config.run, "fit", False) else "nothing",
        tell=lambda line: console.say(f"{line} {place}"),
    )
    results, plan = found.results, found.plan
    minutes = (time.monotonic() - begin) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _show(results, plan, target)
    for line in (*_fitted(found, config), *_hours(results, found.run, target)):
        console.say(line)
    console.say(f"{minutes:.1f} minutes, {peak:.1f} GiB of this machine's memory at most")
    if config.json is not None:
        report = {
            "topology": target.name,
            "mesh": dict(plan.mesh.shape),
            "devices": len(target.devices),
            "parameters": _count(plan),
            "run": run_folder.plain(found.run),
            "fitted_options": found.options,
            "minutes": round(minutes, 2),
            "host_gib": round(peak, 2),
            "estimate_assumes": [step_times.ASSUMED, step_times.MEASURED],
            "versions": run_folder.versions(),
            "steps": [_record(result, target) for result in results],
        }
        files.write_json(config.json, report)
    return 0 if all(result.fits is not False for result in results) else 1


def _fitted(found: memory_fitting.Fit, config: Config) -> list[str]:
    """Returns what the search for options that fit came to."""
    if not getattr(config.run, "fit", False):
        return []
    if found.fits:
        return [f"fits, compiled {found.compilations} times, with: {found.words or 'nothing else'}"]
    return [f"does not fit even with: {found.words or 'what there is to try'}"]


def _count(plan: lowering.Plan) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(plan.params))


def _needed_operations(result: Result) -> float:
    """Returns the operations of a device that no implementation of the step can do without."""
    return sum(result.operations.get(name, 0.0) for name in flops.NEEDED)


def _hours(results: list[Result], run: Any, target: topology.Topology) -> list[str]:
    """Returns what is expected of the whole run, where its steps and the machine are known."""
    told = {result.step: step_times.expected_seconds(result, target) for result in results}
    steps = [told.get(name) for name in ("sft", "sample", "update") if name in told]
    loop = getattr(run, "loop", None)
    known = [seconds for seconds in steps if seconds is not None]
    if loop is None or len(known) < len(steps) or not known:
        return []
    lines = [f"** {step_times.MEASURED}"]
    if loop.steps is not None and ("sft" in told or len(known) == 2):
        hours = loop.steps * sum(known) / 3600
        lines.append(f"a run of {loop.steps} steps: {hours:.1f} hours expected**")
    return lines


def _record(result: Result, target: topology.Topology) -> dict[str, Any]:
    """Returns a result as values that JSON knows."""
    record = dataclasses.asdict(result)
    record["verdict"] = _verdict(result)
    record["least_seconds_estimate"] = step_times.least_seconds(result, target)
    record["expected_seconds_estimate"] = step_times.expected_seconds(result, target)
    return record


def _verdict(result: Result) -> str:
    return {True: "FITS", False: "DOES NOT FIT", None: "compiles"}[result.fits]


def _show(results: list[Result], plan: lowering.Plan, target: topology.Topology) -> None:
    """Prints results side by side, and what to change where one does not fit."""
    columns = [_column(result, target) for result in results]
    names = dict.fromkeys(name for column in columns for name in column)
    order = sorted(names, key=lambda name: _PLACES.get(name.partition(",")[0], 0))
    lines = [(name, *(column.get(name, "") for column in columns)) for name in order]
    shape = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items() if size > 1)
    title = (
        f"{_count(plan) / 1e9:.2f} billion weights on {len(target.devices)} devices of "
        f"{target.name} ({shape or 'one device'}); per device"
    )
    console.table(title, ("", *(result.step for result in results)), lines)
    if target.chip is not None:
        console.say(f"* {step_times.ASSUMED}")
    for result in results:
        if result.complaint:
            console.say(f"{result.step}: {_first(result.complaint)}")
        if result.advice:
            console.say(f"{result.step} does not fit; try {'; or '.join(result.advice)}")


_PLACES = {
    name: place
    for place, names in enumerate(
        (
            (
                "vision",
                "text",
                "head",
                "backward",
                "recomputed",
                "reference",
                "optimizer",
                "segmenter",
            ),
            ("needed in all",),
            hlo.COLLECTIVES,
            (
                "kernels",
                "loops",
                "least time by operations*",
                "least time by collectives*",
                "least time by weights read*",
                "time expected**",
            ),
            ("to lower", "verdict"),
        ),
        start=1,
    )
    for name in names
}
"""In which order lines are shown; those of memory come first."""


def _column(result: Result, target: topology.Topology) -> dict[str, str]:
    """Returns the lines of a step in the table: their names and values."""
    memory, lines = result.memory, {}
    if memory is not None:
        lines |= {
            "arguments, GiB": _gib(memory.arguments),
            "temporaries, GiB": _gib(memory.temporary),
            "outputs beyond donated, GiB": _gib(memory.outputs - memory.aliased),
            "code, GiB": _gib(memory.code),
        }
        if memory.host:
            lines["on the host, GiB"] = _gib(memory.host)
    lines["held beside it, GiB"] = _gib(result.beside_bytes)
    lines["in all, GiB"] = _gib(result.needed_bytes)
    if result.available_bytes is not None:
        lines["the device has, GiB"] = _gib(result.available_bytes)
    if memory is not None:
        lines["donated, reused, GiB"] = f"{_gib(memory.donated)}, {_gib(memory.aliased)}"
    for name, done in result.operations.items():
        lines[f"{name}, TFLOP"] = f"{done / 1e12:.4g}"
    lines["needed in all, TFLOP"] = f"{_needed_operations(result) / 1e12:.4g}"
    if result.text is not None:
        for name, moved in result.text.collectives.items():
            lines[f"{name}, times, GiB sent"] = f"{moved.times}, {moved.sent / GIB:.3g}"
        kernels = ", ".join(f"{name} x{times}" for name, times in result.text.kernels.items())
        lines["kernels"] = kernels or "none"
        lost = sum(loop.trips is None for loop in result.text.loops)
        lines["loops, of unknown length"] = f"{len(result.text.loops)}, {lost}"
    for name, seconds in step_times.least_seconds(result, target).items():
        lines[f"least time by {name}*, s"] = f"{seconds:.3g}"
    if (seconds := step_times.expected_seconds(result, target)) is not None:
        lines["time expected**, s"] = f"{seconds:.3g}"
    lines["to lower, to compile, s"] = f"{result.lower_seconds:.0f}, {result.compile_seconds:.0f}"
    lines["verdict"] = _verdict(result)
    return lines


def _gib(size: int | float) -> str:
    return f"{size / GIB:.3f}"


def _first(text: str) -> str:
    """Returns the sentence of a compiler's complaint that holds its figures."""
    lines = [line.strip() for line in text.splitlines() if "Used" in line or "memory" in line]
    return (lines or [text])[0][:300]
