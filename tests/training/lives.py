"""Programs that die young: each life is forked from a process that has imported everything."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import jax
import toy_process
import tyro

from seg_jax.cli import finetune, main, reinforce  # noqa: F401  Imported once for all lives.

_NURSERY = multiprocessing.get_context("forkserver")
_NURSERY.set_forkserver_preload(["lives"])


@functools.cache
def _open_nursery() -> None:
    """Starts the process that all are forked from; it finds modules by the environment only."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def toy(arguments: list[str]) -> int:
    """Runs the toy of `toy_process`."""
    toy_process.main(tyro.cli(toy_process.Config, args=arguments))
    return 0


def seg_jax(arguments: list[str]) -> int:
    """Runs the command line."""
    return main.main(arguments)


def _live(program: Callable, arguments: list[str], devices: int, cache: str, told: str) -> None:
    with Path(told).open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["PJRT_NPROC"] = "64"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    status = program(arguments)
    sys.stdout.flush()
    os._exit(status)


class Life:
    """A process of a program; it writes what it says to a file."""

    def __init__(
        self, program: Callable, arguments: list[str], *, devices: int, cache: Path, told: Path
    ):
        given = (program, arguments, devices, str(cache), str(told))
        _open_nursery()
        self._process: Any = _NURSERY.Process(target=_live, args=given)
        self._process.start()
        self._told = told

    def end(self, timeout: float = 600) -> None:
        """Waits for the good end."""
        self._process.join(timeout)
        status = self._process.exitcode
        self.kill()
        assert status == 0, (status, self._told.read_text(errors="replace")[-3000:])

    def dies_within(self, seconds: float) -> bool:
        """Kills it after so many seconds (SIGKILL); returns whether it was still alive."""
        self._process.join(seconds)
        alive = self._process.exitcode is None
        self.kill()
        assert self._process.exitcode in (0, -9), self._told.read_text(errors="replace")[-3000:]
        return alive

    def kill(self) -> None:
        """Kills it if it is alive."""
        self._process.kill()
        self._process.join()

    def stop(self, number: int, timeout: float = 60) -> int:
        """Sends a signal; returns the exit status."""
        os.kill(self._process.pid, number)
        self._process.join(timeout)
        status = self._process.exitcode
        self.kill()
        return status


def await_step(folder: Path, step: int, timeout: float = 300) -> None:
    """Returns when a checkpoint of the step or a later one is whole."""
    end = time.monotonic() + timeout
    while not any(int(path.name) >= step for path in folder.glob("*") if path.name.isdigit()):
        assert time.monotonic() < end, f"no step {step} in {folder}"
        time.sleep(0.02)


def without_last(folder: Path, copy: Path, state: str, count: int) -> None:
    """Copies a run as it was before its last checkpoints."""
    shutil.copytree(folder, copy)
    steps = sorted(int(path.name) for path in (copy / state).glob("*") if path.name.isdigit())
    for step in steps[-count:]:
        shutil.rmtree(copy / state / str(step))
