"""The clock of a step: what it waits for, what it leaves alone, how it counts."""

import jax.numpy as jnp

from seg_jax.training import clock
from seg_jax.training.state import State


def at(step):
    return State(jnp.int32(step), jnp.int32(9), {}, ())


class Waiting:
    """Stands for arrays that are being computed, for so many seconds."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 100.0, 0
        monkeypatch.setattr(clock.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(clock.jax, "block_until_ready", self.wait)

    def wait(self, value):
        self.waits += 1
        self.now += value if isinstance(value, float) else 50.0


def test_every_third_step_is_timed_station_by_station(monkeypatch):
    waiting, made = Waiting(monkeypatch), clock.Clock(3)
    for step in range(1, 8):
        assert made.start(at(4 + step) if step == 1 else at(0)) == 5 + step  # Read only once.
        values = [
            made.lap(name, x) for name, x in (("data", 0.5), ("sampling", 2.0), ("learning", 4.0))
        ]
        assert values == [0.5, 2.0, 4.0]
        timed = 5 + step in (9, 12)
        assert made.seconds == ({"data": 0.5, "sampling": 2.0, "learning": 4.0} if timed else {})
        assert made.step_metrics(8.0) == (
            {
                "seconds/data": 0.5,
                "seconds/sampling": 2.0,
                "seconds/learning": 4.0,
                "tokens_per_second/sampling": 4.0,
                "tokens_per_second/learning": 2.0,
            }
            if timed
            else {}
        )
    assert waiting.waits == 2 * 4  # What came before, and three stations, twice.


def test_the_step_that_compiles_is_not_timed(monkeypatch):
    waiting, made = Waiting(monkeypatch), clock.Clock(1)
    made.start(at(0))
    made.lap("data", 1.0)
    assert (made.seconds, waiting.waits) == ({}, 0)
    made.start(at(1))
    made.lap("data", 1.0)
    assert made.seconds == {"data": 1.0}
