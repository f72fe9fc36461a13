"""What chips can at best, by a short name or by what a device says it is."""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can at best.

    Source: Cloud TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x"
    (memory and its bandwidth, peak compute of bfloat16, interconnect of a chip in one direction,
    all links together); NVIDIA's data sheets of A100, L4, L40S, H100, H200 and B200, and the white
    papers "Ada GPU Architecture" and "RTX Blackwell GPU Architecture" (dense bfloat16 summed in
    float32; NVLink, of PCIe cards PCIe, in one direction).
    """

    kind: str
    """What matches the kind that its devices tell of themselves, from the beginning."""
    hbm_gib: float
    flops: float
    """bfloat16 operations a second, summed in float32."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: float
    """Bytes a second that leave a chip for its neighbours."""
    axes: int
    """Axes of the torus that chips are wired to; 0: all of a host to each other."""
    kept_gib: float = 0.26
    """Memory that the runtime keeps to itself (by a TPU compiler's own account: 258 MiB)."""


CHIPS: dict[str, Chip] = {
    "v4": Chip(r"TPU v4$", 32.0, 275e12, 1.228e12, 300e9, 3),
    "v5e": Chip(r"TPU v5( lite|e)", 16.0, 197e12, 819e9, 200e9, 2),
    "v5p": Chip(r"TPU v5p?$", 95.0, 459e12, 2.765e12, 600e9, 3),
    "v6e": Chip(r"TPU v6( lite|e)", 32.0, 918e12, 1.64e12, 400e9, 2),
    "tpu7x": Chip(r"TPU7x", 192.0, 2307e12, 7.38e12, 600e9, 3),
    # Memory as the driver tells it. A context with its libraries takes about a GiB; how much of the
    # rest a process may have is for XLA_PYTHON_CLIENT_MEM_FRACTION to say.
    "a100": Chip(r"NVIDIA A100.*80GB", 79.1, 312e12, 2.039e12, 300e9, 0, kept_gib=1.0),
    "a100-40": Chip(r"NVIDIA A100(?!.*80GB)", 39.4, 312e12, 1.555e12, 300e9, 0, kept_gib=1.0),
    "l4": Chip(r"NVIDIA L4$", 22.0, 121e12, 300e9, 32e9, 0, kept_gib=1.0),
    "l40s": Chip(r"NVIDIA L40S", 44.4, 362e12, 864e9, 32e9, 0, kept_gib=1.0),
    "rtx4090": Chip(r"NVIDIA GeForce RTX 4090$", 23.5, 165e12, 1.008e12, 32e9, 0, kept_gib=1.0),
    "rtx5090": Chip(r"NVIDIA GeForce RTX 5090$", 31.3, 209e12, 1.792e12, 64e9, 0, kept_gib=1.0),
    "h100": Chip(r"NVIDIA H100\b(?!.*PCIe)", 79.1, 989e12, 3.352e12, 450e9, 0, kept_gib=1.0),
    "h100-pcie": Chip(r"NVIDIA H100 PCIe", 79.1, 756e12, 2.0e12, 64e9, 0, kept_gib=1.0),
    "h200": Chip(r"NVIDIA H200\b", 141.0, 989e12, 4.8e12, 450e9, 0, kept_gib=1.0),
    "b200": Chip(r"NVIDIA B200", 178.3, 2250e12, 7.67e12, 900e9, 0, kept_gib=1.0),
}
CPU_GIB = 3.0
"""Memory of a CPU device, which it shares with its host."""


def of_kind(kind: str) -> Chip | None:
    """Returns the chip of a device that calls itself so, None if it is not known."""
    return next((chip for chip in CHIPS.values() if re.match(chip.kind, kind)), None)


def memory_gib(kind: str) -> float:
    """Returns the memory of a device that calls itself so, infinite if it is not known."""
    chip = of_kind(kind)
    if chip is not None:
        return chip.hbm_gib
    return CPU_GIB if kind == "cpu" else math.inf
