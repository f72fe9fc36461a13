"""Contrastive losses equal a loop in numpy, in every reading of the poster; the step learns."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clip
from flax import nnx

from seg_jax.models.clip.clip import CLIP
from seg_jax.models.parallel import sharding
from seg_jax.training import contrastive, optimizers, state
from seg_jax.training.contrastive import Objective, Pairs

CASES = np.array([0, 0, 0, 1, 1, 2, 3, 3])
ANCHORS = np.array([0, 1, 0, 1, 0, 1, 1, 0], bool)
SCALE = 7.0


@pytest.fixture(scope="module")
def vectors():
    found = np.random.default_rng(0).normal(size=(2, len(CASES), 5))
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def pairs():
    """Returns pairs of which two of other cases have one text."""
    ids = np.arange(len(CASES) * 4).reshape(-1, 4).astype(np.int32)
    ids[6] = ids[1]
    pixels = np.zeros((len(CASES), 2, 2, 3), np.uint8)
    return Pairs(pixels, ids, CASES.astype(np.int32), ANCHORS)


def oracle(objective, images, texts, pairs):
    """Returns the three losses as the poster's sums say, one image and one text at a time."""
    count = len(images)
    learns = [i for i in range(count) if objective.anchors == "all" or pairs.anchor[i]]

    def is_free(i, j):
        same = (pairs.ids[i] == pairs.ids[j]).all()
        return i != j and not (same and objective.mask_equal)

    def negatives(i):
        if objective.scope == "case":
            return [k for k in range(count) if pairs.case[k] == pairs.case[i] and is_free(i, k)]
        members = [k for k in range(count) if (pairs.case == pairs.case[k]).sum() > 1]
        others = [k for k in members if objective.anchors == "all" or not pairs.anchor[k]]
        return [k for k in others if is_free(i, k)]

    out = []
    for rows, columns in ((images, texts), (texts, images)):
        plain, hard = [], []
        for i in learns:
            s = [math.exp(SCALE * float(rows[i] @ column)) for column in columns]
            below = s[i] + sum(s[j] for j in learns if is_free(i, j))
            plain.append(-math.log(s[i] / below))
            hard.append(-math.log(s[i] / (below + sum(s[k] for k in negatives(i)))))
        out.append((np.mean(plain), np.mean(hard)))
    return (out[0][0] + out[1][0]) / 2, out[0][1], out[1][1]


READINGS = [
    Objective(scope=scope, anchors=anchors, mask_equal=equal)
    for scope, anchors, equal in itertools.product(("case", "batch"), ("one", "all"), (True, False))
]


def test_losses_are_those_of_a_loop_in_every_reading(vectors, pairs):
    seen = set()
    for objective in READINGS:
        want = oracle(objective, *vectors, pairs)
        got = contrastive.losses(objective, *vectors, scale=jnp.float32(SCALE), pairs=pairs)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
        seen.add(tuple(np.round(want, 4)))
    assert len(seen) == len(READINGS), "two readings are not told apart"


def test_pairs_of_no_case_learn_by_clips_loss_alone(vectors):
    count = len(CASES)
    ids = np.arange(count * 4).reshape(-1, 4).astype(np.int32)
    alone = Pairs(
        np.zeros((count, 2, 2, 3), np.uint8), ids, np.arange(count, dtype=np.int32), ~ANCHORS | True
    )
    for objective in READINGS:
        got = contrastive.losses(objective, *vectors, scale=jnp.float32(SCALE), pairs=alone)
        np.testing.assert_allclose(got.image_to_text + got.text_to_image, 2 * got.clip, rtol=1e-6)


def test_equal_texts_are_found_whatever_their_length():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 49_408, (300, 77)).astype(np.int32)
    ids[7], ids[200] = ids[5], ids[100]
    ids[20] = ids[21]
    ids[20, 76] += 1
    got = np.asarray(contrastive._equal(ids))
    want = (ids[:, None] == ids[None]).all(-1)
    np.testing.assert_array_equal(got, want)
    assert want.sum() == 304


def batch(count=8):
    rng = np.random.default_rng(1)
    ids = np.zeros((count, tiny_clip.LENGTH), np.int32)
    ids[:, 0], ids[:, 1], ids[:, 2] = tiny_clip.START, rng.permutation(50)[:count], tiny_clip.END
    case = np.arange(count, dtype=np.int32) // 2
    return Pairs(tiny_clip.images(count), ids, case, case * 2 == np.arange(count))


def trained(*, mesh=None, count=1, objective=Objective()):  # noqa: B008
    optimizer = optimizers.AdamW(lr=3e-3)
    model = CLIP(tiny_clip.CONFIG, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    now = state.fresh(params, optimizers.build(optimizer), horizon=100, on=mesh)
    one, pairs = contrastive.step(graph, objective, optimizer), batch()
    if mesh is not None:
        pairs = jax.device_put(pairs, sharding.batch(mesh))
    told = []
    with jax.default_matmul_precision("highest"):
        for _ in range(count):
            now, metrics = one(now, pairs)
            told.append({name: float(value) for name, value in metrics.items()})
    return now, told


def test_the_step_learns_and_bounds_the_scale():
    now, told = trained(count=25)
    assert told[-1]["clip"] < 0.3 * told[0]["clip"]
    assert told[0]["loss"] == pytest.approx(
        told[0]["clip"] + told[0]["image_to_text"] + told[0]["text_to_image"]
    )
    params = now.params
    assert float(jax.tree.leaves(params["log_scale"])[0]) <= math.log(100)
    raised = jax.tree.map(lambda leaf: leaf + 9, params)
    bounded = contrastive._with_bounded_scale(raised)
    assert float(jax.tree.leaves(bounded["log_scale"])[0]) == pytest.approx(math.log(100))
    one, other = raised["tower"]["norm"], bounded["tower"]["norm"]
    np.testing.assert_array_equal(*(jax.tree.leaves(x)[0] for x in (one, other)))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_the_step_does_not_depend_on_the_mesh():
    alone, first = trained()
    mesh = sharding.mesh({"data": 4, "fsdp": 2})
    with jax.set_mesh(mesh):
        spread, second = trained(mesh=mesh)
    assert second[0] == pytest.approx(first[0], rel=1e-4)
    for a, b in zip(*(jax.tree.leaves(one.params) for one in (alone, spread)), strict=True):
        np.testing.assert_allclose(np.asarray(b), a, rtol=0, atol=3e-4)
