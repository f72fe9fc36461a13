"""Compiles one step of a plan for devices that need not be here, and judges its memory."""

from __future__ import annotations

import dataclasses
import time

import jax

from seg_jax.models import flops
from seg_jax.runs import lowering
from seg_jax.training import hlo, topology

GIB = topology.GIB


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a step, for one device."""

    step: str
    fits: bool | None
    """None where no memory is known to judge by."""
    needed_bytes: int
    available_bytes: int | None
    operations: flops.Flops
    passed_bytes: int = 0
    """Bytes of weights that a device reads for one token after another."""
    beside_bytes: int = 0
    """In memory meanwhile without being an argument."""
    memory: hlo.Memory | None = None
    """None if the compiler found no place for it."""
    text: hlo.ProgramText | None = None
    lower_seconds: float = 0.0
    compile_seconds: float = 0.0
    complaint: str = ""
    advice: tuple[str, ...] = ()


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
    available = target.available_bytes if hbm is None else hbm * GIB
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
        passed_bytes=step.passes and step.passes * hlo.device_bytes(step.arguments[0]),
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
