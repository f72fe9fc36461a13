"""Checkpoints of a run: state, position in the data and configuration, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from seg_jax.models.io import orbax_params
from seg_jax.training import processes
from seg_jax.training.state import State

_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of a disk, which are looked for in the libraries' long messages."""


class Checkpoints:
    """The checkpoints of one stage in a folder that all processes share.

    The newest `keep` and the best `keep_best` are kept. A checkpoint appears under its step only
    when it is complete: a killed save leaves none. Saves run beside the steps that follow.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_best: int = 0):
        orbax_params.quieten_orbax()
        # What a killed save has left is removed.
        best = preservation.BestN(get_metric_fn=_score, n=keep_best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation.AnyPreservationPolicy(
                [preservation.LatestN(keep), best]
            ),
            best_fn=_score,
            create=True,
            cleanup_tmp_directories=True,
        )
        self._folder = folder
        with self._disk_errors():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step of the whole checkpoint with the highest score, or None."""
        return self._manager.best_step()

    def save(
        self, state: State, iterator: Any, record: dict[str, Any], *, score: float = 0.0
    ) -> None:
        """Saves state, position of the iterator and a record of plain values.

        Args:
          state: state of the run, over all processes.
          iterator: iterator of the batches; its position is JSON values, the same in all processes.
          record: other JSON values that are needed to resume.
          score: how good the checkpoint is, for keeping the best; higher is better.

        Raises:
          OSError: the folder cannot be written, for example because the disk is full.
        """
        step = int(state.step)
        if step == self.latest():
            return
        with self._disk_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(iterator.get_state()),
                    record=ocp.args.JsonSave(record),
                ),
                metrics={"score": score},
            )

    def restore(
        self, like: State, iterator: Any, *, warn: Callable[[str], None] = logging.warning
    ) -> tuple[State, dict[str, Any]]:
        """Returns the newest whole state, laid out like the given one, and its record.

        The iterator is moved to its position. Damaged checkpoints are passed over with a
        warning and moved to `damaged-STEP` once an older one was found good.

        Args:
          like: a state of the run on any mesh and any number of processes.
          iterator: iterator of the batches.
          warn: called with a line about each damaged checkpoint.

        Raises:
          ValueError: there is no checkpoint, or none of them fits the state.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, mine = None, ""
            try:
                found = self._read(step, abstract)
            except Exception as error:  # Damaged files make libraries fail in any way they can.
                mine = " ".join(str(error).split())[:200] or type(error).__name__
            if reasons := list(filter(None, processes.gather_from_all(mine))):
                damaged[step] = reasons[0]
                continue
            assert found is not None
            self._set_aside(damaged, step, warn)
            iterator.set_state(found["data"])
            return found["state"], found["record"]
        if not damaged:
            raise ValueError(
                f"{self._folder}: expected a checkpoint to resume, got none; do: start over with "
                "--anew"
            )
        step, reason = next(iter(damaged.items()))
        raise ValueError(
            f"{self._folder / str(step)}: expected a whole checkpoint of this run, got a damaged "
            f"or another one ({reason}), and none before it is whole; do: start over with --anew"
        )

    def _read(self, step: int, abstract: State) -> Any:
        return self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                data=ocp.args.JsonRestore(),
                record=ocp.args.JsonRestore(),
            ),
        )

    def _set_aside(self, damaged: dict[int, str], good: int, warn: Callable[[str], None]) -> None:
        """Moves damaged checkpoints out of the way of new ones of their steps."""
        for step, reason in damaged.items():
            aside = self._folder / f"damaged-{step}"
            warn(
                f"{self._folder / str(step)}: damaged ({reason}); moved to {aside.name}, going on "
                f"from step {good}"
            )
            processes.run_on_first(lambda step=step, aside=aside: self._move(step, aside))
        if damaged:
            self._manager.reload()

    def _move(self, step: int, aside: Path) -> None:
        (self._folder / str(step)).rename(aside)

    def wait(self) -> None:
        """Returns when all saves have reached the disk.

        Raises:
          OSError: a save failed.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for pending saves and closes the folder.

        Raises:
          OSError: a save failed.
        """
        with self._disk_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns the libraries' long errors about a failing disk into one OSError."""
        try:
            yield
        except Exception as error:
            number = _failure(error)
            if number is None:
                raise
            raise OSError(number, os.strerror(number), str(self._folder)) from error


def _score(metrics: Any) -> float:
    return metrics["score"]


def _failure(error: Exception) -> int | None:
    """Returns the errno of a disk's failure that an error is about, or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return errno.ENOSPC
    return next((number for number in _FAILURES if os.strerror(number) in text), None)
