"""Choices are scored as SPEC scores them: both directions, the first of equal scores, chance."""

import json
import math

import numpy as np
import pytest

from seg_jax.evaluation.matching import choices, scoring, tables
from seg_jax.scenes.contrasts import ALTERNATIVES


def drawn(similarity, *, cases=60, seed=0):
    """Returns the choices of cases of all subsets, their similarities given by a function."""
    rng, found = np.random.default_rng(seed), []
    for number in range(cases):
        for subset, count in ALTERNATIVES.items():
            texts = [f"text {i}" for i in range(count)]
            table = similarity(rng, count)
            found += choices.of_case(table, texts, subset=str(subset), case=f"{subset}-{number}")
    return found


def test_a_random_model_is_at_chance():
    told = scoring.summarise(drawn(lambda rng, count: rng.normal(size=(count, count))))
    for subset, count in ALTERNATIVES.items():
        for direction in choices.DIRECTIONS:
            found = told["subsets"][subset][direction]
            assert found["chance"] == pytest.approx(1 / count)
            spread = math.sqrt((1 - 1 / count) / count / found["choices"])
            assert abs(found["mean"] - 1 / count) < 4 * spread
            assert found["low"] <= found["mean"] <= found["high"]
    assert told["chance"] == pytest.approx(np.mean([1 / n for n in ALTERNATIVES.values()]))
    assert told["unscored"] == 0


def test_rows_choose_texts_and_columns_choose_images():
    """Every image finds its text here; two texts find the wrong image."""
    table = np.array([[5.0, 1, 1], [6, 7, 1], [2, 8, 9]])
    found = choices.of_case(table, ["a", "b", "c"], subset="s", case="k")
    told = scoring.summarise(found)["subsets"]["s"]
    assert told["image_to_text"]["mean"] == 1
    assert told["text_to_image"]["mean"] == pytest.approx(1 / 3)
    assert [one.query for one in found[:4]] == ["k/0", "a", "k/1", "b"]
    assert found[1].scores == (5.0, 6.0, 2.0)
    assert found[1].choice == 1


def test_the_first_of_equal_scores_is_taken_and_what_is_no_number_never():
    def one(scores, label=0):
        common = {"subset": "s", "case": "c", "query": "q", "direction": "text_to_image"}
        return choices.Scored(label=label, scores=scores, **common)

    assert one((1.0, 1.0)).right
    assert not one((1.0, 1.0), 1).right
    assert one((math.nan, -3.0), 1).right
    assert one((-math.inf, -3.0), 1).right
    lost = one((math.nan, math.nan))
    assert lost.choice is None
    assert not lost.right
    told = scoring.summarise([lost, one((2.0, 1.0))])
    assert told["unscored"] == 1
    assert told["subsets"]["s"]["text_to_image"]["mean"] == 0.5


def test_intervals_draw_whole_cases():
    """Choices of a case that agree make an interval as wide as of one choice a case."""
    rights = np.random.default_rng(0).random(100) < 0.5

    def table(right, count):
        return np.eye(count) if right else np.roll(np.eye(count), 1, 0)

    few = [
        c
        for n, r in enumerate(rights)
        for c in choices.of_case(table(r, 2), "ab", subset="s", case=f"{n}")
    ]
    many = [
        c
        for n, r in enumerate(rights)
        for c in choices.of_case(table(r, 9), "abcdefghi", subset="s", case=f"{n}")
    ]
    widths = []
    for found in (few, many):
        told = scoring.summarise(found)["subsets"]["s"]["image_to_text"]
        assert told["mean"] == pytest.approx(rights.mean())
        widths.append(told["high"] - told["low"])
    assert widths[0] == pytest.approx(widths[1], rel=0.1)


def test_scores_go_to_a_file_and_back():
    found = drawn(lambda rng, count: rng.normal(size=(count, count)), cases=2)
    found.append(
        choices.Scored(
            subset="s",
            direction="text_to_image",
            case="c",
            query="q",
            label=1,
            scores=(math.nan, 1.0),
        )
    )
    lines = [json.dumps(one.as_json()) for one in found]
    back = [choices.parse(line, where="line") for line in lines]
    assert back[:-1] == found[:-1]
    assert scoring.summarise(back) == scoring.summarise(found)
    for change in ({"label": 7}, {"scores": [1.0]}, {"direction": "up"}, {"scores": ["a", "b"]}):
        bad = json.dumps(found[-1].as_json() | change)
        with pytest.raises(ValueError, match=r"line.*expected .*got .*; do: give the scores"):
            choices.parse(bad, where="line")


def test_no_choices_are_refused():
    with pytest.raises(ValueError, match="expected at least one choice, got none"):
        scoring.summarise([])


def test_tables_stand_beside_published_rows():
    told = scoring.summarise(drawn(lambda rng, count: np.eye(count), cases=3))
    ours = told | {"model": "clip-b32", "data": "data.zip", "drawn": False}
    text = tables.markdown([ours])
    assert "| clip-b32, data.zip | absolute size | 3 | 100.0 [100.0, 100.0] |" in text
    assert "| **clip-b32, data.zip** | 100.00/100.00 |" in text
    assert "44.27/36.27" in text
    assert "published rows" not in tables.markdown([ours | {"drawn": True}])
    means = {
        row[0]: [float(x) for cell in row[1:] for x in cell.split("/")]
        for row in tables.published(tables._NOTEBOOK)
    }
    clip = np.array(means["CLIP ViT-B/32, OpenAI"]).reshape(6, 2).mean(0)
    np.testing.assert_allclose(clip, [33.39, 30.55], atol=0.006)
    blip = np.array(means["BLIP base, COCO retrieval"]).reshape(6, 2).mean(0)
    np.testing.assert_allclose(blip, [35.44, 34.17], atol=0.006)
