"""Runs JAX's coordination service in a process of its own, which outlives process 0."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax._src import distributed

_GOODBYE = 2.0
"""Seconds that the service stays after a good end."""


@contextlib.contextmanager
def separate_service(grace: float) -> Iterator[None]:
    """Makes JAX start its coordination service as a `Service`, in a process of its own.

    Args:
      grace: seconds that the service stays when its parent is gone.
    """
    library, name = distributed._jax, "get_distributed_runtime_service"
    before = getattr(library, name)
    setattr(library, name, functools.partial(Service, grace=grace))
    try:
        yield
    finally:
        setattr(library, name, before)


class Service:
    """JAX's coordination service in a process of its own, which outlives that of process 0.

    JAX's clients abort with pages of text when their service vanishes; this one leaves them time
    for one line about who was lost.
    """

    def __init__(self, address: str, count: int, *, grace: float, **options: Any):
        """Starts the service and waits until it is ready.

        Args:
          address: HOST:PORT of the service.
          count: number of processes.
          grace: seconds that the service stays when this process is gone.
          options: other options of JAX's service.
        """
        own = {"parent": os.getpid(), "grace": grace, "options": options}
        arguments = json.dumps({"address": address, "count": count} | own)
        code = (
            "import json, sys; from seg_jax.training import coordination_service; "
            "coordination_service.serve(**json.loads(sys.argv[1]))"
        )
        # In a session of its own: Ctrl-C is for the programs, which save before they end.
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, arguments], start_new_session=True, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise ValueError(
                f"processes.coordinator: expected a free address, got {address}, where no service "
                "can start; do: choose another port"
            )

    def shutdown(self) -> None:
        """Ends the service a little later: other processes may still be leaving."""
        self._process.terminate()


def serve(address: str, count: int, *, parent: int, grace: float, options: dict[str, Any]) -> None:
    """Runs JAX's coordination service until its parent has been gone for a while.

    Args:
      address: HOST:PORT of the service.
      count: number of processes.
      parent: process id of the parent.
      grace: seconds that the service stays when its parent is gone.
      options: other options of JAX's service.
    """
    service = distributed._jax.get_distributed_runtime_service(address, count, **options)
    print("ready", flush=True)
    # It logs pages about lost clients, which say so themselves in a line.
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), sys.stderr.fileno())
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    while os.getppid() == parent and not done.is_set():
        time.sleep(0.2)
    time.sleep(_GOODBYE if done.is_set() else grace)
    service.shutdown()
