"""Curves from logs of every sort; drawings whose coordinates are known."""

import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from seg_jax.report import charts, metrics_log
from seg_jax.report.charts import Curve

NAN = float("nan")


def logged(path, *records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return metrics_log.read(path)


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


def test_what_the_unit_names_is_not_named_twice(tmp_path):
    (curve,) = logged(tmp_path / "m.jsonl", gspo(1, seconds__step=0.5))
    assert (curve.title, curve.unit) == ("Seconds", "of a step")
    (curve,) = logged(tmp_path / "m.jsonl", gspo(1, seconds__sampling=0.5))
    assert (curve.title, curve.unit) == ("Seconds sampling", "of a step")


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
    assert len(metrics_log.read(path)) == 1
    assert logged(path) == ()


def test_values_that_are_no_numbers_are_none_of_a_name(tmp_path):
    line = '{"stage": "gspo", "step": 1, "reward": %s}\n'
    path = tmp_path / "metrics.jsonl"
    odd = ("0.5", '"0.7"', "null", "true", "[1]", '{"a": 1}', "1" + "0" * 400, "2")
    path.write_text("".join(line % value for value in odd))
    records = [record for _, record in metrics_log.records(path)]
    assert metrics_log.numbers(records, "reward") == [0.5, np.inf, 2.0]
    assert metrics_log.numbers(records, "other") == []


def test_other_damage_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    for bad in ("{torn\n", "[]\n", '{"stage":"gspo"}\n'):
        with pytest.raises(ValueError, match=r"line 2: expected .* got .*; do: "):
            logged(path, gspo(1, entropy=1.0), tail=bad + json.dumps(gspo(3, entropy=1.0)) + "\n")
    with pytest.raises(ValueError, match="no file"):
        metrics_log.read(tmp_path / "none.jsonl")


def svg(curve):
    """Returns the drawing of a curve; an empty text where there is nothing to draw."""
    chart = charts.draw(curve)
    return "" if chart is None else str(chart.svg)


def paths(text, kind):
    """Returns the data of the path of each group of a kind."""
    groups = re.findall(rf'<g class="{kind}">(.*?)</g>', text, flags=re.DOTALL)
    data = [re.findall(r'<path d="([^"]*)"', group) for group in groups]
    return [" ".join(path.split()) for group in data for path in group]


def numbers(path):
    return np.array([float(one) for one in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)


LEFT, RIGHT = charts._LEFT, charts._WIDTH - charts._RIGHT
TOP, BOTTOM = charts._TOP, charts._HEIGHT - charts._BOTTOM


def test_a_line_lands_where_it_should():
    text = svg(Curve("a", "", {"one": ([0, 10], [0.0, 1.0])}))
    (line,) = paths(text, "line")
    assert re.fullmatch(r"M [\d. ]+ L [\d. ]+", line)
    top = BOTTOM - (BOTTOM - TOP) / 1.05  # five hundredths of room
    np.testing.assert_allclose(numbers(line), [[LEFT, BOTTOM], [RIGHT, top]], atol=0.1)


def test_gaps_break_the_line():
    text = svg(Curve("a", "", {"one": ([1, 2, 3, 4, 5], [1.0, 2.0, NAN, 3.0, None])}))
    (line,) = paths(text, "line")
    assert line.count("M") == 2
    assert line.count("L") == 1
    assert "nan" not in text


def test_a_value_between_gaps_is_seen():
    values = [NAN, 1.0, NAN] + [2.0] * 100
    text = svg(Curve("a", "", {"one": (range(103), values)}))
    (marks,) = re.findall(r'<g class="marks">(.*?)</g>\n</g>', text, flags=re.DOTALL)
    assert marks.count("<use ") == 1


def test_what_lies_beyond_the_frame_is_cut_off():
    values = np.random.default_rng(0).normal(size=800)
    values[400] = 30.0
    text = svg(Curve("a", "", {"one": (range(800), values)}))
    group = re.search(r'<g class="raw">(.*?)</g>', text, flags=re.DOTALL)[1]
    assert numbers(re.search(r' d="([^"]*)"', group)[1])[:, 1].min() < TOP
    shape = re.search(r'clip-path="url\(#(.*?)\)"', group)[1]
    frame = re.search(rf'<clipPath id="{shape}">\s*<rect ([^>]*)/>', text)[1]
    sides = {name: float(value) for name, value in re.findall(r'(\w+)="([^"]*)"', frame)}
    assert sides == {"x": LEFT, "y": TOP, "width": RIGHT - LEFT, "height": BOTTOM - TOP}


def test_stacked_areas_fill_the_whole():
    steps = list(range(1, 6))
    series = {"OK": (steps, [0.5] * 5), "bad": (steps, [0.25] * 5), "worse": (steps, [0.25] * 5)}
    text = svg(Curve("a", "", series, stacked=True))
    groups = re.findall(r'<g class="area">(.*?)</g>', text, flags=re.DOTALL)
    areas = [numbers(re.search(r' d="([^"]*)"', group)[1])[:, 1] for group in groups]
    downs = [float(re.search(r'<use [^>]* y="([^"]*)"', group)[1]) for group in groups]
    areas = [area + down for area, down in zip(areas, downs, strict=True)]
    for area, (high, low) in zip(areas, ((0.5, 1), (0.25, 0.5), (0, 0.25)), strict=True):
        wanted = TOP + np.sort([high, low]) * (BOTTOM - TOP)
        np.testing.assert_allclose(np.unique(area), wanted, atol=0.01)


@pytest.mark.parametrize(
    "values",
    [[], [NAN], [np.inf, 1.0], [0.0] * 100, [1e308, -1e308], [5e-324, 0.0], [-3.0], [1e9] * 40],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_no_values_break_a_drawing(values, stacked):
    text = svg(Curve("a", "b", {"c": (range(len(values)), values)}, stacked=stacked))
    assert not re.search(r"\b(nan|inf)\b", text)
    assert bool(text) == bool(np.isfinite(values).any())
    assert charts.draw(Curve("a", "b", {}, stacked=stacked)) is None


def test_a_drawing_is_the_same_every_time_and_follows_the_theme():
    curve = Curve("a", "", {str(i): (range(50), np.arange(50) * i) for i in range(9)})
    text = svg(curve)
    assert text == svg(curve)
    assert not re.search(r": *#", text), "expected colours by their names"
    colours = [entry.colour for entry in charts.draw(curve).legend]
    assert colours == [*(f"c{i}" for i in range(8)), "c0"]
    assert {f"var(--{name})" for name in colours} <= set(re.findall(r"var\(--\w+\)", text))
    assert charts.LIGHT.keys() == charts.DARK.keys()
    # The page around it keeps its own rules and names.
    assert "<style" not in text
    assert 'id="figure' not in text


def test_curves_are_saved_side_by_side(tmp_path):
    path = tmp_path / "curves.svg"
    shares = {"OK": ([1, 2], [0.5, 1.0]), "bad": ([1, 2], [0.5, 0.0])}
    curves = [
        Curve("Loss", "", {"a$_1$": ([1, 2], [1.0, 2.0])}, group="SFT"),
        Curve("Verdicts", "", shares, stacked=True),
    ]
    charts.save(curves, path)
    text = path.read_text()
    assert xml.etree.ElementTree.fromstring(text).tag.endswith("svg")
    for wanted in ("SFT: Loss", "a$_1$", "Verdicts", "OK", "bad", "step"):
        assert f">{wanted}</text>" in text
    charts.save(curves, path)
    assert path.read_text() == text
    with pytest.raises(ValueError, match="Gone: expected a finite value, got none; do: "):
        charts.save([Curve("Gone", "", {"a": ([1], [None])})], path)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 steps and 1 values"):
        charts.draw(Curve("a", "", {"one": ([1, 2], [1.0])}))


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
            svg(Curve("a", "", {"b": pair})).count(f'<g class="{kind}">')
            for kind in ("line", "marks", "raw")
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
    assert charts._ticks((low, high), 4)[1] == texts.split()


def test_ticks_of_steps_are_whole_and_written_as_they_are():
    assert charts._ticks((2.7, 3.3), 6, is_whole=True) == ([3.0], ["3"])
    text = svg(Curve("a", "", {"b": ([0, 2000], [0.098, 0.102])}))
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert shown == ["0", "500", "1,000", "1,500", "2,000", "step", "0.098", "0.100", "0.102"]


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
