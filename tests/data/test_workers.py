"""Worker processes: deaf to Ctrl-C, and gone when something fails."""

import signal
import time

import pytest

from seg_jax.data import workers


def blocked():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_processes_that_are_spared_do_not_hear_ctrl_c():
    before = blocked()
    with workers.pool(1) as pool:
        with workers.block_interrupts():
            found = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ())
        assert signal.SIGINT in found.result(60)
    assert blocked() == before


def test_an_error_ends_what_still_works():
    def fail():
        with workers.pool(2) as pool:
            assert pool.submit(abs, -1).result(60) == 1
            for _ in range(4):
                pool.submit(time.sleep, 300)
            time.sleep(0.2)
            raise OSError("the disk is full")

    begin = time.monotonic()
    with pytest.raises(OSError, match="disk"):
        fail()
    assert time.monotonic() - begin < 60
