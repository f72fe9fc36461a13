"""Joins the processes of a run, lets the first decide for all, ends all when one is lost.

A run of several processes is one program: every process holds some of the devices and reads the
rows that lie there. They find each other by flags, SLURM, Open MPI or the TPU's environment. Every
process is heard of ten times within `timeout_seconds`; whoever is silent for so long counts as
lost, and all others end with one line and the status `LOST`, whatever they are waiting for. JAX's
own heartbeats come second, at twice that time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed

Value = TypeVar("Value")

LOST = 75
"""Exit status where another process of the run was lost or has failed: try again with --resume."""

_BEATS = 10
"""Signs of life within the timeout."""
_GOODBYE = 2.0
"""Seconds that the service stays after a good end."""
_KEPT = 1000
"""Decisions of the first process that stay readable for slower ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run; what is not given is found in the environment.

    Known are SLURM (`srun`), Open MPI (`mpirun`) and machines with TPUs. Without any of them, or
    with `alone`, the process is the only one.
    """

    coordinator: str | None = None
    """HOST:PORT, free on the host of process 0, reachable from all."""
    count: int | None = None
    """Number of all processes."""
    index: int | None = None
    """Number of this process, from 0."""
    alone: bool = False
    """Look for no others."""
    timeout_seconds: float = 60.0
    """Silence after which a process counts as lost and all others end."""
    start_seconds: int = 300
    """Time for all processes to come."""

    def __post_init__(self):
        count = 1 if self.count is None else self.count
        index = 0 if self.index is None else self.index
        if not (self.timeout_seconds >= 1 and self.start_seconds >= 1 and count >= 1):
            raise ValueError(f"processes: expected times of a second or more, got {self}")
        if index < 0 or (self.count is not None and index >= count):
            raise ValueError(f"processes.index: expected 0..{count - 1}, got {index}")
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(f"processes.coordinator: expected HOST:PORT, got {self.coordinator!r}")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among the others."""

    coordinator: str
    count: int
    index: int
    devices: list[int] | None = None
    """GPUs of this machine that are this process's; None: all that it sees."""


def find_place(wanted: Processes, environment: Mapping[str, str]) -> Place | None:
    """Returns the place of this process, or None if it is the only one.

    Args:
      wanted: what was asked for; it goes before the environment.
      environment: of the process.

    Raises:
      ValueError: there are other processes, but not all is known of them.
    """
    if wanted.alone:
        return None
    count, index, coordinator, local = _place_in_environment(environment)
    count = count if wanted.count is None else wanted.count
    index = index if wanted.index is None else wanted.index
    coordinator = wanted.coordinator or coordinator
    given = (wanted.coordinator, wanted.count, wanted.index)
    if count in (None, 1) and all(value is None for value in given):
        return None
    if count is None or index is None or coordinator is None:
        raise ValueError(
            "processes: expected coordinator, count and index, got "
            f"{coordinator}, {count} and {index}; do: --processes.coordinator HOST:PORT "
            "--processes.count N --processes.index I, or start by srun or mpirun"
        )
    return Place(coordinator, count, index, local)


def _place_in_environment(
    environment: Mapping[str, str],
) -> tuple[int | None, int | None, str | None, Any]:
    """Returns count, index, coordinator and own GPUs as SLURM or Open MPI say."""
    gpus = environment.get("CUDA_VISIBLE_DEVICES", "").count(",") + 1
    several = "CUDA_VISIBLE_DEVICES" not in environment or gpus > 1

    def own(local: str, beside: str) -> list[int] | None:
        return [int(local)] if several and int(beside) > 1 else None

    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in names):
        job, nodes, count, index, local = (environment[name] for name in names)
        beside = environment.get("SLURM_STEP_TASKS_PER_NODE", count)
        # "2(x3),1": as many tasks on the first nodes; one on each is one everywhere.
        most = max(int(number) for number in re.findall(r"(?:^|,)(\d+)", beside))
        # Another port for the next step of a job, and for the same one started again.
        again = environment.get("SLURM_RESTART_COUNT", "0"), environment.get("SLURM_STEP_ID", "0")
        port = 61440 + (int(job) + 7 * sum(map(int, again))) % 4096
        return int(count), int(index), f"{_first_node(nodes)}:{port}", own(local, str(most))
    if "OMPI_COMM_WORLD_SIZE" in environment:
        size, rank = environment["OMPI_COMM_WORLD_SIZE"], environment["OMPI_COMM_WORLD_RANK"]
        local = environment.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")
        beside = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", size)
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
        host = re.search(r"tcp://([^,:]+)", uri)
        job = re.match(r"(\d+)\.", uri)
        known = (
            f"{host.group(1)}:{61440 + int(job.group(1)) // 4096 % 4096}" if host and job else None
        )
        return int(size), int(rank), known, own(local, beside)
    return None, None, None, None


def _first_node(nodes: str) -> str:
    """Returns the first of SLURM's nodes, as node001 of node[001-015],host2."""
    found = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST: expected names of nodes, got {nodes!r}")
    return found.group(1) + (found.group(2) or "")


@contextlib.contextmanager
def join(wanted: Processes) -> Iterator[None]:
    """Joins the other processes for the time of a program; alone it does nothing.

    To be entered before anything asks JAX for devices. When this process fails the others are
    told and end too.

    Raises:
      ValueError: the place of this process is not known, or the others did not come.
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
"""Count and index of a process that has joined others."""


def is_first() -> bool:
    """Returns whether this is the process that writes and decides; alone, it is."""
    return not _joined or _joined[1] == 0


def leave(status: int) -> None:
    """Ends a failed process of several at once; alone it does nothing.

    JAX would wait for the others, which wait for this one.
    """
    if _joined:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


_numbers = itertools.count()


def broadcast_from_first(value: Value) -> Value:
    """Returns the value (of JSON) that the first process has, in all processes.

    All call it in the same order. It waits for the first only: neither for others nor a device.
    """
    if not _joined:
        return value
    number = next(_numbers)
    if is_first():
        _client().key_value_set(f"seg_jax/broadcast/{number}", json.dumps(value))
        if number >= _KEPT:
            _client().key_value_delete(f"seg_jax/broadcast/{number - _KEPT}")
        return value
    return json.loads(_read(f"seg_jax/broadcast/{number}"))


def gather_from_all(value: Value) -> list[Value]:
    """Returns the values (of JSON) of all processes by their index; it waits for all."""
    if not _joined:
        return [value]
    number = next(_numbers)
    key = f"seg_jax/all/{number}/"
    _client().key_value_set(key + str(_joined[1]), json.dumps(value))
    return [json.loads(_read(key + str(index))) for index in range(_joined[0])]


def run_on_first(do: Callable[[], Value]) -> Value | None:
    """Runs something in the first process alone; the others wait and share its errors.

    Returns what it gave, None in the others.

    Raises:
      ValueError: in the others, where the first one raised this or OSError.
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
    """Returns what something gives in each process, which the first runs before all others."""
    mine = run_on_first(do)
    return do() if mine is None else mine


def agree_on_stop(asked: int, *, due: bool) -> tuple[int, bool]:
    """Returns which signal asks all processes to stop, and whether a save is due by the first.

    Args:
      asked: the signal that came to this process, 0 if none.
      due: whether this process would save now.
    """
    if not _joined:
        return asked, due
    if asked and not is_first():
        _client().key_value_set("seg_jax/asked", str(asked), allow_overwrite=True)
    if is_first() and not asked:
        asked = int(_try_read("seg_jax/asked") or 0)
    number, save = broadcast_from_first((asked, due))
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
        with _separate_service(1.3 * wanted.timeout_seconds):
            jax.distributed.initialize(**options)
        jax.devices()  # All tell each other of theirs; later one could wait for another in vain.
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"processes: expected all of them within {wanted.start_seconds} s, got "
            f"{' '.join(str(error).split())[:200]}; do: check that each was started and that "
            "--processes.coordinator can be reached, or give --processes.alone"
        ) from error
    state = distributed.global_state
    _joined[:] = [state.num_processes, state.process_id]
    return True


@contextlib.contextmanager
def _separate_service(grace: float) -> Iterator[None]:
    """Makes JAX start its coordination service as a `_Service`."""
    library, name = distributed._jax, "get_distributed_runtime_service"
    before = getattr(library, name)
    setattr(library, name, functools.partial(_Service, grace=grace))
    try:
        yield
    finally:
        setattr(library, name, before)


def _has_tpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    devices = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return "tpu" in platforms and bool(devices)


class _Service:
    """JAX's coordination service in a process of its own, which outlives that of process 0.

    JAX's clients abort with pages of text when their service vanishes; so there is time for one
    line about who was lost.
    """

    def __init__(self, address: str, count: int, *, grace: float, **options: Any):
        told = json.dumps([address, count, os.getpid(), grace, options])
        code = (
            "import json, sys; from seg_jax.training import processes; "
            "processes.serve(*json.loads(sys.argv[1]))"
        )
        # In a session of its own: Ctrl-C is for the programs, which save before they end.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, told], start_new_session=True, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise ValueError(f"no service on {address}, which may be in use")

    def shutdown(self) -> None:
        """Lets the service end, a little later: the others may still be saying goodbye."""
        self._process.terminate()


def serve(address: str, count: int, parent: int, grace: float, options: dict[str, Any]) -> None:
    """Runs JAX's coordination service until its parent has been gone for the grace (seconds)."""
    service = distributed._jax.get_distributed_runtime_service(address, count, **options)
    print("ready", flush=True)
    # What it logs of lost clients, these tell in a line.
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    while os.getppid() == parent and not done.is_set():
        time.sleep(0.2)
    time.sleep(_GOODBYE if done.is_set() else grace)
    service.shutdown()


class _Watch:
    """A thread that tells of this process, listens for the others and ends it if one is lost."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._seen: dict[str, tuple[str, float]] = {}
        self._heard = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch, and with it nothing else."""
        self._done.set()
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process has failed, and why."""
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
        # The first listens to all and tells the verdict, the others listen to the first.
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
    """Ends this process from any thread: the main one may wait for a lost one forever."""
    mine = "{1} of {0}".format(*_joined)
    line = f"seg-jax: {reason}; process {mine} ends too: start all again with --resume\n"
    sys.stderr.write(line)
    sys.stderr.flush()
    os._exit(LOST)


def _is_of_lost_peer(error: BaseException) -> bool:
    """Returns whether an error may be of a collective whose other end is lost."""
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
