"""The folder of a run: claimed by one configuration, resumed by the same, never mixed."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from pathlib import Path
from typing import Any

RECORD = "config.json"


def claim(folder: Path, config: Any, *, resume: bool, anew: bool) -> None:
    """Makes the folder of a run, or makes sure that a resumed one is of this configuration.

    Raises:
      ValueError: the folder holds a run and neither or both were asked for, or another
        configuration's run is to be resumed.
      OSError: the folder cannot be made.
    """
    if resume and anew:
        raise ValueError("expected one of --resume and --anew, got both")
    record = folder / RECORD
    wanted = plain(config)
    if anew and folder.exists():
        _remove(folder)
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise ValueError(
                f"{folder}: expected a new folder, got one with files in it; "
                "go on with --resume, replace the run with --anew, or choose another --out"
            )
        _check_same(record, wanted)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, wanted)


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


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file, or None if there is none.

    Raises:
      ValueError: the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; start anew with --anew") from error


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
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": numpy.__version__,
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "machine": platform.machine(),
    }


# Where a run lies and how it was asked for do not make it another run.
_FREE = ("resume", "anew", "out", "checkpoint")


def _check_same(record: Path, wanted: dict[str, Any]) -> None:
    found = read_json(record)
    if not isinstance(found, dict):
        raise ValueError(
            f"{record.parent}: expected a run to resume, got a folder without {RECORD}; "
            "choose another --out"
        )
    differing = sorted(_differences(found, wanted))
    if differing:
        raise ValueError(
            f"{record.parent}: expected the configuration that the run began with, got another "
            f"{', '.join(differing[:4])}; resume with the same options or start --anew"
        )


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {*one, *other} if key not in _FREE]
        return [
            found
            for key in keys
            for found in _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if one == other else [name]


def _remove(folder: Path) -> None:
    if any(folder.iterdir()) and not (folder / RECORD).exists():
        raise ValueError(
            f"{folder}: expected the folder of a run, got other files; remove it yourself or "
            "choose another --out"
        )
    shutil.rmtree(folder)
