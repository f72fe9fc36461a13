"""Functions of a user's files, named FILE.py:FUNCTION: loaded, and kept in the folder of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from seg_jax import files, schemas
from seg_jax.runs import experiments

RECORD = "functions.json"
"""In the folder of a run: file, name and SHA-256 of the text of each function of the user."""
TEXTS = "functions"
"""Beside it, the texts of these files."""

_MOST_BYTES = 4 << 20


class UserFunction(NamedTuple):
    """A function of a file that a user has named."""

    title: str
    """As the user names it, FILE.py:FUNCTION."""
    path: Path
    name: str
    text: bytes
    """Text of the file, as it was run."""
    function: Callable[..., Any]

    @property
    def sha256(self) -> str:
        """Returns the SHA-256 of the text."""
        return hashlib.sha256(self.text).hexdigest()

    def failure(self, error: Exception) -> str:
        """Returns in one line where the function failed, and how."""
        return experiments.failure(self.path, error)


def load(title: str, *, option: str) -> UserFunction:
    """Returns a function of a file, which is run as a configuration is: it is the user's program.

    Args:
      title: FILE.py:FUNCTION.
      option: that names it, for messages.

    Raises:
      ValueError: there is no such file or function, or the file fails.
    """
    file, _, name = title.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ValueError(
            f"{option}: expected FILE.py:FUNCTION, got {title!r}; do: name a file and a function"
        )
    path = Path(file)
    expected, advice = "a Python file", f"correct --{option}"
    text = files.read_bytes(path, most=_MOST_BYTES, expected=expected, advice=advice)
    try:
        found = vars(_module(path, text)).get(name)
    except Exception as error:
        raise ValueError(
            f"{option}: expected a program that runs, got {experiments.failure(path, error)}; do: "
            "mend it"
        ) from error
    if not callable(found):
        got = "none" if found is None else type(found).__name__
        raise ValueError(
            f"{option}: expected a function {name} in {path}, got {got}; do: define it there, or "
            f"correct --{option}"
        )
    return UserFunction(title, path, name, text, found)


@cache
def _module(path: Path, text: bytes) -> ModuleType:
    """Returns the module of a file, which is run once however many of its functions are named."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return experiments.run(path, text, name=f"seg_jax_user_{path.stem}_{digest}")


class _Noted(schemas.Record, frozen=True, kw_only=True):
    """What the folder of a run keeps of a function."""

    file: schemas.Text
    function: schemas.Text
    sha256: schemas.Text
    kept: schemas.Text


def note(folder: Path, functions: Collection[UserFunction], *, option: str) -> None:
    """Compares functions with what a run has noted of them; what was not noted yet is noted now.

    A file that was moved is still the same. What it imports is not compared.

    Args:
      folder: of the run.
      functions: of the run, in order.
      option: that names them.

    Raises:
      ValueError: the text of a file, or a function, is another one than when the run began, or the
        note is damaged.
      OSError: the note cannot be written.
    """
    record = folder / RECORD
    if not record.exists():
        if functions:
            _write(folder, functions)
        return
    advice = "put it back from a copy, or start anew with --anew"
    found = schemas.check(
        files.read_json(record, advice=advice), list[_Noted], where=str(record), advice=advice
    )
    before, now = [one.function for one in found], [one.name for one in functions]
    if before != now:
        raise ValueError(
            f"{option}: expected {', '.join(before)}, as when the run in {folder} began, got "
            f"{', '.join(now) or 'none'}; do: name these, or begin another run with --anew or "
            "another --out"
        )
    for old, new in zip(found, functions, strict=True):
        if old.sha256 != new.sha256:
            raise ValueError(
                f"{option}: expected {new.path} as it was when the run in {folder} began, got "
                f"another text (SHA-256 {new.sha256[:12]}.. for {old.sha256[:12]}..); do: put the "
                f"old one back from {folder / old.kept}, or begin another run with --anew or "
                "another --out"
            )


def _write(folder: Path, functions: Collection[UserFunction]) -> None:
    (folder / TEXTS).mkdir(exist_ok=True)
    noted = []
    for number, one in enumerate(functions, 1):
        kept = f"{TEXTS}/{number}_{one.path.name}"
        files.write_bytes(folder / kept, one.text)
        noted.append(
            {"file": str(one.path), "function": one.name, "sha256": one.sha256, "kept": kept}
        )
    files.write_json(folder / RECORD, noted)
