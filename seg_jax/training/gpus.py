"""What XLA's compiler has to know of a GPU that is not here.

Sources: NVIDIA's data sheets and architecture white papers of each GPU (cores, clocks, cache,
bandwidth), the CUDA programming guide's table of compute capabilities (limits of a core), and what
drivers tell of the memory that is left to programs.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a streaming multiprocessor of an architecture has."""

    major: int
    minor: int
    """What the compute capability has after its point; `major` stands before it."""
    accelerated: bool
    """Whether there are instructions for this architecture alone (sm_90a, sm_100a)."""
    fpus: int
    """float32 units."""
    threads: int
    shared: int
    """Bytes of shared memory."""
    shared_of_block: int
    """Bytes of it that a block may ask for."""


AMPERE = Limits(8, 0, False, 64, 2048, 167_936, 166_912)
ADA = Limits(8, 9, False, 128, 1536, 102_400, 101_376)
HOPPER = Limits(9, 0, True, 128, 2048, 233_472, 232_448)
BLACKWELL = Limits(10, 0, True, 128, 2048, 233_472, 232_448)
BLACKWELL_CARD = Limits(12, 0, False, 128, 1536, 102_400, 101_376)


@dataclasses.dataclass(frozen=True)
class GPU:
    """One model of GPU."""

    kind: str
    """As its devices call themselves."""
    limits: Limits
    cores: int
    """Streaming multiprocessors."""
    clock_ghz: float
    cache: int
    """Bytes of the second level."""
    bandwidth: float
    """Bytes a second of its memory."""
    memory: int
    """Bytes of its memory, as the driver tells them."""

    def target_config(self) -> str:
        """Returns the description that XLA takes (`GpuTargetConfigProto`, as text)."""
        limits = self.limits
        extension = "ACCELERATED_FEATURES" if limits.accelerated else "NONE"
        return f"""
gpu_device_info {{
  cuda_compute_capability {{
    major: {limits.major} minor: {limits.minor} feature_extension: {extension}
  }}
  core_count: {self.cores} fpus_per_core: {limits.fpus} clock_rate_ghz: {self.clock_ghz}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {limits.threads}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: {limits.shared} shared_memory_per_block: 49152
  shared_memory_per_block_optin: {limits.shared_of_block}
  l2_cache_size: {self.cache} memory_bandwidth: {int(self.bandwidth)}
  device_memory_size: {self.memory}
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{self.kind}"
"""


_MIB, _GIB = 2**20, 2**30
GPUS = {
    "a100-40": GPU("NVIDIA A100-SXM4-40GB", AMPERE, 108, 1.41, 40 * _MIB, 1.555e12, 42_331_013_120),
    "a100": GPU("NVIDIA A100-SXM4-80GB", AMPERE, 108, 1.41, 40 * _MIB, 2.039e12, 85_100_068_864),
    "l4": GPU("NVIDIA L4", ADA, 58, 2.04, 48 * _MIB, 300e9, int(22.03 * _GIB)),
    "l40s": GPU("NVIDIA L40S", ADA, 142, 2.52, 96 * _MIB, 864e9, int(44.4 * _GIB)),
    "rtx4090": GPU(
        "NVIDIA GeForce RTX 4090", ADA, 128, 2.52, 72 * _MIB, 1.008e12, int(23.52 * _GIB)
    ),
    "h100": GPU("NVIDIA H100 80GB HBM3", HOPPER, 132, 1.98, 50 * _MIB, 3.352e12, 84_942_979_072),
    "h200": GPU("NVIDIA H200 141GB HBM3e", HOPPER, 132, 1.98, 50 * _MIB, 4.8e12, 151_397_597_184),
    "b200": GPU("NVIDIA B200", BLACKWELL, 148, 1.965, 126 * _MIB, 7.672e12, 191_514_411_008),
    "rtx5090": GPU(
        "NVIDIA GeForce RTX 5090", BLACKWELL_CARD, 170, 2.41, 96 * _MIB, 1.792e12, int(31.36 * _GIB)
    ),
}
"""GPUs by the names that a topology has for them."""
