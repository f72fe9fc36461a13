"""Reads mutated files in children with limits, and says which were neither read nor refused well.

A case is known by its format, a seed and a number; the same three give the same files. Children are
forked before JAX has started, each for a few hundred cases, so that one that crashes, hangs or
eats memory is known by its number and costs no more than itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import gc
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seg_jax import escapes

CPU_SECONDS = 5.0
"""Most time that a case may compute."""
STALLED_SECONDS = 60.0
"""Most time that a case may take, waiting for a core aside."""
MEMORY_BYTES = 1 << 30
"""Most memory that a case may add."""
ADDRESS_BYTES = 6 << 30
"""Most address space that a child may add, so that the machine lives."""
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the files of cases lie: a disk would have to write them all."""

HOUSE = re.compile(r"[^\n]+?: expected [^\n]+ got [^\n]+; do: [^\n]+")

Mutation = Callable[[bytes, random.Random], bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A format that is read: valid files of it, how they are changed, and what reads them."""

    name: str
    make: Callable[[Path], object]
    """Writes the valid files into a folder; runs in a child of its own."""
    mutations: Mapping[str, Mutation]
    """How files are changed, by patterns of their names; the first one that fits counts."""
    read: Callable[[Path], Iterable[str] | None]
    """Reads the files of a case as programs do; yields what it would tell, if anything."""
    alone: bool = False
    """Whether a case is the one file that is changed."""
    batch: int = 400
    """Cases of a child."""
    may_refuse: bool = True
    """Whether an error in the form of the house is an answer; what a model wrote gets none."""
    may_start: bool = False
    """Whether reading may start processes of Python."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A case that was neither read nor refused in one line."""

    format: str
    seed: int
    number: int
    kind: str
    """What was wrong, in a few words."""
    text: str
    """The error, the end of the output, or a measure."""
    place: str = ""
    """File and function of the package where the error came from."""
    trace: str = ""

    @property
    def command(self) -> str:
        """The line that runs the case again."""
        case = f"--format {self.format} --seed {self.seed} --case {self.number}"
        return f"python tests/fuzz/run.py {case}"

    @property
    def cause(self) -> str:
        """What cases of one fault share."""
        return f"{self.kind} in {self.place}" if self.place else f"{self.kind}: {self.text[:60]}"


@dataclasses.dataclass
class Outcome:
    """What came of a campaign."""

    read: int = 0
    refused: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def cases(self) -> int:
        """Number of cases."""
        return self.read + self.refused + len(self.findings)


class _TooSlow(BaseException):
    """Raised by the timer; no `except Exception` stops it."""


def valid_files(form: Format) -> dict[str, bytes]:
    """Returns the valid files of a format by their names, made in a child."""
    with tempfile.TemporaryDirectory(prefix="seg-jax-fuzz-", dir=_MEMORY) as folder:
        root = Path(folder)
        child = os.fork()
        if not child:
            status = 1
            try:
                form.make(root)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"{form.name}: expected valid files, got an error (above)")
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def case_files(
    form: Format, valid: Mapping[str, bytes], seed: int, number: int
) -> dict[str, bytes]:
    """Returns the files of a case: the valid ones, of which one, seldom two, are changed."""
    rng = random.Random(f"{form.name} {seed} {number}")
    changeable = [name for name in valid if _mutation(form, name) is not None]
    out = {} if form.alone else dict(valid)
    count = 1 if form.alone else min(len(changeable), rng.choice((1, 1, 1, 1, 2)))
    for name in rng.sample(changeable, count):
        mutation = _mutation(form, name)
        assert mutation is not None
        out[name] = mutation(valid[name], rng)
    return out


def _mutation(form: Format, name: str) -> Mutation | None:
    fitting = (mutate for pattern, mutate in form.mutations.items() if Path(name).match(pattern))
    return next(fitting, None)


def refused_valid_files(form: Format, valid: Mapping[str, bytes]) -> list[str]:
    """Returns what was wrong with how the files that nobody has changed were read."""
    keep = dataclasses.replace(form, mutations={"*": lambda data, rng: data})
    numbers = range(4 * len(valid) if form.alone else 1)
    outcome = run(keep, valid, numbers, seed=0)
    if outcome.refused and not form.alone:
        return [f"{form.name}: {outcome.refused} refused"]
    return [f"{finding.kind}: {finding.text}" for finding in outcome.findings]


def run(
    form: Format,
    valid: Mapping[str, bytes],
    numbers: range,
    *,
    seed: int,
    until: float | None = None,
    told: Callable[[Finding], None] = lambda finding: None,
) -> Outcome:
    """Returns what came of cases, which stop at a time of `time.monotonic`.

    Args:
      form: the format.
      valid: its valid files.
      numbers: of the cases.
      seed: of the cases.
      until: when to stop; None: after the last case.
      told: is called with each finding as it comes.
    """
    outcome = Outcome()
    at = numbers.start
    while at < numbers.stop and (until is None or time.monotonic() < until):
        batch = range(at, min(numbers.stop, at + form.batch))
        child = _Child(form, valid, batch, seed=seed, until=until)
        at = child.wait(outcome, told)
    return outcome


class _Child:
    """A process that reads cases one after the other, watched by this one."""

    def __init__(
        self,
        form: Format,
        valid: Mapping[str, bytes],
        numbers: range,
        *,
        seed: int,
        until: float | None,
    ):
        self.form, self.numbers, self.seed = form, numbers, seed
        self._board = mmap.mmap(-1, 24)  # The case at hand, how many were read, how many refused.
        self._post(numbers.start, 0, 0)
        self._folder = Path(tempfile.mkdtemp(prefix="seg-jax-fuzz-", dir=_MEMORY))
        self._letters = self._folder / "findings.jsonl"
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if not self._pid:
            try:
                self._work(valid, until)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(99)

    def _post(self, number: int, read: int, refused: int) -> None:
        self._board[:] = struct.pack("<QQQ", number, read, refused)

    def wait(self, outcome: Outcome, told: Callable[[Finding], None]) -> int:
        """Returns the number of the first case that is not done, once the child has ended."""
        status, stalled = self._watch()
        lines = self._letters.read_text().splitlines() if self._letters.exists() else []
        found = [Finding(**json.loads(line)) for line in lines]
        number, read, refused = struct.unpack("<QQQ", self._board[:])
        outcome.read += read
        outcome.refused += refused
        if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0):
            kind = "stalled" if stalled else f"ended the process, status {status}"
            log = self._folder / "output"
            said = log.read_text(errors="replace")[-8000:] if log.exists() else ""
            last = said.strip().splitlines()[-1:]
            found.append(
                Finding(self.form.name, self.seed, number, kind, " ".join(last)[:200], trace=said)
            )
            number += 1
        for finding in found:
            outcome.findings.append(finding)
            told(finding)
        shutil.rmtree(self._folder, ignore_errors=True)
        return number

    def _watch(self) -> tuple[int, bool]:
        """Returns the status with which the child has ended, and whether it had to be killed."""
        seen, since = None, 0.0
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return status, False
            clock = time.monotonic() - _starved_seconds(self._pid)
            if (now := self._board[:8]) != seen:
                seen, since = now, clock
            if clock - since > STALLED_SECONDS:
                os.kill(self._pid, signal.SIGUSR1)  # It writes where its threads are.
                time.sleep(0.5)
                os.kill(self._pid, signal.SIGKILL)
                return os.waitpid(self._pid, 0)[1], True
            time.sleep(0.02)

    def _work(self, valid: Mapping[str, bytes], until: float | None) -> None:
        """Reads the cases; never returns."""
        output = _Output(self._folder / "output")
        letters = self._letters.open("a")
        _set_limits()
        events = _watched_events(self._folder, self.form)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self._folder)
        base, read, refused = _peak_bytes(), 0, 0
        for number in self.numbers:
            self._post(number, read, refused)
            if until is not None and time.monotonic() > until:
                os._exit(0)
            place = self._folder / f"{number}"
            files = case_files(self.form, valid, self.seed, number)
            write_files(files, place)
            verdict = _verdict(self.form, place, output, events)
            shutil.rmtree(place, ignore_errors=True)
            grown = _peak_bytes() - base
            if grown > MEMORY_BYTES:
                verdict = {"kind": "memory", "text": f"{grown >> 20} MiB"}
            if isinstance(verdict, dict):
                known = {"format": self.form.name, "seed": self.seed, "number": number}
                letters.write(json.dumps(known | verdict) + "\n")
                letters.flush()
            read += verdict == "read"
            refused += verdict == "refused"
            if grown > MEMORY_BYTES:  # The peak of a process never sinks: another one goes on.
                self._post(number + 1, read, refused)
                os._exit(0)
        self._post(self.numbers.stop, read, refused)
        os._exit(0)


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files of a case into a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _verdict(
    form: Format, folder: Path, output: _Output, events: list[str]
) -> str | dict[str, str]:
    """Returns "read", "refused", or what was wrong with how the files of a case were read."""
    events.clear()
    begin = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        for _ in form.read(folder) or ():  # Programs print what is told through `escapes`.
            pass
        verdict: str | dict[str, str] = "read"
    except _TooSlow as error:
        verdict = _from_error(error, "slow")
    except BaseException as error:  # PyO3's panics are no Exception.
        signal.setitimer(signal.ITIMER_PROF, 0)
        reason = complaint(error, folder)
        if reason is None and not form.may_refuse:
            reason = "an exception about what a model wrote"
        verdict = "refused" if reason is None else _from_error(error, reason)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - begin
    if events:
        return {"kind": events[0].partition(":")[0], "text": events[0]}
    if isinstance(verdict, str) and seconds > CPU_SECONDS:
        return {"kind": "slow", "text": f"{seconds:.1f} s"}
    said = output.take()
    if isinstance(verdict, str) and said != escapes.lines(said):
        return {"kind": "output with control characters", "text": ascii(said)[:300]}
    return verdict


def complaint(error: BaseException, folder: Path) -> str | None:
    """Returns what is wrong with an error as an answer to a user; None if nothing is."""
    text = escapes.brief(str(error).replace(str(folder), "FOLDER"))  # As `cli.main` prints it.
    if isinstance(error, OSError) and error.errno is not None:
        return None
    if not isinstance(error, ValueError | OSError):
        return type(error).__name__
    if not HOUSE.fullmatch(text):
        return f"{type(error).__name__} in another form"
    return None


def _from_error(error: BaseException, kind: str) -> dict[str, str]:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/seg_jax/" in frame.filename]
    place = ""
    if ours:
        place = f"{ours[-1].filename.rpartition('/seg_jax/')[2]}:{ours[-1].name}"
    trace = "".join(traceback.format_exception(error, limit=-30))[-8000:]
    return {"kind": kind, "text": ascii(str(error))[:300], "place": place, "trace": trace}


class _Output:
    """What a process writes to its terminal, by whatever means."""

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for terminal in (1, 2):
            os.dup2(self._file, terminal)
        faulthandler.enable(self._file)
        faulthandler.register(signal.SIGUSR1, self._file)

    def take(self) -> str:
        """Returns what was written since the last time."""
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        size = os.fstat(self._file).st_size
        if not size:
            return ""
        data = os.pread(self._file, 1 << 20, 0)
        os.ftruncate(self._file, 0)
        return data.decode("utf-8", "backslashreplace")


def _set_limits() -> None:
    """Bounds time and memory of this process; what a user would be warned of becomes an error."""
    signal.signal(signal.SIGPROF, _raise_too_slow)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28,) * 2)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", ".*os.fork.*", RuntimeWarning)
    sys.dont_write_bytecode = True  # What a case imports first would be written elsewhere.
    gc.freeze()


def _raise_too_slow(*_: object) -> None:
    raise _TooSlow(f"more than {CPU_SECONDS:g} s")


def _starved_seconds(pid: int) -> float:
    """Returns how long a process has waited for a core, by all that the system tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_CHANGES = {
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
    "os.symlink",
}
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"}


def _watched_events(folder: Path, form: Format) -> list[str]:
    """Returns a list that grows by what no reading may do: writes elsewhere, programs, sockets."""
    events: list[str] = []
    inside = (str(folder), os.devnull)

    def is_inside(path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return not text or os.path.abspath(text).startswith(inside)  # noqa: PTH100

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = details
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if writes and isinstance(path, str | bytes) and not is_inside(path):
                events.append(f"writes outside: {path!r}")
        elif event in _CHANGES and not all(map(is_inside, details[:2])):
            events.append(f"changes outside: {event} {details!r}")
        elif event in _STARTS or (event == "subprocess.Popen" and not form.may_start):
            events.append(f"starts a program: {event} {details!r:.200}")
        elif event == "subprocess.Popen" and "python" not in str(details[0]):
            events.append(f"starts a program: {details!r:.200}")
        elif event == "socket.connect" and "127.0.0.1" not in str(details[1]):
            events.append(f"connects: {details[1]!r}")

    sys.addaudithook(hook)
    return events


def causes(findings: Iterable[Finding]) -> Iterator[tuple[Finding, int]]:
    """Yields the first finding of each cause, and how many there are."""
    grouped: dict[str, list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(finding.cause, []).append(finding)
    for some in grouped.values():
        yield some[0], len(some)
