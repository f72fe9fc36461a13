"""Memory of the host: where the CPU computes, what XLA frees is kept for its next step."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

MOST_CORES = 8
"""All threads share one arena then; with more of them they would wait for each other."""
_ARENAS, _MAPPED, _TRIMMED, _PADDED = -8, -4, -1, -2
"""M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h."""


def keep_freed(devices: Path = Path("/dev")) -> bool:
    """Lets glibc keep freed memory for the process instead of handing it back, if that serves.

    XLA asks for the temporaries of a CPU program anew at every step, from threads whose arenas
    hand each large piece back at once: to map and clear it again took a tenth to a third of a
    training step's CPU time. To be called before the first thread begins. With an accelerator
    nothing changes: there the weights pass through the host once, and it wants them back.

    Args:
      devices: where the system shows its devices.

    Returns:
      Whether it was done: not without glibc, beside a TPU or GPU that JAX may use, or with more
      than `MOST_CORES`.
    """
    if sys.platform != "linux" or not _computes_on_cpu(devices):
        return False
    if len(os.sched_getaffinity(0)) > MOST_CORES:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # Another libc: musl has no such switches.
        return False
    wanted = ((_ARENAS, 1), (_MAPPED, 0), (_TRIMMED, -1), (_PADDED, 2**26))  # -1: never trimmed.
    return all(mallopt(name, value) for name, value in wanted)


def _computes_on_cpu(devices: Path) -> bool:
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not (has_tpu(devices) or has_nvidia_gpu(devices) or (devices / "kfd").exists())


def has_tpu(devices: Path) -> bool:
    """Returns whether the system shows a TPU among its devices."""
    return any([*devices.glob("accel*"), *devices.glob("vfio/*")])


def has_nvidia_gpu(devices: Path) -> bool:
    """Returns whether the system shows an NVIDIA GPU among its devices."""
    return any((devices / name).exists() for name in ("nvidiactl", "dxg"))
