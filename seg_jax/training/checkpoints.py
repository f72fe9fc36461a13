"""Checkpoints of a run: state, position in the data and configuration, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import msgspec
import orbax.checkpoint as ocp
from msgspec import Meta

from seg_jax import checksums, files, schemas
from seg_jax.models.io import orbax_params
from seg_jax.training import checkpoint_seal, processes
from seg_jax.training.state import State

_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE)
"""Errors of a disk, which are looked for in the libraries' long messages."""


class _Validation(schemas.Record, frozen=True, kw_only=True):
    """The validations of a run so far: step and score of each, and the time of all."""

    history: list[tuple[Annotated[int, Meta(ge=0, le=2**53)], float]]
    best: int | None = None
    seconds: Annotated[float, Meta(ge=0, le=1e12)]


class _Record(schemas.Record, frozen=True, kw_only=True):
    """What a run keeps beside its state, as far as it is read again."""

    seconds: Annotated[float, Meta(ge=0, le=1e12)] = 0.0
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    validation: _Validation | None = None


class Checkpoints:
    """The checkpoints of one stage in a folder that all processes share.

    The newest `keep` and the best `keep_best` are kept, and of each of these the one that was the
    best by validation when it was saved. A checkpoint appears under its step only
    when it is complete: a killed save leaves none. Saves run beside the steps that follow. Each has
    checksums of its files, with which it is compared before it is read.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_best: int = 0):
        orbax_params.quieten_orbax()
        self._folder = folder.absolute()
        self._kept = _Kept(self._folder, keep, keep_best)
        self._seal = checkpoint_seal.Seal(self._folder)
        # What a killed save has left is removed.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            create=True,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                barrier_sync_fn=self._seal.barrier(), post_finalization_callback=self._seal.close
            ),
        )
        with self._disk_errors():
            processes.run_on_first(lambda: checkpoint_seal.hide_damaged_metadata(self._folder))
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Returns the step of the checkpoint with the highest score, or None."""
        return self._kept.best(self._manager.all_steps())

    def save(
        self,
        state: State,
        iterator: Any,
        record: dict[str, Any],
        *,
        score: float = 0.0,
    ) -> None:
        """Saves state, position of the iterator and a record of plain values.

        Args:
          state: state of the run, over all processes.
          iterator: iterator of the batches; its position is JSON values, the same in all processes.
          record: other JSON values that are needed to resume; the checkpoint of the step
            `record["validation"]["best"]`, perhaps this one, is kept as long as this one is.
          score: how good the checkpoint is, for keeping the best; higher is better.

        Raises:
          OSError: the folder cannot be written, for example because the disk is full.
        """
        step = int(state.step)
        if step == self.latest():
            return
        self.wait()
        self._seal.begin(step)
        self._kept.scores[step], self._kept.validated[step] = score, _best_of(record)
        with self._disk_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(iterator.get_state()),
                    record=ocp.args.JsonSave(record | {_SCORE: score}),
                ),
                custom_metadata={"checksums": checksums.FILE},
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
          OSError: a damaged one cannot be moved.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, reason = self._read_whole(step, abstract, iterator)
            if found is None:
                damaged[step] = reason
                continue
            if not (self._folder / str(step) / checksums.FILE).exists():
                warn(
                    f"{self._folder / str(step)}: has no checksums, as older versions of seg-jax "
                    "save it; taken as it is"
                )
            self._set_aside(damaged, step, warn)
            return found
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

    def read(self, step: int, like: State) -> State:
        """Returns the state of one checkpoint, laid out like the given one.

        Raises:
          ValueError: there is no such checkpoint, or it is damaged.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        found, reason = self._read_whole(step, abstract, _Unmoved())
        if found is None:
            raise ValueError(
                f"{self._folder / str(step)}: expected the whole checkpoint of the best "
                f"validation, got a damaged one ({reason}); do: take the last weights with "
                "--resume --validate.kept last"
            )
        return found[0]

    def _read_whole(
        self, step: int, abstract: State, iterator: Any
    ) -> tuple[tuple[State, dict[str, Any]] | None, str]:
        """Returns state and record of a step, or what is wrong with it; for all processes alike."""
        if reason := _agree(checkpoint_seal.find_damage(self._folder / str(step))):
            return None, reason
        found, mine = None, ""
        try:
            read = self._read(step, abstract)
            record = read["record"]
            schemas.check(record, _Record, where="record", advice="start over with --anew")
            if (holds := int(read["state"].step)) != step:
                raise ValueError(
                    f"state: expected step {step}, got {holds}; do: name the folder by its step"
                )
            iterator.set_state(read["data"])
            record.pop(_SCORE, None)
            found = read["state"], record
        except Exception as error:  # Damaged files make libraries fail in any way they can.
            mine = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            mine = " ".join(mine.split()).partition("; do: ")[0][:200] or type(error).__name__
        reason = _agree(mine)
        return (None, reason) if reason else (found, "")

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
            moved = processes.run_on_first(lambda step=step: self._move(step))
            warn(
                f"{self._folder / str(step)}: damaged ({reason}); moved to {moved}, going on "
                f"from step {good}"
            )
        if damaged:
            self._manager.reload()

    def _move(self, step: int) -> str:
        """Moves a checkpoint aside and returns its name there."""
        names = [f"damaged-{step}", *(f"damaged-{step}-{number}" for number in range(2, 1000))]
        name = next(name for name in names if not (self._folder / name).exists())
        (self._folder / str(step)).rename(self._folder / name)
        return name

    def wait(self) -> None:
        """Returns when all saves have reached the disk.

        Raises:
          OSError: a save failed.
        """
        with self._disk_errors():
            self._manager.wait_until_finished()
            self._seal.end()

    def close(self) -> None:
        """Waits for pending saves and closes the folder.

        Raises:
          OSError: a save failed.
        """
        with self._disk_errors():
            self._manager.close()
            self._seal.end()

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


_RECORD = "record/metadata"
"""File of a checkpoint with its record."""
_SCORE = "score"
"""Key of the score in the record of a checkpoint."""


class _Unmoved:
    """Stands for an iterator that stays where it is."""

    def set_state(self, state: Any) -> None:
        """Does nothing."""


class _Kept:
    """Chooses the checkpoints that stay; Orbax asks it after every save.

    Scores are kept here: Orbax reads those of all checkpoints before anything else, and a damaged
    one would keep it from opening the folder.
    """

    def __init__(self, folder: Path, newest: int, best: int):
        self._folder, self._newest, self._best = folder, newest, best
        self.scores: dict[int, float] = {}
        self.validated: dict[int, int | None] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns which of the checkpoints stay, in their order."""
        steps = [info.step for info in checkpoints]
        kept = {*sorted(steps)[-self._newest :], *self._ranked(steps)[: self._best]}
        for step in sorted(kept - self.validated.keys()):
            self.validated[step] = _best_of(_saved(self._folder / str(step)))
        kept |= {self.validated[step] for step in kept}
        return [step in kept for step in steps]

    def best(self, steps: Sequence[int]) -> int | None:
        """Returns the step with the highest score."""
        return next(iter(self._ranked(steps)), None)

    def _ranked(self, steps: Sequence[int]) -> list[int]:
        for step in steps:
            self.scores.setdefault(step, _saved_score(self._folder / str(step)))
        return sorted(steps, key=lambda step: (self.scores[step], step), reverse=True)


def _saved_score(folder: Path) -> float:
    """Returns the score of a checkpoint, that of the worst where it cannot be read."""
    for name in (_RECORD, "metrics/metrics"):  # Older versions had it apart.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            score = float(_saved(folder, name)[_SCORE])
            return score if math.isfinite(score) else -math.inf
    return -math.inf


def _best_of(record: Mapping[str, Any]) -> int | None:
    """Returns the step that was the best by validation when a record was saved, if it says so."""
    validation = record.get("validation")
    best = validation.get("best") if isinstance(validation, dict) else None
    return best if isinstance(best, int) else None


def _saved(folder: Path, name: str = _RECORD) -> dict[str, Any]:
    """Returns the values of a checkpoint's record, none where it cannot be read."""
    try:
        return files.read_json_object(folder / name)
    except ValueError:
        return {}


def _agree(mine: str) -> str:
    """Returns what one of the processes has found wrong; empty where none has."""
    return next(filter(None, processes.gather_from_all(mine)), "")


def _failure(error: Exception) -> int | None:
    """Returns the errno of a disk's failure that an error is about, or None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return errno.ENOSPC
    return next((number for number in _FAILURES if os.strerror(number) in text), None)
