"""Every option of serve acts, or is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import fingerprints
import pytest

from seg_jax.cli import model_options, serve
from seg_jax.cli.benchmarks import harness
from seg_jax.cli.benchmarks import serve as measured
from seg_jax.data.encode import Layout
from seg_jax.inference import predictor
from seg_jax.runs import run_folder
from seg_jax.serving import server
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.task import Task

MODES = {"by default": {}, "elsewhere": {"host": "0.0.0.0", "images": Path()}}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Stands for a model."""

    layout: Layout = Layout()
    task: Task | None = None

    @property
    def tokenizer(self):
        return SimpleNamespace(encode=lambda text: [1])


class Asked(predictor.Predictor):
    """Stands for a model that is asked."""

    def __init__(self, bundle, **_):
        self.bundle = bundle

    def predict_one(self, *_):
        return SimpleNamespace(text="[]")


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> what the stages of the program receive."""
    note = fingerprints.Notes(monkeypatch, tmp_path)

    class Answering:
        """Stands for a model that is served."""

        def __init__(self, bundle, *, sizes, limits, grammar, name):
            note("answering", bundle, sizes, limits, grammar, name)
            self.name = name

        def warm_up(self):
            return iter(["a program"])

        def start(self):
            note("start")

    class Server:
        def __init__(self, service, listener):
            note("server", listener.getsockname())

        def run(self):
            note("run")

        def stop(self):
            note("stop")

    def bind(host, port):
        note("bind", host, port)
        return SimpleNamespace(getsockname=lambda: (host, port), close=lambda: note("close"))

    def service(answering, *, access, images, shown):
        note("service", access.token, images, shown)
        return SimpleNamespace(answering=answering)

    def load(folder, *, compute, on, visual_tokens, task_kind, adapter):
        note("load", folder, compute, visual_tokens, task_kind, adapter)
        return Bundle()

    for program in (serve, measured):
        monkeypatch.setattr(program, "Answering", Answering)
        monkeypatch.setattr(program, "Service", service)
    monkeypatch.setattr(server, "Server", Server)
    monkeypatch.setattr(server, "bind", bind)
    monkeypatch.setattr(serve.secrets, "token_urlsafe", lambda: "made up")
    monkeypatch.setattr(model_options.families, "noted_dtype", lambda folder: "float32")
    monkeypatch.setattr(model_options.bundles, "load", load)
    monkeypatch.setattr(model_options.bundles, "own_task", lambda *_, **__: Referring())
    monkeypatch.setattr(model_options, "Predictor", Asked)
    monkeypatch.delenv(serve.TOKEN, raising=False)
    _stand_in_for_clients(monkeypatch, note)
    return note.of


def _stand_in_for_clients(monkeypatch, note):
    """Lets a benchmark ask nobody, all in turn."""

    def timed(ask, count, *, clients):
        note("timed", count, clients)
        return [ask(number) for number in range(min(count, 20))], 1.0, 1.0

    def post(port, body, wanted, path="/v1/segment"):
        note("post", body)
        return measured.Timed(1.0, 1, wanted[0], wanted)

    def leave(port, body):
        note("leave")
        return measured.Timed(1.0, 0, 0, (0,))

    def questions(config):
        note("questions", config.scenes, config.seed)
        return [(None, "it", b"a"), (None, "it", b"b")]

    monkeypatch.setattr(harness, "machine", dict)
    monkeypatch.setattr(measured, "_timed", timed)
    monkeypatch.setattr(measured, "_post", post)
    monkeypatch.setattr(measured, "_leave", leave)
    monkeypatch.setattr(measured, "_FAULTS", (leave,))
    monkeypatch.setattr(measured, "_questions", questions)
    monkeypatch.setattr(measured, "_await_health", lambda port: None)
    monkeypatch.setattr(measured, "_show", lambda results: None)
    monkeypatch.setattr(measured, "_resident_mib", lambda: 1.0)
    monkeypatch.setattr(run_folder, "tell_json", lambda value, path: note("json", path))


@pytest.mark.parametrize("faulty", [0.0, 0.5])
def test_every_option_of_benchmark_serve(faulty, prints):
    config = measured.Config(requests=12, faulty=faulty)
    fingerprints.walk(prints, measured, config, aliases=("dtype",))


@pytest.mark.parametrize("mode", MODES)
def test_every_option_of_serve(mode, prints):
    fingerprints.walk(prints, serve, serve.Config(**MODES[mode]), aliases=("dtype",))


def test_a_token_is_asked_for_where_others_reach_the_server(prints, monkeypatch, capsys):
    def service_of(**changes):
        return next(part for part in prints(serve, serve.Config(**changes)) if part[0] == "service")

    assert service_of()[1] is None
    assert service_of(host="::1")[1] is None
    assert service_of(host="0.0.0.0")[1] == "made up"
    assert "#token=made up" in capsys.readouterr().out
    monkeypatch.setenv(serve.TOKEN, "x" * 16)
    assert service_of()[1] == service_of(host="0.0.0.0")[1] == "x" * 16
    monkeypatch.setenv(serve.TOKEN, "short")
    with pytest.raises(ValueError, match="SEG_JAX_TOKEN: expected at least 16"):
        service_of()


def test_a_port_that_is_taken_is_named():
    with server.bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"free at 127.0.0.1, got {port}"):
            server.bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="port: expected"):
        server.bind("203.0.113.7", 0)
