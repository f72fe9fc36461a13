"""Walks over the options of a program: each changes what its stages receive, or is refused."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import option_walk


class Notes:
    """Notes what stages receive from a program that is started anew for each fingerprint."""

    def __init__(
        self,
        patch: Any,
        folder: Path,
        *,
        before: Callable[[Any], None] = lambda config: None,
        after: Callable[[Any], None] = lambda status: None,
    ):
        """Takes pytest's `monkeypatch`, a folder to work in, and what is done around a start."""
        self._patch, self._folder, self._before, self._after = patch, folder, before, after
        self._parts: list[Any] = []

    def __call__(self, name: str, *values: Any) -> None:
        """Notes values under a name."""
        self._parts.append((name, *map(plain, values)))

    def of(self, program: Any, config: Any) -> tuple[Any, ...]:
        """Returns what the stages of a program receive."""
        self._parts = []
        self._patch.chdir(tempfile.mkdtemp(dir=self._folder))  # None sees the folders of another.
        self._before(config)
        self._after(program.main(config))
        return tuple(self._parts)


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
