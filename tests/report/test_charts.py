"""Curves from logs of every sort; drawings whose coordinates are known."""

import json
import re

import numpy as np
import pytest

from seg_jax.report import charts
from seg_jax.report.charts import Curve

NAN = float("nan")


def logged(path, *records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return charts.curves_from(path)


def gspo(step, **values):
    return {"stage": "gspo", "step": step, "seconds": 1.0} | {
        name.replace("__", "/"): value for name, value in values.items()
    }


def test_names_become_curves(tmp_path):
    curves = logged(
        tmp_path / "metrics.jsonl",
        {"stage": "sft", "step": 1, "seconds": 0.5, "loss": 2.0, "learning_rate": 1e-3},
        {"stage": "sft", "step": 2, "seconds": 0.9, "loss": 1.5, "note": "text", "fine": True},
        gspo(1, scores__iou=0.3, scores__format=1.0, reward=0.4, verdicts__OK=0.9),
        gspo(1, verdicts__TRUNCATED=0.1, greedy__iou=0.5),
    )
    assert [(curve.group, curve.title) for curve in curves] == [
        ("SFT", "Loss"),
        ("SFT", "Learning rate"),
        ("GSPO", "Reward and scores"),
        ("GSPO", "Verdicts"),
        ("GSPO", "Greedy IoU"),
    ]
    loss, _, scores, verdicts, _ = curves
    assert loss.unit == "nats per token"
    assert loss.series == {"Loss": ([1, 2], [2.0, 1.5])}
    assert list(scores.series) == ["Reward", "IoU", "Format"]
    assert list(verdicts.series) == ["OK", "Truncated"]
    assert [curve.stacked for curve in curves] == [False, False, False, True, False]


def test_a_resumed_run_counts_once(tmp_path):
    (curve,) = logged(
        tmp_path / "m.jsonl",
        *(gspo(step, entropy=1.0) for step in (1, 2, 3)),
        *(gspo(step, entropy=2.0) for step in (2, 3, 4)),
    )
    assert curve.series["Entropy"] == ([1, 2, 3, 4], [1.0, 2.0, 2.0, 2.0])


def test_null_is_a_gap(tmp_path):
    (curve,) = logged(tmp_path / "m.jsonl", gspo(1, entropy=None), gspo(2, entropy=1.0))
    assert np.isnan(curve.series["Entropy"][1][0])


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    for tail in ('{"stage":"gs', '{"stage": "gspo", "step": 2', '"', "17"):
        (curve,) = logged(path, gspo(1, entropy=1.0), tail=tail)
        assert curve.series["Entropy"][0] == [1]
    path.write_bytes(json.dumps(gspo(1, entropy=1.0)).encode() + b"\n\xff\xfe")
    assert len(charts.curves_from(path)) == 1
    assert logged(path) == ()


def test_other_damage_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    for bad in ("{torn\n", "[]\n", '{"stage":"gspo"}\n'):
        with pytest.raises(ValueError, match=r"expected .* got .* line 2 .* do "):
            logged(path, gspo(1, entropy=1.0), tail=bad + json.dumps(gspo(3, entropy=1.0)) + "\n")
    with pytest.raises(ValueError, match="no file"):
        charts.curves_from(tmp_path / "none.jsonl")


def paths(text, kind):
    return re.findall(rf'<path class="{kind}"[^>]* d="([^"]*)"', text)


def test_a_line_lands_where_it_should():
    text = charts.svg(Curve("a", "", {"one": ([0, 10], [0.0, 1.0])}))
    (line,) = paths(text, "line")
    left, right = re.fullmatch(r"M(.*)L(.*)", line).groups()
    width = charts._WIDTH - charts._LEFT - charts._RIGHT
    height = charts._HEIGHT - charts._TOP - charts._BOTTOM
    np.testing.assert_allclose([float(x) for x in left.split()], [0, height], atol=0.1)
    top = height * (1 - 1 / 1.05)  # five hundredths of room
    np.testing.assert_allclose([float(x) for x in right.split()], [width, top], atol=0.1)


def test_gaps_break_the_line():
    text = charts.svg(Curve("a", "", {"one": ([1, 2, 3, 4, 5], [1.0, 2.0, NAN, 3.0, None])}))
    (line,) = paths(text, "line")
    assert line.count("M") == 2
    assert line.count("L") == 1
    assert "nan" not in text


def test_stacked_areas_fill_the_whole():
    steps = list(range(1, 6))
    series = {"OK": (steps, [0.5] * 5), "bad": (steps, [0.25] * 5), "worse": (steps, [0.25] * 5)}
    text = charts.svg(Curve("a", "", series, stacked=True))
    areas = [re.findall(r"[ML]\S+ (\S+?)(?=[MLZ])", area) for area in paths(text, "area")]
    bottom = charts._HEIGHT - charts._TOP - charts._BOTTOM
    for area, (high, low) in zip(areas, ((0.5, 1), (0.25, 0.5), (0, 0.25)), strict=True):
        np.testing.assert_allclose(sorted(set(map(float, area))), np.sort([high, low]) * bottom)


@pytest.mark.parametrize(
    "values",
    [[], [NAN], [np.inf, 1.0], [0.0] * 100, [1e308, -1e308], [5e-324, 0.0], [-3.0], [1e9] * 40],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_no_values_break_a_drawing(values, stacked):
    text = charts.svg(Curve("a", "b", {"c": (range(len(values)), values)}, stacked=stacked))
    assert not re.search(r"\b(nan|inf)\b", text)
    charts.svg(Curve("a", "b", {}, stacked=stacked))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        charts.svg(Curve("a", "", {"one": ([1, 2], [1.0])}))


def test_smoothing_keeps_level_and_size():
    x = np.arange(2000.0)
    steps, values = charts._smoothed(x, np.full(2000, 3.0))
    assert len(steps) <= charts._MOST
    np.testing.assert_allclose(values, 3.0)
    noise = np.random.default_rng(0).normal(size=2000)
    assert charts._smoothed(x, noise)[1].std() < 0.2
    ramp = np.minimum(x / 10, 1.0)
    assert set(charts._smoothed(x, ramp)[1]) <= set(ramp)
    thin = charts._thinned(x, noise)
    assert len(thin[0]) <= 2 * charts._MOST
    assert thin[1].max() == noise.max()


def test_marks_and_raw_lines_are_for_those_that_need_them():
    steps = list(range(100))
    kinds = {
        "few": ([1, 2], [0.0, 1.0]),
        "calm": (steps, [step / 99 for step in steps]),
        "loud": (steps, list(np.random.default_rng(0).normal(size=100))),
    }
    seen = {
        name: [
            len(paths(charts.svg(Curve("a", "", {"b": pair})), kind))
            for kind in ("line", "line marked", "line raw")
        ]
        for name, pair in kinds.items()
    }
    assert seen == {"few": [1, 1, 0], "calm": [1, 0, 0], "loud": [1, 0, 1]}


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, "0.00 0.25 0.50 0.75 1.00"),
        (0.0, 2e-3, "0 5e\N{MINUS SIGN}4 1e\N{MINUS SIGN}3 1.5e\N{MINUS SIGN}3 2e\N{MINUS SIGN}3"),
        (-2.0, 2.0, "\N{MINUS SIGN}2 \N{MINUS SIGN}1 0 1 2"),
        (0.0, 4e6, "0 1e6 2e6 3e6 4e6"),
    ],
)
def test_ticks_are_round(low, high, texts):
    assert [text for _, text in charts._ticks(low, high, 4)] == texts.split()


def test_numbers_read_well():
    for value, text in (
        (0.12345, "0.123"),
        (12.345, "12.35"),
        (1234.5, "1,234"),
        (3e-5, "3.0e\N{MINUS SIGN}5"),
        (0.0, "0.000"),
        (NAN, "\N{EN DASH}"),
        (-1.0, "\N{MINUS SIGN}1.000"),
        (2.5e7, "2.5e7"),
    ):
        assert charts.number(value) == text
