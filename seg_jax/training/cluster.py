"""Finds the place of a process among those of a run: by options, SLURM, Open MPI or TPUs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run; what is not given is taken from the environment.

    Supported are SLURM (`srun`), Open MPI (`mpirun`) and machines with TPUs. Without any of them,
    or with `alone`, the process is the only one.
    """

    coordinator: str | None = None
    """HOST:PORT, free on the host of process 0, reachable from all."""
    count: int | None = None
    """Number of all processes."""
    index: int | None = None
    """Number of this process, from 0."""
    alone: bool = False
    """Whether this process is the only one, whatever the environment says."""
    timeout_seconds: float = 60.0
    """Silence after which a process counts as lost and all others end."""
    start_seconds: int = 300
    """Time in which all processes must have joined."""

    def __post_init__(self):
        count = 1 if self.count is None else self.count
        index = 0 if self.index is None else self.index
        if not (self.timeout_seconds >= 1 and self.start_seconds >= 1 and count >= 1):
            raise ValueError(
                f"processes: expected times and a count of 1 or more, got {self}"
                "; do: raise the one that is less"
            )
        if index < 0 or (self.count is not None and index >= count):
            raise ValueError(
                f"processes.index: expected 0..{count - 1}, got {index}"
                "; do: number the processes from 0, and give each its own --processes.index"
            )
        if self.coordinator is not None and not re.fullmatch(r".+:\d+", self.coordinator):
            raise ValueError(
                f"processes.coordinator: expected HOST:PORT, got {self.coordinator!r}"
                "; do: give the address of process 0, as node001:1234"
            )


@dataclasses.dataclass(frozen=True)
class Place:
    """The number of a process among the others, and how it reaches them."""

    coordinator: str
    count: int
    index: int
    devices: list[int] | None = None
    """GPUs of this machine that belong to this process; None: all that it sees."""


def find_place(wanted: Processes, environment: Mapping[str, str]) -> Place | None:
    """Returns the place of this process, or None if it is the only one.

    Args:
      wanted: the configuration, which goes before the environment.
      environment: environment variables of the process.

    Raises:
      ValueError: there are other processes, but not enough is known about them.
    """
    if wanted.alone:
        return None
    count, index, coordinator, local = _place_in_environment(environment)
    count = count if wanted.count is None else wanted.count
    index = index if wanted.index is None else wanted.index
    coordinator = wanted.coordinator or coordinator
    options = (wanted.coordinator, wanted.count, wanted.index)
    if count in (None, 1) and all(value is None for value in options):
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
    """Returns count, index, coordinator and own GPUs from the variables of SLURM or Open MPI."""
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
        raise ValueError(
            f"SLURM_STEP_NODELIST: expected names of nodes, got {nodes!r}"
            "; do: start with srun, or give --processes.coordinator HOST:PORT"
        )
    return found.group(1) + (found.group(2) or "")
