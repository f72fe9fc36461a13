"""The tasks by their names, and their options as plain values: how a task is stored and read."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Referring,)}
"""The tasks of the package; a new one is a line here, one of a user is handed over."""


def as_json(task: Task) -> dict[str, Any]:
    """Returns the name of a task and its options as plain values."""
    return {"name": task.name, **dataclasses.asdict(typing.cast(Any, task))}


def from_json(saved: Mapping[str, Any], own: type[Task] | None = None) -> Task:
    """Returns the task that `as_json` wrote; an option that is not there has its default.

    Args:
      saved: what was written; without a name, as in older folders, it is referring.
      own: a task that is not one of the package.

    Raises:
      ValueError: no such task is known, or an option is none of its.
    """
    values = dict(saved)
    name = values.pop("name", Referring.name)
    known = TASKS if own is None else TASKS | {own.name: own}
    if name not in known:
        raise ValueError(
            f"task: expected one of {', '.join(known)}, got {name!r}; do: give a configuration "
            "file "
            "whose configuration has this task"
        )
    return _options(known[name], values)


def _options(kind: type, values: Mapping[str, Any]) -> Any:
    """Returns a dataclass of options from plain values, each checked against its default's type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{unknown[0]} instead of one of {', '.join(sorted(fields))}")
    types = typing.get_type_hints(kind)
    groups = {name for name in fields if dataclasses.is_dataclass(types[name])}
    if missing := sorted(groups - values.keys()):
        raise ValueError(f"options without {missing[0]}")
    return kind(**{name: _option(name, value, types[name]) for name, value in values.items()})


def _option(name: str, value: Any, kind: Any) -> Any:
    """Returns an option of a type from its plain value."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _options(kind, dict(value))
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{name} {value!r} instead of one of {typing.get_args(kind)}")
    elif typing.get_origin(kind) is tuple:
        return tuple(value)
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} {value!r} instead of true or false")
    elif kind in (int, float):
        kinds = int if kind is int else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise ValueError(f"{name} {value!r} instead of a number")
    return value
