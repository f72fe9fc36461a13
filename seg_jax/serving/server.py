"""Runs the application on a port until it is told to stop."""

from __future__ import annotations

import math
import signal
import socket
import threading
from typing import Any

from seg_jax.serving import app
from seg_jax.serving.app import Service

SPARE_CONNECTIONS = 100
"""Connections beyond twice the requests at once, before new ones are turned away unread."""


class _Ended(KeyboardInterrupt):
    """A SIGTERM: the program ends as after Ctrl-C, with the status of its own signal."""

    number = signal.SIGTERM


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket at an address; port 0 takes any that is free.

    Raises:
      ValueError: the address is not one of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(
            f"port: expected one that is free at {host}, got {port} ({error}); do: choose another "
            "by --port, or --port 0 for any"
        ) from None
    return listener


class Server:
    """An application on a port."""

    def __init__(self, service: Service, listener: socket.socket):
        """Takes what is asked, warmed up, and where."""
        import uvicorn

        limits = service.answering.limits
        self._service, self._listener = service, listener
        listener.listen()  # Who comes before `run` waits for it.
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                app.build(service),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                limit_concurrency=2 * limits.requests + SPARE_CONNECTIONS,
                timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
            )
        )

    def run(self) -> None:
        """Serves until it is told to stop; answers on the way get the time that limits give them.

        Raises:
          KeyboardInterrupt: after SIGINT or SIGTERM, once all is ended.
        """
        is_main = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(signal.SIGTERM, _end) if is_main else None
        try:
            self._uvicorn.run(sockets=[self._listener])
        finally:
            self._service.answering.stop()
            if is_main:
                signal.signal(signal.SIGTERM, before)

    def stop(self) -> None:
        """Tells it to stop, from any thread."""
        self._uvicorn.should_exit = True


def _end(*_: Any) -> None:
    raise _Ended
