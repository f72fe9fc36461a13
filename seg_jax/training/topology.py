"""Describes accelerators that need not be here, to compile programs for them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from seg_jax.models.parallel import chips
from seg_jax.models.parallel.chips import CHIPS, Chip
from seg_jax.training.gpus import GPUS

GIB = 2**30

HOST_GPUS = 8
"""Number of GPUs of a host, connected by NVLink."""
_TPUS = [name for name, chip in CHIPS.items() if chip.axes]
_HOSTS = {"1": "1x1", "4": "2x2", "8": "2x4"}
"""Sides of the chips of one host, by their number."""
NETWORK = 50e9
"""Bytes a second from a GPU to another host: 400 Gbit/s (NVIDIA DGX H100 user guide)."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for."""

    name: str
    devices: list[Any]
    chip: Chip | None
    """None: nothing is known of the machine, as of virtual CPU devices."""
    devices_per_chip: int = 1
    """Number of cores that share a chip's memory without being one device."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the compiler, where the devices are not here."""

    limit: float | None = None
    """Bytes of a device that a process may have, where that is known."""

    @property
    def hbm_bytes(self) -> float | None:
        """Memory of a device, or None where it has no fixed size."""
        if self.limit is not None:
            return self.limit
        return None if self.chip is None else self.chip.hbm_gib * GIB / self.devices_per_chip

    @property
    def available_bytes(self) -> float | None:
        """Memory of a device that is left to programs, None where it is not known."""
        if self.limit is not None or self.chip is None or self.hbm_bytes is None:
            return self.hbm_bytes
        return self.hbm_bytes - self.chip.kept_gib * GIB


def from_name(name: str) -> Topology:
    """Returns the topology of a name such as v5e:16x16, v5p:4x4x4, h100:32 or cpu:8.

    Those of TPUs and GPUs are descriptions that the compilers in `libtpu` and in JAX's plugin for
    CUDA make on any machine.

    Raises:
      ValueError: no such topology, no compiler for it, or there are fewer CPU devices.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d{0,3}", shape):
        return Topology(name, _virtual_cpus(int(shape)), None)
    chip = CHIPS.get(kind)
    if kind in GPUS and re.fullmatch(r"[1-9]\d{0,4}", shape):
        devices, hosts = _gpu_descriptions(name, kind, int(shape))
        chip = CHIPS[kind] if hosts == 1 else dataclasses.replace(CHIPS[kind], link=NETWORK)
        # XLA chooses tiles of its own products by trying them, for which a GPU has to be here.
        return Topology(name, devices, chip, options={"xla_gpu_enable_triton_gemm": False})
    shape = _HOSTS.get(shape, shape) if chip is not None and chip.axes == 2 else shape
    if (
        chip is None
        or not chip.axes
        or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.axes - 1}}}", shape)
    ):
        raise ValueError(
            "topology: expected cpu:8, v5e:16x16, v6e:1, v5p:4x4x4, h100:8, l4:1 or the like, "
            f"got {name!r}"
            f"; do: name one of {', '.join([*GPUS, *_TPUS])} and its count or sides like these"
        )
    sides = [int(side) for side in shape.split("x")]
    devices = _tpu_descriptions(f"{kind}:{shape}", sides)
    return Topology(name, devices, chip, len(devices) // math.prod(sides))


def here() -> Topology:
    """Returns the devices of this process and its peers, with the memory that it may have.

    CPU devices share 80 % of their host's.
    """
    devices = jax.devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    if memory is None and devices[0].platform == "cpu":
        memory = 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory /= jax.local_device_count()
    chip = chips.of_kind(devices[0].device_kind)
    name = f"{len(devices)} x {devices[0].device_kind}"
    return Topology(name, list(devices), chip, limit=memory)


def _virtual_cpus(count: int) -> list[Any]:
    with contextlib.suppress(RuntimeError):  # The process has its devices: they must do.
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology: expected {count} CPU devices, got {len(devices)}; do: begin anew with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def _gpu_descriptions(name: str, kind: str, count: int) -> tuple[list[Any], int]:
    """Returns descriptions of GPUs, hosts one after another, and the number of hosts."""
    hosts, left = divmod(count, HOST_GPUS) if count > HOST_GPUS else (1, 0)
    if left:
        raise ValueError(
            f"topology: expected up to {HOST_GPUS} GPUs or whole hosts of {HOST_GPUS}, got {name}; "
            f"do: take {kind}:{hosts * HOST_GPUS} or {kind}:{(hosts + 1) * HOST_GPUS}"
        )
    if not any(importlib.util.find_spec(f"jax_cuda{number}_plugin") for number in (12, 13)):
        raise ValueError(
            f"topology: expected JAX's plugin for CUDA, the compiler for {name}, got none; "
            "do: pip install 'seg-jax[cuda]' (no GPU is needed)"
        )
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        topology_name=name,
        platform="cuda",
        topology=f"1x{hosts}x{count // hosts}",
        target_config=GPUS[kind].target_config(),
    )
    return list(found.devices), hosts


def _tpu_descriptions(name: str, sides: list[int]) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology: expected the package libtpu, the compiler for {name}, got none; "
            "do: pip install 'seg-jax[tpu]' (no TPU is needed)"
        )
    from jax.experimental import topologies

    # No TPU is here: libtpu must query no cloud machine, and lock nothing.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{name.partition(':')[0].replace('v5e', 'v5litepod')}-256",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    even = [2 if side % 2 == 0 else 1 for side in sides[:2]]
    host = (*even, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=host
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"topology: expected one that exists, got {name!r}: {' '.join(str(error).split())}"
            "; do: choose other sides"
        ) from error
    return list(found.devices)
