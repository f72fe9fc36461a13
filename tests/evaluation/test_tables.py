"""Tables and galleries: the published rows are whole, ours stand in their places."""

import dataclasses

import benchmark
import numpy as np
import pytest
from benchmark import Listed, rectangle, sample

from seg_jax.evaluation.bootstrap import Interval
from seg_jax.evaluation.referring import protocols, scoring, tables
from seg_jax.records import Verdict
from seg_jax.report import gallery
from seg_jax.tasks.referring import Referring

SQUARE = "[[[0.200, 0.250], [0.600, 0.250], [0.600, 0.750], [0.200, 0.750]]]"
TRUE = rectangle(10, 10, 30, 30)


@pytest.mark.parametrize("title", list(tables.PUBLISHED))
def test_the_mean_of_a_published_row_is_that_of_its_sets(title):
    rows, _ = tables.PUBLISHED[title]
    assert len(rows) == {"cIoU": 14, "Acc@0.5": 8}[title]
    for name, (*values, mean) in rows.items():
        assert len(values) == len(tables.SPLITS)
        # Rows of others carry means of unrounded numbers, and one is a digit off.
        assert np.mean(values) == pytest.approx(mean, abs=0.11), name


def summary(split, mean, name="res"):
    number = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
    more = dict.fromkeys(protocols.PROTOCOLS[name].metrics, number)
    return {"model": "m", "split": split, "protocol": name, "questions": 1000, **more}


def test_all_sets_have_a_mean():
    told = [summary(split, 0.5 + 0.01 * n) for n, split in enumerate(tables.SPLITS)]
    text = tables.markdown({"m": told})
    assert "| **m**, res | 50.0 | 51.0 | 52.0 | 53.0 | 54.0 | 55.0 | 56.0 | 57.0 | 53.5 |" in text
    assert "| m | refcoco-val | 1,000 | 50.0 [49.0, 51.0] |" in text
    assert tables.SOURCE in text


def test_reasonseg_stands_beside_its_published_rows():
    told = [
        summary(split, mean, "reasonseg")
        for split, mean in zip(tables.REASONSEG_SPLITS, (0.5, 0.6), strict=True)
    ]
    text = tables.markdown({"m": told, "other": [summary("scenes", 0.9, "reasonseg")]})
    assert "| Seg-R1-7B | 58.6 | 41.2 | 56.7 | 53.7 |" in text
    assert "| **m** | 50.0 | 50.0 | 60.0 | 60.0 |" in text
    assert "| **other** |" not in text
    assert tables.REASONSEG_SOURCE in text


def test_what_the_paper_does_not_report_has_no_rows_of_it():
    told = summary("val", 0.5, "gres") | {"n_acc": None}
    text = tables.markdown({"m": [told]})
    assert "SimpleSeg-Kimi-VL" not in text
    assert "The paper reports no numbers for this protocol." in text
    assert "| 50.0 [49.0, 51.0] | 50.0 [49.0, 51.0] | - |" in text


def test_what_an_earlier_version_did_not_count_is_left_open():
    new = summary("val", 0.5, "gres")
    old = {name: value for name, value in new.items() if name not in scoring.LATER}
    assert len(old) == len(new) - 3
    first, second = tables.markdown({"old": [old], "new": [new]}).splitlines()[4:6]
    assert first.startswith("| old |")
    assert first.endswith("| 50.0 [49.0, 51.0] | - | - | - |")
    assert "-" not in second


def test_the_gallery_shows_each_answer_once_under_the_first_heading_that_fits():
    other = rectangle(34, 10, 50, 30)
    source = Listed([sample(str(n), [TRUE, other], (("a", "b"), ())) for n in range(9)])
    poor = "[[[0.300, 0.300], [0.400, 0.300], [0.400, 0.400]]]"
    wrong = "[[[0.700, 0.250], [0.980, 0.250], [0.980, 0.750]]]"
    answers = [SQUARE, SQUARE, poor, poor, wrong, wrong, "what", "what", poor, "", SQUARE, wrong]
    answers += [poor, wrong, *[SQUARE] * 4]
    rows = benchmark.rows("res", source, answers)
    found = gallery.groups(rows, each=2)
    assert list(found) == ["Best", "Median", "Worst", *gallery.FAULTS.values()]
    names = [(row.index, row.which, row.text) for chosen in found.values() for row in chosen]
    assert len(set(names)) == len(names)
    assert [row.iou for row in found["Best"]] == [1.0, 1.0]
    assert [row.index for row in found["Best"]] == [0, 5]
    assert {row.fault for row in found["Worst"]} == {"semantic"}
    assert [row.text for row in found[gallery.FAULTS["format"]]] == ["what", ""]
    assert gallery.groups(rows, each=0) == {}


def test_an_exhibit_shows_truth_answer_clue_and_what_is_ignored():
    ignored = np.stack([rectangle(40, 0, 50, 10)])
    one = dataclasses.replace(sample("k", [TRUE]), ignored=ignored)
    for name, places in (("point_mask", (1, 0)), ("box_mask", (0, 1)), ("res", (0, 0))):
        protocol = protocols.PROTOCOLS[name]
        (asked,) = protocols.questions(protocol, Listed([one]), task=Referring(digits=3))
        (row,) = benchmark.rows(name, Listed([one]), [SQUARE])
        (shown,) = gallery.exhibits({"Best": [row]}, protocol, lambda _, asked=asked: asked)
        assert (len(shown.points_unit), len(shown.boxes_unit)) == places
        assert [panel.caption for panel in shown.panels] == ["truth", "answer", "ignored"]
        truth, answer, _ = shown.panels
        corners = {(0.2, 0.25), (0.6, 0.25), (0.6, 0.75), (0.2, 0.75)}
        for panel in (truth, answer):
            assert {tuple(point) for ring in panel.rings_unit for point in ring} == corners
        assert (answer.iou, answer.verdict) == (1.0, Verdict.OK)
        assert (shown.group, shown.note) == ("Best", "k, mask 0")


def test_a_box_is_shown_by_its_corners():
    protocol, source = protocols.PROTOCOLS["rec"], Listed([sample("k", [TRUE])])
    _, asked = protocols.questions(protocol, source, task=Referring(digits=3))
    _, row = benchmark.rows("rec", source, ["", "[0.2, 0.25, 0.6, 0.7]"])
    (shown,) = gallery.exhibits({"Best": [row]}, protocol, lambda _: asked)
    truth, answer = (np.array(panel.rings_unit) for panel in shown.panels)
    assert truth.tolist() == [[[0.2, 0.25], [0.6, 0.25], [0.6, 0.75], [0.2, 0.75]]]
    assert answer.tolist() == [[[0.2, 0.25], [0.6, 0.25], [0.6, 0.7], [0.2, 0.7]]]


def test_the_results_tell_numbers_and_faults():
    protocol = protocols.PROTOCOLS["gres"]
    rows = benchmark.rows("gres", Listed([sample("k", [TRUE])]), [SQUARE])
    told = gallery.table(scoring.summarise(rows, protocol), protocol)
    assert told[0] == {"number": "gIoU", "value": Interval(1.0, 1.0, 1.0)}
    assert {"number": "N-acc", "value": "not asked"} in told
    assert {"number": "mask answers: wrong object", "answers": 0, "IoU lost": 0.0} in told
