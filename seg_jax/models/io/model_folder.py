"""Writes a model as a folder of a hub: its weights, its configuration, what travels with them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seg_jax import checksums, files
from seg_jax.models import families
from seg_jax.models.io import weights


def save(model: Any, folder: Path, *, source: Path | None = None) -> None:
    """Writes a model of any family, whole or not at all.

    Args:
      model: with its weights.
      folder: where to; what is there is replaced.
      source: folder of the files that travel with the weights; None: there are none.

    Raises:
      OSError: the folder cannot be written.
    """
    with replacing(folder) as temporary:
        write(model, temporary, source=source)


def write(model: Any, folder: Path, *, source: Path | None = None) -> None:
    """Writes a model into a folder of its own; arguments as of `save`."""
    weights.save(model, folder)
    if source is not None and source.is_dir():
        for path in families.companions(source):
            shutil.copy(path, folder / path.name)
        _keep_config(model, folder, source)


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of another when all in it is written.

    It gets checksums of its files.

    Raises:
      OSError: the folder cannot be written; what was there before stays.
    """
    temporary = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    with contextlib.suppress(OSError):
        files.remove(temporary)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        names = checksums.files_of(temporary)
        checksums.write(temporary / checksums.FILE, checksums.of_files(temporary, names))
        if folder.exists():
            with contextlib.suppress(OSError):
                files.remove(old)
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        with contextlib.suppress(OSError):
            files.remove(temporary)
        raise
    with contextlib.suppress(OSError):
        files.remove(old)


def _keep_config(model: Any, folder: Path, source: Path) -> None:
    """Keeps of the source's `config.json` what ours does not hold, where it is of this model."""
    try:
        before = families.read(source)
    except ValueError:  # A folder of a tokenizer alone.
        return
    if before == model.config:
        hub = families.copied_config(source, model.config)
        hub = families.with_dtype(hub, model.compute.param_dtype)
        files.write_json(folder / "config.json", hub)
