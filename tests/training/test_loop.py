"""The loop of a stage on a toy body: resuming, stopping, the time budget, broken steps."""

import json
import math
import os
import signal
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.training import loop, state, throughput
from seg_jax.training.checkpoints import Checkpoints
from seg_jax.training.log import Log


@jax.jit
def _step(current, number):
    weight = current.params["w"] * 0.9 + jax.random.normal(state.step_key(0, current.step)) * number
    return current._replace(step=current.step + 1, params={"w": weight}), {
        "loss": weight,
        "horizon": current.horizon,
    }


def told(record):
    """Returns a record without its times."""
    return {k: v for k, v in record.items() if not k.startswith(("seconds", "data_wait"))}


class Stage:
    """A stage in a folder: its own process, as far as files can tell."""

    def __init__(self, folder, **changes):
        self.plan = loop.Loop(**{"steps": 12, "log_every": 2, "save_minutes": 1e-9} | changes)
        self.folder = folder
        self.iterator = iter(
            grain.MapDataset.range(100).seed(1).shuffle().repeat().to_iter_dataset()
        )
        self.shown = []
        self.following = None

    def body(self, current):
        return _step(current, next(self.iterator))

    def run(self, body=None):
        current = state.State(
            jnp.int32(0), jnp.int32(self.plan.steps), {"w": jnp.float32(1)}, {"m": jnp.zeros(2)}
        )
        checkpoints, seconds = Checkpoints(self.folder / "state"), 0.0
        if checkpoints.latest() is not None:
            current, record = checkpoints.restore(current, self.iterator)
            seconds = record["seconds"]
        try:
            with Log(self.folder) as log:
                log.forget_after("toy", int(current.step))
                return loop.run(
                    self.plan,
                    body or self.body,
                    current,
                    stage="toy",
                    log=log,
                    checkpoints=checkpoints,
                    iterator=self.iterator,
                    record={},
                    progress=lambda *told: self.shown.append(told),
                    seconds_before=seconds,
                )[0]
        finally:
            checkpoints.close()

    def metrics(self):
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [told(json.loads(line)) for line in lines]

    def latest(self):
        return Checkpoints(self.folder / "state").latest()

    def stopping(self, at, how):
        def body(current):
            if int(current.step) + 1 == at:
                how()
            return self.body(current)

        return body


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("whole"))
    end = stage.run()
    stage.following = next(stage.iterator)
    return stage, end


def assert_as(whole, stage, end):
    undisturbed, wanted = whole
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(end), strict=True):
        np.testing.assert_array_equal(a, b)
    assert stage.metrics() == undisturbed.metrics()
    assert next(stage.iterator) == undisturbed.following


def test_undisturbed(whole):
    stage, end = whole
    assert int(end.step) == 12
    assert [record["step"] for record in stage.metrics()] == [2, 4, 6, 8, 10, 12]
    assert stage.latest() == 12
    assert stage.shown[-1] == (12, 12, f"loss {float(end.params['w']):.3f}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_kill_finishes_the_step_and_resumes_exactly(whole, tmp_path, number):
    before = signal.getsignal(number)
    stage = Stage(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="toy stopped after step 5, which is saved"):
        stage.run(stage.stopping(5, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) is before
    assert stage.latest() == 5
    again = Stage(tmp_path)
    assert_as(whole, again, again.run())


def test_a_second_signal_is_obeyed_at_once(tmp_path):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    stage = Stage(tmp_path, save_minutes=60.0)
    with pytest.raises(KeyboardInterrupt):
        stage.run(stage.stopping(3, twice))
    assert stage.latest() is None


def test_a_dropped_process_goes_on_from_its_last_save(whole, tmp_path):
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    stage = Stage(tmp_path)
    with pytest.raises(Killed):
        stage.run(stage.stopping(8, die))
    assert stage.latest() == 7
    # The log may be ahead of the checkpoint: a resumed run writes those records again.
    with Log(tmp_path) as log:
        log.write("toy", 8, {"loss": 0.0, "horizon": 0.0})
    again = Stage(tmp_path)
    assert_as(whole, again, again.run())


def test_a_finished_stage_does_nothing_when_resumed(whole, tmp_path):
    stage = Stage(tmp_path)
    stage.run()
    again = Stage(tmp_path)

    def never(_):
        raise AssertionError

    assert int(again.run(never).step) == 12
    assert again.metrics() == whole[0].metrics()


def breaking(stage, name, at, *, spoil=False):
    """Returns the body with a number that is not finite at a step, which may spoil the weights."""

    def body(current):
        after, metrics = stage.body(current)
        if int(after.step) != at:
            return after, metrics
        if spoil:
            after = after._replace(params={"w": after.params["w"] * jnp.nan})
        return after, metrics | {name: jnp.float32(jnp.nan)}

    return body


@pytest.mark.parametrize("log_every", [1, 5, 100])
@pytest.mark.parametrize("name", ["reward", "loss", "grad_norm"])
def test_a_broken_step_ends_the_run_with_a_saved_state(tmp_path, log_every, name):
    stage = Stage(tmp_path, log_every=log_every, save_minutes=60.0)
    noticed = min(-(-4 // log_every) * log_every, 12)
    told = f"expected a finite {name}, got nan at step 4; do: go on with --resume, as good weights"
    with pytest.raises(loop.Diverged, match=f"toy: {told} are saved as of step {noticed}, or"):
        stage.run(breaking(stage, name, 4))
    assert stage.latest() == noticed
    # The batch that broke is behind the resumed run, which ends as ever.
    again = Stage(tmp_path, log_every=log_every, save_minutes=60.0)
    assert int(again.run().step) == 12


@pytest.mark.parametrize("log_every", [1, 100])
def test_spoilt_weights_do_not_take_the_place_of_good_ones(tmp_path, log_every):
    stage = Stage(tmp_path, log_every=log_every)
    with pytest.raises(
        loop.Diverged, match="at step 4; do: .*as good weights are saved as of step 3,"
    ):
        stage.run(breaking(stage, "loss", 4, spoil=True))
    assert stage.latest() == 3


def test_a_run_that_breaks_at_once_has_nothing_to_go_on_from(tmp_path):
    stage = Stage(tmp_path)
    with pytest.raises(loop.Diverged, match="; do: start --anew .*, as nothing was saved before"):
        stage.run(breaking(stage, "loss", 1, spoil=True))
    assert stage.latest() is None


def test_pace_shortens_the_horizon_only_when_time_runs_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def horizons(seconds, minutes, before=0.0):
        pace, horizon, found = loop.Pace(loop.Loop(steps=100, minutes=minutes)), 100, []
        for step in range(1, 101):
            if step > horizon:
                break
            horizon = pace.horizon(step, horizon, before)
            found.append(horizon)
            now[0] += seconds
        return found

    assert set(horizons(1.0, math.inf)) == {100}
    assert set(horizons(1.0, 100 / 60)) == {100}
    shortened = horizons(1.0, 50 / 60)
    assert set(shortened[:10]) == {100}  # Ten steps are timed first.
    assert set(shortened[10:]) == {51}
    # What an earlier process has used is used.
    assert set(horizons(1.0, 50 / 60, before=20.0)[10:]) == {31}
    # With nothing left one more step is taken.
    assert horizons(1.0, 50 / 60, before=500.0)[-1] == 12


def test_pace_gives_back_the_steps_that_a_busy_hour_took(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    pace, horizon, found = loop.Pace(loop.Loop(steps=100, minutes=100 / 60)), 100, []
    for step in range(1, 61):
        horizon = pace.horizon(step, horizon, 0.0)
        found.append(horizon)
        now[0] += 2.0 if step < 20 else 0.5
    assert min(found) < 60
    assert 90 < found[-1] <= 100  # Never more than was asked for.


def test_a_shortened_horizon_is_told_to_the_step_and_survives_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loop.Pace, "horizon", lambda self, step, horizon, before: 6 if step == 4 else horizon
    )
    stage = Stage(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        stage.run(stage.stopping(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    again = Stage(tmp_path)
    assert int(again.run().step) == 6
    horizons = [record["horizon"] for record in again.metrics()]
    assert horizons == [12, 12, 6]


def test_a_loop_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"^loop.steps: expected at least 1, got 0; do: "):
        loop.Loop(steps=0)
    with pytest.raises(ValueError, match=r"^loop.minutes: expected > 0, got nan; do: "):
        loop.Loop(minutes=float("nan"))
    with pytest.raises(ValueError, match=r"^loop.save_minutes: expected 0 or more, got -1.0; do: "):
        loop.Loop(save_minutes=-1.0)


def test_a_trace_of_some_steps_is_written(tmp_path, monkeypatch):
    calls, stage = [], Stage(tmp_path, profile="3:4")
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(len(steps)))
    steps = []

    def body(current):
        steps.append(current)
        return stage.body(current)

    stage.run(body)
    assert calls == ["profile", 4]
    # A stage that ends before writes what there is.
    calls.clear()
    steps.clear()
    stage = Stage(tmp_path / "short", profile="11:40")
    stage.run(body)
    assert calls == ["profile", 12]


def test_a_step_tells_its_time_and_what_it_waited(tmp_path):
    stage = Stage(tmp_path)
    stage.iterator.waited = 0.0

    def body(current):
        stage.iterator.waited += 0.02
        time.sleep(0.04)
        return stage.body(current)

    stage.run(body)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "seconds/step" not in records[0]  # It compiled.
    for record in records[1:]:
        assert record["seconds/step"] >= 0.04
        np.testing.assert_allclose(record["data_wait"], 0.02 / record["seconds/step"], rtol=1e-6)


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "a:b", "1:2:3"])
def test_a_wrong_trace_is_refused(text):
    with pytest.raises(ValueError, match="profile: expected START:STOP"):
        loop.Loop(profile=text)


def test_a_share_of_the_peak_is_told_where_the_device_is_known(monkeypatch):
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert throughput.best_seconds(1.0) is None or jax.default_backend() != "cpu"
    monkeypatch.setattr(jax, "devices", lambda: [Device] * 2)
    assert throughput.best_seconds(2 * 989e12) == 1.0
    for kind, flops in {"TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v4": 275e12}.items():
        Device.device_kind = kind
        assert throughput.best_seconds(2 * flops) == 1.0
    now = iter([0.0, 10.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(now))
    taken = throughput.Throughput(None, best=0.5)
    assert taken.step_metrics(1) == {}
    assert taken.step_metrics(6) == {"seconds/step": 2.0, "data_wait": 0.0, "mfu": 0.25}
