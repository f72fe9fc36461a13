"""Programs in processes of their own: each life is forked from one that has imported everything."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compilation
import jax
import many_processes
import small_run  # noqa: F401  As the next ones: imported once for all lives.
import tensorboardX  # noqa: F401
import toy_process
import tyro

from seg_jax.cli import finetune, main, reinforce  # noqa: F401

# What is imported here lives as long as they do.
gc.freeze()
gc.set_threshold(*compilation.COLLECTED)


def toy(arguments: list[str]) -> int:
    """Runs the toy of `toy_process`."""
    toy_process.main(tyro.cli(toy_process.Config, args=arguments))
    return 0


def seg_jax(arguments: list[str]) -> int:
    """Runs the command line."""
    return main.main(arguments)


def _live(
    program: Callable, arguments: list[str], devices: int, cache: str | None, told: str
) -> None:
    for stream, path in ((1, f"{told}.out"), (2, told)):
        with Path(path).open("ab") as file:
            os.dup2(file.fileno(), stream)
    os.environ["XLA_FLAGS"] = compilation.flags(devices)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
    try:
        sys.exit(program(arguments))
    finally:
        # A script ends so; a fork leaves it out.
        atexit._run_exitfuncs()


class Life:
    """A process of a program; what it says on standard error goes to a file."""

    def __init__(
        self,
        program: Callable,
        arguments: list[str],
        *,
        devices: int,
        told: Path,
        cache: Path | None = None,
    ):
        """Starts it.

        Args:
          program: takes the arguments and returns the exit status.
          arguments: of the program.
          devices: (virtual) ones that it has.
          told: file for its standard error; FILE.out beside it gets the standard output, where
            threads of gloo greet each other, one within the line of another.
          cache: folder of compiled programs, that of all tests if left out. Who is killed may leave
            half a file there.
        """
        told.touch()
        given = (program, arguments, devices, cache and str(cache), str(told))
        self._process: Any = many_processes.nursery().Process(target=_live, args=given)
        self._process.start()
        self._told = told

    def poll(self) -> int | None:
        """Returns the exit status, None while it lives."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int | None:
        """Returns the exit status; None if it lives on after so many seconds."""
        self._process.join(timeout)
        return self._process.exitcode

    def send(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self._process.pid, number)

    def end(self, timeout: float = 600) -> None:
        """Waits for the good end."""
        status = self.wait(timeout)
        self.kill()
        assert status == 0, (status, self._told.read_text(errors="replace")[-3000:])

    def dies_within(self, seconds: float, folder: Path, step: int) -> bool:
        """Kills it after so many seconds (SIGKILL), or sooner if a checkpoint of the step is there.

        Returns whether it was still alive.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.exitcode is None and newest(folder) < step:
            self._process.join(0.02)
        alive = self._process.exitcode is None
        self.kill()
        assert self._process.exitcode in (0, -9), self._told.read_text(errors="replace")[-3000:]
        return alive

    def kill(self) -> None:
        """Kills it if it is alive."""
        self._process.kill()
        self._process.join()

    def stop(self, number: int, timeout: float = 60) -> int | None:
        """Sends a signal; returns the exit status."""
        self.send(number)
        status = self.wait(timeout)
        self.kill()
        return status


class Group:
    """Lives of one run on one machine, which speak by gloo."""

    def __init__(
        self,
        count: int,
        program: Callable,
        arguments: list[str],
        folder: Path,
        *,
        devices: int,
        cache: Path | None = None,
    ):
        """Starts the program so many times; what each tells goes to FOLDER/INDEX."""
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / str(index) for index in range(count)]
        port, self.lives = many_processes.free_port(), []
        for index, told in enumerate(self.outputs):
            place = ["--processes.coordinator", f"localhost:{port}"]
            place += ["--processes.count", str(count), "--processes.index", str(index)]
            given = [*arguments, *(place if count > 1 else [])]
            self.lives.append(Life(program, given, devices=devices, cache=cache, told=told))

    def wait(self, timeout: float = 600) -> list[int | None]:
        """Returns the exit statuses; lives that outlast the timeout are killed."""
        end = time.monotonic() + timeout
        try:
            return [one.wait(max(0.1, end - time.monotonic())) for one in self.lives]
        finally:
            for one in self.lives:
                one.kill()

    def told(self, index: int) -> str:
        """Returns what a life has said on standard error."""
        return self.outputs[index].read_text(errors="replace").rstrip("\n")

    def await_file(self, path: Path, timeout: float = 120) -> None:
        """Returns when a file is there; fails if a life ends before."""
        end = time.monotonic() + timeout
        while not path.exists():
            told = [*map(self.told, range(len(self.lives)))]
            assert time.monotonic() < end, f"no {path}: {told}"
            assert not any(one.poll() for one in self.lives), told
            time.sleep(0.05)


def newest(folder: Path) -> int:
    """Returns the last step whose checkpoint is whole, 0 without one."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def await_step(folder: Path, step: int, timeout: float = 300) -> None:
    """Returns when a checkpoint of the step or a later one is whole."""
    end = time.monotonic() + timeout
    while newest(folder) < step:
        assert time.monotonic() < end, f"no step {step} in {folder}"
        time.sleep(0.02)


def without_last(folder: Path, copy: Path, state: str, count: int) -> None:
    """Copies a run as it was before its last checkpoints."""
    shutil.copytree(folder, copy)
    steps = sorted(int(path.name) for path in (copy / state).glob("*") if path.name.isdigit())
    for step in steps[-count:]:
        shutil.rmtree(copy / state / str(step))
