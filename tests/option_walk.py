"""Walks over every leaf option of a configuration and changes one at a time."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal


class Leaf(typing.NamedTuple):
    """An option of a configuration."""

    name: str
    """Dotted, as on the command line."""
    changed: tuple[Any, ...]
    """The whole configuration with other values of this option, or the errors that refuse them."""


def leaves(config: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yields every leaf of a configuration with the configurations that differ in it alone."""
    hints = typing.get_type_hints(type(config), include_extras=False)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"

        def put(new: Any, field: dataclasses.Field = field) -> Any:
            try:
                return dataclasses.replace(config, **{field.name: new})
            except ValueError as error:
                return error

        if dataclasses.is_dataclass(value):
            for leaf in leaves(value, f"{name}."):
                changed = (one if isinstance(one, ValueError) else put(one) for one in leaf.changed)
                yield Leaf(leaf.name, tuple(changed))
        others = tuple(put(new) for new in other_values(value, hints[field.name]))
        if not dataclasses.is_dataclass(value) or others:
            yield Leaf(name, others)


def other_values(value: Any, hint: Any) -> list[Any]:
    """Returns some values of a type but for the given one."""
    found: list[Any] = []
    for kind in _members(hint):
        found += _values(value, kind)
    return [one for one in found if type(one) is not type(value) or one != value]


def _members(hint: Any) -> list[Any]:
    """Returns what a union is made of."""
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for member in typing.get_args(hint) for part in _members(member)]
    return [hint]


def _values(value: Any, kind: Any) -> list[Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return [None]
    if origin is type:
        return list(inner)
    if origin is Literal:
        return list(inner)
    if origin is tuple:
        return _tuples(value, inner)
    if dataclasses.is_dataclass(kind):
        return [] if isinstance(value, kind) else _instances(kind)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return list(kind)
    if typing.get_origin(kind) is dict:  # Weights by the names of scores.
        return [{**value, name: weight + 1.0} for name, weight in value.items()]
    if kind is bool:
        return [True, False]
    if kind is int:
        base = value if type(value) is int else 1
        return [base + 1, 2 * base + 2, base + 32, max(base - 1, 0), 8]
    if kind is float:
        base = value if type(value) is float else 1.0
        return [0.5 * base + 0.01, base + 1.0, 2.0 * base + 0.1, 8.0]
    if kind is Path:
        return [Path("elsewhere")]
    if kind is str:
        return ["1:2", "val", "wandb", "box"]
    return []


def _instances(kind: Any) -> list[Any]:
    try:
        return [kind()]
    except TypeError:  # Without folders there are no data sets.
        return []


def _tuples(value: Any, inner: tuple[Any, ...]) -> list[Any]:
    several = inner[-1:] == (Ellipsis,)
    old = value if isinstance(value, tuple) else ()
    if several:
        more = [(*old, new) for new in other_values(None, inner[0])[:2]]
        return [old[:-1], *more] if old else more
    if not old and inner:
        firsts = [other_values(None, kind) for kind in inner]
        return [tuple(some[0] for some in firsts)] if all(firsts) else []
    given = list(old)
    out = []
    for place, kind in enumerate(inner):
        for new in other_values(given[place], kind):
            out.append((*given[:place], new, *given[place + 1 :]))
    return out
