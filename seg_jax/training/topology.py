"""Names accelerators that need not be here: what their chips can, and devices to compile for."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can at best.

    Source: Cloud TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (memory,
    peak compute of bfloat16, interconnect of a chip in one direction, all links together).
    """

    hbm_gib: float
    flops: float
    """bfloat16 operations a second."""
    link: float
    """Bytes a second that leave a chip for its neighbours."""
    axes: int
    """Of the torus that chips are wired to."""


CHIPS: dict[str, Chip] = {
    "v4": Chip(32.0, 275e12, 300e9, 3),
    "v5e": Chip(16.0, 197e12, 200e9, 2),
    "v5p": Chip(95.0, 459e12, 600e9, 3),
    "v6e": Chip(32.0, 918e12, 400e9, 2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str
    devices: list[Any]
    chip: Chip | None
    """None: nothing is known of the machine, as of virtual CPU devices."""
    devices_per_chip: int = 1
    """Cores that share a chip's memory without being one device."""

    @property
    def hbm_bytes(self) -> float | None:
        """Memory of a device, or None where it has no fixed size."""
        return None if self.chip is None else self.chip.hbm_gib * GIB / self.devices_per_chip


def of(name: str) -> Topology:
    """Returns the topology of a name such as v5e:16x16, v5p:4x4x4 or cpu:8.

    Those of TPUs are descriptions that the compiler in `libtpu` makes on any machine.

    Raises:
      ValueError: no such topology, no `libtpu`, or fewer CPU devices than asked for.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d{0,3}", shape):
        return Topology(name, _virtual(int(shape)), None)
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.axes - 1}}}", shape):
        raise ValueError(
            f"topology: expected cpu:8, v5e:16x16, v6e:8x8, v5p:4x4x4 or the like, got {name!r}"
        )
    sides = [int(side) for side in shape.split("x")]
    devices = _described(name, sides)
    return Topology(name, devices, chip, len(devices) // math.prod(sides))


def _virtual(count: int) -> list[Any]:
    with contextlib.suppress(RuntimeError):  # The process has its devices: they must do.
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology: expected {count} CPU devices, got {len(devices)}; do: begin anew with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def _described(name: str, sides: list[int]) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology: expected the package libtpu, the compiler for {name}, got none; "
            "do: pip install 'seg-jax[tpu]' (no TPU is needed)"
        )
    from jax.experimental import topologies

    # No TPU is here: nothing is to be asked of a cloud machine, nor locked for the one user.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{name.partition(':')[0].replace('v5e', 'v5litepod')}-256",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    host = (*(2 if side % 2 == 0 else 1 for side in sides[:2]), 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=host
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology: expected one that exists, got {name!r}: {' '.join(str(error).split())}"
        ) from error
    return list(found.devices)
