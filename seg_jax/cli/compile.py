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
from seg_jax.runs import console, lowering, run_folder
from seg_jax.training import hlo, topology

GIB = topology.GIB
ASSUMED = (
    "estimate, not measured: a step takes at least as long as its operations at the peak of "
    "bfloat16, and as its collectives in rings at full link speed; neither attention masks nor "
    "padding, memory traffic, norms or waiting are counted"
)


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


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a step, for one device."""

    step: str
    fits: bool | None
    """None where no memory is known to judge by."""
    needed_bytes: int
    available_bytes: int | None
    operations: flops.Flops
    beside_bytes: int = 0
    """In memory meanwhile without being an argument."""
    memory: hlo.Memory | None = None
    """None if the compiler found no place for it."""
    text: hlo.ProgramText | None = None
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    complaint: str = ""
    advice: tuple[str, ...] = ()


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
    plan = config.run.plan(target.devices)
    makers = plan.steps()
    if unknown := set(config.only) - set(makers):
        raise ValueError(
            f"only: expected steps among {', '.join(makers)}, got {sorted(unknown)}"
            "; do: name one of these, or leave --only out"
        )
    results = []
    for name in config.only or makers:
        console.say(f"{name}: compiling for {len(target.devices)} devices of {target.name}")
        results.append(compile_step(makers[name](), plan, target, hbm=config.hbm))
    minutes = (time.monotonic() - begin) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _show(results, plan, target)
    console.say(f"{minutes:.1f} minutes, {peak:.1f} GiB of this machine's memory at most")
    if config.json is not None:
        report = {
            "topology": target.name,
            "mesh": dict(plan.mesh.shape),
            "devices": len(target.devices),
            "parameters": _count(plan),
            "run": run_folder.plain(config.run),
            "minutes": round(minutes, 2),
            "host_gib": round(peak, 2),
            "estimate_assumes": ASSUMED,
            "versions": run_folder.versions(),
            "steps": [_record(result, target) for result in results],
        }
        files.write_json(config.json, report)
    return 0 if all(result.fits is not False for result in results) else 1


def compile_step(
    step: lowering.Step, plan: lowering.Plan, target: topology.Topology, *, hbm: float | None
) -> Result:
    """Returns what became of one step of a plan.

    Args:
      step: of the plan.
      plan: on the target's devices.
      target: what to compile for.
      hbm: GiB of a device to judge by; None: what the target has.
    """
    share = len(target.devices)
    operations = {name: done / share for name, done in step.work.items()}
    available = target.hbm_bytes if hbm is None else hbm * GIB
    if target.chip is not None and hbm is None and available is not None:
        available -= target.chip.kept_gib * GIB
    available = None if available is None else int(available)
    beside = hlo.device_bytes(step.beside)
    start = time.monotonic()
    with jax.set_mesh(plan.mesh):
        lowered = step.function.lower(*step.arguments)
    between = time.monotonic()
    program, needed, complaint, memory, text = None, 0, "", None, None
    try:
        program = hlo.compile(lowered, step.arguments, target.options)
    except hlo.TooLarge as error:
        needed, complaint = error.needed, str(error)
        available = error.available if hbm is None else available
    seconds = time.monotonic() - between
    if program is not None:
        memory = hlo.memory(program, lowered, step.arguments)
        text, needed = hlo.read_text(program.as_text()), memory.total
    needed += beside
    fits = None if available is None else program is not None and needed <= available
    return Result(
        step.name,
        fits,
        needed,
        available,
        operations,
        beside_bytes=beside,
        memory=memory,
        text=text,
        lower_seconds=between - start,
        compile_seconds=seconds,
        complaint=complaint,
        advice=() if fits is not False else advice(step, plan, available or 0),
    )


def advice(step: lowering.Step, plan: lowering.Plan, available: int) -> tuple[str, ...]:
    """Returns what may make a step fit, what costs least first."""
    state = hlo.device_bytes(plan.state)
    larger = (
        f"more chips or a larger mesh.fsdp x mesh.tensor: the state alone takes "
        f"{state / GIB:.1f} GiB of a device"
    )
    return (*([larger] if state > available / 2 else []), *step.advice, "more chips")


def _count(plan: lowering.Plan) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(plan.params))


def _needed_operations(result: Result) -> float:
    """Returns the operations of a device that no implementation of the step can do without."""
    return sum(result.operations.get(name, 0.0) for name in flops.NEEDED)


def _least_seconds(result: Result, target: topology.Topology) -> dict[str, float]:
    """Returns the estimate of a step's least time: by its operations, by its collectives."""
    if target.chip is None or result.text is None:
        return {}
    sent = sum(traffic.sent for traffic in result.text.collectives.values())
    share = target.devices_per_chip
    return {
        "operations": sum(result.operations.values()) * share / target.chip.flops,
        "collectives": sent * share / target.chip.link,
    }


def _record(result: Result, target: topology.Topology) -> dict[str, Any]:
    """Returns a result as values that JSON knows."""
    record = dataclasses.asdict(result)
    record["verdict"] = _verdict(result)
    record["least_seconds_estimate"] = _least_seconds(result, target)
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
        console.say(f"* {ASSUMED}")
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
            ("kernels", "loops", "least time by operations*", "least time by collectives*"),
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
    for name, seconds in _least_seconds(result, target).items():
        lines[f"least time by {name}*, s"] = f"{seconds:.3g}"
    lines["to lower, to compile, s"] = f"{result.lower_seconds:.0f}, {result.compile_seconds:.0f}"
    lines["verdict"] = _verdict(result)
    return lines


def _gib(size: int | float) -> str:
    return f"{size / GIB:.3f}"


def _first(text: str) -> str:
    """Returns the sentence of a compiler's complaint that holds its figures."""
    lines = [line.strip() for line in text.splitlines() if "Used" in line or "memory" in line]
    return (lines or [text])[0][:300]
