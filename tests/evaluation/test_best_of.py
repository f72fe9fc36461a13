"""Greedy, mean and best of drawn answers: numbers by hand."""

import dataclasses
import json

import numpy as np
import pytest
from test_by_kind import outcome

from seg_jax.evaluation import best_of, bootstrap

GREEDY = {"reward": np.array([1.0, 0.5, 0.0]), "iou": np.array([0.8, 0.4, 0.0])}
# The largest IoU is not that of the answer with the largest reward.
IOU = np.array([[0.2, 0.6], [0.4, 0.4], [0.1, 0.7]])
DRAWN = best_of.Groups(
    np.array([[1.0, 0.5], [0.5, 0.5], [0.3, 0.9]]), {"iou": IOU}, np.array([True, False, True])
)


def test_greedy_mean_and_best_are_those_by_hand():
    found = best_of.summarise(GREEDY, DRAWN)
    assert found["answers"] == 2
    means = {
        name: {way: interval["mean"] for way, interval in ways.items()}
        for name, ways in found["scores"].items()
    }
    assert means["reward"] == pytest.approx(
        {"greedy": 0.5, "mean": (0.75 + 0.5 + 0.6) / 3, "best": (1.0 + 0.5 + 0.9) / 3}, abs=1e-6
    )
    assert means["iou"] == pytest.approx(
        {"greedy": 0.4, "mean": (0.4 + 0.4 + 0.4) / 3, "best": (0.6 + 0.4 + 0.7) / 3}, abs=1e-6
    )
    assert found["groups_that_differ"]["mean"] == pytest.approx(2 / 3, abs=1e-6)
    json.dumps(found, allow_nan=False)


def test_questions_are_drawn_for_the_intervals_each_with_its_group():
    rng = np.random.default_rng(0)
    drawn = rng.random((40, 8))
    greedy = dict.fromkeys(("reward", "iou"), rng.random(40))
    groups = best_of.Groups(drawn, {"iou": drawn}, np.ones(40, bool))
    found = best_of.summarise(greedy, groups, seed=3)
    wanted = bootstrap.mean_interval(drawn.max(1), seed=3)
    assert found["scores"]["iou"]["best"] == pytest.approx(dataclasses.asdict(wanted), abs=1e-6)


def test_a_line_has_every_mean():
    line = best_of.line(best_of.summarise(GREEDY, DRAWN))
    assert line.startswith("reward 0.500 greedy, 0.617 mean, 0.800 best; iou 0.400 greedy, ")
    assert "groups that differ 0.667 [" in line
    assert "no bound" in best_of.INDICATION


def test_kinds_have_what_is_taught_beside_what_is_answered():
    given = outcome(["star", "circle", "star"], [0.0, 0.0, 0.0])
    taught = np.array([1.0, 0.7, 0.8])
    found = best_of.by_kind(given.examples, GREEDY["iou"], IOU, taught=taught)
    assert list(found) == ["circle", "star"]
    assert found["star"]["questions"] == 2
    star = {way: found["star"][way]["mean"] for way in ("taught", *best_of.WAYS)}
    assert star == pytest.approx({"taught": 0.9, "greedy": 0.4, "mean": 0.4, "best": 0.65})
