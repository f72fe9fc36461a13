"""Validation within the loop of a toy: best weights, patience, kills, and whose time it is."""

import json
import os
import signal
import time

import grain
import jax
import jax.numpy as jnp
import pytest

from seg_jax.training import loop, state, throughput
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Log
from seg_jax.training.validation import Entry, Validation, Validator

SCORES = {0: 0.1, 2: 0.5, 4: 0.3, 6: 0.8, 8: 0.8, 10: 0.2, 12: 0.7}
"""What the weights of a toy are worth after so many steps."""


@jax.jit
def _step(current, number):
    after = current._replace(step=current.step + 1, params={"w": current.params["w"] + 1.0})
    return after, {"loss": current.params["w"], "number": jnp.float32(number)}


def _fresh(steps):
    params = {"w": jnp.float32(0)}
    return state.State(jnp.int32(0), jnp.int32(steps), params, {"m": jnp.zeros(2)})


class Stage:
    """A toy whose weight counts its steps, in a process of its own as far as files can tell."""

    def __init__(self, folder, *, scores=SCORES, seconds=0.0, keep=2, steps=12, **validate):
        self.plan = loop.Loop(steps=steps, log_every=5, save_minutes=60.0, keep=keep)
        self.folder, self._scores, self._seconds = folder, scores, seconds
        self.told, self.measured = [], []
        config = Validation(**({"samples": 8, "every": 2} | validate))
        self.validator = Validator(config, "iou", self.measure, tell=self.told.append)
        numbers = grain.MapDataset.range(100).seed(1).shuffle().repeat()
        self.iterator = iter(numbers.to_iter_dataset())

    def measure(self, params):
        time.sleep(self._seconds)
        step = int(params["w"])
        self.measured.append(step)
        return {"iou": self._scores[step], "format": 1.0}

    def run(self, *, stop_at=0, how=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        """Returns state and seconds at the end, or is stopped within a step."""
        current = _fresh(self.plan.steps)
        self.checkpoints = Checkpoints(self.folder / "state", keep=self.plan.keep)
        seconds, known = 0.0, -1
        if self.checkpoints.latest() is not None:
            current, record = self.checkpoints.restore(current, self.iterator)
            seconds, known = record["seconds"], int(current.step)
            self.validator.set_state(record["validation"])

        def body(current):
            if int(current.step) + 1 == stop_at:
                how()
            return _step(current, next(self.iterator))

        try:
            with Log(self.folder) as log:
                log.forget_after("toy", known)
                return loop.run(
                    self.plan,
                    body,
                    current,
                    stage="toy",
                    log=log,
                    checkpoints=self.checkpoints,
                    iterator=self.iterator,
                    record={},
                    progress=lambda *told: None,
                    seconds_before=seconds,
                    throughput=throughput.Throughput(self.iterator, steps_per_pass=4.0),
                    validator=self.validator,
                )
        finally:
            self.checkpoints.close()

    def records(self):
        """Returns the log without its times."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        timed = ("seconds", "data_wait")
        return [
            {name: x for name, x in json.loads(line).items() if not name.startswith(timed)}
            for line in lines
        ]

    def saved(self):
        return sorted(int(path.name) for path in (self.folder / "state").glob("[0-9]*"))

    def weight(self, step):
        read = Checkpoints(self.folder / "state").read(step, _fresh(12))
        return int(read.params["w"])


def test_the_best_weights_stay_and_all_is_logged(tmp_path):
    stage = Stage(tmp_path, keep=1)
    end, _ = stage.run()
    assert int(end.step) == 12
    assert stage.measured == [*range(0, 13, 2)]
    assert stage.validator.history == [Entry(step, score) for step, score in SCORES.items()]
    assert stage.validator.best == Entry(6, 0.8)  # The earlier of equal ones.
    assert stage.saved() == [6, 12]
    assert stage.weight(6) == 6
    means = {r["step"]: r["validation/iou"] for r in stage.records() if "validation/iou" in r}
    assert means == SCORES
    epochs = {r["step"]: r["epoch"] for r in stage.records() if "epoch" in r}
    assert epochs == {5: 1.25, 10: 2.5, 12: 3.0}
    assert stage.told[3:5] == [
        "validation after step 6: iou 0.800, the best so far",
        "validation after step 8: iou 0.800, best 0.800 at 6",
    ]


def test_a_stage_without_hope_ends_as_by_its_last_step(tmp_path):
    stage = Stage(tmp_path, patience=1)
    end, _ = stage.run()
    assert (int(end.step), int(end.horizon)) == (4, 4)
    assert stage.saved() == [2, 4]
    assert stage.records()[-1]["step"] == 4
    assert stage.records()[-1]["loss"] == 3.0
    # It is over: to go on with it does nothing, and knows what it knew.
    again = Stage(tmp_path, patience=1)
    assert int(again.run()[0].step) == 4
    assert again.measured == []
    assert again.validator.history == stage.validator.history
    patient = Stage(tmp_path / "patient", patience=3)
    assert int(patient.run()[0].step) == 12  # 8, 10 and 12 bring nothing: the last step as well.
    assert patient.validator.is_hopeless


class Killed(BaseException):
    pass


def _die():
    raise Killed


@pytest.mark.parametrize("at", [1, 3, 4, 7, 11])
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_kill_changes_neither_best_nor_patience(tmp_path, at, how):
    whole = Stage(tmp_path / "whole", patience=3)
    wanted, _ = whole.run()
    stage = Stage(tmp_path / "killed", patience=3)
    if how == "killed":
        with pytest.raises(Killed):
            stage.run(stop_at=at, how=_die)
    else:
        with pytest.raises(loop.Stopped):
            stage.run(stop_at=at)
    again = Stage(tmp_path / "killed", patience=3)
    end, _ = again.run()
    assert int(end.step) == int(wanted.step)
    assert again.validator.history == whole.validator.history
    assert again.records() == whole.records()
    assert again.weight(6) == 6
    assert 6 in again.saved()
    if how == "stopped":  # Nothing is measured again.
        assert stage.measured + again.measured == whole.measured


def test_the_best_survives_many_saves_and_a_damaged_newest_one(tmp_path):
    stage = Stage(tmp_path, scores={0: 0.1, 2: 0.9} | dict.fromkeys(range(4, 13, 2), 0.5), keep=1)
    for at in (5, 7, 9):
        with pytest.raises(loop.Stopped):
            stage.run(stop_at=at)
        stage = Stage(tmp_path, scores=stage._scores, keep=1)
    assert stage.saved() == [2, 9]
    with pytest.raises(loop.Stopped):
        stage.run(stop_at=11)
    newest = tmp_path / "state" / "11" / "record" / "metadata"
    newest.write_bytes(newest.read_bytes()[:-1])
    # The best is whole: the run goes on from there, and knows itself as it was then.
    again = Stage(tmp_path, scores=stage._scores, keep=1)
    again.run()
    assert again.measured == [4, 6, 8, 10, 12]
    assert again.validator.best == Entry(2, 0.9)


def test_a_damaged_best_one_is_told(tmp_path):
    stage = Stage(tmp_path)
    stage.run()
    path = tmp_path / "state" / "6" / "record" / "metadata"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"state/6: expected the whole checkpoint of the best .*; do: "
    ):
        stage.weight(6)


def test_its_time_is_not_that_of_the_steps(tmp_path):
    stage = Stage(tmp_path, seconds=0.2)
    begin = time.monotonic()
    _, seconds = stage.run()
    taken = time.monotonic() - begin
    assert stage.validator.seconds >= 7 * 0.2
    assert seconds <= taken - stage.validator.seconds
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for record in records:  # Of five steps with two or three validations in between.
        if "seconds/step" in record:
            assert 5 * record["seconds/step"] < taken - 7 * 0.2
    # What an earlier process took is known to the next one.
    again = Stage(tmp_path)
    again.run()
    assert again.validator.seconds == stage.validator.seconds


def test_the_budget_is_for_steps(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    pace, horizon = loop.Pace(loop.Loop(steps=100, minutes=50 / 60)), 100
    for step in range(1, 100):
        if step > horizon:
            break
        horizon = pace.horizon(step, horizon, 0.0)
        now[0] += 21.0
        pace.leave_out(20.0)
    assert horizon == 51


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"samples": -1}, "validate.samples: expected at least 0, got -1"),
        ({"samples": 8, "every": 0}, "validate.every: expected at least 1, got 0"),
        ({"samples": 8, "patience": 0}, "validate.patience: expected at least 1 validation, got 0"),
        ({"patience": 2}, "validate.patience: expected validate.samples beside it, got 2 alone"),
        ({"kept": "last"}, "validate.kept: expected validate.samples beside it, got last alone"),
    ],
)
def test_a_wrong_validation_is_refused(values, told):
    with pytest.raises(ValueError, match=f"^{told}.*; do: "):
        Validation(**values)


def test_passes_make_steps():
    assert loop.Loop().planned(None, 4).steps == 1000
    assert loop.Loop(steps=7).planned(10, 4).steps == 7
    assert loop.Loop(epochs=3).planned(10, 4).steps == 8
    with pytest.raises(
        ValueError, match=r"^loop.epochs: expected a finite source, got 3 passes .*; do: "
    ):
        loop.Loop(epochs=3).planned(None, 4)
    with pytest.raises(
        ValueError, match=r"^loop.epochs: expected no loop.steps beside it, got 3 and 7 "
    ):
        loop.Loop(steps=7, epochs=3)
    with pytest.raises(ValueError, match="^loop.epochs: expected at least 1, got 0; do: "):
        loop.Loop(epochs=0)
