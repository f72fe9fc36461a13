"""Intervals against what is known in closed form, and against their own promise."""

import numpy as np
import pytest

from seg_jax.evaluation import bootstrap
from seg_jax.evaluation.bootstrap import Interval
from seg_jax.evaluation.referring import tables
from seg_jax.report import html_page

RNG = np.random.default_rng(0)


def test_a_mean_has_the_normal_interval():
    values = RNG.normal(3.0, 2.0, 2000)
    got = bootstrap.mean_interval(values, seed=1)
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_two_values_give_the_binomial():
    # n = 2: the resampled mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap.mean_interval(np.array([0, 1]), seed=0) == Interval(0.5, 0.0, 1.0)
    # n = 10 with one success: P(no success) = 0.349, P(at most 3) = 0.987, P(at most 2) = 0.930.
    hits = np.zeros(10, bool)
    hits[3] = True
    got = bootstrap.mean_interval(hits, seed=0)
    assert (got.low, got.high) == (0.0, pytest.approx(0.3))


def test_constants_and_single_values_are_points():
    assert bootstrap.mean_interval(np.full(50, 0.25), seed=0) == Interval(0.25, 0.25, 0.25)
    assert bootstrap.mean_interval(np.array([7.0], np.float32), seed=0) == Interval(7.0, 7.0, 7.0)


def test_ninety_five_intervals_in_a_hundred_hold_the_truth():
    hits = 0
    for trial in range(400):
        values = np.random.default_rng(trial).uniform(0, 1, 60)
        got = bootstrap.mean_interval(values, seed=trial, draws=1000)
        hits += got.low <= 0.5 <= got.high
    assert 0.91 <= hits / 400 <= 0.98


def test_the_seed_decides():
    values = RNG.normal(size=100)
    one = bootstrap.mean_interval(values, seed=5)
    assert one == bootstrap.mean_interval(values.copy(), seed=5)
    assert one != bootstrap.mean_interval(values, seed=6)


def test_chunks_cover_all_draws(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", 350)
    got = bootstrap._resample((np.arange(100.0),), np.mean, seed=0, draws=1001)
    assert got.shape == (1001,)
    assert got.std() == pytest.approx(np.sqrt((100**2 - 1) / 12 / 100), rel=0.1)
    assert abs(got.mean() - 49.5) < 0.5


def test_ratio_is_of_sums():
    got = bootstrap.ratio_interval(np.array([1, 90]), np.array([10, 100]), seed=0)
    assert got == Interval(91 / 110, 0.1, 0.9)
    unions = RNG.uniform(50, 150, 400)
    exact = bootstrap.ratio_interval(0.7 * unions, unions, seed=0)
    assert (exact.low, exact.high) == (pytest.approx(0.7), pytest.approx(0.7))
    # Delta method: variance of the residual over the squared mean of the denominators.
    parts = 0.7 * unions + RNG.normal(0, 20, 400)
    half = 1.96 * (parts - parts.sum() / unions.sum() * unions).std() / unions.mean() / 20
    got = bootstrap.ratio_interval(parts, unions, seed=0)
    assert got.high - got.low == pytest.approx(2 * half, rel=0.06)


def test_ratio_leaves_out_empty_resamples():
    got = bootstrap.ratio_interval(np.array([0, 1]), np.array([0, 2]), seed=0)
    assert got == Interval(0.5, 0.5, 0.5)


def test_pairing_takes_out_what_scenes_share():
    scenes = RNG.uniform(0, 1, 300)
    after = scenes + RNG.normal(0.02, 0.05, 300)
    got = bootstrap.gain_interval(scenes, after, seed=0)
    assert got.mean == pytest.approx((after - scenes).mean())
    assert got.low > 0
    assert got.high - got.low < 0.02
    mirrored = bootstrap.gain_interval(after, scenes, seed=0)
    assert mirrored.low == pytest.approx(-got.high, abs=1e-3)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="got none"):
        bootstrap.mean_interval(np.zeros(0), seed=0)
    with pytest.raises(ValueError, match="1 of 2"):
        bootstrap.mean_interval(np.array([0.0, np.nan]), seed=0)
    with pytest.raises(ValueError, match="draws"):
        bootstrap.mean_interval(np.ones(3), seed=0, draws=0)
    with pytest.raises(ValueError, match="got 3 and 4"):  # in the tests shapes are checked first
        bootstrap._pair(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="denominators"):
        bootstrap.ratio_interval(np.ones(3), np.zeros(3), seed=0)


def test_reads_well():
    assert str(Interval(0.41234, 0.4, 0.42)) == "0.412 [0.400, 0.420]"


def test_another_level_narrows_intervals_and_is_printed(monkeypatch):
    values = RNG.normal(size=1000)
    usual = bootstrap.mean_interval(values, seed=0)
    assert bootstrap.level() == "95 %"
    monkeypatch.setattr(bootstrap, "LEVEL", 0.8)
    got = bootstrap.mean_interval(values, seed=0)
    ratio = (got.high - got.low) / (usual.high - usual.low)
    assert ratio == pytest.approx(1.2816 / 1.96, rel=0.05)  # Quantiles of a normal variable.
    assert "with 80 % bootstrap" in tables.markdown({"model": []})
    page = html_page.page(html_page.Report("page", [{"name": "a", "iou": got}]))
    assert "80 % bootstrap" in page
    assert "95 %" not in page
