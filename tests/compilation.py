"""How programs of tests are compiled: quickly, but where they are to be compiled as users do."""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
from pathlib import Path

_EMITTERS = "xla_cpu_use_fusion_emitters"
"""Takes most of a compilation's time for CPUs; what comes in its place takes a fifth of it."""

_PARTS = "xla_cpu_parallel_codegen_split_count"
"""Programs of CPUs are cut into so many parts, each compiled by a thread; tests keep all cores busy
without."""

COLLECTED = (100_000, 20, 100)
"""Thresholds of garbage collection: seldom, as tracing makes much that lives."""


@functools.cache
def _knows(flag: str) -> bool:
    """Returns whether jaxlib knows a flag; an unknown one would end the process without a word.

    A flag is a text of its own in the library; a name that is kept of a removed one is not.
    """
    found = importlib.util.find_spec("jaxlib")
    assert found is not None
    for folder in found.submodule_search_locations or ():
        for path in Path(folder).glob("*.so"):
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as held:
                if held.find(b"\0" + flag.encode() + b"\0") >= 0:
                    return True
    return False


def flags(devices: int) -> str:
    """Returns the flags of XLA for quick compilation and so many virtual CPU devices."""
    given = [f"--xla_force_host_platform_device_count={devices}"]
    before = os.environ.get("XLA_FLAGS", "").split()
    for flag, value in ((_EMITTERS, "false"), (_PARTS, "1")):
        if not any(flag in one for one in before) and _knows(flag):
            given.append(f"--{flag}={value}")
    # The last one of a name counts.
    return " ".join([*before, *given])


def as_users() -> dict[str, bool | int]:
    """Returns options for `jax.jit`: whatever a compiler may fuse, reorder or contract, it does."""
    emitters = {_EMITTERS: True} if _knows(_EMITTERS) else {}
    return emitters | {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    }
