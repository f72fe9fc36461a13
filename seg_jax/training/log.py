"""The log of a run: one JSON line per record, and the same numbers for TensorBoard."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seg_jax import files


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


class Log:
    """Appends numbers to `metrics.jsonl` and to TensorBoard files in a folder."""

    def __init__(self, folder: Path, board: Board = Board()):
        # Not its SummaryWriter: that has a thread, which prints when the disk is full.
        from tensorboardX.event_file_writer import EventsWriter

        board_folder = folder / "tensorboard"
        board_folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = EventsWriter(str(board_folder / "events"))
        self._wandb = _wandb_run(folder, board) if board.wandb else None
        self._start = time.monotonic()

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step of a stage; numbers that are not finite become null."""
        numbers = {name: float(value) for name, value in values.items()}
        clean = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        seconds = round(time.monotonic() - self._start, 3)
        record = {"stage": stage, "step": step, "seconds": seconds, **clean}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._board.write_event(_event(stage, step, numbers))
        self._board.flush()
        if self._wandb is not None:
            named = {f"{stage}/{name}": value for name, value in numbers.items()}
            self._wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._wandb.log(named | {f"{stage}/step": step})

    def forget_after(self, stage: str, step: int) -> None:
        """Removes a stage's records beyond a step: a resumed run will write them again."""
        self._file.close()
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["stage"] != stage or record["step"] <= step:
                kept.append(line + "\n")
        files.write_text(self._path, "".join(kept))
        self._file = self._path.open("a", encoding="utf-8")

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
    from tensorboardX.summary import scalar

    event = Event(wall_time=time.time(), step=step)
    for name, value in numbers.items():
        event.summary.MergeFrom(scalar(f"{stage}/{name}", value))
    return event


def _wandb_run(folder: Path, board: Board) -> Any:
    """Returns the folder's run at Weights & Biases: a new one, or the same one after a resume."""
    board.check()
    import wandb  # pyright: ignore[reportMissingImports]

    known = folder / "wandb" / "id"
    if not known.exists():
        known.parent.mkdir(exist_ok=True)
        known.write_text(secrets.token_hex(8), encoding="utf-8")
    name = known.read_text(encoding="utf-8")
    return wandb.init(project=board.project, id=name, resume="allow", dir=folder)


def _drop_torn_line(path: Path) -> None:
    """Removes a last line without a line end, as a killed process leaves it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
