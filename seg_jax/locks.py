"""Lets one process at a time work in a folder, and tells the others who does.

The kernel holds the lock (flock) and lets go of it when the process ends, however it ends: NFS and
most file systems of clusters pass it on to the other machines, buckets that are mounted do not.
So the holder also writes a new number into the file every few seconds; who comes from another
machine, or finds a file system without locks, watches that number for a while.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from seg_jax import files, schemas

NAME = ".lock"
"""Name of the lock file in a folder; it is there while a process works, and after a kill."""
BEAT_SECONDS = 5.0
"""Time between two numbers of a holder."""
WATCH_SECONDS = 4 * BEAT_SECONDS
"""Time after which a holder on another machine that writes no new number counts as gone."""
LEASE_SECONDS = 120.0
"""Longest time in which servers of files let go of the locks of a machine that has died."""

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_STRANGE = {errno.EISDIR: "a folder", errno.ELOOP: "a link", errno.ENXIO: "a pipe or a device"}
"""What lies in the place of a lock file, by the error when it is opened."""
_BYTES = 4096
"""Size of a lock file."""
_Short = Annotated[str, Meta(max_length=300)]


class Holder(schemas.Record, frozen=True, kw_only=True):
    """The process that works in a folder, as it has written itself into the lock file."""

    host: _Short
    kernel: _Short
    """Number of the boot: what runs under the same kernel sees the same locks."""
    pid: int
    since: _Short
    command: _Short
    beat: int

    def __str__(self):
        told = f"{self.command} at work (process {self.pid} on {self.host}, since {self.since})"
        return ascii(told)[1:-1]


@contextlib.contextmanager
def hold(path: Path, *, place: Path, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a lock file for this process as long as the block runs; its folder exists.

    Args:
      path: of the lock file; it is removed at the end.
      place: the folder that it stands for, in messages.
      say: is called with a line where this takes time or is less than a lock; None: standard error.

    Raises:
      ValueError: another process holds it, and the line tells which; or it is no file.
      OSError: the file cannot be written.
    """
    say = say or functools.partial(print, file=sys.stderr, flush=True)
    lock = _Lock(path, place, say)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Lock:
    def __init__(self, path: Path, place: Path, say: Callable[[str], None]):
        self._path, self._place, self._say = path, place, say
        self._kernel_holds = True
        """Whether the file system knows locks."""
        self._me = _myself()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write_beats, daemon=True, name="lock")

    def acquire(self) -> None:
        """Returns when this process holds the lock; raises ValueError if another one does."""
        begin, known, told = time.monotonic(), self._holder(), False
        while True:
            is_free, found = self._try(), self._holder()
            if known is not None and found not in (None, known):
                if is_free:
                    self._close()
                raise self._refusal(found)  # Its number has changed: it lives.
            known, waited = known or found, time.monotonic() - begin
            is_far = found is not None and found.kernel != self._me.kernel
            is_watched = found is not None and (is_far or not self._kernel_holds)
            if is_free and (not is_watched or waited > WATCH_SECONDS):
                break
            if is_free:
                self._close()
            elif not is_far or waited > LEASE_SECONDS:
                # A holder writes itself down a moment after the kernel gave it the lock.
                raise self._refusal(found or self._holder(seconds=1.0))
            if not told:
                limit, told = WATCH_SECONDS if is_free else LEASE_SECONDS, True
                self._say(
                    f"{self._path}: {found}; waiting up to {limit:g} s to see whether it lives"
                )
            time.sleep(BEAT_SECONDS / 10)
        self._write(0)
        if not self._kernel_holds:
            self._check_alone()
        self._thread.start()

    def _check_alone(self) -> None:
        """Raises ValueError if another process began at once where there are no locks."""
        self._say(
            f"{self._path}: its file system gives no locks; other processes are known by what "
            "they write there"
        )
        time.sleep(BEAT_SECONDS / 5)
        if (found := self._holder()) not in (None, self._me):  # The last to write goes on.
            self._close()
            raise self._refusal(found)

    def release(self) -> None:
        """Removes the file while it is still held, and lets go of it."""
        self._done.set()
        if self._file not in _held:  # A forked process, to which the lock does not belong.
            return
        self._thread.join()
        with contextlib.suppress(OSError):
            if _same_file(self._file, self._path):
                self._path.unlink()
        self._close()

    def _try(self) -> bool:
        """Opens the file and returns whether it is now held as far as the kernel knows."""
        while True:
            self._file = self._opened()
            _held.add(self._file)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    self._close()
                    if error.errno == errno.ESTALE:
                        continue
                    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        return False
                    raise OSError(error.errno, error.strerror, str(self._path)) from None
                self._kernel_holds = False
            if _same_file(self._file, self._path):
                return True
            self._close()  # Its holder has removed it: what is held is no longer the lock.

    def _opened(self) -> int:
        """Returns the number of the open file; raises ValueError for what no process has made."""
        try:
            file = os.open(self._path, _OPEN | os.O_NONBLOCK, 0o666)
            if stat.S_ISREG(os.fstat(file).st_mode):
                return file
            os.close(file)
            got = "a pipe or a device"
        except OSError as error:
            if error.errno not in _STRANGE:
                raise
            got = _STRANGE[error.errno]
        raise ValueError(
            f"{self._path}: expected a lock file, or none, got {got}; do: remove it, or choose "
            "another folder"
        )

    def _holder(self, *, seconds: float = 0.0) -> Holder | None:
        """Returns who has written itself down; it waits so long for one to do so."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ValueError):
                # Opened anew: file systems of clusters look at the server's file then.
                if self._path.is_file():
                    with self._path.open("rb") as file:
                        text = files.parse_json(file.read(_BYTES), where=str(self._path))
                    return schemas.check(text, Holder, where=str(self._path))
            if time.monotonic() >= end:
                return None
            time.sleep(0.05)

    def _refusal(self, holder: Holder | None) -> ValueError:
        who = "another process at work" if holder is None else str(holder)
        return ValueError(
            f"{self._place}: expected to work alone in it, got {who}; do: wait for its end, stop "
            f"it, or choose another folder (if its machine is gone: remove {self._path})"
        )

    def _write(self, beat: int) -> None:
        holder = {name: getattr(self._me, name) for name in Holder.__struct_fields__}
        text = json.dumps(holder | {"beat": beat}).encode()
        try:
            os.pwrite(self._file, text.ljust(_BYTES - 1) + b"\n", 0)
            os.ftruncate(self._file, _BYTES)
            os.fsync(self._file)
        except OSError as error:
            if beat == 0:
                self._close()
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _write_beats(self) -> None:
        beat = 0
        while not self._done.wait(BEAT_SECONDS):
            beat += 1
            with contextlib.suppress(OSError):  # A full disk takes no number, and no lock away.
                self._write(beat)

    def _close(self) -> None:
        _held.discard(self._file)
        with contextlib.suppress(OSError):
            os.close(self._file)


_held: set[int] = set()
"""Open lock files of this process."""


def _let_go() -> None:
    """Closes the lock files in a forked process, which would hold them on after its parent."""
    for file in _held:
        with contextlib.suppress(OSError):
            os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _same_file(file: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


def _myself() -> Holder:
    words = [Path(sys.argv[0]).name, *sys.argv[1:2]]  # Later ones may be long, or secret.
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        kernel = socket.gethostname()
    now = datetime.datetime.now(datetime.UTC)
    return Holder(
        host=socket.gethostname()[:100],
        kernel=kernel,
        pid=os.getpid(),
        since=now.strftime("%Y-%m-%d %H:%M:%S UTC"),
        command=" ".join(words)[:200],
        beat=0,
    )
