"""Finds the experiments of the folder configs, in the repository or within the installed package.

Only the standard library is imported here, so that a command line is read quickly.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).resolve().parents[1]
NANO = _PACKAGE / "cli" / "nano_model"
"""The model that answers where none is named; its README.md says how it was made, what it can."""
QUICKSTART_START = _PACKAGE / "cli" / "quickstart_start"
"""A model that outlines with four points; configs/simpleseg/quickstart_start.py made it."""
CLICKSTART_START = _PACKAGE / "cli" / "clickstart_start"
"""The same with tokens for whole numbers and the tags of clicks; `seg-jax convert` made it."""
TOY_SAM2 = _PACKAGE / "cli" / "toy_sam2"
"""A small SAM 2 that draws the things of drawn scenes; configs/seg_r1/toy_sam2.py made it."""


def folder() -> Path:
    """Returns the folder configs: beside the package, or in it where a wheel is installed."""
    within = _PACKAGE / "configs"
    return within if within.is_dir() else _PACKAGE.parent / "configs"


def load(name: str) -> ModuleType:
    """Returns the module of an experiment.

    Args:
      name: its path in the folder, as "simpleseg/tiny_sft.py".
    """
    return _load(folder() / name)


def sibling(file: str, name: str) -> ModuleType:
    """Returns the module of another experiment in the folder of a configuration file.

    Args:
      file: `__file__` of the one that takes over from the other.
      name: of the other file.
    """
    return _load(Path(file).resolve().parent / name)


def run(path: Path, text: bytes, *, name: str) -> ModuleType:
    """Returns the module of a user's program, which is run.

    It stays: what reads the docstrings of its classes asks for their source.

    Args:
      path: of the program, for messages.
      text: of it.
      name: of the module.

    Raises:
      Exception: whatever the program raises; see `failure`.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    exec(compile(text, path, "exec"), vars(module))
    return module


def failure(path: Path, error: Exception) -> str:
    """Returns the line of a user's program that fails, and how, in one line."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == str(path):
            line = number
    place = f"{path}, line {line}" if line else f"{path}"
    said = " ".join(str(error).split())
    return f"{place}: {type(error).__name__}{f': {said}' if said else ''}"


@cache
def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"seg_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path}: expected a configuration file, got none; do: ls configs")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
