"""What processes need that a test starts."""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import compilation

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@functools.cache
def nursery() -> Any:
    """Returns the context of processes forked from one that has imported what takes long.

    A process of tests has one such for all, which has done nothing else.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "seg_jax.annotation.annotator", "lives"])
    # It finds modules by the environment only.
    given = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with mock.patch.dict(os.environ, given):
        forkserver.ensure_running()
    return context


def environment(devices: int, **changes: str) -> dict[str, str]:
    """Returns the environment of a process with so many virtual devices.

    Args:
      devices: of each process.
      changes: other variables.
    """
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "training")]
    given = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compilation.flags(devices),
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    return os.environ | given | changes


def for_tpus() -> dict[str, str]:
    """Returns the environment of a process whose programs for TPUs are measured, not run."""
    whole = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    return os.environ | whole | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
