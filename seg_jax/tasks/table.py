"""The tasks by their names, and their options as plain values: how a task is stored and read."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from seg_jax import schemas
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Referring, Prompted)}
"""The tasks of the package; a new one is a line here, one of a user is handed over."""


def as_json(task: Task) -> dict[str, Any]:
    """Returns the name of a task and its options as plain values."""
    return {"name": task.name, **dataclasses.asdict(typing.cast(Any, task))}


ADVICE = "give the checkpoint folder of a training run"


def from_json(saved: Mapping[str, Any], own: type[Task] | None = None, *, where: str = "") -> Task:
    """Returns the task that `as_json` wrote; an option that is not there has its default.

    Args:
      saved: what was written; without a name, as in older folders, it is referring.
      own: a task that is not one of the package.
      where: what a message begins with, as the path of the file and a comma.

    Raises:
      ValueError: no such task is known, or an option is none of its.
    """
    values = dict(saved)
    name = values.pop("name", Referring.name)
    known = TASKS if own is None else TASKS | {own.name: own}
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{where}task: expected one of {', '.join(known)}, got {schemas.short_repr(name)}; do: "
            "give a configuration file whose configuration has this task"
        )
    kind = schemas.record_of(known[name])
    stored = schemas.check(values, kind, where=f"{where}task", advice=ADVICE)
    return _options(known[name], stored)


def _options(kind: type, stored: schemas.Record) -> Any:
    """Returns a dataclass of options from those that are stored."""
    values = {name: getattr(stored, name) for name in stored.__struct_fields__}
    types = typing.get_type_hints(kind)
    return kind(
        **{
            name: _options(types[name], value) if isinstance(value, schemas.Record) else value
            for name, value in values.items()
            if value is not msgspec.UNSET
        }
    )
