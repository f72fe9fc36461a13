"""Walks over the options of a program: each changes what its stages receive, or is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import option_walk


class Fingerprint:
    """What the builders of a run have received."""

    def __init__(self):
        self.parts: list[Any] = []

    def note(self, name: str, *values: Any) -> None:
        self.parts.append((name, *map(plain, values)))


def plain(value: Any) -> Any:
    """Returns plain values to compare; what has no options is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__qualname__, *(plain(v) for v in vars(value).values())
    if isinstance(value, dict):
        return tuple((key, plain(one)) for key, one in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return value if isinstance(value, str | int | float | bool | Path | None) else repr(value)


def walk(fingerprint, program, base, *, parts=("",), aliases=()):
    """Asserts of every option that it changes what the run is built from, or is refused.

    Args:
      fingerprint: (program, configuration) -> what the run is built from.
      program: to start.
      base: the configuration whose options are changed one by one.
      parts: beginnings of the names of the options.
      aliases: options one of whose values says what the configuration says already: of these some
        other value has to act.
    """
    wanted = fingerprint(program, base)
    assert wanted == fingerprint(program, base), "the fingerprint must not vary by itself"
    for leaf in option_walk.leaves(base):
        if not leaf.name.startswith(tuple(parts)):
            continue
        assert leaf.changed, f"{leaf.name}: this test knows no other value of its type"
        refused = False
        for changed in leaf.changed:
            if says_the_same(changed, base):
                continue
            got = refusal(fingerprint, program, changed)
            if isinstance(got, str):
                assert "\n" not in got, f"{leaf.name}: refused in several lines: {got}"
                refused = True
                continue
            if got == wanted and leaf.name in aliases:
                continue
            assert got != wanted, f"{leaf.name}: read and dropped"
            break
        else:
            assert refused or leaf.name not in aliases, f"{leaf.name}: no value acts"


def says_the_same(changed, base):
    """Returns whether a value is another way to say what the run says: None, for a default."""
    if isinstance(changed, ValueError) or not hasattr(base, "completed"):
        return False
    try:
        return changed.completed() == base.completed()
    except ValueError:
        return False


def refusal(fingerprint, program, changed):
    """Returns why a configuration is refused, or the fingerprint of its run."""
    if isinstance(changed, ValueError):
        return str(changed)
    try:
        return fingerprint(program, changed)
    except ValueError as error:
        return str(error)
