"""What is told of a server: numbers for Prometheus, a line of JSON for every request."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from seg_jax import escapes
from seg_jax.serving.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Line(NamedTuple):
    """One request, as the log has it; nothing of what was asked or answered."""

    id: str
    method: str
    path: str
    """That of the route, never as the client wrote it."""
    status: int
    seconds: float
    bytes_in: int
    fault: str
    """What the client was told instead of an answer."""
    error: str
    """An error of the server's own."""


class Telemetry:
    """Counts requests, reads the engine's counts, writes the log."""

    def __init__(self, engine: Engine, *, shown: bool):
        """Begins to count.

        Args:
          engine: whose counts are told.
          shown: whether requests are written to standard error.
        """
        self._shown = shown
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "seg_jax_requests",
            "Requests by route and HTTP status; 499: the client left.",
            ("path", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "seg_jax_request_seconds",
            "Seconds from a request's first byte to its last.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_OfEngine(engine))

    def note(self, line: Line) -> None:
        """Counts a request and writes its line."""
        self._requests.labels(line.path, str(line.status)).inc()
        self._seconds.labels(line.path).observe(line.seconds)
        if self._shown:
            told: dict[str, Any] = {"time": round(time.time(), 3)} | line._asdict()
            told["seconds"] = round(line.seconds, 4)
            told = {name: value for name, value in told.items() if value != ""}
            print(escapes.to_json(told), file=sys.stderr, flush=True)

    def metrics(self) -> bytes:
        """Returns all numbers as Prometheus reads them."""
        return generate_latest(self.registry)


class _OfEngine:
    """The engine's counts, read when they are asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Any:
        engine, counts = self._engine, self._engine.counts
        now = {
            "seg_jax_waiting_questions": (engine.waiting, "Questions that wait for a slot."),
            "seg_jax_taken_slots": (engine.taken, "Slots with an answer."),
            "seg_jax_slots": (engine.slots, "Slots in all."),
        }
        for name, (value, text) in now.items():
            yield GaugeMetricFamily(name, text, value=value)
        texts = {
            "questions": "Prompts that were read.",
            "answers": "Answers that were written to their end.",
            "tokens": "Tokens of answers.",
            "given_up": "Questions whose client left, or whose time was over.",
            "failed": "Questions that ended by an error of the server's own.",
            "turns": "Calls that decoded.",
            "decoded_slots": "Slots with an answer in all of these calls together.",
        }
        for name, text in texts.items():
            yield CounterMetricFamily(f"seg_jax_{name}", text, value=getattr(counts, name))
