"""Renders chat templates of unknown origin in a process that can neither take nor touch much."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from seg_jax import files, schemas
from seg_jax.grammar.tokenizer import template_worker

MOST_TEMPLATE = 1_000_000
"""Characters of a template; the longest that are known have some ten thousand."""
START_SECONDS = 60.0
"""Longest wait for the process; it is there after a tenth of a second where the machine is idle."""
ANSWER_SECONDS = 120.0
"""Longest wait for a text. Work is bounded much earlier, by what the process may compute; on a busy
machine it may have to wait for its turn."""
WORK_SECONDS = 4 * template_worker.WORK_SECONDS
"""Work of the process on a text after which it is ended from here, where its own timer did not."""
_LOOK_SECONDS = 0.5
"""Time between two looks at how much the process has worked."""

_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "TZ")
"""Variables of the environment that the process sees: no keys."""


class BeyondLimits(ValueError):
    """A template that takes more time, memory or room than any chat needs."""


def render(template: str, **variables: Any) -> str:
    """Returns the text of a Jinja template with variables that JSON can hold.

    The first call starts a process, `template_worker.py`, which goes on until this one ends: that
    is some 0.1 s of work, a text 0.1 ms. Threads take turns at it; a process that was forked or
    spawned has one of its own. Short texts are remembered: a finite set asks the same every epoch.

    Raises:
      BeyondLimits: it takes too much time or memory, or its text is too long.
      ValueError: the template is not Jinja, fails, or tries what the sandbox forbids.
    """
    plain = json.dumps(variables)
    return (_remembered if len(plain) <= _SHORT else _rendered)(template, plain)


_SHORT = 4096
"""Most characters of variables whose text is remembered."""


def _rendered(template: str, variables: str) -> str:
    """Returns the text of a template with variables as JSON, see `render`."""
    beyond = _BEYOND.get(template)
    if len(template) > MOST_TEMPLATE:
        beyond = f"one of {len(template)} characters"
    if beyond is None:
        request = f'{{"template": {json.dumps(template)}, "variables": {variables}}}'
        reply = _WORKER.reply(request.encode("ascii"))
        if "error" in reply:
            raise ValueError(
                f"chat template: expected a chat template that renders, got {reply['error']}; do: "
                "check the chat template of the tokenizer's folder"
            )
        if "text" in reply:
            return reply["text"]
        beyond = _BEYOND[template] = reply["beyond"]
        if len(_BEYOND) > 64:
            del _BEYOND[next(iter(_BEYOND))]
    raise BeyondLimits(
        f"chat template: expected a chat template that renders, got {beyond}; do: check the chat "
        "template of the tokenizer's folder, no chat needs that much"
    )


_remembered = functools.lru_cache(maxsize=4096)(_rendered)


_BEYOND: dict[str, str] = {}
"""Templates that went too far, and how: they would be tried again for every question."""


_BEYOND_WORK = f"more than {template_worker.WORK_SECONDS:g} s of work"


class _TooMuchWork(Exception):
    """The process has worked longer than its own timer should have let it."""


class _Worker:
    """The process, which is started when it is wanted and again after it ended."""

    def __init__(self):
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._worked = 0.0
        """What the process had worked before the request, in seconds."""

    def reply(self, request: bytes) -> dict[str, str]:
        """Returns the reply to a request; `beyond` where the process did not live to give one.

        Raises:
          ChildProcessError: there can be no process.
        """
        with self._lock:
            try:
                found = self._try(request)
                if isinstance(found, int):  # Ended from outside, perhaps before this request.
                    found = self._try(request)
                if isinstance(found, int):
                    return {"beyond": f"the end of its process (status {found})"}
                return found
            except BaseException:  # Whoever asks next must not get the reply to this request.
                self._end()
                raise

    def _try(self, request: bytes) -> dict[str, str] | int:
        """Returns the reply, or the status of a process that ended without one."""
        if self._socket is None:
            self._start()
        try:
            return self._exchange(request, ANSWER_SECONDS)
        except _TooMuchWork:
            self._end()
            return {"beyond": _BEYOND_WORK}
        except TimeoutError:
            self._end()
            return {"beyond": f"none after {ANSWER_SECONDS:g} s"}
        except (OSError, EOFError):
            status = self._end(wait=1.0)
        if status == -signal.SIGPROF:
            return {"beyond": _BEYOND_WORK}
        return status

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(path for path in sys.path if path)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._socket = ours
        with theirs:
            # No signal of the terminal reaches it: it ends when its socket is closed.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-B", template_worker.__file__],
                env={**kept, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self._exchange(b"", START_SECONDS)
        except (OSError, EOFError):
            raise ChildProcessError(
                "template_sandbox: expected a process that renders chat templates, got one that "
                f"ended with status {self._end(wait=1.0)}; do: see what `python -c 'import jinja2'`"
                " says"
            ) from None

    def _exchange(self, request: bytes, seconds: float) -> dict[str, str]:
        """Returns what the process says after a request, or without one."""
        assert self._socket is not None
        assert self._process is not None
        self._worked = _seconds_worked(self._process.pid)
        deadline = time.monotonic() + seconds
        if request:
            self._socket.settimeout(seconds)
            self._socket.sendall(len(request).to_bytes(8, "big") + request)
        size = int.from_bytes(self._receive(8, deadline), "big")
        # A character takes twelve bytes at most.
        if size > 12 * template_worker.MOST_TEXT + 1024:
            raise EOFError("a reply that is too long")
        reply = files.parse_json(self._receive(size, deadline), where="template_sandbox: reply")
        return schemas.check(reply, dict[str, str], where="template_sandbox: reply")

    def _receive(self, count: int, deadline: float) -> bytes:
        assert self._socket is not None
        assert self._process is not None
        data = bytearray()
        while len(data) < count:
            left = max(0.001, deadline - time.monotonic())
            self._socket.settimeout(min(left, _LOOK_SECONDS))
            try:
                piece = self._socket.recv(min(count - len(data), 1 << 20))
            except TimeoutError:
                if left <= _LOOK_SECONDS:
                    raise
                if _seconds_worked(self._process.pid) - self._worked > WORK_SECONDS:
                    raise _TooMuchWork from None
                continue
            if not piece:
                raise EOFError("an end")
            data += piece
        return bytes(data)

    def _end(self, *, wait: float = 0.0) -> int:
        """Ends the process and returns its status; it may take some seconds to end by itself."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None:
            return 0
        try:
            return process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Leaves the process to the one that this was forked from."""
        self._lock = threading.Lock()
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.returncode = 0  # It is no child of ours.
        self._process = self._socket = None


def _seconds_worked(process: int) -> float:
    """Returns the processor time of a process so far; 0 where the system does not tell."""
    try:
        with Path(f"/proc/{process}/stat").open("rb") as file:
            fields = file.read(4096).rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


_WORKER = _Worker()
atexit.register(_WORKER.close)
os.register_at_fork(after_in_child=_WORKER.forget)
