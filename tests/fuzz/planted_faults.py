"""Readers with one fault each, to which the harness is held: prints what it found of each."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import byte_mutations
import harness
from harness import Format


def _slow(folder: Path) -> None:
    """Computes for longer than a case may, and stops for no ordinary error."""
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))


def _allocates(folder: Path) -> None:
    bytearray(2 * harness.MEMORY_BYTES)


def _prints(folder: Path) -> None:
    os.write(2, b"\x1b]0;OWNED\x07\n")


def _writes_elsewhere(folder: Path) -> None:
    stray = folder.parents[1] / f"seg-jax-stray-{os.getpid()}"
    stray.touch()
    stray.unlink()


def _raises(error: Callable[[Path], BaseException]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        raise error(folder)

    return read


class Panic(BaseException):
    """As a library in Rust raises."""


READERS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "a line": _raises(lambda folder: ValueError(f"{folder}/a: expected 1, got 2; do: write 1")),
    "a missing file": lambda folder: (folder / "none").read_bytes(),
    "a type": _raises(lambda folder: TypeError("no")),
    "a form": _raises(lambda folder: ValueError("no")),
    "a control character": _raises(lambda f: ValueError("a: expected 1, got \x1b[; do: go")),
    "a long line": _raises(lambda f: ValueError(f"a: expected 1, got {'x' * 5000}; do: go")),
    "an error while it tells": lambda folder: (int(one) for one in "12x"),
    "a panic": _raises(lambda folder: Panic("no")),
    "slow": _slow,
    "asleep": lambda folder: time.sleep(1000),
    "large": _allocates,
    "a crash": lambda folder: ctypes.string_at(0),
    "an exit": lambda folder: os._exit(3),
    "a terminal": _prints,
    "a file elsewhere": _writes_elsewhere,
    "a program": lambda folder: subprocess.run(["true"], check=False),
}


def main() -> None:
    """Prints the kinds of what was found, by reader, as JSON."""
    harness.CPU_SECONDS, harness.STALLED_SECONDS, harness.MEMORY_BYTES = 0.5, 5.0, 1 << 26
    found = {}
    for name, read in READERS.items():
        form = Format(
            name=name,
            make=lambda folder: (folder / "a").write_bytes(b"abc"),
            mutations={"*": byte_mutations.mutated},
            read=read,
        )
        outcome = harness.run(form, harness.valid_files(form), range(2), seed=0)
        found[name] = {
            "read": outcome.read,
            "refused": outcome.refused,
            "kinds": [finding.kind for finding in outcome.findings],
            "numbers": [finding.number for finding in outcome.findings],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
