"""Checkpoints of a run: state, position in the data and configuration, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain.checkpoint
import jax
import orbax.checkpoint as ocp

from seg_jax.training.state import State


class Checkpoints:
    """The checkpoints of one stage in a folder; the last `keep` are held.

    A checkpoint appears under its step only when it is complete: a killed save leaves none.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        # Orbax tells every save at INFO, and an error again with each of its tasks' tracebacks
        # beside raising it.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # What a killed save has left is removed.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)
        self._folder = folder

    def latest(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: State, iterator: Any, record: dict[str, Any]) -> None:
        """Saves state, position of the iterator and a record of plain values.

        Raises:
          OSError: the folder cannot be written, for one because the disk is full.
        """
        step = int(state.step)
        if step == self.latest():
            return
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=grain.checkpoint.CheckpointSave(iterator),
                    record=ocp.args.JsonSave(record),
                ),
            )

    def restore(self, like: State, iterator: Any) -> tuple[State, dict[str, Any]]:
        """Returns the newest state, laid out like the given one, and the record.

        The iterator is moved to where it stood.

        Raises:
          ValueError: there is no checkpoint, or it does not fit the state.
        """
        step = self.latest()
        if step is None:
            raise ValueError(
                f"{self._folder}: expected a checkpoint to resume, got none; start anew instead"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    data=grain.checkpoint.CheckpointRestore(iterator),
                    record=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # Damaged files make libraries fail in any way they can.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(
                f"{self._folder / str(step)}: expected a whole checkpoint of this run, got a "
                f"damaged or another one ({reason}); remove this folder to resume from the one "
                "before, or start anew"
            ) from error
        return restored["state"], restored["record"]

    def wait(self) -> None:
        """Returns when all saves have reached the disk.

        Raises:
          OSError: a save failed.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves and lets go of the folder.

        Raises:
          OSError: a save failed.
        """
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns the libraries' many words for a full disk into one OSError."""
        try:
            yield
        except Exception as error:
            text = str(error)
            full = os.strerror(errno.ENOSPC)
            if full in text or "RESOURCE_EXHAUSTED" in text:
                raise OSError(errno.ENOSPC, full, str(self._folder)) from error
            raise
