"""Numbers by kind of thing, and of true answers: by hand, and against pycocotools."""

import dataclasses
import re

import numpy as np
import pytest
import small_run
from pycocotools import mask as coco

from seg_jax.data.sources import Scenes
from seg_jax.evaluation import task_metrics
from seg_jax.geometry import contour
from seg_jax.records import Kind, Verdict
from seg_jax.runs import experiments
from seg_jax.scenes import phrases, things, world
from seg_jax.tasks.referring import Mixture

SCENES = dataclasses.replace(experiments.load("simpleseg/tiny_sft.py").scenes(seed=7), count=40)


def examples(task, source=SCENES):
    rng = np.random.default_rng(0)
    return [task.example(source[index], rng) for index in range(len(source))]


def coco_iou(text, mask):
    """Returns the IoU of the polygons that a text lists, by pycocotools."""
    height, width = mask.shape
    rings = re.findall(r"\[(\[[^\[\]]+\](?:, *\[[^\[\]]+\])*)\]", text)
    flat = [
        (np.reshape(re.findall(r"[\d.]+", ring), (-1, 2)).astype(float) * [width, height]).ravel()
        for ring in rings
    ]
    drawn = coco.merge(coco.frPyObjects([ring.tolist() for ring in flat], height, width))
    truth = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return float(coco.iou([drawn], [truth], [0])[0, 0])


def outcome(kinds, iou):
    task = small_run.task("prompts")
    blank = examples(task, dataclasses.replace(SCENES, count=1))[0]
    return task_metrics.Outcome(
        examples=[dataclasses.replace(blank, category=kind) for kind in kinds],
        texts=[""] * len(kinds),
        scores={"iou": np.array(iou), "format": 1 - np.array(iou)},
        measures={},
        verdicts=np.zeros(len(kinds), int),
        tokens=np.ones(len(kinds), int),
    )


def test_means_by_kind_are_those_by_hand():
    given = outcome(["star", "circle", "", "star", "circle"], [0.5, 0.25, 1.0, 1.0, 0.0])
    assert task_metrics.by_kind(given) == {"circle": 0.125, "star": 0.75}
    assert list(task_metrics.by_kind(given)) == ["circle", "star"]
    assert task_metrics.by_kind(given, score="format") == {"circle": 0.875, "star": 0.25}
    hits = given.scores["iou"] > 0.25
    assert task_metrics.by_kind(given, among=hits) == {"star": 0.75}


def test_true_answers_are_worth_what_pycocotools_says():
    mixture = Mixture(text_mask=2.0, text_point=0.4, text_box=0.4, absent=0.4)
    task = dataclasses.replace(small_run.bundle().task, mixture=mixture, max_points=4)
    asked = examples(task, dataclasses.replace(SCENES, style=phrases.Style(full=True, absent=1)))
    taught = task_metrics.true_answers(task, asked, small_run.bundle().encoder, batch=32)
    assert [*taught.examples] == asked
    assert taught.texts[0].removesuffix("<|im_end|>") == asked[0].answer
    assert (taught.verdicts == Verdict.OK).all()
    assert (taught.scores["iou"] > 0.6).all()
    absent = np.array([not example.mask.any() for example in asked])
    assert 0 < absent.sum() < 20
    assert (taught.scores["iou"][absent] == 1).all()
    assert {example.category for example, none in zip(asked, absent, strict=True) if none} == {""}
    outlined = ~absent & np.array([example.kind == Kind.MASK for example in asked])
    wanted = [
        coco_iou(asked[which].answer, asked[which].mask) for which in np.flatnonzero(outlined)
    ]
    np.testing.assert_allclose(taught.scores["iou"][outlined], wanted, atol=1e-6)
    means = task_metrics.by_kind(taught, among=outlined)
    words = [asked[which].question for which in np.flatnonzero(outlined)]
    for kind in ("circle", "square", "triangle"):
        about = [value for value, question in zip(wanted, words, strict=True) if kind in question]
        assert means[kind] == pytest.approx(np.mean(about), abs=1e-6)
    # Four vertices on a circle's border enclose 2 / pi of it.
    assert means["circle"] < 0.75 < 0.9 < means["square"]


def test_no_examples_are_no_outcome():
    task = small_run.task("prompts")
    with pytest.raises(task_metrics.NoQuestions):
        task_metrics.true_answers(task, [], small_run.bundle().encoder)


def test_a_scene_says_what_each_of_its_things_is():
    crowded = dataclasses.replace(
        world.easy(), count=(4, 4), kinds=(things.Kind.STAR, things.Kind.PAIR)
    )
    crowded = dataclasses.replace(crowded, size_unit=(0.2, 0.3), distinct=False)
    source = Scenes(world=crowded, style=phrases.Style(several=True, absent=1), count=6)
    several, mixed = set(), 0
    for index in range(len(source)):
        sample = source[index]
        assert len(sample.categories) == len(sample.masks)
        for which, category in enumerate(sample.categories):
            shown = set(sample.names[which].split(" and ")) - {""}
            kinds = {name.split(" ", 1)[1] for name in shown}
            assert category == (kinds.pop() if len(kinds) == 1 else "")
            if sample.together[which]:
                mixed += not category
                several.add(category)
            if not sample.masks[which].any():
                assert category == ""
            elif category == "star" and not sample.together[which]:
                assert len(contour.trace(sample.masks[which])) == 1
    assert several >= {"star", "pair of discs"}
    assert mixed
