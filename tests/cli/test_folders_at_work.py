"""A folder in which a program works is neither resumed, replaced nor written by a second one."""

import os

import pytest
import small_run
from cheap_runs import curve_of, weights_of

from seg_jax import locks


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Lays runs over one device."""
    with pytest.MonkeyPatch.context() as patch:
        small_run.on_one_device(patch)
        yield


def test_a_run_at_work_is_neither_resumed_nor_replaced(run, fails, steps, tune, tmp_path):
    """lock-1."""
    assert run(*tune(tmp_path / "whole"))[0] == 0
    out, lines = tmp_path / "run", []
    steps[3] = lambda: lines.extend(fails(*tune(out, more)) for more in ("--resume", "--anew"))
    assert run(*tune(out, "--loop.save-minutes", "0"))[0] == 0
    for line in lines:
        assert line.startswith(f"{out}: expected to work alone in it, got ")
        assert f"at work (process {os.getpid()} on " in line
    assert len(lines) == 2
    assert weights_of(out) == weights_of(tmp_path / "whole")
    assert curve_of(out) == curve_of(tmp_path / "whole")
    assert not (out / locks.NAME).exists()
