"""Asks servers that give each byte late, too many of them, or none, over one clock (slow-1)."""

import contextlib
import gzip
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from seg_jax.annotation import http_exchange
from seg_jax.annotation.endpoint import Endpoint, Settings
from seg_jax.annotation.stages import Failed, Question, Unusable

VARIABLE = "SEG_JAX_DESCRIBER_KEY"
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve(monkeypatch):
    """Returns a function that answers each connection by a function of its socket."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", VARIABLE):
        monkeypatch.delenv(name, raising=False)
    stop, threads, listeners = threading.Event(), [], []

    def start(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def one(client):
            with client, contextlib.suppress(OSError):
                answer(client, stop)

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.settimeout(30)
                    threads.append(threading.Thread(target=one, args=(client,), daemon=True))
                    threads[-1].start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    yield start
    stop.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "expected the connection to be cut"


def read_request(client):
    """Reads the head of a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(1 << 16)


def send_slowly(client, stop, data, *, wait=0.02):
    """Sends a byte at a time until the other end is gone."""
    for byte in data:
        if stop.wait(wait):
            return
        client.send(bytes([byte]))


def endless(line):
    while True:
        yield from line


def slow_head(client, stop):
    read_request(client)
    send_slowly(client, stop, OK + b"X: " + b"y" * 100_000)


def slow_line(client, stop):
    send_slowly(client, stop, b"HTTP/1.1 " + b"2" * 60_000)


def slow_body(client, stop):
    read_request(client)
    client.sendall(OK + b"Content-Length: 100000\r\n\r\n")
    send_slowly(client, stop, b" " * 100_000)


def slow_chunks(client, stop):
    read_request(client)
    client.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    send_slowly(client, stop, endless(b"1\r\n \r\n"))


def slow_refusal(client, stop):
    read_request(client)
    client.sendall(b"HTTP/1.1 500 No\r\n\r\n")
    send_slowly(client, stop, b"oh " * 100_000)


def only_continue(client, stop):
    read_request(client)
    while not stop.is_set():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def nothing(client, stop):
    stop.wait(30)


def reads_nothing_then_hangs(client, stop):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    stop.wait(30)


SLOW = [slow_head, slow_line, slow_body, slow_chunks, slow_refusal, only_continue, nothing]


def questions(side=32):
    view = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    return [Question(view, "What is it?")]


@pytest.mark.parametrize("answer", [*SLOW, reads_nothing_then_hangs])
def test_a_try_ends_in_time_however_its_bytes_are_spread(serve, answer):
    """slow-1: a limit of each read let 2 s and 2 tries become 260 s."""
    settings = Settings(model="vlm", timeout_seconds=0.4, tries=2, wait_seconds=0.0)
    side = 2000 if answer is reads_nothing_then_hangs else 32
    begin = time.monotonic()
    with pytest.raises(Failed, match="^no answer in time, 2 times$"):
        Endpoint(serve(answer), settings).describe(questions(side))
    # Two tries; the rest is for a busy machine, and far from the minutes of the bytes.
    assert time.monotonic() - begin < 0.8 + 10


def test_a_name_that_is_looked_up_for_ever_ends_in_time(monkeypatch):
    """The look-up knows no limit of time; what it finds too late is not connected to."""
    free, connected = threading.Event(), []

    def look_up(*words, **named):
        free.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 9))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", lambda *words: connected.append(words))
    before = threading.active_count()
    with pytest.raises(http_exchange.NoResponse, match="no answer in time"):
        http_exchange.response("http://slow.example/v1/models", None, {}, seconds=0.2)
    free.set()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert connected == []


def test_every_address_of_a_host_shares_the_time(monkeypatch):
    """A limit of each connection would be one of each address."""
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", n)) for n in range(1, 50)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **named: places)
    waits = []

    def connect(made, place):
        waits.append(made.gettimeout())
        time.sleep(0.1)
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(http_exchange.NoResponse, match="no answer in time"):
        http_exchange.response("http://many.example/v1/models", None, {}, seconds=0.35)
    assert len(waits) <= 4
    assert waits == sorted(waits, reverse=True)
    assert waits[0] <= 0.35


def reply(head, body=b""):
    """Returns a server that sends these bytes at once."""

    def answer(client, stop):
        client.sendall(head + body)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):  # What is not read would reset the connection.
            pass

    return answer


def chunked(body):
    return b"Transfer-Encoding: chunked\r\n\r\n" + body


def many_headers(client, stop):
    read_request(client)
    client.sendall(OK)
    while not stop.is_set():
        client.sendall(b"X: y\r\n" * 1000)


def endless_header(client, stop):
    read_request(client)
    client.sendall(OK + b"X: ")
    while not stop.is_set():
        client.sendall(b"y" * 65536)


def endless_body(client, stop):
    read_request(client)
    client.sendall(OK + b"\r\n")
    while not stop.is_set():
        client.sendall(b"[" * 65536)


def content(value):
    data = json.dumps({"choices": [{"message": {"content": value}}]}).encode()
    return b"Content-Length: %d\r\n\r\n" % len(data), data


BOMB = gzip.compress(b" " * 50_000_000)

HOSTILE = [
    (many_headers, "no answer"),
    (endless_header, "no answer"),
    (endless_body, "more than 1048576 bytes"),
    (reply(OK, chunked(b"-5\r\n" + b"x" * 100)), "no"),
    (reply(OK, chunked(b"zz\r\n")), "no answer"),
    (reply(OK, chunked(b"f" * 50_000)), "no answer"),
    (reply(OK, chunked(b"ffffffffff\r\n" + b"x" * 2_000_000)), "more than 1048576 bytes"),
    (reply(OK + b"Content-Length: -7\r\n\r\n", b"{}"), "response"),
    (reply(OK + b"Content-Length: 99999999999999\r\n\r\n", b"{}"), "no"),
    (reply(OK + b"Content-Encoding: gzip\r\n\r\n", BOMB), "no JSON"),
    (reply(OK + b"Content-Type: text/html\r\n\r\n", b"<html>"), "no JSON"),
    (reply(OK + b"\r\n", b"[" * 500_000), "no JSON"),
    (reply(OK + b"\r\n", b"9" * 100_000), "expected object, got inf"),
    (reply(OK + b"\r\n", b'{"choices": [' + b"1," * 100_000 + b"1]}"), "expected"),
    (reply(OK, b"".join(content("x" * 200_000))), "content: expected str of length <= 100000"),
    (reply(OK, b"".join(content("\ud800"))), "without lone surrogates"),
    (reply(OK, b"".join(content(["a"]))), "content: expected str"),
    (reply(b"HTTP/1.1 200 OK\r\n\r\n", b"NaN"), "expected object, got nan"),
    (reply(b"HTTP/9.9 zzz\r\n\r\n"), "no answer"),
    (reply(b"\x00\xff" * 1000 + b"\r\n"), "no answer"),
    (reply(b"ICY 200\r\n\r\n"), "no answer"),
    (reply(b""), "no answer"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_reply_that_is_none_is_a_dead_letter_in_one_line(serve, number):
    answer, told = HOSTILE[number]
    settings = Settings(model="vlm", timeout_seconds=5.0, tries=2, wait_seconds=0.0)
    begin = time.monotonic()
    with pytest.raises(Failed, match=told) as caught:
        Endpoint(serve(answer), settings).describe(questions())
    assert time.monotonic() - begin < 10 + 10
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "place", ["http://[", "//[", "file:///etc/passwd", "\x00", "http://a/\xe9"]
)
def test_a_redirect_to_nowhere_is_a_status_like_others(serve, place):
    """An address that cannot be parsed was an error of its own, and came through to the user."""
    head = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\n\r\n".encode("latin-1")
    with pytest.raises(Unusable, match="got status 302"):
        Endpoint(serve(reply(head)), Settings(model="vlm", tries=1)).describe(questions())


@pytest.mark.parametrize("before", [0, 100, 152, 157])
def test_no_part_of_the_key_is_told(serve, monkeypatch, before):
    """Cut off after so many characters, the rest of the key stood at the end."""
    monkeypatch.setenv(VARIABLE, "secret-key")
    body = b"x" * before + b"secret-key is wrong"
    head = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(Unusable) as caught:
        Endpoint(serve(reply(head, body)), Settings(model="vlm")).describe(questions())
    assert "sec" not in str(caught.value)


def test_a_list_of_models_is_bounded(serve):
    wrong = [{"data": [{"id": "a"}] * 10_001}, {"data": [{"id": 5}]}, {"data": {}}, {}]
    for value in wrong:
        url = serve(reply(OK + b"\r\n", json.dumps(value).encode()))
        with pytest.raises(Unusable, match=r"got a response of another form \(response.*1 times"):
            Endpoint(url, Settings(tries=1)).model()


def test_a_busy_endpoint_that_asks_for_eternity_waits_as_long_as_the_settings_say(serve):
    head = b"HTTP/1.1 429 Busy\r\nRetry-After: %s\r\n\r\n"
    for wish in (b"1e400", b"nan", b"-1e400", b"9" * 400, b"never"):
        waits = []
        settings = Settings(model="vlm", tries=2, most_wait_seconds=3.0)
        with pytest.raises(Failed, match="status 429, 2 times"):
            Endpoint(serve(reply(head % wish)), settings, sleep=waits.append).describe(questions())
        assert len(waits) == 1
        assert 0 <= waits[0] <= 3.0


def test_the_program_of_a_slow_endpoint_ends_as_well():
    """Threads that still wait for a name or a byte do not keep the process."""
    code = (
        "import socket, time\n"
        "from seg_jax.annotation import http_exchange as h\n"
        "socket.getaddrinfo = lambda *words, **named: time.sleep(300)\n"
        "try: h.response('http://slow.example/', None, {}, seconds=0.1)\n"
        "except h.NoResponse as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr, done.returncode) == ("no answer in time\n", "", 0)
