"""Asks a stub of an OpenAI-compatible endpoint that fails in every way, and trusts it in none."""

import base64
import contextlib
import dataclasses
import http.server
import io
import json
import pickle
import threading
import time

import known_scenes as known
import numpy as np
import pytest
from PIL import Image

from seg_jax.annotation.annotator import annotate
from seg_jax.annotation.choice import Choice
from seg_jax.annotation.endpoint import Endpoint, Settings
from seg_jax.annotation.stages import Failed, Question, Unusable
from seg_jax.data.image_lists import ImageFile

VARIABLE = "SEG_JAX_DESCRIBER_KEY"


def said(text, reason="stop"):
    """Returns a response with an answer."""
    message = {"role": "assistant", "content": text}
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": reason}]})


LISTED = (
    200,
    json.dumps(
        {
            "object": "list",
            "data": [{"id": "vlm", "root": "vlm"}, {"id": "other", "root": "/models/other-7b"}],
        }
    ),
)


class Stub:
    """An endpoint that answers as a script says, a response a request, the last one for ever."""

    def __init__(self):
        self.script = [said("the red cup")]
        self.listed = LISTED
        self.seen = []
        self.lock = threading.Lock()

    def next(self):
        with self.lock:
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@pytest.fixture
def stub(monkeypatch):
    """Returns a stub at work, with its address."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    made = Stub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            made.seen.append((self.path, dict(self.headers), None))
            self.answer(made.listed)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.seen.append((self.path, dict(self.headers), json.loads(body)))
            response = made.next()
            self.answer(response(self) if callable(response) else response)

        def answer(self, response):
            if response is None:
                return
            status, body, *headers = response
            data = body if isinstance(body, bytes) else body.encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def asked(stub, *, count=1, **changes):
    """Returns an endpoint that waits for nothing, what it would have waited, and questions."""
    waits = []
    settings = Settings(**({"model": "vlm", "tries": 4, "timeout_seconds": 5.0} | changes))
    view = np.stack([*np.mgrid[:40, :48] * 5, np.full((40, 48), 99)], 2).astype(np.uint8)
    asks = [Question(view, f"What is {n}?") for n in range(count)]
    return Endpoint(stub.url, settings, sleep=waits.append), waits, asks


def test_a_question_travels_with_its_image(stub, monkeypatch):
    monkeypatch.setenv(VARIABLE, "secret-key")
    endpoint, waits, asks = asked(stub)
    assert endpoint.describe(asks) == [("the red cup", True)]
    ((path, headers, body),) = stub.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret-key"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("vlm", 0, 96)
    part, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is 0?"}
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert np.abs(np.asarray(image).astype(int) - asks[0].view).max() < 10
        assert image.size == (48, 40)
    assert waits == []


def test_answers_come_in_the_order_of_questions(stub):
    def slow(handler):
        text = stub.seen[-1][2]["messages"][0]["content"][1]["text"]
        time.sleep(0.05 if text == "What is 0?" else 0)
        return said(text)

    stub.script = [slow]
    endpoint, _, asks = asked(stub, count=3, requests=1)
    assert [one.text for one in endpoint.describe(asks)] == [one.text for one in asks]


def test_no_key_is_sent_without_one(stub):
    endpoint, _, asks = asked(stub)
    endpoint.describe(asks)
    assert "Authorization" not in stub.seen[0][1]


def hang(handler):
    time.sleep(0.5)


def reset(handler):
    handler.connection.close()


def cut(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.close()


def drip(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(20):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ((429, "slow down"), "status 429: slow down"),
        ((500, "oh"), "status 500: oh"),
        ((503, ""), "status 503"),
        (hang, "no answer in time"),
        (drip, "no answer in time"),
        (reset, "no answer"),
        (cut, "a response that is no JSON"),
        ((200, "<html>"), "no JSON"),
        ((200, b"\xff\xfe\x00"), "no JSON"),
        ((200, "[" * 100_000), "no JSON"),
        ((200, "[]"), "response: expected object, got a list of 0"),
        ((200, '{"choices": []}'), "response, choices: expected list of length >= 1"),
        (
            (200, '{"choices": [{"message": {"content": 7}}]}'),
            "response, choices[0].message.content: expected str",
        ),
        ((200, b"x" * ((1 << 20) + 1)), "no answer"),
    ],
)
def test_what_may_go_away_is_tried_again(stub, fault, told):
    stub.script = [fault, fault, said("the red cup")]
    endpoint, waits, asks = asked(stub, timeout_seconds=0.15)
    assert endpoint.describe(asks)[0].text == "the red cup"
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 2.0
    stub.script = [fault]
    with pytest.raises(Failed, match="4 times") as caught:
        endpoint.describe(asks)
    assert caught.value.transient
    assert told in str(caught.value)


def test_waits_grow_to_a_limit_and_as_the_endpoint_asks(stub):
    stub.script = [(429, "", ("Retry-After", "7"))]
    endpoint, waits, asks = asked(stub, tries=3)
    with pytest.raises(Failed):
        endpoint.describe(asks)
    assert waits == [7.0, 7.0]
    stub.script = [(429, "", ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"))]
    endpoint, waits, asks = asked(stub, tries=7, most_wait_seconds=5.0)
    with pytest.raises(Failed):
        endpoint.describe(asks)
    assert len(waits) == 6
    assert max(waits) <= 5.0
    assert waits[-1] >= 2.5
    stub.script = [(429, "", ("Retry-After", "86400"))]
    with pytest.raises(Failed):
        endpoint.describe(asks)
    assert waits[-1] == 5.0


def test_what_is_refused_is_not_tried_again(stub):
    stub.script = [(400, "image too\nlarge")]
    endpoint, waits, asks = asked(stub)
    with pytest.raises(Failed, match="status 400: image too large") as caught:
        endpoint.describe(asks)
    assert (waits, caught.value.transient) == ([], False)


@pytest.mark.parametrize("status", [401, 403, 404, 302, 307])
def test_what_every_image_would_get_stops_the_run(stub, monkeypatch, status):
    monkeypatch.setenv(VARIABLE, "secret-key")
    elsewhere = "Location", f"{stub.url}/other"
    stub.script = [(status, "bad key: secret-key", elsewhere)]
    endpoint, _, asks = asked(stub)
    with pytest.raises(
        Unusable, match=f"got status {status}: bad key: \\[key\\]; do: correct"
    ) as caught:
        endpoint.describe(asks)
    assert "secret" not in str(caught.value)
    assert len(stub.seen) == 1  # A redirect is not followed: it would take the key along.


def test_the_key_is_in_no_record_and_no_letter(stub, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "secret-key")
    known.make(tmp_path, 1)
    stages = known.Load(1)()._replace(describer=asked(stub)[0])
    image = ImageFile("000.png", tmp_path / "000.png")
    outcome = annotate(image, stages, known.settings(), models=known.TALKING)
    assert [one["text"] for one in outcome.line["phrases"]] == ["the red cup"]
    stub.script = [(500, "you said secret-key")]
    failed = annotate(image, stages, known.settings(), models=known.TALKING).failed
    assert failed[0]["stage"] == "describer"
    assert failed[0]["transient"] is True
    assert "secret" not in json.dumps([outcome.line, failed])
    assert "[key]" in failed[0]["reason"]


def test_a_key_that_cannot_be_sent_is_not_shown(stub, monkeypatch):
    monkeypatch.setenv(VARIABLE, "secret\nkey")
    with pytest.raises(ValueError, match="expected a key of printable ASCII") as caught:
        Endpoint(stub.url)
    assert "secret" not in str(caught.value)


def test_an_answer_that_was_cut_off_is_known(stub):
    stub.script = [said("the red cup that", "length")]
    endpoint, _, asks = asked(stub)
    assert endpoint.describe(asks) == [("the red cup that", False)]
    stub.script = [said(None)]
    assert endpoint.describe(asks) == [("", True)]


def test_the_model_is_the_first_one_or_the_one_that_is_named(stub):
    assert Endpoint(stub.url).model() == ("vlm", "")
    other = Endpoint(f"{stub.url}/", Settings(model="other"))
    assert other.model() == ("other", "/models/other-7b")
    with pytest.raises(Unusable, match=r"expected the model third at .*, got vlm, other; do:"):
        Endpoint(stub.url, Settings(model="third")).model()
    stub.listed = 200, '{"data": []}'
    with pytest.raises(Unusable, match="got none; do"):
        Endpoint(stub.url).model()
    stub.listed = 200, '["hello"]'
    with pytest.raises(Unusable, match="expected an OpenAI-compatible endpoint"):
        Endpoint(stub.url).model()


def test_an_endpoint_that_is_not_there_is_one_line(stub):
    url = "http://127.0.0.1:9/v1"
    endpoint = Endpoint(url, Settings(tries=2), sleep=lambda seconds: None)
    with pytest.raises(
        Unusable, match=f"endpoint at {url}, got no answer .*, 2 times; do: start it"
    ):
        endpoint.model()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "host:8000",
        "http://",
        "file:///etc/passwd",
        "http://me:pass@host/v1",
        "http://[::1",
        "http://\u2100/",
        "http://host:port/v1",
        "http://host:99999/v1",
    ],
)
def test_addresses_that_are_none_are_told(url):
    with pytest.raises(ValueError, match="describer: expected an address .*; do: "):
        Endpoint(url)


def test_settings_that_make_no_sense_are_told():
    with pytest.raises(ValueError, match="tries of at least 1"):
        Settings(tries=0)
    with pytest.raises(ValueError, match="expected a timeout above 0"):
        Settings(timeout_seconds=0.0)


def test_a_choice_keeps_to_the_model_that_was_served(stub, tmp_path):
    for name in ("dino", "sam"):
        (tmp_path / name).mkdir()
    chosen = Choice(detector=tmp_path / "dino", segmenter=tmp_path / "sam", describer=stub.url)
    models = chosen.models()
    assert models.describer == ("vlm", "")
    assert models.detector.name == "dino"
    settled = chosen.with_endpoint_model(models)
    assert settled.endpoint.model == "vlm"
    assert hash(settled) == hash(pickle.loads(pickle.dumps(settled)))
    silent = dataclasses.replace(chosen, describer=None)
    assert silent.with_endpoint_model(silent.models()) == silent
    assert silent.models().describer is None
