"""What becomes of requests whatever clients do: limits, tokens, those who leave, the end."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import fault_run
import pytest
import scripted

from seg_jax.cli import main
from seg_jax.models.vlm.running_batch import Sizes
from seg_jax.serving import access, faults
from seg_jax.serving.limits import Limits

ASK = {"image": scripted.data_uri(), "text": "it"}
TOKEN = "a token of many characters"


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_requests_beyond_the_limits_are_refused(monkeypatch):
    limits = Limits(bytes=20_000, pixels=10_000, tokens=7)
    with scripted.serve(monkeypatch, limits=limits) as served:
        big = ASK | {"image": scripted.data_uri(scripted.picture(200, 200))}
        assert "413 body: expected at most 20000 bytes" in served.refuses("/v1/segment", big)
        wide = ASK | {"image": scripted.data_uri(_flat(101, 100))}
        assert "413 image: expected at most 10000 pixels" in served.refuses("/v1/segment", wide)
        (one,) = served.send("/v1/segment", ASK)[1]["objects"]
        assert (one["tokens"], one["finish"]) == (7, "length")


def _flat(height, width):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_body_that_does_not_tell_its_length_is_counted(monkeypatch):
    with scripted.serve(monkeypatch, limits=Limits(bytes=20_000)) as served:
        host = served.address.removeprefix("http://")
        line = http.client.HTTPConnection(host, timeout=30)
        pieces = (b"x" * 1000 for _ in range(1000))
        try:
            line.request(
                "POST",
                "/v1/segment",
                body=pieces,
                encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"},
            )
            assert line.getresponse().status == 413
        except (ConnectionError, http.client.HTTPException):
            pass  # It was cut off while it still sent: as good.
        finally:
            line.close()
        assert served.send("/v1/segment", ASK)[0] == 200


def test_overload_is_told_with_the_time_to_come_back(monkeypatch):
    monkeypatch.setattr(scripted.Batch, "pause", 0.05)
    limits = Limits(waiting=1, requests=6)
    with (
        scripted.serve(monkeypatch, limits=limits, sizes=Sizes(slots=1, chunk=8)) as served,
        concurrent.futures.ThreadPoolExecutor(12) as pool,
    ):
        every = [pool.submit(served.send, "/v1/segment", ASK) for _ in range(12)]
        found = [one.result() for one in every]
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {200, 429}
        for status, told, headers in found:
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert told["error"]["type"] == "rate_limit_error"
        assert served.send("/v1/segment", ASK)[0] == 200
        assert served.service.seats == 6


def test_a_client_that_leaves_frees_its_slot(monkeypatch):
    monkeypatch.setattr(scripted.Batch, "pause", 0.2)
    with scripted.serve(monkeypatch, sizes=Sizes(slots=1, chunk=1)) as served:
        host, _, port = served.address.removeprefix("http://").partition(":")
        engine = served.service.answering.engine
        for stream in (False, True):
            path, body = "/v1/segment", ASK
            if stream:
                path, body = (
                    "/v1/chat/completions",
                    {
                        "stream": True,
                        "messages": [
                            {
                                "role": "user",
                                "content": [
                                    {"type": "image_url", "image_url": {"url": ASK["image"]}},
                                    {"type": "text", "text": "it"},
                                ],
                            }
                        ],
                    },
                )
            data = json.dumps(body).encode()
            with socket.create_connection((host, int(port))) as line:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}"
                line.sendall(f"{head}\r\n\r\n".encode() + data)
                scripted.wait_for(lambda: engine.taken == 1)
            scripted.wait_for(lambda: engine.taken == 0)
        assert engine.counts.given_up == 2
        assert engine.counts.answers == 0
        text = served.send("/metrics")[1].decode()
        assert 'seg_jax_requests_total{path="/v1/segment",status="499"} 1.0' in text


def test_none_is_lost_among_broken_requests_and_clients_that_leave():
    found = fault_run.run(200, clients=8)
    assert (found["requests"], found["lost"]) == (200, 0)
    assert found["left"] > 5
    assert found["refused"] > 5
    assert found["answers_afterwards"]
    assert found["engine"]["failed"] == found["engine"]["waiting"] == 0


def test_an_answer_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(scripted.Batch, "pause", 0.3)
    limits = Limits(seconds=0.5)
    with scripted.serve(monkeypatch, limits=limits, sizes=Sizes(slots=1, chunk=1)) as served:
        assert served.refuses("/v1/segment", ASK).startswith("504 server: expected an answer in")
        engine = served.service.answering.engine
        scripted.wait_for(lambda: engine.taken == 0)


def test_a_client_that_sends_slowly_is_cut_off(monkeypatch):
    with scripted.serve(monkeypatch, limits=Limits(seconds=0.5)) as served:
        host, _, port = served.address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as line:
            line.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\n")
            line.sendall(b"Content-Length: 100\r\n\r\n{")
            assert b"504" in line.recv(1000)


def test_an_error_of_our_own_is_told_without_its_text(monkeypatch):
    def script(question, wanted):
        raise RuntimeError("a secret")

    with scripted.serve(monkeypatch) as served:
        monkeypatch.setattr(scripted.Batch, "script", staticmethod(script))
        status, told, _ = served.send("/v1/segment", ASK)
        assert (status, told["error"]["type"]) == (500, "server_error")
        assert "secret" not in json.dumps(told)


def test_requests_are_counted_and_logged_without_what_they_say(monkeypatch, capfd):
    with scripted.serve(monkeypatch) as served:
        served.service.telemetry._shown = True
        served.send("/v1/segment", ASK, headers={"X-Request-ID": "abc"})
        served.send("/v1/segment", ASK, headers={"X-Request-ID": "\\r\\nbad id"})
        served.refuses("/v1/segment", {})
        lines, end = [], time.monotonic() + 30
        while len(lines) < 3 and time.monotonic() < end:  # A client has its reply before the log.
            told = capfd.readouterr().err.splitlines()
            lines += [json.loads(line) for line in told if line[0] == "{"]
            time.sleep(0.01)
        assert [line["status"] for line in lines] == [200, 200, 400]
        assert lines[0]["id"] == "abc"
        assert lines[1]["id"].isalnum()
        assert "expected" in lines[2]["fault"]
        assert all(line["path"] == "/v1/segment" for line in lines)
        text = served.send("/metrics")[1].decode()
        for line in (
            'seg_jax_requests_total{path="/v1/segment",status="200"} 2.0',
            "seg_jax_answers_total 2.0",
            "seg_jax_slots 4.0",
            "seg_jax_waiting_questions 0.0",
        ):
            assert line in text


def test_unknown_paths_and_methods_are_refused(monkeypatch):
    with scripted.serve(monkeypatch) as served:
        assert served.send("/nowhere")[0] == 404
        assert served.send("/v1/segment")[0] == 405
        assert served.send("/../../etc/passwd")[0] == 404
        status, page, headers = served.send("/")
        assert status == 200
        assert b"<!doctype html>" in page[:100].lower()
        assert "default-src 'none'" in headers["content-security-policy"]
        assert len(served.send("/examples")[1]) == 6
        assert served.send("/v1/about")[1]["limits"]["pixels"] == 25_000_000


def test_a_token_opens_all_but_the_page_and_health(monkeypatch):
    with scripted.serve(monkeypatch, token=TOKEN) as served:
        assert served.refuses("/v1/segment", ASK).startswith("401")
        assert served.refuses("/v1/segment", ASK, headers=bearer("other")).startswith("401")
        assert served.refuses("/metrics", None).startswith("401")
        assert served.send("/v1/segment", ASK, headers=bearer(TOKEN))[0] == 200
        assert served.send("/metrics", headers=bearer(TOKEN))[0] == 200
        assert served.send("/")[0] == served.send("/health")[0] == 200


@pytest.mark.parametrize(
    ("token", "headers", "error"),
    [
        (None, {"host": "localhost:8000"}, None),
        (None, {"host": "[::1]:8000"}, None),
        (None, {"host": "evil.example:8000"}, faults.Foreign),
        (None, {}, faults.Foreign),
        (None, {"host": "localhost", "origin": "http://evil.example"}, faults.Foreign),
        (None, {"host": "localhost:1", "origin": "http://localhost:2"}, faults.Foreign),
        (None, {"host": "localhost:1", "origin": "null"}, faults.Foreign),
        (None, {"host": "localhost:1", "origin": "http://localhost:1"}, None),
        (TOKEN, {"host": "any", "authorization": f"Bearer {TOKEN}"}, None),
        (TOKEN, {"host": "any", "authorization": f"bearer {TOKEN}"}, None),
        (TOKEN, {"host": "any", "token": TOKEN}, None),
        (TOKEN, {"host": "any", "authorization": "Basic ???"}, faults.NoToken),
        (TOKEN, {"host": "any", "authorization": TOKEN}, faults.NoToken),
        (TOKEN, {"host": "any", "token": "\xff"}, faults.NoToken),
        (TOKEN, {"host": "any"}, faults.NoToken),
        (
            TOKEN,
            {"host": "a", "origin": "http://b", "authorization": f"Bearer {TOKEN}"},
            faults.Foreign,
        ),
    ],
)
def test_who_may_ask(token, headers, error):
    if error is None:
        access.Access(token).check(headers)
    else:
        with pytest.raises(error):
            access.Access(token).check(headers)


def test_addresses_of_this_machine_alone():
    for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1"):
        assert access.is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.com", ""):
        assert not access.is_loopback(host)


@pytest.mark.parametrize(
    "change",
    [{"bytes": 0}, {"seconds": 0.0}, {"seconds": 1e9}, {"pixels": 10**9}, {"tokens": 0}],
)
def test_limits_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match="limits"):
        Limits(**change)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_what_is_not_installed_is_told_at_once(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main.main(["serve", "--port", "0"]) == 1
    assert f"expected the package '{package}'" in (told := capsys.readouterr().err)
    assert "pip install 'seg-jax[serve]'" in told


CHILD = """
import sys; sys.path[:0] = ["tests", "tests/serving"]
import pytest, scripted
from seg_jax.cli import main, serve
from seg_jax.serving import answering
answering.RunningBatch = scripted.Batch
scripted.Batch.pause = 0.2
serve.Config.predictor = lambda self: type("P", (), {"bundle": scripted.bundle()})
sys.exit(main.main(["serve", "--port", "0", "--batch.chunk", "4"]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_an_answer_on_the_way_end(number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SEG_JAX_TOKEN": ""},
        # Tests that a shell runs in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        served = scripted.Served(address.rstrip("/"), None)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(served.send, "/v1/segment", ASK)
            scripted.wait_for(lambda: b"seg_jax_taken_slots 1" in served.send("/metrics")[1])
            process.send_signal(number)
            assert asked.result()[0] == 200
        assert process.wait(60) == status
        assert "interrupted" in process.stderr.read()
    finally:
        process.kill()
        time.sleep(0)
