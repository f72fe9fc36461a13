"""Scores of a user's own beside those of a task: traced and on the host, alone and on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seg_jax.models.parallel import sharding
from seg_jax.records import Polygons, Verdict
from seg_jax.tasks import own_scores
from seg_jax.tasks.own_scores import NoScores, OwnScores, Reward
from seg_jax.tasks.referring import Referring
from seg_jax.tasks.referring.scores import Truth
from seg_jax.tasks.task import Judgement, Task

B, G = 8, 3
TASK = Referring()


def first_x(answer, truth, height, width):
    """Traced: the first x, and how high the picture is."""
    return {"first_x": answer.points_unit[:, 0, 0, 0], "high": height / 100 + width * 0.0}


@own_scores.on_host
def first_x_on_host(answer, truth, height, width):
    assert type(height) is np.ndarray
    return {"host_x": answer.points_unit[:, 0, 0, 0].astype(np.float64)}


def answers(values):
    """Returns answers whose first x are values, with truths of pictures of other sizes."""
    values = jnp.asarray(values, jnp.float32)
    points = jnp.zeros((*values.shape, 2, 5, 2)).at[..., 0, 0, 0].set(values)
    number = jnp.arange(values.size, dtype=jnp.int32).reshape(values.shape)
    truth = Truth(
        jnp.zeros((*values.shape, 1, 32), jnp.uint32),
        jnp.stack([number, 2 * number], -1),
        jnp.zeros(values.shape, jnp.int32),
    )
    none = jnp.zeros(values.shape)
    judged = Judgement({"iou": none}, {}, jnp.full(values.shape, int(Verdict.OK)))
    return Polygons(points, jnp.ones(points.shape[:-1], bool)), truth, judged


def own(*functions, warn=lambda text: None):
    given = jax.tree.map(np.asarray, answers(np.linspace(0, 1, 4)))
    arguments = (*given[:2], given[1].size[:, 0], given[1].size[:, 1])
    rewards = [own_scores.with_names(f.__name__, f, arguments) for f in functions]
    return OwnScores(tuple(rewards), TASK, warn)


def test_scores_stand_beside_the_task_s():
    values = np.random.default_rng(0).random((B, G), np.float32)
    scores = own(first_x, first_x_on_host)
    assert scores.names == ("first_x", "high", "host_x")
    judged = jax.jit(scores.added)(*answers(values))
    assert set(judged.scores) == {"iou", "first_x", "high", "host_x"}
    np.testing.assert_array_equal(judged.scores["first_x"], values)
    np.testing.assert_array_equal(judged.scores["host_x"], values)
    height = np.arange(B * G, dtype=np.float32).reshape(B, G) / 100
    np.testing.assert_allclose(judged.scores["high"], height, rtol=1e-6)
    assert not any(judged.measures[f"invalid/{name}"].any() for name in scores.names)


@pytest.mark.parametrize("function", [first_x, first_x_on_host])
def test_what_is_no_score_counts_as_the_nearest_one_and_is_counted(function):
    values = np.array([[0.25, np.nan, -0.5], [1.5, np.inf, 1.0005]])
    judged = jax.jit(own(function).added)(*answers(values))
    name = own(function).names[0]
    np.testing.assert_array_equal(judged.scores[name], [[0.25, 0.0, 0.0], [1.0, 0.0, 1.0]])
    wanted = [[False, True, True], [True, True, False]]
    np.testing.assert_array_equal(judged.measures[f"invalid/{name}"], wanted)


def test_answers_that_a_function_fails_for_on_the_host_cost_themselves_alone():
    @own_scores.on_host
    def picky(answer, truth, height, width):
        if (answer.points_unit[:, 0, 0, 0] > 0.5).any():
            raise RuntimeError("a ring that\ncrosses itself")
        return {"picky": np.ones(len(height))}

    said = []
    scores = OwnScores((Reward("mine.py:picky", picky, ("picky",)),), TASK, said.append)
    judge = jax.jit(scores.added)
    for _ in range(2):
        judged = jax.device_get(judge(*answers([[0.1, 0.9], [0.6, 0.2]])))
    np.testing.assert_array_equal(judged.scores["picky"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(judged.measures["invalid/picky"], [[0, 1], [1, 0]])
    assert len(said) == 1
    assert said[0].startswith("warning: reward mine.py:picky: ")
    assert said[0].endswith("RuntimeError: a ring that crosses itself")


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_scores_do_not_depend_on_the_mesh(sizes):
    values = np.random.default_rng(1).random((B, G), np.float32)
    scores = own(first_x, first_x_on_host)
    alone = jax.device_get(jax.jit(scores.added)(*answers(values)))
    mesh = sharding.mesh(sizes)
    given = jax.device_put(answers(values), sharding.batch(mesh))
    with jax.set_mesh(mesh):
        divided = jax.device_get(jax.jit(sharding.map_rows(scores.added))(*given))
    jax.tree.map(np.testing.assert_array_equal, divided, alone)


def returns(value, *, host=False):
    def mine(answer, truth, height, width):
        return value(height)

    return own_scores.on_host(mine) if host else mine


WRONG = {
    "no mapping": (returns(lambda h: h * 1.0), "expected a mapping of names to scores, got "),
    "nothing in it": (returns(lambda h: {}), "got an empty one"),
    "one for all": (
        returns(lambda h: {"a": h.sum() * 1.0}),
        r"floats \[4\] of a.* got float32\[\]",
    ),
    "of another shape": (returns(lambda h: {"a": h[:2] * 1.0}), r"got float32\[2\]"),
    "whole numbers": (returns(lambda h: {"a": h}), r"got int32\[4\]"),
    "truths": (returns(lambda h: {"a": h > 1}), r"got bool\[4\]"),
    "a list": (returns(lambda h: {"a": [0.0]}), "got list"),
    "numpy where it is traced": (returns(lambda h: {"a": np.ones(4)}), "got ndarray"),
    "jax on the host": (returns(lambda h: {"a": jnp.ones(4)}, host=True), "got ArrayImpl"),
    "whole numbers on the host": (returns(lambda h: {"a": h}, host=True), r"got int32\[4\]"),
    "no name": (returns(lambda h: {"a b": h * 1.0}), "expected names of letters.* got 'a b'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_score_is_refused_in_one_line(name):
    function, words = WRONG[name]
    with pytest.raises(NoScores, match=words) as caught:
        own(function)
    assert str(caught.value).startswith("reward mine: expected ")
    assert "; do: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_taken_are_refused():
    taken = own(returns(lambda h: {"iou": h * 1.0}))
    with pytest.raises(ValueError, match="got iou, a score of the task 'referring'; do: rename it"):
        own_scores.check_names(taken.rewards, TASK)
    twice = own(first_x, returns(lambda h: {"high": h * 1.0}))
    with pytest.raises(ValueError, match="reward mine: .* got high, a score of reward first_x; do"):
        own_scores.check_names(twice.rewards, TASK)
    own_scores.check_names(own(first_x, first_x_on_host).rewards, TASK)


def test_a_task_whose_truth_has_no_size_is_refused():
    with pytest.raises(ValueError, match="expected a task whose truth has the image's size"):
        Task.size_px(TASK, {"count": 1})
