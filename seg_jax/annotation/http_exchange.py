"""Sends one HTTP request: the response comes within a time and a size, or none does."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any

MOST_BYTES = 1 << 20
"""Most bytes of a response's body; a description has a thousandth of that."""


@dataclasses.dataclass(frozen=True)
class Response:
    """What came back, of any status."""

    status: int
    body: bytes
    """What was sent, of a refusal perhaps nothing."""
    retry_after: str | None
    """The header of this name."""


class NoResponse(Exception):
    """Why none came."""


def response(
    url: str, data: bytes | None, headers: Mapping[str, str], *, seconds: float
) -> Response:
    """Returns the response to a request; a redirect is a response, and is not followed.

    Args:
      url: address, http or https.
      data: body of a POST; None sends a GET.
      headers: of the request.
      seconds: time for everything: looking up the address, connecting, sending, and each byte of
        the response, its headers included. What is not done by then is cut off.

    Raises:
      NoResponse: none came in time, or none that is HTTP of at most `MOST_BYTES`.
    """
    found: list[Response | BaseException] = []
    line = _Line(time.monotonic() + seconds)

    def work() -> None:
        try:
            found.append(_response(url, data, headers, line))
        except BaseException as error:
            found.append(error)

    # No limit of a socket bounds the whole, and none the look-up of an address: only a clock beside
    # it all does. The thread ends with the connection.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
        # Before the end: what is cut off looks like a response that is broken.
        result = found[0] if found else TimeoutError()
    finally:
        line.end()
    if isinstance(result, Response):
        return result
    inner = getattr(result, "reason", None)
    cause = inner if isinstance(inner, OSError) else result
    if isinstance(cause, TimeoutError):
        raise NoResponse("no answer in time")
    if not isinstance(result, OSError | HTTPException | ValueError):
        raise result
    raise NoResponse(f"no answer ({type(cause).__name__}: {cause})")


class _Line:
    """The connections of a request, which another thread can end."""

    def __init__(self, deadline: float):
        self._deadline, self._lock = deadline, threading.Lock()
        self._twins: list[socket.socket] = []
        self._has_ended = False

    def connect(self, address: tuple[str, int], timeout: Any, source: Any) -> socket.socket:
        """Returns a connection to the first address of a host that answers."""
        reasons = []
        for family, kind, protocol, _, place in socket.getaddrinfo(*address, 0, socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            try:
                self._watch(made)
                made.settimeout(self._seconds_left())
                made.connect(place)
                return made
            except OSError as error:
                made.close()
                reasons.append(error)
        raise reasons[0] if reasons else OSError("an address without a place")

    def _seconds_left(self) -> float:
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimeoutError
        return left

    def _watch(self, made: socket.socket) -> None:
        with self._lock:
            if self._has_ended:
                raise TimeoutError
            # TLS takes the socket itself over; its twin reaches the same connection.
            self._twins.append(made.dup())

    def end(self) -> None:
        """Ends whatever still sends or receives; nothing connects any more."""
        with self._lock:
            self._has_ended = True
            for twin in self._twins:
                with contextlib.suppress(OSError):
                    twin.shutdown(socket.SHUT_RDWR)
                twin.close()
            self._twins.clear()


def _response(url: str, data: bytes | None, headers: Mapping[str, str], line: _Line) -> Response:
    request = urllib.request.Request(url, data)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    opener = urllib.request.OpenerDirector()
    proxies = urllib.request.ProxyHandler()
    for handler in (proxies, _Plain(line), _Encrypted(line)):
        opener.add_handler(handler)
    with opener.open(request, timeout=None) as reply:
        is_fine = 200 <= reply.status < 300
        try:
            body = _body(reply)
        except (OSError, HTTPException, ValueError):
            if is_fine:
                raise
            body = b""
        return Response(reply.status, body, reply.headers.get("Retry-After"))


def _body(reply: Any) -> bytes:
    data = bytearray()
    while chunk := reply.read1(1 << 16):
        data += chunk
        if len(data) > MOST_BYTES:
            raise OSError(f"more than {MOST_BYTES} bytes")
    return bytes(data)


class _Plain(urllib.request.HTTPHandler):
    """Opens HTTP by a line."""

    def __init__(self, line: _Line):
        super().__init__()
        self._line = line

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connection_of(HTTPConnection, self._line), req)


class _Encrypted(urllib.request.HTTPSHandler):
    """Opens HTTPS by a line."""

    def __init__(self, line: _Line):
        super().__init__()
        self._line = line

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_connection_of(HTTPSConnection, self._line), req)


def _connection_of(kind: Any, line: _Line) -> Any:
    """Returns what makes connections of a kind, by a line."""

    def make(host: str, **options: Any) -> Any:
        connection = kind(host, **options)
        connection._create_connection = line.connect
        return connection

    return make
