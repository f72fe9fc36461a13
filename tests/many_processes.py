"""Starts a program as several processes of one machine, which speak by gloo, and waits for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environment(devices: int, cache: Path | None = None, **changes: str) -> dict[str, str]:
    """Returns the environment of a process with so many virtual devices.

    Args:
      devices: of each process.
      cache: folder of compiled programs, which makes later starts quick.
      changes: other variables.
    """
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "training")]
    given = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PJRT_NPROC": "64",
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    if cache is not None:
        given |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return os.environ | given | changes


def for_tpus() -> dict[str, str]:
    """Returns the environment of a process whose programs for TPUs are measured, not run."""
    whole = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    return os.environ | whole | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}


class Group:
    """Processes of one run."""

    def __init__(self, count: int, arguments: list[str], given: dict[str, str], folder: Path):
        """Starts `python ARGUMENTS --processes...`; what each tells goes to FOLDER/INDEX."""
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / str(index) for index in range(count)]
        port = free_port()
        self.processes = []
        for index, output in enumerate(self.outputs):
            place = ["--processes.coordinator", f"localhost:{port}"]
            place += ["--processes.count", str(count), "--processes.index", str(index)]
            with output.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *arguments, *(place if count > 1 else [])],
                        env=given,
                        cwd=folder,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, timeout: float = 600) -> list[int]:
        """Returns the exit statuses; processes that outlast the timeout are killed."""
        end = time.monotonic() + timeout
        try:
            return [one.wait(max(0.1, end - time.monotonic())) for one in self.processes]
        finally:
            for one in self.processes:
                if one.poll() is None:
                    one.kill()
                    one.wait()

    def told(self, index: int) -> str:
        """Returns what a process has printed, without the greetings of gloo."""
        lines = self.outputs[index].read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))


def await_file(path: Path, group: Group, timeout: float = 120) -> None:
    """Returns when a file is there; fails if a process of the group ends before."""
    end = time.monotonic() + timeout
    while not path.exists():
        ended = [one.poll() for one in group.processes]
        assert time.monotonic() < end, f"no {path}: {[*map(group.told, range(len(ended)))]}"
        assert not any(ended), [*map(group.told, range(len(ended)))]
        time.sleep(0.05)
