"""The ASGI application: routes, limits, and what becomes of a request whatever happens to it.

Starlette belongs to the extra `serve` and is imported where it is used, so that the rest of the
package does not need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from seg_jax import escapes, files
from seg_jax.serving import examples, faults
from seg_jax.serving.access import Access
from seg_jax.serving.answering import Answering
from seg_jax.serving.chat_completions import Completions
from seg_jax.serving.label_studio import LabelStudio
from seg_jax.serving.native import Segment
from seg_jax.serving.telemetry import CONTENT_TYPE, Line, Telemetry
from seg_jax.serving.x_anylabeling import XAnyLabeling

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/outline.js": ("outline.js", "text/javascript; charset=utf-8"),
    "/files.js": ("files.js", "text/javascript; charset=utf-8"),
}
MOST_PAGE_BYTES = 1 << 20
CLIENT_LEFT = 499
"""Status of a request whose client did not wait, as nginx logs it."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Reply(NamedTuple):
    """What is sent back."""

    body: bytes | AsyncIterator[str]
    """Whole, or events as they come."""
    kind: str = "application/json"


Work = Callable[[Any, dict[str, str]], Awaitable[Reply]]
"""(body as JSON has it, parts of the path) -> reply."""


def as_json(value: Any) -> Reply:
    """Returns a value as a reply."""
    return Reply(json.dumps(value, allow_nan=False).encode())


class Service:
    """All that routes need."""

    def __init__(self, answering: Answering, *, access: Access, images: Path | None, shown: bool):
        """Takes a model.

        Args:
          answering: the model.
          access: what requests have to show.
          images: folder of pictures that clients may name; None: none.
          shown: whether requests are written to standard error.
        """
        self.answering, self.access = answering, access
        self.telemetry = Telemetry(answering.engine, shown=shown)
        self.seats = answering.limits.requests
        self.segment = Segment(answering, images=images)
        self.completions = Completions(answering)
        self.label_studio = LabelStudio(answering, images=images)
        self.x_anylabeling = XAnyLabeling(answering)

    def routes(self) -> list[tuple[str, str, Work, bool]]:
        """Returns method, path, what is done, and whether anybody may ask."""

        def of(value: Any) -> Work:
            async def work(*_: Any) -> Reply:
                return as_json(value())

            return work

        def awaited(function: Callable[[Any], Awaitable[Any]]) -> Work:
            async def work(body: Any, _: dict[str, str]) -> Reply:
                return as_json(await function(body))

            return work

        async def model(_: Any, path: dict[str, str]) -> Reply:
            return as_json(self.completions.model(path["name"]))

        async def drawn(*_: Any) -> Reply:
            return as_json(await self.answering.on_host(examples.of_drawn_scenes))

        async def metrics(*_: Any) -> Reply:
            return Reply(self.telemetry.metrics(), CONTENT_TYPE)

        async def setup(body: Any, _: dict[str, str]) -> Reply:
            return as_json(self.label_studio.setup(body))

        return [
            *(("GET", path, _file(*file), True) for path, file in PAGE_FILES.items()),
            ("GET", "/health", of(self.health), True),
            ("GET", "/metrics", metrics, False),
            ("GET", "/examples", drawn, False),
            ("GET", "/v1/about", of(self.about), False),
            ("POST", "/v1/segment", awaited(self.segment.segment), False),
            ("POST", "/v1/mask", awaited(self.segment.mask), False),
            ("GET", "/v1/models", of(self.completions.models), False),
            ("GET", "/v1/models/{name:path}", model, False),
            ("POST", "/v1/chat/completions", self._chat, False),
            ("POST", "/setup", setup, False),
            ("POST", "/predict", awaited(self.label_studio.predict), False),
            ("GET", "/x-anylabeling/health", of(self.health), True),
            ("GET", "/x-anylabeling/v1/models", of(self.x_anylabeling.models), False),
            ("POST", "/x-anylabeling/v1/predict", awaited(self.x_anylabeling.predict), False),
        ]

    def health(self) -> dict[str, Any]:
        """Returns how the server is; an error where it cannot answer any more.

        Raises:
          Stopping: the engine has ended.
        """
        if not self.answering.engine.is_alive:
            raise faults.Stopping(
                "server: expected one that answers, got one that does not; do: start it again"
            )
        return {"status": "UP", "model_class": self.answering.name, "models_loaded": 1}

    def about(self) -> dict[str, Any]:
        """Returns what the page has to know."""
        limits, bundle = self.answering.limits, self.answering.bundle
        return {
            "model": self.answering.name,
            "kinds": bundle.task.kind_names,
            "limits": {"bytes": limits.bytes, "pixels": limits.pixels, "side": _most_side()},
        }

    async def _chat(self, body: Any, _: dict[str, str]) -> Reply:
        chat = self.completions.understand(body)
        if chat.streams:
            return Reply(self.completions.stream(chat), "text/event-stream")
        return as_json(await self.completions.complete(chat))


def build(service: Service) -> Any:
    """Returns the ASGI application of a service."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    routes = [
        Route(path, _Endpoint(service, path, work, is_open=is_open), methods=[method])
        for method, path, work, is_open in service.routes()
    ]
    return Starlette(routes=routes)


class _Endpoint:
    """One route: everything around its work."""

    def __init__(self, service: Service, path: str, work: Work, *, is_open: bool):
        self._service, self._path, self._work, self._is_open = service, path, work, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _Exchange(scope, receive, send)
        begin, status, fault, error = time.perf_counter(), CLIENT_LEFT, "", ""
        try:
            async with asyncio.timeout(self._service.answering.limits.seconds):
                status = await self._answer(request)
        except _Left:
            pass
        except Exception as raised:
            told, error = _fault_of(raised)
            fault, status = str(told), told.status
            with contextlib.suppress(OSError, RuntimeError):
                await request.fail(told)
        finally:
            seconds = time.perf_counter() - begin
            method = scope["method"]
            self._service.telemetry.note(
                Line(request.id, method, self._path, status, seconds, request.read, fault, error)
            )

    async def _answer(self, request: _Exchange) -> int:
        service = self._service
        if not self._is_open:
            service.access.check(request.headers)
        if service.seats < 1:
            raise faults.Busy(
                f"server: expected at most {service.answering.limits.requests} requests at once, "
                "got another; do: ask again after the time in Retry-After",
                retry_after=service.answering.engine.retry_after(),
            )
        service.seats -= 1
        try:
            body = None
            if request.scope["method"] == "POST":
                data = await request.body(service.answering.limits.bytes)
                body = files.parse_json(data, where="request", advice="send JSON")
            work = self._work(body, request.scope["path_params"])
            reply = await request.unless_gone(work)
            await request.send_reply(reply)
            return 200
        finally:
            service.seats += 1


class _Left(Exception):
    """The client did not wait."""


class _Exchange:
    """A request and its reply, seen from the wire."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope, self._receive, self._send = scope, receive, send
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        given = self.headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        self.read = 0
        self._begun = False
        self._gone: asyncio.Task[None] | None = None

    async def body(self, most: int) -> bytes:
        """Returns the body, never more of it than it may have."""
        too_large = faults.TooLarge(
            f"body: expected at most {most} bytes, got more; do: send a smaller picture"
        )
        told = self.headers.get("content-length", "0")
        if not told.isdecimal() or len(told) > 20 or int(told) > most:
            raise too_large
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Left
            parts.append(message.get("body", b""))
            self.read += len(parts[-1])
            if self.read > most:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts)

    async def unless_gone(self, work: Awaitable[Any]) -> Any:
        """Returns what work gives, which ends where the client leaves."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._until_gone())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Left
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def send_reply(self, reply: Reply) -> None:
        """Sends a reply, events as they come."""
        try:
            if isinstance(reply.body, bytes):
                await self._begin(200, reply.kind)
                await self._send({"type": "http.response.body", "body": reply.body})
                return
            events = aiter(reply.body)
            try:
                # What is refused is refused by its status, so the first event comes before it.
                event = await self.unless_gone(anext(events, None))
                await self._begin(200, reply.kind)
                while event is not None:
                    part = {"body": event.encode(), "more_body": True}
                    await self._send({"type": "http.response.body", **part})
                    event = await self.unless_gone(anext(events, None))
            finally:
                await reply.body.aclose()  # pyright: ignore[reportAttributeAccessIssue]
            await self._send({"type": "http.response.body", "body": b""})
        finally:
            if self._gone is not None:
                self._gone.cancel()

    async def fail(self, fault: faults.Fault) -> None:
        """Tells what was wrong: by status and JSON, or in a stream that has begun by an event."""
        if self._gone is not None:
            self._gone.cancel()
        told = {"error": {"message": str(fault), "type": fault.kind, "code": fault.status}}
        text = json.dumps(told | {"success": False})
        if self._begun:
            await self._send({"type": "http.response.body", "body": f"data: {text}\n\n".encode()})
            return
        more = {} if fault.retry_after is None else {"retry-after": str(fault.retry_after)}
        if fault.status in (401, 408, 413):
            more["connection"] = "close"  # What is left of its body is not read.
        if fault.status == 401:
            more["www-authenticate"] = 'Basic realm="seg-jax"'
        await self._begin(fault.status, "application/json", **more)
        await self._send({"type": "http.response.body", "body": text.encode()})

    async def _begin(self, status: int, kind: str, **more: str) -> None:
        self._begun = True
        every = HEADERS | {"content-type": kind, "x-request-id": self.id}
        every |= {name.replace("_", "-"): value for name, value in more.items()}
        headers = [(name.encode(), value.encode("latin-1")) for name, value in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _fault_of(error: Exception) -> tuple[faults.Fault, str]:
    """Returns what the client is told of an error, and what the log has beside it."""
    if isinstance(error, faults.Fault):
        return error, ""
    if isinstance(error, TimeoutError):
        text = "server: expected an answer in time, got none; do: ask again, or for less"
        return faults.TooSlow(text), ""
    if isinstance(error, ValueError) and "; do: " in str(error):  # What a guard has refused.
        return faults.Refused(escapes.brief(error)), ""
    text = "server: expected an answer, got an error; do: see the server's log by x-request-id"
    return faults.Broken(text), escapes.brief(f"{type(error).__name__}: {error}")


def _file(name: str, kind: str) -> Work:
    data = files.read_bytes(PAGE / name, most=MOST_PAGE_BYTES)

    async def work(*_: Any) -> Reply:
        return Reply(data, kind)

    return work


def _most_side() -> int:
    from seg_jax.geometry import raster

    return raster.MAX_SIDE
