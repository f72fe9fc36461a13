"""Writes the checksums of a checkpoint before it appears, and compares its files with them.

Every process reads what it has written itself, before all say that they are done; the first one
reads the rest and writes the list, before the folder of the step gets its name. Two small files
that Orbax writes at the very end are added once the save is known to be over.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from seg_jax import checksums, files

_UNFINISHED = ".orbax-checkpoint-tmp"
"""End of the name of what Orbax has not finished."""
_METADATA = "_CHECKPOINT_METADATA"
_LATE = (_METADATA, "commit_success.txt")
"""Files that Orbax writes after the list."""


class Seal:
    """Makes the list of the checkpoint that is being saved; its methods are called by Orbax."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._step: int | None = None

    def begin(self, step: int) -> None:
        """Notes the step that is saved next."""
        self._step = step

    def barrier(self) -> Callable[..., None]:
        """Returns how the processes wait for each other: first each reads what it has written."""
        wait = ocp.multihost.get_barrier_sync_fn()

        def wait_for_all(*, key: str, timeout_ms: int) -> None:
            if "async_write_complete" in key:
                index, unfinished = jax.process_index(), self._unfinished()
                # Files of values, which nobody writes again; the first process merges their lists.
                own = [p for p in unfinished.glob(f"*/ocdbt.process_{index}/d/*") if p.is_file()]
                names = [path.relative_to(unfinished).as_posix() for path in own]
                sums = checksums.of_files(unfinished, names)
                # By the names that they will have: the parts of a step are unfinished folders too.
                sums = {name.replace(_UNFINISHED, ""): one for name, one in sums.items()}
                checksums.write(unfinished / f"{checksums.FILE}.{index}", sums)
            wait(key=key, timeout_ms=timeout_ms)

        return wait_for_all

    def close(self) -> None:
        """Writes the list into the unfinished folder of the step, on the first process."""
        unfinished = self._unfinished()
        known: checksums.Sums = {}
        for part in sorted(unfinished.glob(f"{checksums.FILE}.*")):
            known |= checksums.read(part)
            part.unlink()
        names = {name for name in checksums.files_of(unfinished) if name not in _LATE}
        known = {name: one for name, one in known.items() if name in names}
        rest = checksums.of_files(unfinished, names - known.keys())
        checksums.write(unfinished / checksums.FILE, known | rest)

    def end(self) -> None:
        """Adds the files that were written after the list; the save is over."""
        step, self._step = self._step, None
        if step is None or jax.process_index():
            return
        path = self._folder / str(step) / checksums.FILE
        if path.exists():
            late = checksums.of_files(path.parent, _LATE)
            checksums.write(path, checksums.read(path) | late)

    def _unfinished(self) -> Path:
        """Returns the folder in which the step is being written."""
        return next(self._folder.glob(f"{self._step}{_UNFINISHED}*"))


def find_damage(folder: Path) -> str:
    """Returns what is wrong with the files of a checkpoint; empty where nothing is.

    Every process reads its share of the bytes. A checkpoint of an older version has no list, and
    nothing is found.
    """
    if not (folder / checksums.FILE).exists():
        return f"{checksums.FILE}: expected a file, got none" if _promises_list(folder) else ""
    try:
        sums = checksums.read(folder / checksums.FILE)
    except ValueError as error:
        return str(error).removeprefix(f"{folder}/").partition("; do: ")[0]
    there = {name for name in checksums.files_of(folder) if name != checksums.FILE}
    unsealed = {*_LATE} - sums.keys()  # A save that was killed in its last moment.
    if strange := sorted(there - sums.keys() - unsealed):
        return f"{strange[0]}: expected no such file"
    if lost := sorted(name for name in unsealed if name not in there):
        return f"{lost[0]}: expected a file, got none"
    share = (jax.process_index(), jax.process_count())
    return checksums.find_damage(folder, sums, share=share) or ""


def hide_damaged_metadata(folder: Path) -> None:
    """Renames the damaged metadata of checkpoints: Orbax opens no folder that has such.

    Where they are missing it goes on, and `find_damage` tells of the checkpoint.
    """
    for path in folder.glob(f"*/{_METADATA}"):
        try:
            sums = checksums.read(path.parent / checksums.FILE)
        except ValueError:
            continue
        known = {name: one for name, one in sums.items() if name == _METADATA}
        if checksums.find_damage(path.parent, known):
            path.rename(path.with_name(f".{_METADATA}.damaged"))


def _promises_list(folder: Path) -> bool:
    """Returns whether a checkpoint was saved with a list."""
    try:
        found = files.read_json_object(folder / _METADATA)
    except ValueError:
        return False
    custom = found.get("custom_metadata")
    return isinstance(custom, dict) and "checksums" in custom
