"""Joins the processes of a run: they share decisions, and all end when one is lost.

A run of several processes is one program: every process holds some of the devices and reads the
rows that lie there. They find each other as `cluster` says. Every process sends ten heartbeats
within `timeout_seconds`; one that is silent for so long counts as lost, and all others end with
one line and the status `LOST`, whatever they are waiting for. JAX's own heartbeats come second, at
twice that time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed

from seg_jax import escapes, files
from seg_jax.training import coordination_service
from seg_jax.training.cluster import Processes, find_place

Value = TypeVar("Value")

LOST = 75
"""Exit status where another process of the run was lost or has failed: try again with --resume."""

_BEATS = 10
"""Number of heartbeats within the timeout."""
_KEPT = 1000
"""Number of broadcasts that stay readable for slower processes."""


@contextlib.contextmanager
def join(wanted: Processes) -> Iterator[None]:
    """Joins the other processes while the block runs; alone it does nothing.

    It is entered before anything asks JAX for devices. When this process fails, the others end too.

    Raises:
      ValueError: the place of this process is not known, or the others did not join.
    """
    if not _connect(wanted):
        yield
        return
    watch = _Watch(wanted.timeout_seconds)
    try:
        yield
        gather_from_all("end")  # None leaves before the last one is done.
    except BaseException as error:
        if _is_of_lost_peer(error):
            time.sleep(3 * wanted.timeout_seconds)  # The watch ends this process with the reason.
        watch.fail(error)
        raise
    watch.stop()
    jax.distributed.shutdown()
    _joined.clear()


_joined: list[int] = []
"""Count and index of this process if it has joined others, else empty."""


def is_first() -> bool:
    """Returns whether this is the process that writes and decides; alone it always is."""
    return not _joined or _joined[1] == 0


def leave(status: int) -> None:
    """Ends a failed process of several immediately; alone it does nothing.

    JAX would wait for the others, which wait for this one.
    """
    if _joined:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


_numbers = itertools.count()


def broadcast_from_first(value: Value) -> Value:
    """Returns the JSON value of the first process, in all processes.

    All call it in the same order. It waits for the first process only, and for no device.
    """
    if not _joined:
        return value
    number = next(_numbers)
    if is_first():
        _client().key_value_set(f"seg_jax/broadcast/{number}", json.dumps(value))
        if number >= _KEPT:
            _client().key_value_delete(f"seg_jax/broadcast/{number - _KEPT}")
        return value
    return files.parse_json(_read(f"seg_jax/broadcast/{number}"), where="broadcast")


def gather_from_all(value: Value) -> list[Value]:
    """Returns the JSON values of all processes by their index; it waits for all."""
    if not _joined:
        return [value]
    number = next(_numbers)
    key = f"seg_jax/all/{number}/"
    _client().key_value_set(key + str(_joined[1]), json.dumps(value))
    every = [_read(key + str(index)) for index in range(_joined[0])]
    return [files.parse_json(one, where=f"process {index}") for index, one in enumerate(every)]


def run_on_first(do: Callable[[], Value]) -> Value | None:
    """Calls a function in the first process alone; the others wait and share its errors.

    Returns its result; None in the others.

    Raises:
      ValueError: in the others, if the first process raised ValueError or OSError.
    """
    if not _joined:
        return do()
    if not is_first():
        if error := broadcast_from_first(""):
            raise ValueError(error)
        return None
    try:
        value = do()
    except (ValueError, OSError) as error:
        broadcast_from_first(" ".join(str(error).split()) or type(error).__name__)
        raise
    broadcast_from_first("")
    return value


def run_first_then_others(do: Callable[[], Value]) -> Value:
    """Returns the result of a function in each process; the first calls it before all others."""
    mine = run_on_first(do)
    return do() if mine is None else mine


def agree_on_stop(stop: int, *, due: bool) -> tuple[int, bool]:
    """Returns the signal that stops all processes, and whether the first process wants to save.

    Args:
      stop: number of the signal that came to this process, 0 if none.
      due: whether this process would save now.
    """
    if not _joined:
        return stop, due
    if stop and not is_first():
        _client().key_value_set("seg_jax/stop", str(stop), allow_overwrite=True)
    if is_first() and not stop:
        stop = int(_try_read("seg_jax/stop") or 0)
    number, save = broadcast_from_first((stop, due))
    return number, save


def _connect(wanted: Processes) -> bool:
    """Joins the others; returns whether there are any."""
    found = find_place(wanted, os.environ)
    if found is None and (wanted.alone or not _has_tpu()):
        return False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Signals to stop are this package's: the loop saves and agrees on the step.
    jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": int(2 * wanted.timeout_seconds),
        "initialization_timeout": wanted.start_seconds,
    }
    if found is not None:
        options |= {
            "coordinator_address": found.coordinator,
            "num_processes": found.count,
            "process_id": found.index,
            "local_device_ids": found.devices,
            "cluster_detection_method": "deactivate",  # It would ask a cloud for its metadata.
        }
    try:
        with coordination_service.separate_service(1.3 * wanted.timeout_seconds):
            jax.distributed.initialize(**options)
        jax.devices()  # All exchange their devices; later one could wait for another in vain.
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"processes: expected all of them within {wanted.start_seconds} s, got "
            f"{' '.join(str(error).split())[:200]}; do: check that each was started and that "
            "--processes.coordinator can be reached, or give --processes.alone"
        ) from error
    state = distributed.global_state
    _joined[:] = [state.num_processes, state.process_id]
    return True


def _has_tpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return "tpu" in platforms and bool(devices)


class _Watch:
    """A thread that sends heartbeats and ends this process if another one is lost."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._seen: dict[str, tuple[str, float]] = {}
        self._heard = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch alone."""
        self._done.set()
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Lets the others know that this process has failed, and why."""
        self._done.set()
        line = " ".join(str(error).split())[:500] or type(error).__name__
        with contextlib.suppress(Exception):
            _client().key_value_set(f"seg_jax/failed/{_joined[1]}", line)

    def _run(self) -> None:
        for beat in itertools.count():
            try:
                self._listen(beat)
                self._heard = time.monotonic()
            except Exception as error:  # Of the service, in any of its words.
                if time.monotonic() - self._heard > self._timeout and not self._done.is_set():
                    _end_process(
                        f"the coordinator was not heard of for {self._timeout:g} s ({error})"
                    )
            if self._done.wait(self._timeout / _BEATS):
                return

    def _listen(self, beat: int) -> None:
        client, (count, index) = _client(), _joined
        client.key_value_set(f"seg_jax/beat/{index}", str(beat), allow_overwrite=True)
        if reason := _try_read("seg_jax/verdict"):
            self._close(reason)
        for key, line in client.key_value_dir_get("seg_jax/failed/"):
            self._close(f"process {key.rsplit('/', 1)[-1]} of {count} has failed: {line}")
        # The first process listens to all and gives the verdict; the others listen to the first.
        beats = dict(client.key_value_dir_get("seg_jax/beat/")) if index == 0 else {}
        if index and (first := _try_read("seg_jax/beat/0")) is not None:
            beats["seg_jax/beat/0"] = first
        now = time.monotonic()
        for key, value in beats.items():
            if self._seen.get(key, ("", 0.0))[0] != value:
                self._seen[key] = value, now
            elif now - self._seen[key][1] > self._timeout:
                who = key.rsplit("/", 1)[-1]
                self._close(
                    f"process {who} of {count} was not heard of for {self._timeout:g} s and "
                    "counts as lost"
                )

    def _close(self, reason: str) -> None:
        if self._done.is_set():
            return
        if is_first():
            _client().key_value_set("seg_jax/verdict", reason, allow_overwrite=True)
        _end_process(reason)


def _end_process(reason: str) -> NoReturn:
    """Ends this process from any thread: the main thread may wait for a lost process forever."""
    mine = "{1} of {0}".format(*_joined)
    line = f"seg-jax: {reason}; process {mine} ends too: start all again with --resume\n"
    sys.stderr.write(escapes.lines(line))
    sys.stderr.flush()
    os._exit(LOST)


def _is_of_lost_peer(error: BaseException) -> bool:
    """Returns whether an error may come from a collective whose other end is lost."""
    names = r"gloo|nccl|coordination|barrier|peer|socket|connection|deadline"
    return isinstance(error, Exception) and bool(re.search(names, str(error), re.IGNORECASE))


def _client() -> Any:
    return distributed.global_state.client


def _try_read(key: str) -> str | None:
    """Returns the value of a key, or None if it has none."""
    try:
        return _client().key_value_try_get(key)
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _read(key: str) -> str:
    """Returns the value of a key as soon as it has one; the watch ends what waits in vain."""
    while True:
        try:
            return _client().blocking_key_value_get(key, 10_000)
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
