"""The log of a run: one JSON line per record, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.util
import io
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from seg_jax import files, schemas


@dataclasses.dataclass(frozen=True, kw_only=True)
class Board:
    """Where the numbers go beside the folder of the run."""

    wandb: bool = False
    """Send them to Weights & Biases too; it needs `pip install wandb` and an account."""
    project: str = "seg-jax"
    """Name of the project at Weights & Biases."""

    def check(self) -> None:
        """Raises ValueError if the wanted package is not installed."""
        if self.wandb and importlib.util.find_spec("wandb") is None:
            raise ValueError(
                "log.wandb: expected the package wandb, got none; do: pip install wandb, or leave "
                "--log.wandb out: TensorBoard files are written in any case"
            )


class _Line(schemas.Record, frozen=True, kw_only=True):
    """A record of the log, as far as it says whose it is."""

    stage: str
    step: int


class Log:
    """Appends numbers to `metrics.jsonl` and to TensorBoard files in a folder."""

    def __init__(self, folder: Path, board: Board = Board()):
        # Not its SummaryWriter: that has a thread, which prints when the disk is full.
        from tensorboardX.event_file_writer import EventsWriter

        board_folder = folder / "tensorboard"
        board_folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._file = _open_lines(self._path)
        self._drop_torn_line()
        self._board = EventsWriter(str(board_folder / "events"))
        try:
            self._wandb = _wandb_run(folder, board) if board.wandb else None
        except BaseException:
            self._file.close()
            self._board.close()
            raise
        self._start = time.monotonic()

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step of a stage; numbers that are not finite become null.

        Raises:
          OSError: the disk is full, for example; no half of a line is left.
        """
        numbers = {name: float(value) for name, value in values.items()}
        clean = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        seconds = round(time.monotonic() - self._start, 3)
        record = {"stage": stage, "step": step, "seconds": seconds, **clean}
        self._append(f"{json.dumps(record)}\n".encode())
        self._board.write_event(_event(stage, step, numbers))
        self._board.flush()
        if self._wandb is not None:
            named = {f"{stage}/{name}": value for name, value in numbers.items()}
            self._wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._wandb.log(named | {f"{stage}/step": step})

    def forget_after(self, stage: str, step: int) -> None:
        """Removes a stage's records beyond a step: a resumed run will write them again.

        What is no record stays. Where they are the last ones, the file is cut in its place, so that
        who follows or writes it goes on.
        """
        with self._alone():
            lines = _all_bytes(self._file).splitlines(keepends=True)
            kept = [line for line in lines if not _is_beyond(line, stage, step)]
            if lines[: len(kept)] == kept:
                self._file.truncate(sum(map(len, kept)))
                return
            files.write_bytes(self._path, b"".join(kept))

    def _append(self, line: bytes) -> None:
        with self._alone():
            size = os.fstat(self._file.fileno()).st_size
            try:
                if (written := self._file.write(line)) != len(line):
                    self._file.write(line[written:])  # Says why there was no room for it.
            except OSError as error:
                self._file.truncate(size)
                raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _drop_torn_line(self) -> None:
        """Removes a last line without a line end, as a killed process leaves it."""
        with self._alone():
            data = _all_bytes(self._file)
            if data and not data.endswith(b"\n"):
                self._file.truncate(data.rfind(b"\n") + 1)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other writers of the file out, and finds the file if one has replaced it."""
        while True:
            file = self._file
            with contextlib.suppress(OSError):  # Its file system knows no locks.
                fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    break
            file.close()
            self._file = _open_lines(self._path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Flushes and closes all files, even if one of them finds a full disk."""
        with contextlib.ExitStack() as closing:
            if self._wandb is not None:
                closing.callback(self._wandb.finish)
            closing.callback(self._file.close)
            closing.callback(self._board.close)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SilentLog(Log):
    """A log that nothing is written to, for all processes of a run but the first."""

    def __init__(self):
        """Opens no file."""

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Does nothing."""

    def forget_after(self, stage: str, step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _event(stage: str, step: int, numbers: Mapping[str, float]) -> Any:
    """Returns the numbers as TensorBoard wants them."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    event = Event(wall_time=time.time(), step=step)
    for name, value in numbers.items():
        # Not its `scalar`, which prints a warning for NaN.
        event.summary.value.add(tag=f"{stage}/{name}", simple_value=value)
    return event


def _wandb_run(folder: Path, board: Board) -> Any:
    """Returns the folder's run at Weights & Biases: a new one, or the same one after a resume."""
    board.check()
    import wandb  # pyright: ignore[reportMissingImports]

    known = folder / "wandb" / "id"
    if not known.exists():
        known.parent.mkdir(exist_ok=True)
        files.write_text(known, secrets.token_hex(8))
    name = files.read_text(known, most=1000, advice="remove it to begin another run there")
    if not re.fullmatch(r"[\w-]{1,64}", name.strip()):
        raise ValueError(
            f"{known}: expected the name of a run at Weights & Biases, got "
            f"{schemas.short_repr(name)}; do: remove it to begin another run there"
        )
    name = name.strip()
    return wandb.init(project=board.project, id=name, resume="allow", dir=folder)


def _open_lines(path: Path) -> io.FileIO:
    """Opens a file whose writes reach the system at once, at its end."""
    return cast(io.FileIO, path.open("a+b", buffering=0))


def _all_bytes(file: io.FileIO) -> bytes:
    file.seek(0)
    return file.readall()


def _is_beyond(line: bytes, stage: str, step: int) -> bool:
    """Returns whether a line is a record of a stage beyond a step."""
    try:
        record = schemas.check(files.parse_json(line, where="line"), _Line, where="line")
    except ValueError:
        return False
    return record.stage == stage and record.step > step
