"""A server whose model writes what a test tells it to: all but the device is real."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import small_run
from PIL import Image

from seg_jax.models.vlm import running_batch
from seg_jax.models.vlm.running_batch import Drawn, Sizes, Wanted
from seg_jax.serving import answering, server
from seg_jax.serving.access import Access
from seg_jax.serving.app import Service
from seg_jax.serving.limits import Limits

SQUARE = "[[[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]]."
CORNER = "[[[0.00, 0.00], [0.20, 0.00], [0.20, 0.20], [0.00, 0.20]]]."

Script = Callable[[str, Wanted], str]
"""(question, how it is to be drawn) -> what the model writes."""


class Batch(running_batch.RunningBatch):
    """Stands for a `RunningBatch`; `script` says what it writes."""

    script: Script = staticmethod(lambda question, wanted: SQUARE)
    pause = 0.0
    """Seconds that a call takes."""

    def __init__(self, graph, params, *, max_tokens, end_ids, words, sizes, pad_id=0, grammar=None):
        del graph, params, words, pad_id
        self.sizes, self.max_tokens, self._ends, self.grammar = sizes, max_tokens, end_ids, grammar
        self._tokenizer = small_run.bundle().tokenizer
        self.placed: list[tuple[str, Wanted]] = []
        self.reads: list[int] = []
        self.clear()

    def compile_for(self, rows) -> Iterator[str]:
        self.shapes = [tokens.ids.shape for tokens, _ in rows]
        yield "nothing"

    def clear(self) -> None:
        self._left: dict[int, list[int]] = {}

    def read(self, rows) -> list[str]:
        assert len(rows) <= self.sizes.together
        self.reads.append(len(rows))
        used = [tokens.ids[0][tokens.segments[0] > 0] for tokens, _ in rows]
        return [self._tokenizer.decode(ids) for ids in used]

    def place(self, prefix, which, *, slot, wanted) -> Drawn:
        self.placed.append((prefix[which], wanted))
        text = type(self).script(prefix[which], wanted)
        ids = [*self._tokenizer.encode(text), self._ends[0]][: wanted.max_tokens]
        self._left[slot] = ids
        return Drawn(*(leaf[None] for leaf in self._taken(slot, 1)))

    def decode(self, keep) -> Drawn:
        time.sleep(type(self).pause)
        width = int(np.flatnonzero(keep).max()) + 1
        self._left = {slot: ids for slot, ids in self._left.items() if keep[slot]}
        found = [self._taken(slot, self.sizes.chunk) for slot in range(width)]
        return Drawn(*(np.stack(leaves) for leaves in zip(*found, strict=True)))

    def _taken(self, slot, most):
        left = self._left.get(slot, [])
        now, self._left[slot] = left[:most], left[most:]
        ids = np.zeros(most, np.int32)
        ids[: len(now)] = now
        logp = np.full(most, np.log(0.5), np.float32)
        return ids, logp, np.int32(len(now)), np.bool_(bool(left[most:]))


class Served(NamedTuple):
    """A server that runs."""

    address: str
    service: Service

    @property
    def batch(self) -> Batch:
        return self.service.answering.engine._batch

    def send(
        self, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Returns status, JSON and headers of a reply."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.address + path, data=data, headers=headers or {})
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                status, told, given = reply.status, reply.read(), reply.headers
        except urllib.error.HTTPError as error:
            status, told, given = error.code, error.read(), error.headers
        kind = given.get("content-type", "")
        return status, json.loads(told) if "json" in kind else told, dict(given.items())

    def refuses(self, path: str, body: Any, **more: Any) -> str:
        """Returns what a request is told that is refused."""
        status, told, _ = self.send(path, body, **more)
        assert status >= 400, told
        message = told["error"]["message"]
        assert told["error"]["code"] == status
        assert "\n" not in message
        assert ": expected " in message
        assert "; do: " in message
        return f"{status} {message}"


def bundle(**layout: Any) -> Any:
    """Returns a model with room for questions and outlines; its weights are never asked."""
    small = small_run.bundle()
    room = {"max_answer": 200, "max_prompt": 200, "max_question": 120, "buckets": 2}
    return dataclasses.replace(
        small, layout=dataclasses.replace(small.layout, **{**room, **layout})
    )


@contextlib.contextmanager
def serve(
    monkeypatch,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    images=None,
    grammar: bool = False,
    sizes: Sizes | None = None,
    real: bool = False,
    asked: Any = None,
) -> Iterator[Served]:
    """Gives a server on a free port of this machine; it is stopped in the end.

    Args:
      monkeypatch: puts the script in the place of the device.
      limits: of requests.
      token: that requests have to bring.
      images: folder of pictures that clients may name.
      grammar: whether answers are held to it.
      sizes: of the batch.
      real: whether the device stays.
      asked: the model; None: `bundle()`.
    """
    if not real:
        monkeypatch.setattr(answering, "RunningBatch", Batch)
    made = answering.Answering(
        asked or bundle(),
        sizes=sizes or Sizes(slots=4, chunk=8, together=2),
        limits=limits or Limits(),
        grammar=grammar,
        name="tiny",
    )
    list(made.warm_up())
    made.start()
    service = Service(made, access=Access(token), images=images, shown=False)
    listener = server.bind("127.0.0.1", 0)
    running = server.Server(service, listener)
    thread = threading.Thread(target=running.run, daemon=True)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.start()
    served = Served(address, service)
    try:
        _wait_for(lambda: _answers(served))
        yield served
    finally:
        running.stop()
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


def _answers(served: Served) -> bool:
    try:
        return served.send("/health")[0] == 200
    except urllib.error.URLError:
        return False


def _wait_for(good: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end
        time.sleep(0.02)


wait_for = _wait_for


def picture(height: int = 40, width: int = 60, kind: str = "PNG") -> bytes:
    """Returns the bytes of a picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return picture_of(pixels, kind)


def picture_of(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Returns the bytes of a picture of pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def data_uri(data: bytes | None = None) -> str:
    """Returns a picture as clients send it."""
    text = base64.b64encode(data or picture()).decode("ascii")
    return f"data:image/png;base64,{text}"
