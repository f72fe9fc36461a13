"""Formats of runs and of annotation, with what reads them (helper of the fuzzer)."""

from __future__ import annotations

import functools
import json
import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import byte_mutations
import json_mutations
import numpy as np
from harness import Format

from seg_jax import checksums
from seg_jax.annotation import endpoint, words
from seg_jax.annotation.stages import Failed, Question
from seg_jax.report import metrics_log
from seg_jax.runs import run_folder
from seg_jax.training.log import Log

_JSON = json_mutations.mutated_json
_LINES = json_mutations.mutated_lines


def _make_log(folder: Path) -> None:
    with Log(folder / "run") as log:
        for step in range(1, 4):
            log.write("sft", step, {"loss": 1.0 / step, "scores/iou": 0.5, "scores/format": 1.0})
            log.write("gspo", step, {"reward": 0.5, "verdicts/OK": 1.0, "nan": float("nan")})


def _read_log(folder: Path) -> Iterator[str]:
    """Draws the curves of a run's log, then goes on with the run."""
    curves = metrics_log.read(folder / "run" / "metrics.jsonl")
    yield from (curve.title for curve in curves)
    with Log(folder / "run") as log:
        log.forget_after("sft", 2)
        log.write("sft", 3, {"loss": 1.0})


def _config() -> Any:
    from seg_jax.runs import experiments

    return experiments.load("simpleseg/nano_sft.py").config()


def _models(folder: Path) -> dict[str, Path]:
    return {"segmenter": folder / "model", "checkpoint": folder / "listed"}


def _make_run(folder: Path) -> None:
    for path in _models(folder).values():
        path.mkdir()
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_bytes(b"weights")
    listed = _models(folder)["checkpoint"]
    checksums.write(listed / checksums.FILE, checksums.of_files(listed, checksums.files_of(listed)))
    with run_folder.hold(
        folder / "run", _config(), resume=False, anew=False, models=_models(folder)
    ):
        pass


def _read_run(folder: Path) -> None:
    """Resumes a run, as far as its folder decides."""
    with run_folder.hold(
        folder / "run", _config(), resume=True, anew=False, models=_models(folder)
    ):
        pass


def _mutated_anyhow(data: bytes, rng: random.Random) -> bytes:
    """Returns changed JSON where it is JSON, else changed bytes."""
    if data[:1] in (b"{", b"["):
        return json_mutations.mutated_json(data, rng)
    return byte_mutations.mutated(data, rng)


def _state(step: int) -> Any:
    import jax.numpy as jnp

    from seg_jax.training import state

    kernel = jnp.arange(48, dtype=jnp.float32).reshape(8, 6) + step
    params, moments = {"q": {"kernel": kernel}}, {"momentum": {"q": {"kernel": -kernel}}}
    return state.State(jnp.int32(step), jnp.int32(9), params, moments)


class _Position:
    """An iterator of batches that knows nothing but where it is."""

    def __init__(self):
        self.at: Any = 0

    def get_state(self) -> Any:
        return {"at": self.at}

    def set_state(self, state: Any) -> None:
        self.at = int(state["at"])


def _make_checkpoints(folder: Path) -> None:
    from seg_jax.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(folder / "state")
    for step in (1, 2):
        checkpoints.save(_state(step), _Position(), {"seconds": 1.5, "versions": {}})
        checkpoints.wait()
    checkpoints.close()


def _read_checkpoints(folder: Path) -> Iterator[str]:
    """Resumes from the newest whole checkpoint; the state must be one that was saved."""
    from seg_jax.training.checkpoints import Checkpoints

    lines: list[str] = []
    checkpoints = Checkpoints(folder / "state")
    try:
        found, record = checkpoints.restore(_state(0), _Position(), warn=lines.append)
        step = int(found.step)
        assert step in (1, 2), f"a state of step {step}"
        kernel = np.asarray(found.params["q"]["kernel"])
        assert (kernel == np.asarray(_state(step).params["q"]["kernel"])).all(), "other weights"
        assert record["seconds"] == 1.5, "another record"
    finally:
        checkpoints.close()
    yield from lines


def _make_replies(folder: Path) -> None:
    models = {"object": "list", "data": [{"id": "m", "root": "/models/m"}]}
    choice = {"index": 0, "finish_reason": "stop"}
    choice["message"] = {"role": "assistant", "content": "the red cup on the left"}
    for name, value in {"models": models, "answer": {"id": "1", "choices": [choice]}}.items():
        (folder / f"{name}.http").write_bytes(_reply("200 OK", json.dumps(value).encode()))


def _reply(status: str, body: bytes, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", *more]
    head += [f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + body


_STATUSES = (
    "200 OK",
    "200 \x1b]0;OWNED\x07",
    "204 No Content",
    "301 Moved",
    "400 Bad",
    "401 No",
    "404 No",
    "408 Late",
    "429 Busy",
    "500 Broken",
    "503 Busy",
    "999 What",
    "100 Continue",
    "101 Switch",
)
_HEADERS = (
    "Retry-After: 1",
    "Retry-After: nan",
    "Retry-After: -1",
    "Retry-After: 1e999",
    "Transfer-Encoding: chunked",
    "Content-Encoding: gzip",
    "Location: http://127.0.0.1:1/x",
    "Content-Length: 5",
    "Content-Length: -5",
    "Content-Length: x",
    "Set-Cookie: a=b",
    "X" * 70_000,
)


def _mutated_reply(data: bytes, rng: random.Random) -> bytes:
    """Returns a reply with a changed body, status or header, or changed bytes."""
    _, _, body = data.partition(b"\r\n\r\n")
    match rng.randrange(8):
        case 0 | 1:
            return byte_mutations.mutated(data, rng, (b"\r\n", b"\r\n\r\n", b": ", b"HTTP/1.1 "))
        case 2:
            return _reply(rng.choice(_STATUSES), byte_mutations.mutated(body, rng))
        case 3:
            return _reply("200 OK", body, rng.choice(_HEADERS))
        case 4:
            return _reply(rng.choice(_STATUSES), b"\x1b]0;OWNED\x07" * 30)
        case _:
            return _reply("200 OK", json_mutations.mutated_json(body, rng))


class _Server(socketserver.ThreadingTCPServer):
    """Answers every request with bytes that were given to it."""

    allow_reuse_address = daemon_threads = True
    replies: tuple[bytes, bytes] = (b"", b"")
    """To requests for the list of models, and to questions."""


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        request: socket.socket = self.request
        request.settimeout(2)
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                data += request.recv(1 << 16)
            head, _, body = data.partition(b"\r\n\r\n")
            sizes = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-l")]
            size = int(sizes[0].split(b":")[1]) if sizes else 0
            while len(body) < size:
                body += request.recv(1 << 16)
            server: Any = self.server
            request.sendall(server.replies[b"/models" not in head.split(b"\r\n")[0]])
        except OSError:
            pass


@functools.cache
def _server() -> _Server:
    """Returns the server of this child."""
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


_VIEW = np.zeros((4, 4, 3), np.uint8)


def _read_reply(folder: Path) -> Iterator[str]:
    """Asks an endpoint for the description of an object."""
    server = _server()
    server.replies = ((folder / "models.http").read_bytes(), (folder / "answer.http").read_bytes())
    settings = endpoint.Settings(timeout_seconds=0.4, tries=2, wait_seconds=0.0, requests=1)
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    describer = endpoint.Endpoint(url, settings, sleep=lambda seconds: None)
    begin = time.monotonic()
    try:
        yield describer.model().name
        for answer in describer.describe([Question(_VIEW, "what is it?")]):
            yield words.read_description(answer, words.Wording())
    except Failed as reason:
        yield str(reason)
    assert time.monotonic() - begin < 5


_FORMATS = (
    Format(
        name="checkpoint",
        make=_make_checkpoints,
        mutations={"*": _mutated_anyhow},
        read=_read_checkpoints,
        batch=5000,
    ),
    Format(
        name="metrics",
        make=_make_log,
        mutations={"run/metrics.jsonl": _LINES},
        read=_read_log,
    ),
    Format(
        name="run",
        make=_make_run,
        mutations={
            "run/*.json": _JSON,
            "listed/checksums.json": _JSON,
            "model/*": byte_mutations.mutated,
        },
        read=_read_run,
    ),
    Format(
        name="http",
        make=_make_replies,
        mutations={"*.http": _mutated_reply},
        read=_read_reply,
    ),
)

FORMATS = {form.name: form for form in _FORMATS}
