"""Runs that are killed at random moments end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import grain
import lives
import numpy as np
import pytest
import safetensors.numpy
import toy_process
from lives import Life

STEPS = 11
SAVES = ["--loop.save-minutes", "1e-9", "--loop.log-every", "1"]


def metrics(out):
    """Returns the records of a run without their times."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "data_wait")
    return [{k: v for k, v in one.items() if not k.startswith(timed)} for one in records]


class Run:
    """A program that is started with the same arguments again and again."""

    def __init__(self, folder: Path, program, arguments, *, devices=2):
        self.folder, self.out = folder, folder / "out"
        self.out.mkdir(parents=True)
        self._program, self._arguments, self._devices = program, arguments, devices

    def live(self, devices=None):
        return Life(
            self._program,
            [*self._arguments, "--out", str(self.out)],
            devices=devices or self._devices,
            cache=self.folder.parent / "cache",
            told=self.folder / "told",
        )

    def killed(self, times: int, steps: int, *, state: str, seed: int) -> int:
        """Kills a run of `steps` so many times at random moments; returns how often it was alive.

        The first life dies at its first checkpoint, which tells how far apart the moments must be
        for about every third life to save: others die while they start or restore. None gets
        further than its share of the steps, or a step, so that the run does not end meanwhile.
        """
        begin, life = time.monotonic(), self.live()
        lives.await_step(self.out / state, 1)
        life.kill()
        longest = min(20.0, 1.5 * (time.monotonic() - begin))
        moments, folder, alive = random.Random(seed), self.out / state, 1
        for number in range(1, times):
            most = max(number * (steps - 3) // times, lives.newest(folder) + 1)
            alive += self.live().dies_within(moments.uniform(0.0, longest), folder, most)
        return alive


def toy_run(folder, steps, seconds=0.0, devices=2):
    arguments = [*SAVES, "--loop.steps", str(steps), "--seconds", str(seconds)]
    return Run(folder, lives.toy, arguments, devices=devices)


def assert_same_toys(run, undisturbed, steps):
    told = metrics(run.out)
    assert told == metrics(undisturbed.out)
    numbers = iter(grain.MapDataset.range(1000).seed(1).shuffle().repeat().to_iter_dataset())
    for number, record in enumerate(told, 1):
        assert record["step"] == number
        rows = [record[f"row{row}"] for row in range(toy_process.BATCH)]
        assert rows == [next(numbers) for _ in range(toy_process.BATCH)]
    assert len(told) == steps
    end, wanted = (np.load(one.out / "end.npy") for one in (run, undisturbed))
    np.testing.assert_array_equal(end, wanted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


def test_two_kills_change_nothing(folder):
    steps = 8
    undisturbed = toy_run(folder / "whole", steps)
    undisturbed.live().end()
    run = toy_run(folder / "twice", steps, seconds=0.1)
    for at in (2, 5):
        life = run.live()
        lives.await_step(run.out / "state", at)
        life.kill()
    run.live().end()
    assert_same_toys(run, undisturbed, steps)
    # The last steps again, on half of the devices.
    half = toy_run(folder / "half", steps)
    half.out.rmdir()
    lives.without_last(undisturbed.out, half.out, "state", 1)
    half.live(devices=1).end()
    end, wanted = (np.load(one.out / "end.npy") for one in (half, undisturbed))
    np.testing.assert_allclose(end, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_twenty_kills_of_a_toy_change_nothing(folder):
    steps = 60
    undisturbed = toy_run(folder / "calm", steps)
    undisturbed.live().end()
    run = toy_run(folder / "twenty", steps, seconds=0.1)
    alive = run.killed(20, steps, state="state", seed=20)
    run.live().end()
    assert_same_toys(run, undisturbed, steps)
    assert alive == 20, "it ended before it was killed so often: make its steps longer"


ADAPTED = ("--adapter.rank", "4", "--parts.merger", "trained")


def small(folder, start, steps=STEPS, more=()):
    config = str(Path(__file__).parent / "few_steps_sft.py")
    arguments = ["finetune", config, *SAVES, "--resume"]
    arguments += ["--checkpoint", str(start), "--loop.steps", str(steps), *more]
    run = Run(folder, lives.seg_jax, arguments)
    run.out.rmdir()
    return run


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("more", [(), ADAPTED], ids=["all weights", "adapters"])
def test_four_kills_of_finetune_change_nothing(folder, start, more):
    name = "adapter_model" if more else "model"
    undisturbed = small(folder / f"finetune-{name}", start, more=more)
    undisturbed.live().end()
    assert len(metrics(undisturbed.out)) == STEPS
    run = small(folder / f"killed-{name}", start, more=more)
    alive = run.killed(4, STEPS, state="state/sft", seed=0)
    run.live().end()
    resumed = (run.folder / "told").read_text(errors="replace").count("resuming after step")
    print(f"{alive} of 4 kills met it alive; it resumed {resumed} times")
    assert alive >= 3
    assert resumed >= 1, "every life was too short to save"
    assert metrics(run.out) == metrics(undisturbed.out)
    end, wanted = (
        safetensors.numpy.load_file(one.out / "checkpoint" / f"{name}.safetensors")
        for one in (run, undisturbed)
    )
    assert end.keys() == wanted.keys()
    for name, weight in wanted.items():
        np.testing.assert_array_equal(end[name], weight, err_msg=name)


@pytest.mark.slow
def test_a_polite_kill_has_its_status(folder, start):
    run = small(folder / "polite", start, steps=2000)
    life = run.live()
    lives.await_step(run.out / "state" / "sft", 2)
    assert life.stop(signal.SIGTERM) == 143
    last = (run.folder / "told").read_text().splitlines()[-1]
    assert last.startswith("seg-jax finetune: interrupted: sft stopped after step ")
    assert last.endswith(", which is saved")
