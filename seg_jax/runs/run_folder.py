"""The folder of a run: held by one process at a time, resumed by the same configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from seg_jax import files, locks
from seg_jax.runs import console, noted_models, user_functions
from seg_jax.runs.user_functions import UserFunction

RECORD = "config.json"
MADE = (
    RECORD,
    noted_models.RECORD,
    user_functions.RECORD,
    user_functions.TEXTS,
    "metrics.jsonl",
    "summary.json",
    "report.html",
    "gallery.png",
    "tensorboard",
    "wandb",
    "panels",
    "profile",
    "tokenizer",
    "state",
    "checkpoint",
    "sft",
)
"""What programs make in the folder of a run; a folder with anything else is never removed."""


@contextlib.contextmanager
def hold(
    folder: Path,
    config: Any,
    *,
    resume: bool,
    anew: bool,
    reads: Collection[Path] = (),
    models: Mapping[str, Path] | None = None,
    rewards: Collection[UserFunction] = (),
) -> Iterator[None]:
    """Holds the folder of a run for this process, made for it or found to be of its configuration.

    Args:
      folder: of the run.
      config: of the run.
      resume: whether a run is to go on.
      anew: whether a run is to be replaced.
      reads: folders that the run reads from, and so may not replace.
      models: those that it reads, by the names of their options: to go on they must hold what they
        held when the run began.
      rewards: functions of the user that it is rewarded by: so must their texts.

    Raises:
      ValueError: another process works in the folder, it holds a run and neither or both were
        asked for, another configuration's run is to be resumed, a model or the text of a function
        is another one, it is a file, or an address such as gs://bucket/run.
      OSError: the folder cannot be made.
    """
    if re.match(r"[a-z][a-z0-9]+:/", str(folder)):
        # As a path it would be a new folder here, and another one on each host of a pod.
        raise ValueError(
            f"out: expected a folder, got the address {str(folder).replace(':/', '://', 1)}; "
            "do: mount the bucket (gcsfuse BUCKET FOLDER) on every host and give a folder in it"
        )
    if resume and anew:
        raise ValueError("run: expected one of --resume and --anew, got both; do: give one")
    models = models or {}
    for one in (*models.values(), *reads) if anew else ():
        if one.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder}: expected a folder that the run does not read from, got --anew, which "
                f"would remove {one}; do: choose another --out"
            )
    files.make_folder(folder, "the run")
    with locks.hold(folder / locks.NAME, place=folder):
        begins = anew or not _contents(folder)
        _claim(folder, plain(config), resume=resume, anew=anew)
        try:
            noted_models.note(folder, models)
            user_functions.note(folder, rewards, option="reward")
            yield
        except ValueError:
            if begins:
                _forget(folder)
            raise


def _claim(folder: Path, wanted: dict[str, Any], *, resume: bool, anew: bool) -> None:
    """Writes the record of a run, or checks the one that is there."""
    record = folder / RECORD
    if anew:
        _remove(folder)
    if _contents(folder):
        if not resume:
            raise ValueError(
                f"{folder}: expected a new folder, got one with files in it; "
                "do: go on with --resume, replace the run with --anew, or choose another --out"
            )
        _check_same(record, wanted)
        return
    files.write_json(record, wanted)


def _forget(folder: Path) -> None:
    """Removes the records of a run that ended before it wrote anything: it may begin corrected."""
    noted = (RECORD, noted_models.RECORD, user_functions.RECORD, user_functions.TEXTS)
    records = [folder / name for name in noted]
    if {*_contents(folder)} <= {*records}:
        for record in records:
            files.remove(record)


def _contents(folder: Path) -> list[Path]:
    """Returns what lies in a folder beside its lock."""
    return sorted(path for path in folder.iterdir() if path.name != locks.NAME)


def plain(value: Any) -> Any:
    """Returns a configuration as values that JSON knows; unions carry the name of their class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def check_json(path: Path | None) -> None:
    """Raises at once what would keep numbers from being written after minutes of work.

    Raises:
      OSError: the path is a folder, or its folder cannot be made.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(
                f"{path}: expected a file for --json, got a folder; do: name a file"
            )


def tell_json(value: Any, path: Path | None) -> None:
    """Writes numbers to the file, or to standard output without one."""
    if path is None:
        console.tell_json(value, indent=2)
    else:
        files.write_json(path, value)


def versions() -> dict[str, str]:
    """Returns the versions and the device that numbers come from."""
    import flax
    import jax
    import numpy
    import optax

    import seg_jax

    device = jax.devices()[0]
    return {
        "seg-jax": seg_jax.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": numpy.__version__,
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "machine": platform.machine(),
    }


@functools.cache
def commit() -> str:
    """Returns the commit of the code, `+` behind it where files differ; empty outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    command += ["--exclude=*", "--abbrev=12"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return process.stdout.strip()


# Where a run lies, how it was asked for, what is told of it and the machines that it works on do
# not make it another run.
_FREE = (
    "resume",
    "anew",
    "out",
    "checkpoint",
    "log",
    "panel_every",
    "probe",
    "reward",  # By its text, which is noted beside.
    "kept",
    "mesh",
    "offload",
    "processes",
    "profile",
)


def _check_same(record: Path, wanted: dict[str, Any]) -> None:
    if not record.exists():
        raise ValueError(
            f"{record.parent}: expected a run to resume, got a folder without {RECORD}; "
            "do: choose another --out"
        )
    saved = _renamed(files.read_json_object(record, advice="start anew with --anew"))
    differing = sorted(_differences(saved, wanted))
    if strange := sorted((saved.keys() ^ wanted.keys()) - set(_FREE)):
        raise ValueError(
            f"{record.parent}: expected a run of this version of seg-jax, got one with other "
            f"options ({', '.join(strange[:4])}); do: finish it with the version that began it, "
            "train on from its checkpoint in a new --out, or start --anew"
        )
    if differing:
        raise ValueError(
            f"{record.parent}: expected the configuration that the run began with, got another "
            f"{', '.join(differing[:4])}; do: resume with the same options or start --anew"
        )


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a run with the options of earlier versions by their names of today."""
    layout, task = record.get("layout"), record.get("task")
    if not (layout and task and isinstance(layout, dict) and isinstance(task, dict)):
        return record
    layout, task = dict(layout), dict(task)
    if "window_cells" in layout:
        layout["window_tokens"] = layout.pop("window_cells")
    renamed = {**record, "layout": layout, "task": task}
    if "mixture" in renamed:  # The questions of reinforcement stood beside the task.
        task["mixture"] = renamed.pop("mixture")
    if isinstance(weights := renamed.get("weights"), dict):  # They were a class of their own.
        renamed["weights"] = {name: one for name, one in weights.items() if name != "class"}
    return renamed


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if key not in _FREE]
        return [
            difference
            for key in keys
            for difference in _differences(
                one.get(key), other.get(key), f"{name}.{key}".lstrip(".")
            )
        ]
    return [] if one == other else [name]


def _remove(folder: Path) -> None:
    """Removes the folder of a run.

    Raises:
      ValueError: it holds something that no run has made.
    """
    names = [path.name for path in _contents(folder)]
    foreign = [name for name in names if not _is_made(name)]
    if not foreign and names and not _is_run(folder / RECORD):
        foreign = [RECORD if RECORD in names else names[0]]
    if foreign:
        raise ValueError(
            f"{folder}: expected the folder of a run, got other files ({', '.join(foreign[:4])}); "
            "do: remove it yourself or choose another --out"
        )
    # The record goes last: what an interrupted removal leaves is still known as a run.
    for path in sorted(_contents(folder), key=lambda path: path.name == RECORD):
        files.remove(path)


def _is_made(name: str) -> bool:
    """Returns whether a run makes files of this name, or their halves before they are whole."""
    if name.startswith(".") and name.endswith(".tmp"):
        name = name[1:].rsplit(".", 2)[0]
    for end in (".tmp", ".partial", ".old"):
        name = name.removesuffix(end)
    return name in MADE or name == "metrics"


def _is_run(record: Path) -> bool:
    """Returns whether a file is the record of a run, and not a model's config.json."""
    try:
        saved = files.read_json(record)
    except ValueError:
        return False
    return isinstance(saved, dict) and {"class", "out", "resume", "anew"} <= saved.keys()
