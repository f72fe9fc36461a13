"""Several things at once: which an answer outlines, which it repeats, against pixels by hand."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from seg_jax.evaluation import task_metrics
from seg_jax.grammar import outline
from seg_jax.records import Kind, Sample, Verdict
from seg_jax.tasks.referring import Mixture, Referring, several

SIZE = 40


def square(x0, y0, x1, y1):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def ring(x0, y0, x1, y1):
    """Returns the outline of a square in unit coordinates."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) / SIZE


LEFT, RIGHT, BELOW = square(2, 2, 12, 12), square(20, 2, 36, 12), square(2, 20, 12, 36)
FRAME = square(18, 18, 38, 38) & ~square(20, 20, 36, 36)
"""Its hole is 0.64 of what its border encloses: more than half."""
PIECES = square(2, 2, 12, 12) | square(2, 20, 8, 28)
"""Of two parts, the first one larger."""
IN_LEFT, IN_RIGHT = ring(2, 2, 12, 12), ring(20, 2, 36, 12)
OUTER, HOLE = ring(18, 18, 38, 38), ring(20, 20, 36, 36)


@pytest.mark.parametrize(
    ("things", "rings", "wanted"),
    [
        ((LEFT, RIGHT), [IN_LEFT, IN_RIGHT], (2, 0)),
        ((LEFT, RIGHT), [IN_RIGHT], (1, 0)),
        ((LEFT, RIGHT), [], (0, 0)),
        ((), [IN_LEFT, IN_LEFT], (0, 0)),
        ((LEFT, RIGHT), [IN_LEFT, ring(3, 2, 12, 12), IN_LEFT], (1, 2)),
        # Half of a thing is no hit, a little more is one; neither is what is meant by nobody.
        ((LEFT, RIGHT), [ring(2, 2, 7, 12), IN_RIGHT], (1, 0)),
        ((LEFT, RIGHT), [ring(2, 2, 8, 12), IN_RIGHT], (2, 0)),
        ((LEFT, RIGHT), [ring(2, 20, 12, 36), ring(2, 20, 12, 36)], (0, 0)),
        # One outline around both is neither.
        ((LEFT, RIGHT), [ring(2, 2, 36, 12)], (0, 0)),
        # A hole is no second outline of its thing, but may be repeated itself.
        ((FRAME, LEFT), [OUTER, HOLE], (1, 0)),
        ((FRAME, LEFT), [OUTER, HOLE, HOLE, OUTER], (1, 2)),
        ((FRAME, LEFT), [HOLE], (0, 0)),
        ((PIECES, RIGHT), [ring(2, 2, 12, 12), ring(2, 20, 8, 28)], (1, 0)),
        ((PIECES, RIGHT), [ring(2, 20, 8, 28)], (0, 0)),
    ],
)
def test_things_and_repeats_are_counted_by_their_borders(things, rings, wanted):
    assert several.count(rings, things) == wanted
    assert several.count(rings[::-1], things[::-1]) == wanted


def test_without_holes_and_parts_counts_are_those_of_pairs_of_masks():
    rng = np.random.default_rng(0)
    things = (LEFT, RIGHT, BELOW)
    seen = set()
    for _ in range(60):
        chosen = rng.integers(0, 4, int(rng.integers(1, 9)))
        corners = [(2, 2, 12, 12), (20, 2, 36, 12), (2, 20, 12, 36), (24, 24, 36, 36)]
        moved = [np.array(corners[one]) + rng.integers(-3, 4, 4) for one in chosen]
        moved = [np.clip(one, 0, SIZE) for one in moved]
        hits = [0, 0, 0]
        for x0, y0, x1, y1 in moved:
            mask = square(x0, y0, x1, y1)
            ious = [(mask & thing).sum() / (mask | thing).sum() for thing in things]
            if max(ious) > 0.5:
                hits[int(np.argmax(ious))] += 1
        wanted = sum(n > 0 for n in hits), sum(max(n - 1, 0) for n in hits)
        assert several.count([ring(*one) for one in moved], things, rule="center") == wanted
        seen.add(wanted)
    assert {(2, 1), (1, 0)} < seen


def test_a_mask_of_dust_takes_no_more_memory_than_its_borders():
    dust = np.zeros((120, 120), bool)
    dust[::2, ::2] = True  # 3,600 borders.
    one = np.array([[4, 6], [5, 6], [5, 7], [4, 7]]) / 120
    tracemalloc.start()
    assert several.count([one, one, one + 1 / 120], (dust,)) == (0, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def sample(**changes):
    """Two things, both at once, something that is not there, and two of which one is unknown."""
    masks = [LEFT, RIGHT, LEFT | RIGHT, LEFT & RIGHT, RIGHT | BELOW]
    given = Sample(
        key="a",
        image=np.zeros((SIZE, SIZE, 3), np.uint8),
        masks=np.stack(masks),
        phrases=(("left",), ("right",), ("both",), ("none",), ("right and below",)),
        together=(False, False, True, False, True),
    )
    return dataclasses.replace(given, **changes)


def test_things_are_told_one_by_one_where_they_are_known():
    one, _, both, none, unknown = (several.things_of(sample(), which) for which in range(5))
    assert [len(found) for found in (one, both, none)] == [1, 2, 0]
    np.testing.assert_array_equal(one[0], LEFT)
    np.testing.assert_array_equal(both, [LEFT, RIGHT])
    assert unknown is None
    alone = sample(together=())  # Then each is one thing, whatever it looks like.
    assert len(several.things_of(alone, 2)) == 1


def test_an_evaluation_tells_of_several_things():
    task = Referring(mixture=Mixture(absent=1.0), max_rings=4)
    rng = np.random.default_rng(0)

    def ask(which):
        phrase = sample().phrases[which][0]
        return task.region_example(
            sample(), which, clue="text", kind=Kind.MASK, phrase=phrase, rng=rng
        )

    examples = [ask(0), ask(2), ask(2), ask(3), ask(4)]
    assert [example.things and len(example.things) for example in examples] == [
        None,
        2,
        2,
        None,
        None,
    ]
    answers = [[IN_LEFT], [IN_LEFT, IN_RIGHT], [IN_LEFT, IN_LEFT], [IN_LEFT], [IN_RIGHT]]
    count = len(answers)
    outcome = task_metrics.Outcome(
        examples=examples,
        texts=[outline.write_mask(rings) for rings in answers],
        scores={"iou": np.array([1.0, 0.9, 0.2, 0.0, 0.5])},
        measures={
            "intersection": np.ones(count),
            "union": np.ones(count),
            "centroid_error": np.zeros(count),
        },
        verdicts=np.full(count, Verdict.OK),
        tokens=np.ones(count, int),
    )
    found = {name: values for name, values, *_ in task.metrics(outcome)}
    np.testing.assert_allclose(found["several_giou"], [0.9, 0.2])
    np.testing.assert_allclose(found["several_duplicates"], [0, 1])
    summary = task_metrics.summarise(task, outcome)
    assert summary["several_recall"]["mean"] == pytest.approx(3 / 4)
    assert summary["n_acc_said"]["mean"] == 0.0
    single = dataclasses.replace(
        outcome,
        examples=examples[:1],
        texts=outcome.texts[:1],
        scores={"iou": np.ones(1)},
        measures={name: values[:1] for name, values in outcome.measures.items()},
    )
    assert not any(metric.name.startswith("several") for metric in task.metrics(single))
