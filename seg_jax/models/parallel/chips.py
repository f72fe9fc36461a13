"""What chips can at best, by a short name or by what a device says it is."""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can at best.

    Source: Cloud TPU documentation, pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (memory,
    peak compute of bfloat16, interconnect of a chip in one direction, all links together); NVIDIA's
    data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU" and "H200 Tensor Core GPU" (dense
    bfloat16; NVLink, of PCIe cards PCIe, in one direction).
    """

    kind: str
    """What matches the kind that its devices tell of themselves, from the beginning."""
    hbm_gib: float
    flops: float
    """bfloat16 operations a second."""
    link: float
    """Bytes a second that leave a chip for its neighbours."""
    axes: int
    """Axes of the torus that chips are wired to; 0: all of a host to each other."""
    kept_gib: float = 0.26
    """Memory that the runtime keeps to itself (by a TPU compiler's own account: 258 MiB)."""


CHIPS: dict[str, Chip] = {
    "v4": Chip(r"TPU v4$", 32.0, 275e12, 300e9, 3),
    "v5e": Chip(r"TPU v5( lite|e)", 16.0, 197e12, 200e9, 2),
    "v5p": Chip(r"TPU v5p?$", 95.0, 459e12, 600e9, 3),
    "v6e": Chip(r"TPU v6( lite|e)", 32.0, 918e12, 400e9, 2),
    # Memory as the driver tells it. A context with its libraries takes about a GiB; how much of the
    # rest a process may have is for XLA_PYTHON_CLIENT_MEM_FRACTION to say.
    "a100": Chip(r"NVIDIA A100.*80GB", 79.1, 312e12, 300e9, 0, kept_gib=1.0),
    "a100-40": Chip(r"NVIDIA A100(?!.*80GB)", 39.4, 312e12, 300e9, 0, kept_gib=1.0),
    "h100": Chip(r"NVIDIA H100\b(?!.*PCIe)", 79.1, 989e12, 450e9, 0, kept_gib=1.0),
    "h100-pcie": Chip(r"NVIDIA H100 PCIe", 79.1, 756e12, 64e9, 0, kept_gib=1.0),
    "h200": Chip(r"NVIDIA H200\b", 141.0, 989e12, 450e9, 0, kept_gib=1.0),
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
