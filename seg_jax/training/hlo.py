"""Reads a compiled program: its memory, collectives, loops and kernels."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

from seg_jax.models.parallel import sharding

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BOOKKEEPING = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "Sharding",
    "X64Combine",
    "annotate_device_placement",
)
"""Custom calls that compute nothing."""
_BITS = {"pred": 8, "token": 0, "opaque": 0}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler placed them."""

    arguments: int
    outputs: int
    aliased: int
    """Bytes of the outputs that are written over donated arguments."""
    temporary: int
    code: int
    donated: int
    """Bytes of the arguments that may be written over."""
    host: int = 0
    """Bytes of arguments in the memory of the device's host; counted nowhere else."""

    @property
    def total(self) -> int:
        """The most bytes that the program holds at once."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.code


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind in one run of a program; loops count as often as they can run."""

    times: int
    """Number of collectives."""
    payload: int
    """Bytes of the whole arrays that a device gets or, if it scatters them, begins with."""
    sent: int
    """Bytes that a device sends in a ring: (n-1)/n of the payload, twice that to reduce to all."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program."""

    name: str
    trips: int | None
    """Most rounds of each run; None: not in the text, one was counted."""
    runs: int
    """How often the surrounding loops run it."""


@dataclasses.dataclass(frozen=True)
class ProgramText:
    """What the text of a compiled program says."""

    collectives: dict[str, Traffic]
    loops: list[Loop]
    kernels: dict[str, int]
    """How often each custom call runs, by target and name."""


class TooLarge(ValueError):
    """A program needs more memory than a device has."""

    def __init__(self, needed: int, available: int, text: str):
        super().__init__(text)
        self.needed, self.available = needed, available


def compile(lowered: Any, arguments: Any, options: dict[str, Any] | None = None) -> Any:
    """Returns the compiled program.

    Args:
      lowered: the program.
      arguments: shapes with their shardings, as lowered.
      options: options of the compiler.

    Raises:
      TooLarge: it does not fit the memory of a device.
    """
    try:
        return lowered.compile(compiler_options=options) if options else lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = _overflow(str(error), device_bytes(arguments))
        if found is None:
            raise
        raise TooLarge(*found, str(error)) from error


def memory(compiled: Any, lowered: Any, arguments: Any) -> Memory:
    """Returns the memory of a program.

    Args:
      compiled: the program.
      lowered: what it was compiled from.
      arguments: shapes with their shardings, as lowered.
    """
    sizes = compiled.memory_analysis()
    infos = jax.tree.leaves(lowered.args_info, is_leaf=lambda x: hasattr(x, "donated"))
    donated = sum(
        device_bytes(leaf)
        for leaf, info in zip(jax.tree.leaves(arguments), infos, strict=True)
        if info.donated
    )
    return Memory(
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        temporary=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        donated=donated,
        host=sizes.host_argument_size_in_bytes,
    )


def device_bytes(tree: Any) -> int:
    """Returns the bytes on one device of shapes with their shardings, without padding.

    What lies in the memory of its host does not count.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != sharding.HOST
    )


def _overflow(text: str, arguments: int) -> tuple[int, int] | None:
    """Returns needed and available bytes from an error of the compiler, or None from another error.

    The error has all that is needed, or the size of temporaries alone.
    """
    size = r"\(?([\d.]+)([KMGT]?)\)?"
    whole = re.search(rf"Used {size} of {size} hbm", text)
    temporary = re.search(rf"HLO temporaries {size} exceeds available HBM {size}", text)
    found = whole or temporary
    if found is None:
        return None
    number, unit, most, its = found.groups()
    scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed = round(float(number) * scale[unit]) + (0 if whole else arguments)
    return needed, round(float(most) * scale[its])


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """An instruction of the text."""

    name: str
    shape: str
    opcode: str
    rest: str
    """Operands and attributes."""

    def called(self, attribute: str) -> str | None:
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else None


def read_text(text: str) -> ProgramText:
    """Returns what the text of a compiled program (`compiled.as_text()`) says.

    A loop whose rounds depend on data is taken at the bound in its condition.
    """
    computations, entry = _computations(text)
    reader = _Reader(computations)
    reader.walk(entry, 1, entry)
    traffic = {
        kind: Traffic(*(sum(found) for found in zip(*every, strict=True)))
        for kind, every in sorted(reader.sent_by_kind().items())
    }
    return ProgramText(traffic, reader.loops, dict(sorted(reader.kernels.items())))


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of every computation by its name, and the name of the entry."""
    found: dict[str, list[_Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line.rstrip())
        if head:
            name = head.group(2)
            found[name] = []
            entry = name if head.group(1) else entry
            continue
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line)
        if match and name:
            found[name].append(_Instruction(*match.groups()))
    if not entry:
        raise ValueError(
            "hlo: expected the text of a compiled program with an ENTRY, got none"
            "; do: pass compiled.as_text()"
        )
    return found, entry


_Sent = tuple[str, tuple[int, int, int]]
"""Kind of a collective; how often it runs, its bytes and the bytes it sends."""


class _Reader:
    """Walks through the computations of a program, loops as often as they run."""

    def __init__(self, computations: dict[str, list[_Instruction]]):
        self.computations = computations
        self.loops: list[Loop] = []
        self.kernels: collections.Counter[str] = collections.Counter()
        self._sent: dict[tuple[str, str], dict[str, list[_Sent]]] = collections.defaultdict(dict)
        """Collectives by channel and loop, and by the computation that they stand in."""

    def walk(self, name: str, runs: int, inside: str) -> None:
        """Counts a computation that runs `runs` times as part of the loop body `inside`."""
        for line in self.computations.get(name, ()):
            kind = line.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                self._collective(line, kind, name=name, runs=runs, inside=inside)
            elif line.opcode == "while":
                self._loop(line, runs)
            elif line.opcode == "custom-call":
                self._kernel(line, runs)
            for other in _called_computations(line):
                self.walk(other, runs, inside)

    def _loop(self, line: _Instruction, runs: int) -> None:
        body, condition = line.called("body") or "", line.called("condition") or ""
        trips = self._trips(line, condition)
        self.loops.append(Loop(line.name, trips, runs))
        for part in (body, condition):
            self.walk(part, runs * (trips or 1), part)

    def _trips(self, line: _Instruction, condition: str) -> int | None:
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line.rest)
        if known:
            return int(known.group(1))
        lines = list(self._instructions_in(condition))
        bounds = {
            one.name: int(number.group(1))
            for one in lines
            if one.opcode == "constant" and (number := re.match(r"(\d+)\)", one.rest))
        }
        compared = [
            bounds[name]
            for one in lines
            if one.opcode == "compare" and re.search(r"direction=[LG][TE]", one.rest)
            for name in re.findall(r"[\w.\-]+", one.rest.partition(")")[0])
            if name in bounds
        ]
        # Within a fusion the bound may come in as a parameter.
        return max(compared or bounds.values(), default=None)

    def _instructions_in(self, name: str) -> Iterator[_Instruction]:
        for line in self.computations.get(name, ()):
            yield line
            for other in _called_computations(line):
                yield from self._instructions_in(other)

    def _collective(
        self, line: _Instruction, kind: str, *, name: str, runs: int, inside: str
    ) -> None:
        arrays = _array_bytes(line.shape)
        size = sum(arrays) if not line.opcode.endswith("-start") else _result_bytes(kind, arrays)
        group = _group_size(line.rest)
        if kind == "reduce-scatter":
            size *= group or 1
        ring = 1.0 if group is None else (group - 1) / group
        if kind == "collective-permute":
            ring = 1.0
        times = 2 if kind == "all-reduce" else 1
        if "all-reduce-scatter" in name:  # Its sum is cut at once: each keeps a part.
            kind, times = "reduce-scatter", 1
        channel = re.search(r"channel_id=(\d+)", line.rest)
        mark = (channel.group(1) if channel else f"{name}/{line.name}", inside)
        sent = kind, (runs, runs * size, round(runs * size * ring * times))
        self._sent[mark].setdefault(name, []).append(sent)

    def sent_by_kind(self) -> dict[str, list[tuple[int, int, int]]]:
        """Returns times, bytes and bytes sent of every collective, by its kind.

        One that runs beside other work stands in the text at its start, beside the work and at its
        end, in three computations; several of one channel stand in one.
        """
        found = collections.defaultdict(list)
        for places in self._sent.values():
            for kind, sent in max(places.values(), key=len):
                found[kind].append(sent)
        return found

    def _kernel(self, line: _Instruction, runs: int) -> None:
        target = re.search(r'custom_call_target="([^"]*)"', line.rest)
        if target and target.group(1) not in _BOOKKEEPING:
            name = re.sub(r"[.\d]+$", "", line.name)
            self.kernels[f"{target.group(1)} {name}"] += runs


def _called_computations(line: _Instruction) -> list[str]:
    """Returns the computations that an instruction runs once, loops and small functions aside."""
    if line.opcode in ("fusion", "call", "async-start"):
        return [name] if (name := line.called("calls") or line.called("to_apply")) else []
    if line.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", line.rest)
        named = [line.called(f"{truth}_computation") for truth in ("true", "false")]
        found = listed.group(1).split(",") if listed else [name for name in named if name]
        return [name.strip().lstrip("%") for name in found]
    return []


def _array_bytes(shape: str) -> list[int]:
    """Returns the bytes of every array in a shape, tuples included."""
    found = []
    for kind, sides in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", shape):
        bits = _BITS.get(kind) if kind in _BITS else int(re.findall(r"\d+", kind)[0])
        count = math.prod(int(side) for side in sides.split(",") if side)
        found.append(-(-count * (bits or 0) // 8))
    return found


def _result_bytes(kind: str, arrays: list[int]) -> int:
    """Returns the bytes of the results of an asynchronous collective.

    Args:
      kind: of collective, as "all-gather".
      arrays: bytes of its operands and of its results, in this order.
    """
    if kind == "all-reduce":  # The operands of its start are its results.
        return sum(arrays)
    real = [size for size in arrays if size > 4] or arrays
    return sum(real[len(real) // 2 :])


def _group_size(text: str) -> int | None:
    """Returns the number of devices in a collective, or None if it is not in the text."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if mesh:
        sides = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        # A part of an axis is written 'axis':(parts before it)size.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(size or sides[axis]) for axis, size in axes)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    if tiled:
        return int(tiled.group(2))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return len(listed.group(1).split(",")) if listed else None
