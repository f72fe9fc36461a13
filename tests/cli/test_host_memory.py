"""Where the CPU computes freed memory stays with the process; beside accelerators it does not."""

import os
import subprocess
import sys

import pytest

from seg_jax.cli import host_memory

_FAULTS = """
import ctypes, resource, sys, threading
from seg_jax.cli import host_memory

assert sys.argv[1] == "as it is" or host_memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)

def take_and_give_back(times):
    for _ in range(times):
        piece = libc.malloc(48 * 2**20)
        ctypes.memset(piece, 1, 48 * 2**20)
        libc.free(piece)

def work():
    take_and_give_back(4)  # until it has what it needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    take_and_give_back(8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def _faults(how: str) -> int:
    """Returns how many pages a thread is given while it takes and gives back the same memory."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = (sys.executable, "-c", _FAULTS, how)
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(os, "confstr"), reason="asks which libc there is")
def test_a_thread_that_takes_the_same_memory_again_is_given_no_new_pages():
    if "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        pytest.skip("expected glibc")
    kept = _faults("kept")
    assert kept < 1000, kept
    assert kept < 0.1 * _faults("as it is")


@pytest.mark.parametrize(
    ("platforms", "devices", "cores", "wanted"),
    [
        ("cpu", ["nvidiactl"], 2, True),
        (None, [], 2, True),
        (None, ["nvidiactl"], 2, False),
        (None, ["vfio/0"], 2, False),
        ("tpu", [], 2, False),
        ("cuda,cpu", [], 2, False),
        ("cpu", [], 96, False),
    ],
)
def test_memory_is_kept_only_where_the_cpu_computes(
    monkeypatch, tmp_path, platforms, devices, cores, wanted
):
    told = []

    class Libc:
        def __init__(self, _):
            self.mallopt = lambda name, value: told.append(name) or 1

    monkeypatch.setattr(host_memory.sys, "platform", "linux")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", Libc)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    for name in devices:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert host_memory.keep_freed(tmp_path) == wanted
    assert bool(told) == wanted


def test_another_libc_is_left_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _: object())
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not host_memory.keep_freed(tmp_path)
