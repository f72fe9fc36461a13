"""Measures the server on this machine: requests and tokens a second, and how long clients wait.

A model is served on a free port of this machine to 1, 8 and 32 clients at once, each of which asks
again as soon as it has an answer; beside it stand the same questions asked one after the other, by
one client of the server and by direct calls of `predict`. With `--faulty` some requests are broken,
or their clients leave: none of the others may be lost.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import io
import json
import random
import resource
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from seg_jax.cli.benchmarks import harness
from seg_jax.cli.model_options import ModelOptions
from seg_jax.models.vlm.running_batch import Sizes
from seg_jax.runs import console, experiments, run_folder
from seg_jax.serving import access, server
from seg_jax.serving.answering import Answering
from seg_jax.serving.app import Service
from seg_jax.serving.limits import Limits

SECONDS = 600.0
"""Longest wait of a client."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelOptions):
    """A measurement of the server."""

    clients: tuple[int, ...] = (1, 8, 32)
    """Numbers of clients at once, each measured alone."""
    requests: int = 128
    """Requests of each measurement."""
    rounds: int = 3
    """Times that all are measured, in turn: what else the machine does falls on all of them."""
    scenes: int = 32
    """Drawn scenes that are asked about in turn; not more than `batch.pictures`: all but the first
    questions are about pictures that are read already."""
    faulty: float = 0.0
    """Share of requests that are broken or given up, 0 to 0.9; then nothing else is measured."""
    seed: int = 3
    """Seed of the scenes and of the faults."""
    batch: Sizes = Sizes(slots=32)
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        least = min(*self.clients, 1, self.requests, self.rounds, self.scenes)
        if least < 1 or not 0 <= self.faulty <= 0.9:
            raise ValueError(
                "serve: expected clients, requests, rounds and scenes >= 1 and a faulty share of 0 "
                f"to 0.9, got {self.clients}, {self.requests}, {self.rounds}, {self.scenes} and "
                f"{self.faulty}; do: choose values in this range"
            )


class Timed(NamedTuple):
    """What came of one request."""

    seconds: float
    tokens: int
    status: int
    """HTTP status; 0 for a client that left."""
    wanted: tuple[int, ...]
    """The statuses that it may have."""


def main(config: Config) -> int:
    """Prints the table; the numbers go to the JSON file, or to standard output without one."""
    return harness.report(config, measure, _show)


def measure(config: Config) -> dict[str, Any]:
    """Returns all numbers."""
    config.refuse_segmenter("benchmark serve")
    predictor = config.predictor()
    answering = Answering(
        predictor.bundle,
        sizes=config.batch,
        limits=Limits(requests=1024, waiting=1024, seconds=SECONDS),
        grammar=config.grammar,
        name="measured",
    )
    list(answering.warm_up())
    answering.start()
    service = Service(answering, access=access.Access(None), images=None, shown=False)
    listener = server.bind("127.0.0.1", 0)
    running = server.Server(service, listener)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    try:
        _await_health(port)
        asked = _questions(config)
        if config.faulty:
            found = {"faults": _faults(config, port, asked)}
        else:
            found = {"rows": _rows(config, predictor, port, asked)}
    finally:
        running.stop()
        thread.join()
    return {"machine": harness.machine(), **run_folder.plain(config), **found}


def _rows(config: Config, predictor: Any, port: int, asked: list[Any]) -> list[dict[str, Any]]:
    """Returns a row for direct calls and one for each number of clients."""
    image, text, _ = asked[0]
    predictor.predict_one(image, text)  # Compiles.

    def direct(number: int) -> Timed:
        image, text, _ = asked[number % len(asked)]
        begin = time.perf_counter()
        predicted = predictor.predict_one(image, text)
        tokens = len(predictor.bundle.tokenizer.encode(predicted.text)) + 1
        return Timed(time.perf_counter() - begin, tokens, 200, (200,))

    def over_http(number: int) -> Timed:
        return _post(port, asked[number % len(asked)][2], (200,))

    turns = [("direct", 1, direct), *(("server", count, over_http) for count in config.clients)]
    rounds = [
        [_timed(ask, config.requests, clients=clients) for _, clients, ask in turns]
        for _ in range(config.rounds)
    ]
    rows = []
    for (what, clients, _), mine in zip(turns, zip(*rounds, strict=True), strict=True):
        every = [one for found, _, _ in mine for one in found]
        seconds, worked = sum(some[1] for some in mine), sum(some[2] for some in mine)
        # Beside direct calls one after the other, in the same round.
        ratios = [some[0][1] / one[1] for some, one in zip(rounds, mine, strict=True)]
        row = _summary(what, clients, every, seconds, worked)
        rows.append(row | {"times_direct": statistics.median(ratios)})
    return rows


def _timed(
    ask: Callable[[int], Timed], count: int, *, clients: int
) -> tuple[list[Timed], float, float]:
    """Returns what came of requests that clients send in turn, and the seconds of all.

    The last are seconds of processors, clients included: where others work on the machine they say
    more than those of the clock.
    """
    numbers, lock = iter(range(count)), threading.Lock()

    def next_numbers() -> Iterator[int]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    begin, worked = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        every = [
            pool.submit(lambda: [ask(number) for number in next_numbers()]) for _ in range(clients)
        ]
        found = [one for some in every for one in some.result()]
    return found, time.perf_counter() - begin, time.process_time() - worked


def _summary(
    what: str, clients: int, found: list[Timed], seconds: float, worked: float
) -> dict[str, Any]:
    lost = [one for one in found if one.status not in one.wanted]
    times = sorted(one.seconds for one in found)
    return {
        "what": what,
        "clients": clients,
        "requests": len(found),
        "lost": len(lost),
        "requests_a_second": len(found) / seconds,
        "tokens_a_second": sum(one.tokens for one in found) / seconds,
        "processor_seconds_a_request": worked / len(found),
        "p50_seconds": statistics.median(times),
        "p99_seconds": times[min(len(times) - 1, int(0.99 * len(times)))],
    }


def _faults(config: Config, port: int, asked: list[Any]) -> dict[str, Any]:
    """Returns what came of requests of which some are broken or given up, and what memory grew."""
    rng = random.Random(config.seed)
    count = config.requests * config.rounds
    chances = [rng.random() for _ in range(count)]
    memory: list[float] = []

    def ask(number: int) -> Timed:
        body = asked[number % len(asked)][2]
        if number % max(1, count // 10) == 0:
            memory.append(_resident_mib())
        if chances[number] >= config.faulty:
            return _post(port, body, (200,))
        return _FAULTS[number % len(_FAULTS)](port, body)

    found, *seconds = _timed(ask, count, clients=max(config.clients))
    told = _post(port, asked[0][2], (200,))  # It still answers.
    return {
        **_summary("server, with faults", max(config.clients), found, *seconds),
        "left": sum(one.status == 0 for one in found),
        "refused": sum(one.status >= 400 for one in found),
        "answers_afterwards": told.status == 200,
        "resident_mib": [round(one) for one in memory],
        "most_resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _broken_json(port: int, body: bytes) -> Timed:
    return _post(port, body[: len(body) // 2], (400,))


def _broken_picture(port: int, body: bytes) -> Timed:
    return _post(port, body.replace(b"iVBORw0KGgo", b"iVBORw0KGgp", 1), (400,))


def _wrong_path(port: int, body: bytes) -> Timed:
    return _post(port, body, (404,), path="/v1/nothing")


def _leave(port: int, body: bytes) -> Timed:
    """Asks and goes away before there can be an answer."""
    begin = time.perf_counter()
    head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as line:
        line.sendall(head.encode() + body)
    return Timed(time.perf_counter() - begin, 0, 0, (0,))


def _leave_half_said(port: int, body: bytes) -> Timed:
    """Goes away in the middle of a request."""
    return _leave(port, body[: len(body) // 2])._replace(wanted=(0,))


_FAULTS = (_broken_json, _broken_picture, _wrong_path, _leave, _leave_half_said)


def _post(port: int, body: bytes, wanted: tuple[int, ...], path: str = "/v1/segment") -> Timed:
    begin = time.perf_counter()
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        line.request("POST", path, body=body)
        reply = line.getresponse()
        data = reply.read()
    finally:
        line.close()
    seconds = time.perf_counter() - begin
    tokens = 0
    if reply.status == 200:
        tokens = sum(one["tokens"] for one in json.loads(data)["objects"])
    return Timed(seconds, tokens, reply.status, wanted)


def _await_health(port: int) -> None:
    """Waits until the server answers."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=SECONDS):
                return
        except ConnectionRefusedError:
            time.sleep(0.05)


def _questions(config: Config) -> list[tuple[Any, str, bytes]]:
    """Returns pictures, expressions and requests about drawn scenes."""
    from PIL import Image

    scenes = experiments.load("simpleseg/nano_sft.py").scenes(seed=config.seed)
    found = []
    for index in range(config.scenes):
        sample, buffer = scenes[index], io.BytesIO()
        Image.fromarray(sample.image).save(buffer, "PNG")
        text = next(some[0] for some in sample.phrases if some)
        picture = base64.b64encode(buffer.getvalue()).decode("ascii")
        body = {"image": f"data:image/png;base64,{picture}", "text": text}
        found.append((sample.image, text, json.dumps(body).encode()))
    return found


def _resident_mib() -> float:
    """Returns the memory that this process has now; 0 where the system does not tell."""
    try:
        with Path("/proc/self/statm").open(encoding="ascii") as file:
            return int(file.read(200).split()[1]) * resource.getpagesize() / 2**20
    except (OSError, ValueError, IndexError):
        return 0.0


def _show(results: dict[str, Any]) -> None:
    console.say(" ".join(f"{part} {value}" for part, value in results["machine"].items()))
    if "faults" in results:
        console.say(" ".join(f"{name} {value}" for name, value in results["faults"].items()))
        return
    console.table(
        "Answers of the server",
        ("", "clients", "requests/s", "tokens/s", "p50, ms", "p99, ms", "CPU, ms", "lost", "times"),
        [
            (
                row["what"],
                str(row["clients"]),
                f"{row['requests_a_second']:.1f}",
                f"{row['tokens_a_second']:.0f}",
                f"{1e3 * row['p50_seconds']:.0f}",
                f"{1e3 * row['p99_seconds']:.0f}",
                f"{1e3 * row['processor_seconds_a_request']:.1f}",
                str(row["lost"]),
                f"{row['times_direct']:.2f}",
            )
            for row in results["rows"]
        ],
    )
