"""Masks of answers, drawn inside a step, against each prompt drawn alone by the segmenter."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sam2
from flax import nnx

from seg_jax.geometry import bitmask
from seg_jax.inference import segmenter
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import pointed_masks
from seg_jax.records import Clicks

SIDE = tiny_sam2.SIDE
IMAGES, ANSWERS = 2, 4


@pytest.fixture(scope="module")
def model():
    return tiny_sam2.ours(tiny_sam2.theirs())


@pytest.fixture(scope="module")
def draw(model):
    """Returns the jitted function (view, clicks) -> masks [B G E E]."""
    graph, params = nnx.split(model)

    @functools.partial(jax.jit, static_argnames="channels")
    def words(params, view, clicks, channels):
        return pointed_masks.masks(nnx.merge(graph, params), view, clicks, channels=channels)

    def masks(view, clicks, *, channels="rgb", params=params):
        found = words(params, view, clicks, channels)
        assert found.shape == (*clicks.used.shape[:2], SIDE // 32, SIDE)
        return np.asarray(bitmask.unpack(found, height=SIDE))

    return masks


@pytest.fixture(scope="module")
def view():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clicks():
    """Returns two boxes, one, none beside clicks, and nothing, with three clicks at most.

    Of the first answer a click lies in the first box, one on the edge of both, one in none.
    """
    boxes = np.zeros((IMAGES, ANSWERS, 2, 4), np.float32)
    boxes[:, 0] = (0.125, 0.25, 0.5, 0.75), (0.5, 0.5, 0.875, 1.0)
    boxes[:, 1, 0] = (0.0, 0.25, 0.75, 0.625)
    boxes[:, 1, 1], boxes[:, 3] = 0.5, 0.25  # What is no box may be anything.
    points = np.array([[0.25, 0.375], [0.5, 0.625], [0.0625, 0.125]], np.float32)
    points = np.broadcast_to(points, (IMAGES, ANSWERS, 3, 2)).copy()
    points[1] = points[1, :, :, ::-1]
    boxed, used = np.zeros((IMAGES, ANSWERS, 2), bool), np.zeros((IMAGES, ANSWERS, 3), bool)
    boxed[:, 0], boxed[:, 1, 0] = True, True
    used[:, 0], used[0, 1, 1], used[:, 2, :2] = True, True, True
    labels = np.broadcast_to([1, 0, 1], used.shape).astype(np.int32)
    return Clicks(boxes, boxed, points, labels, used, np.zeros(boxed.shape[:2], bool))


@pytest.fixture(scope="module")
def drawn(draw, view, clicks):
    return draw(view, clicks)


def prompts_of(clicks, image, answer):
    """Returns the prompts of an answer by the rule, one box after the other."""
    one = jax.tree.map(lambda leaf: leaf[image, answer], clicks)
    points, labels = one.points_unit[one.used], one.labels[one.used]
    if not one.boxed.any():
        return [(None, points, labels)] if len(points) else []
    found = []
    for x0, y0, x1, y1 in one.boxes_unit[one.boxed]:
        x, y = points.T
        within = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
        found.append((np.array([x0, y0, x1, y1]), points[within], labels[within]))
    return found


def test_masks_are_those_of_each_prompt_drawn_alone(model, view, clicks, drawn):
    alone, counts = segmenter.Segmenter(model), []
    for image in range(IMAGES):
        asked = [prompts_of(clicks, image, answer) for answer in range(ANSWERS)]
        prompts = [
            segmenter.prompt(
                box_px=None if box is None else box * SIDE, clicks_px=at * SIDE, inside=labels > 0
            )
            for box, at, labels in itertools.chain(*asked)
        ]
        masks = [one.mask for one in alone.draw(view[image], prompts)]
        for answer, own in enumerate(asked):
            parts, masks = masks[: len(own)], masks[len(own) :]
            expected = np.logical_or.reduce([*parts, np.zeros((SIDE, SIDE), bool)])
            apart = (drawn[image, answer] != expected).sum()
            assert apart <= 2, (image, answer, apart)  # A logit of 0 may round to either side.
            counts.append(expected.sum())
    counts = np.reshape(counts, (IMAGES, ANSWERS))
    assert (counts[:, :3] > 20).all()
    assert (counts[:, :3] < SIDE**2 - 20).all()
    assert (counts[:, 3] == 0).all()


def test_masks_do_not_depend_on_order_slots_answers_or_what_is_not_used(draw, view, clicks, drawn):
    turned = clicks._replace(
        boxes_unit=clicks.boxes_unit[:, :, ::-1],
        boxed=clicks.boxed[:, :, ::-1],
        points_unit=clicks.points_unit[:, :, ::-1],
        labels=clicks.labels[:, :, ::-1],
        used=clicks.used[:, :, ::-1],
    )
    assert (draw(view, turned) != drawn).sum() <= 4
    more = [(0, 0), (0, 1), (0, 1)]
    points = np.pad(clicks.points_unit, [*more[:2], (0, 2), (0, 0)], constant_values=0.3)
    padded = Clicks(
        np.pad(clicks.boxes_unit, [*more, (0, 0)], constant_values=0.7),
        np.pad(clicks.boxed, more),
        points,
        np.pad(clicks.labels, [*more[:2], (0, 2)], constant_values=1),
        np.pad(clicks.used, [*more[:2], (0, 2)]),
        np.pad(clicks.thought, more[:2]),
    )
    # The same colours, in the other order for a model that is shown them so.
    found = draw(view[..., ::-1], padded, channels="bgr")
    assert (found[:, :ANSWERS] != drawn).sum() <= 4
    assert not found[:, ANSWERS].any()


def test_images_are_encoded_once_whatever_the_answers(model, view):
    graph, params = nnx.split(model)

    def operations(answers):
        shape = jax.ShapeDtypeStruct
        asked = Clicks(
            shape((IMAGES, answers, 3, 4), jnp.float32),
            shape((IMAGES, answers, 3), bool),
            shape((IMAGES, answers, 5, 2), jnp.float32),
            shape((IMAGES, answers, 5), jnp.int32),
            shape((IMAGES, answers, 5), bool),
            shape((IMAGES, answers), bool),
        )
        words = lambda p, v, c: pointed_masks.masks(nnx.merge(graph, p), v, c)  # noqa: E731
        return jax.jit(words).lower(params, view, asked).cost_analysis()["flops"]

    def encoding(params, images):
        return nnx.merge(graph, params).encode(images)

    # Loops count once: one image, one slot.
    once = jax.jit(encoding).lower(params, np.zeros((1, SIDE, SIDE, 3), np.float32))
    once = once.cost_analysis()["flops"]
    counts = {answers: operations(answers) for answers in (2, 4, 8)}
    each = (counts[4] - counts[2]) / 2
    assert counts[8] - counts[4] == pytest.approx(4 * each, rel=0.01)
    rest = counts[2] - 2 * each  # What does not grow: encoding, and what prompts share.
    assert once < rest < 1.5 * once


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two (virtual) devices")
def test_each_device_draws_for_its_own_images(draw, view, clicks, drawn):
    mesh = sharding.mesh({"fsdp": 2}, jax.devices()[:2])
    params = nnx.split(tiny_sam2.ours(tiny_sam2.theirs(), on=mesh))[1]
    with jax.set_mesh(mesh):
        rows = jax.device_put((view, clicks), sharding.batch(mesh))
        found = draw(*rows, params=params)
    assert (found != drawn).sum() <= 4
