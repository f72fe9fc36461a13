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

from seg_jax.models.parallel.chips import CHIPS, Chip

GIB = 2**30

HOST_GPUS = 8
"""Number of GPUs of a host, connected by NVLink."""
NETWORK = 50e9
"""Bytes a second from a GPU to another host: 400 Gbit/s (NVIDIA DGX H100 user guide)."""

_GPU = {
    "h100": ("NVIDIA H100 80GB HBM3", 3_352_320_000_000, 84_942_979_072),
    "h200": ("NVIDIA H200 141GB HBM3e", 4_800_000_000_000, 151_397_597_184),
}
"""Name of a GPU, and of its memory the bytes a second and the bytes."""
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: {bandwidth} device_memory_size: {memory}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""
"""What XLA's compiler needs to know of a GPU (`GpuTargetConfigProto`), for a Hopper."""


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

    @property
    def hbm_bytes(self) -> float | None:
        """Memory of a device, or None where it has no fixed size."""
        return None if self.chip is None else self.chip.hbm_gib * GIB / self.devices_per_chip


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
    if kind in _GPU and re.fullmatch(r"[1-9]\d{0,4}", shape):
        devices, hosts = _gpu_descriptions(name, kind, int(shape))
        chip = CHIPS[kind] if hosts == 1 else dataclasses.replace(CHIPS[kind], link=NETWORK)
        # XLA chooses tiles of its own products by trying them, for which a GPU has to be here.
        return Topology(name, devices, chip, options={"xla_gpu_enable_triton_gemm": False})
    if (
        chip is None
        or not chip.axes
        or not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.axes - 1}}}", shape)
    ):
        raise ValueError(
            "topology: expected cpu:8, v5e:16x16, v6e:8x8, v5p:4x4x4, h100:8, h200:32 or the like, "
            f"got {name!r}"
            "; do: name a kind of device and its count or sides like these"
        )
    sides = [int(side) for side in shape.split("x")]
    devices = _tpu_descriptions(name, sides)
    return Topology(name, devices, chip, len(devices) // math.prod(sides))


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

    facts = dict(zip(("name", "bandwidth", "memory"), _GPU[kind], strict=True))
    found = topologies.get_topology_desc(
        topology_name=name,
        platform="cuda",
        topology=f"1x{hosts}x{count // hosts}",
        target_config=_HOPPER.format(**facts),
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
