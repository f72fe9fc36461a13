"""Locks: one process a folder; who holds it is told, and a lock ends with its holder."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from seg_jax import locks


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)


@pytest.fixture
def said():
    return []


@pytest.fixture
def hold(tmp_path, said):
    return lambda: locks.hold(tmp_path / locks.NAME, place=tmp_path, say=said.append)


HOLDER = """
import sys, time
from pathlib import Path
from seg_jax import locks

folder = Path(sys.argv[1])
with locks.hold(folder / locks.NAME, place=folder):
    print("held", flush=True)
    if sys.argv[2] == "fork":
        import os
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    time.sleep(60)
"""


def start_holder(folder, how="alone"):
    """Returns a process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_touches_nothing(tmp_path, hold):
    """lock-1."""
    process = start_holder(tmp_path)
    try:
        before = (tmp_path / locks.NAME).stat().st_ino
        with pytest.raises(ValueError) as refused, hold():
            pass
        line = str(refused.value)
        assert line.startswith(f"{tmp_path}: expected to work alone in it, got -c {tmp_path} at")
        assert f"process {process.pid} on " in line
        assert "; do: wait for its end" in line
        assert "\n" not in line
        assert (tmp_path / locks.NAME).stat().st_ino == before
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_it_dies_with_its_holder_though_a_forked_process_lives_on(tmp_path, hold, said, how):
    process = start_holder(tmp_path, how)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / locks.NAME).exists()
    with hold():
        pass
    assert not said
    assert not [*tmp_path.iterdir()]


def test_twice_in_one_process_is_refused_and_free_at_the_end(hold):
    with hold(), pytest.raises(ValueError, match=f"process {os.getpid()} on "), hold():
        pass
    with hold():
        pass


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_no_process_has_made_is_one_line(tmp_path, hold, kind):
    path = tmp_path / locks.NAME
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with (
        pytest.raises(ValueError, match=f"expected a lock file, or none, got a {kind}") as e,
        hold(),
    ):
        pass
    assert "; do: remove it" in str(e.value)
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_within_lets_go(hold, tmp_path):
    with pytest.raises(ZeroDivisionError), hold():
        1 / 0  # noqa: B018
    with hold():
        pass
    assert not [*tmp_path.iterdir()]


def far_holder(tmp_path, beat=3):
    """Writes down a holder of another machine."""
    text = {"host": "far", "kernel": "other", "pid": 7, "since": "then", "command": "seg-jax x"}
    (tmp_path / locks.NAME).write_text(json.dumps(text | {"beat": beat}))


def test_a_holder_of_another_machine_that_is_silent_counts_as_gone(tmp_path, hold, said):
    far_holder(tmp_path)
    begin = time.monotonic()
    with hold():
        assert json.loads((tmp_path / locks.NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin > 0.5
    (line,) = said
    assert "seg-jax x at work (process 7 on far, since then); waiting up to 0.5 s" in line


def test_a_holder_of_another_machine_that_lives_is_found_where_locks_do_not_reach(tmp_path, hold):
    far_holder(tmp_path)
    writer = threading.Timer(0.2, far_holder, (tmp_path, 4))
    writer.start()
    with pytest.raises(ValueError, match="got seg-jax x at work .process 7 on far"), hold():
        pass
    writer.join()
    assert json.loads((tmp_path / locks.NAME).read_text())["beat"] == 4


def test_a_lock_that_a_server_keeps_for_a_dead_machine_is_waited_for(tmp_path, hold, monkeypatch):
    far_holder(tmp_path)
    free_at, flock = time.monotonic() + 0.7, locks.fcntl.flock

    def lease(file, operation):
        if time.monotonic() < free_at:
            raise BlockingIOError(errno.EWOULDBLOCK, "held")
        flock(file, operation)

    monkeypatch.setattr(locks.fcntl, "flock", lease)
    with hold():
        assert time.monotonic() >= free_at
    free_at = time.monotonic() + 60
    far_holder(tmp_path)
    with pytest.raises(ValueError, match=r"if its machine is gone: remove .*\.lock"), hold():
        pass


@pytest.fixture
def no_locks(monkeypatch):
    def flock(file, operation):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_it_is_said_and_a_living_holder_is_known_by_its_numbers(hold, said, tmp_path):
    with hold():
        assert said == [
            f"{tmp_path / locks.NAME}: its file system gives no locks; other processes are known "
            "by what they write there"
        ]
        with pytest.raises(ValueError, match=f"process {os.getpid()} on "), hold():
            pass
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("no_locks")
def test_of_two_that_begin_at_once_without_locks_one_goes_on(tmp_path, hold, monkeypatch):
    first = locks._Lock._check_alone

    def check(self):
        far_holder(tmp_path)  # Written by the other in the same moment.
        first(self)

    monkeypatch.setattr(locks._Lock, "_check_alone", check)
    with pytest.raises(ValueError, match="process 7 on far"), hold():
        pass


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"host": 3}', "[" * 100_000, '{"host": "\\u001b]0;x", "pid": 1}']
)
def test_what_is_no_holder_holds_nothing(tmp_path, hold, said, text):
    (tmp_path / locks.NAME).write_text(text)
    with hold():
        pass
    assert not said


def test_a_holders_words_are_escaped(tmp_path, hold, said):
    text = {
        "host": "\x1b]0;x\a",
        "kernel": "o",
        "pid": 7,
        "since": "s",
        "command": "c\n",
        "beat": 1,
    }
    (tmp_path / locks.NAME).write_text(json.dumps(text))
    with hold():
        pass
    assert "c\\n at work (process 7 on \\x1b]0;x\\x07, since s)" in said[0]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path, hold):
    (tmp_path / "other").write_text("mine")
    (tmp_path / locks.NAME).symlink_to(tmp_path / "other")
    with (
        pytest.raises(ValueError, match=r"\.lock: expected a lock file, or none, got a link"),
        hold(),
    ):
        pass
    assert (tmp_path / "other").read_text() == "mine"


def test_a_removed_lock_is_not_taken_for_the_one_that_is_there(tmp_path, hold, monkeypatch):
    """The holder removes the file between the opening and the locking of another one."""
    flock, stolen = locks.fcntl.flock, []

    def steal(file, operation):
        flock(file, operation)
        if not stolen:
            stolen.append(os.fstat(file).st_ino)
            (tmp_path / locks.NAME).unlink()

    monkeypatch.setattr(locks.fcntl, "flock", steal)
    with hold():
        assert locks._same_file(next(iter(locks._held)), tmp_path / locks.NAME)
