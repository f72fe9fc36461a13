"""The log of a run: one JSON line per record, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path


class Log:
    """Appends numbers to `metrics.jsonl` and to TensorBoard files in a folder."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_torn_line(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._start = time.monotonic()

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends the values of a step of a stage; numbers that are not finite become null."""
        numbers = {name: float(value) for name, value in values.items()}
        clean = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        seconds = round(time.monotonic() - self._start, 3)
        record = {"stage": stage, "step": step, "seconds": seconds, **clean}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)

    def forget_after(self, stage: str, step: int) -> None:
        """Removes a stage's records beyond a step: a resumed run will write them again."""
        self._file.close()
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["stage"] != stage or record["step"] <= step:
                kept.append(line + "\n")
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Flushes and closes the files."""
        self._board.close()
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_torn_line(path: Path) -> None:
    """Cuts a last line without its end, as a killed process leaves it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
