"""Checkpoints of a run: state, position in the data and configuration, whole or not at all."""

from __future__ import annotations

import logging
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
        # Orbax tells every save at INFO; errors still come through.
        logging.getLogger("absl").setLevel(logging.ERROR)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
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
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                data=grain.checkpoint.CheckpointRestore(iterator),
                record=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["record"]

    def wait(self) -> None:
        """Returns when all saves have reached the disk.

        Raises:
          OSError: a save failed.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves and lets go of the folder."""
        self._manager.close()
