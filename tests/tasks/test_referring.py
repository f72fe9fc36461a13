"""Questions, true answers and judgements of the referring task, against pycocotools and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco

from seg_jax.cli import evaluate
from seg_jax.data import sources
from seg_jax.grammar import outline
from seg_jax.records import Kind, Polygons, Verdict
from seg_jax.runs import reinforcement
from seg_jax.scenes import draw, world
from seg_jax.tasks import masks
from seg_jax.tasks.referring import Mixture, Referring, Truth, box_unit, outline_text, rings_unit
from seg_jax.tasks.referring import reading as referring_reading

SCENES = sources.Scenes(seed=3, count=40)


def packed(mask):
    return masks.pack(mask, (64, 64))


def polygons(rings, points=64, count=4):
    """One answer as the device reader gives it."""
    unit = np.zeros((1, count, points, 2), np.float32)
    used = np.zeros((1, count, points), bool)
    for index, ring in enumerate(rings):
        unit[0, index, : len(ring)], used[0, index, : len(ring)] = ring, True
    return Polygons(jnp.asarray(unit), jnp.asarray(used))


def judged(task, rings, mask, kind=Kind.MASK, verdict=Verdict.OK):
    truth = Truth(packed(mask)[None], np.array([mask.shape], np.int32), np.array([kind], np.int32))
    out = task.judge(polygons(rings), jnp.array([int(verdict)]), truth)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], out)


def coco_iou(rings, mask):
    height, width = mask.shape
    flat = [(np.asarray(ring, np.float64) * [width, height]).ravel().tolist() for ring in rings]
    one = coco.merge(coco.frPyObjects(flat, height, width))
    return coco.iou([one], [coco.encode(np.asfortranarray(mask.astype(np.uint8)))], [0])[0, 0]


@pytest.mark.parametrize("index", range(8))
def test_true_answers_read_back_and_score_as_pycocotools_does(index):
    task = Referring(epsilon=0.005)
    sample = SCENES[index]
    for mask in sample.masks:
        reading = outline.read(outline_text(mask, Kind.MASK, task), Kind.MASK)
        assert reading.verdict == Verdict.OK
        result = judged(task, reading.rings, mask)
        assert result.scores["iou"] > 0.85
        if len(reading.rings) == 1:
            np.testing.assert_allclose(
                result.scores["iou"], coco_iou(reading.rings, mask), atol=1e-6
            )
        assert result.scores["format"] == 1.0
        assert result.scores["distance"] > 0.999


@pytest.mark.parametrize("digits", [1, 2, 3, 6])
def test_random_decimals_are_judged_by_the_pixels_of_pycocotools(digits):
    """fill-1: the reward counts what pycocotools and the host draw of the same decimals."""
    rng = np.random.default_rng(digits)
    truth = np.zeros((64, 64), bool)
    truth[10:50, 20:40] = True
    answers = rng.integers(0, 10**digits + 1, (60, 5, 2)) / 10**digits
    sizes = rng.choice([40, 50, 60, 63, 64], (60, 2))
    unit, used = np.zeros((60, 1, 5, 2), np.float32), np.ones((60, 1, 5), bool)
    unit[:, 0] = answers
    masks_ = [truth[:height, :width] for height, width in sizes]
    words = np.stack([packed(mask) for mask in masks_])
    kinds = np.full(60, Kind.MASK, np.int32)
    judgement = Referring().judge(
        Polygons(jnp.asarray(unit), jnp.asarray(used)),
        jnp.full(60, int(Verdict.OK)),
        Truth(words, sizes.astype(np.int32), kinds),
    )
    for at, (ring, mask, (height, width)) in enumerate(
        zip(answers, masks_, sizes.tolist(), strict=True)
    ):
        (rle,) = coco.frPyObjects([(ring * [width, height]).ravel().tolist()], height, width)
        theirs = coco.decode(rle).astype(bool)
        assert judgement.measures["intersection"][at] == (theirs & mask).sum()
        assert judgement.measures["union"][at] == (theirs | mask).sum()
        text = outline.write_mask([ring], digits=digits)
        np.testing.assert_array_equal(
            referring_reading.draw(text, Kind.MASK, (height, width)).mask, theirs
        )


def test_holes_are_holes():
    mask = np.zeros((64, 64), bool)
    mask[8:56, 8:56] = True
    mask[20:44, 20:44] = False
    rings = rings_unit(mask, Referring())
    assert len(rings) == 2
    assert judged(Referring(rule="center"), rings, mask).scores["iou"] == 1.0
    assert judged(Referring(rule="center"), rings[:1], mask).scores["iou"] < 0.8


def test_vertex_budget_is_for_the_whole_answer():
    mask = np.zeros((64, 64), bool)
    rows, columns = np.mgrid[:64, :64]
    mask |= (rows - 16) ** 2 + (columns - 16) ** 2 < 150
    mask |= (rows - 44) ** 2 + (columns - 44) ** 2 < 250
    for budget in (6, 9, 16, 200):
        rings = rings_unit(mask, Referring(epsilon=0.0, max_points=budget))
        assert sum(len(ring) for ring in rings) <= budget
        assert len(rings) == 2


def test_small_objects_below_the_least_area_are_still_answered():
    mask = np.zeros((64, 64), bool)
    mask[3, 5] = True
    reading = outline.read(outline_text(mask, Kind.MASK, Referring(min_area=9.0)), Kind.MASK)
    assert judged(Referring(), reading.rings, mask).scores["iou"] > 0.3


def test_boxes_and_points_are_judged_by_their_own_measure():
    mask = np.zeros((64, 64), bool)
    mask[16:32, 32:48] = True
    task = Referring()
    assert box_unit(mask) == (0.5, 0.25, 0.75, 0.5)
    exact = np.array([[0.5, 0.25], [0.75, 0.5]])
    assert judged(task, [exact], mask, Kind.BOX).scores["iou"] == 1.0
    half = np.array([[0.5, 0.25], [0.75, 0.375]])
    np.testing.assert_allclose(judged(task, [half], mask, Kind.BOX).scores["iou"], 0.5)
    inside, outside = np.array([[0.6, 0.4]]), np.array([[0.4, 0.4]])
    assert judged(task, [inside], mask, Kind.POINT).scores["iou"] == 1.0
    assert judged(task, [outside], mask, Kind.POINT).scores["iou"] == 0.0
    assert judged(task, [np.array([[1.0, 1.0]])], mask, Kind.POINT).scores["iou"] == 0.0


def test_nearer_answers_get_more_distance_reward_even_without_overlap():
    mask = np.zeros((64, 64), bool)
    mask[0:8, 0:8] = True
    square = np.array([[0, 0], [0.1, 0], [0.1, 0.1], [0, 0.1]])
    scores = [judged(Referring(), [square + shift], mask).scores for shift in (0.2, 0.5, 0.9)]
    assert [float(s["iou"]) for s in scores] == [0.0, 0.0, 0.0]
    assert scores[0]["distance"] > scores[1]["distance"] > scores[2]["distance"] > 0


def test_useless_answers_get_nothing():
    mask = np.ones((64, 64), bool)
    result = judged(Referring(), [], mask, verdict=Verdict.EMPTY)
    assert all(value == 0 for value in result.scores.values())
    assert np.isnan(result.measures["centroid_error"])
    assert result.measures["union"] == 64 * 64


def test_mixture_decides_what_is_asked():
    rng = np.random.default_rng(0)
    only = Referring(mixture=Mixture(text_mask=0.0, box_mask=1.0))
    examples = [only.example(SCENES[i], rng) for i in range(10)]
    assert all("in box [" in example.question for example in examples)
    every = Referring(
        mixture=Mixture(text_point=1.0, text_box=1.0, text_mask=1.0, point_mask=1.0, box_mask=1.0)
    )
    kinds = {every.example(SCENES[i], rng).kind for i in range(40)}
    assert kinds == set(Kind)
    with pytest.raises(ValueError, match="positive sum"):
        Mixture(text_mask=0.0)
    with pytest.raises(ValueError, match=r"task.mixture: expected shares >= 0"):
        Mixture(text_box=float("nan"))
    for name, value in (("digits", 0), ("max_points", 2), ("epsilon", -0.1), ("min_area", -1.0)):
        with pytest.raises(ValueError, match=f"task.{name}: expected at least .*, got {value}"):
            Referring(**{name: value})


def things(index):
    """What scene `index` shows: name and mask of each thing, from the world that was drawn."""
    made = world.make(SCENES.world, sources.scene_seed(SCENES.seed, index))
    _, masks = draw.render(made)
    return [
        (f"{thing.colour} {thing.kind}", mask)
        for thing, mask in zip(made.things, masks, strict=True)
    ]


@pytest.mark.parametrize("given", ["point", "box"])
def test_the_object_at_a_place_is_named(given):
    task = Referring(mixture=Mixture(text_mask=0.0, **{f"{given}_name": 1.0}))
    for index in range(20):
        example = task.example(SCENES[index], np.random.default_rng(index))
        name, mask = next(
            thing for thing in things(index) if np.array_equal(thing[1], example.mask)
        )
        assert example.answer == f"{name}."
        clue = outline.read(example.question, Kind[given.upper()])
        if given == "point":
            x, y = clue.point
            assert mask[min(63, int(y * 64)), min(63, int(x * 64))]
        else:
            np.testing.assert_allclose(np.ravel(clue.box), box_unit(mask), atol=5e-4)


def test_names_are_for_supervised_training_only(tmp_path):
    naming = Mixture(box_name=0.5)
    with pytest.raises(ValueError, match=r"box_name': 0.5}, whose answers are words"):
        reinforcement.Config(task=Referring(mixture=naming))
    with pytest.raises(ValueError, match="set these shares to 0"):
        evaluate.Config(checkpoint=tmp_path, mixture=naming)


def test_samples_without_names_are_refused_by_name():
    task = Referring(mixture=Mixture(text_mask=0.0, point_name=1.0))
    sample = dataclasses.replace(SCENES[0], names=())
    with pytest.raises(ValueError, match="sample scene-3-0: expected a name for each of 2 masks"):
        task.example(sample, np.random.default_rng(0))


def test_interior_points_lie_inside():
    task = Referring(mixture=Mixture(text_mask=0.0, point_mask=1.0))
    for index in range(20):
        example = task.example(SCENES[index], np.random.default_rng(index))
        text = example.question[example.question.index("[") :]
        x, y = outline.read(text, Kind.POINT).point
        assert example.mask[min(63, int(y * 64)), min(63, int(x * 64))]


def test_samples_without_a_nameable_object_are_refused_by_name():
    sample = dataclasses.replace(SCENES[0], phrases=((), ()))
    with pytest.raises(ValueError, match="sample scene-3-0"):
        Referring().example(sample, np.random.default_rng(0))
