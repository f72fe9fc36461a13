"""Fixed clicks and shuffled pictures: baselines that a model which looks has to pass."""

import dataclasses
import itertools

import numpy as np
import pytest
import small_run
import stand_in_segmenter

from seg_jax.data import sources
from seg_jax.geometry import saliency
from seg_jax.runs import pointing
from seg_jax.runs.pointing import Prompt
from seg_jax.tasks import masks as packed_masks
from seg_jax.tasks.prompted import Mixture, Prompted

FRAME = 64
TASK = Prompted(
    stage="prerl",
    frame=FRAME,
    boxes=1,
    points=2,
    clicks=1,
    brief=True,
    mixture=Mixture(whole=0.0, text=1.0),
)


def drawn_by_hand(view, prompt):
    """Returns the same mask by numpy."""
    found = {0: np.zeros(view.shape[:2], bool), 1: np.zeros(view.shape[:2], bool)}
    for (x, y), label in zip(prompt.points_unit, prompt.labels, strict=True):
        clicked = view[min(int(y * FRAME), FRAME - 1), min(int(x * FRAME), FRAME - 1)]
        found[label] |= (view == clicked).all(-1)
    mask = found[1] & ~found[0]
    if prompt.box_unit is not None:
        x0, y0, x1, y1 = np.array(prompt.box_unit) * FRAME
        centres = np.arange(FRAME) + 0.5
        rows, columns = ((centres >= a) & (centres < b) for a, b in ((y0, y1), (x0, x1)))
        mask |= rows[:, None] & columns
    return mask


@pytest.fixture(scope="module")
def questions():
    bundle = small_run.bundle()
    layout = dataclasses.replace(bundle.layout, max_prompt=90, max_question=60, max_answer=50)
    bundle = dataclasses.replace(bundle, task=TASK, layout=layout)
    scenes = sources.Scenes(seed=5, count=5)
    frozen = stand_in_segmenter.FROZEN
    return pointing.Questions(
        bundle, [*map(scenes.__getitem__, range(5))], frozen=frozen, mesh=small_run.alone(), batch=2
    )


def by_hand(questions, prompts):
    """Returns rewards [n c], one prompt and picture after the other."""
    found = np.zeros((len(questions.examples), len(prompts)))
    for row, column in np.ndindex(found.shape):
        truth = questions.truth(row)
        true = packed_masks.unpack(np.asarray(truth.words), (FRAME, FRAME))
        mask = drawn_by_hand(np.asarray(truth.view), prompts[column])
        iou = (mask & true).sum() / (mask | true).sum()
        words = packed_masks.pack(mask, (FRAME, FRAME))
        structure = saliency.structure(words, truth.words, np.array([FRAME, FRAME]))
        found[row, column] = 0.7 * iou + 0.3 * structure
    return found


def test_fixed_prompts_are_worth_what_they_are_by_hand(questions):
    prompts = [
        Prompt(((0.5, 0.5),), (1,)),
        Prompt(((0.5, 0.5), (0.9, 0.9)), (1, 0)),
        Prompt(((0.3, 0.4), (0.6, 0.6)), (1, 1)),
        Prompt(box_unit=(0.25, 0.0, 0.75, 0.5)),
    ]
    wanted = by_hand(questions, prompts)
    np.testing.assert_allclose(questions.worth(prompts), wanted, atol=1e-5)
    mine = [prompts[row % len(prompts)] for row in range(5)]
    own = questions.worth_of_own(mine)
    np.testing.assert_allclose(
        own.scores["reward"], [wanted[row, row % len(prompts)] for row in range(5)], atol=1e-5
    )
    for row, prompt in enumerate(mine):
        mask = packed_masks.unpack(own.masks[row], (FRAME, FRAME))
        view = np.asarray(questions.truth(row).view)
        np.testing.assert_array_equal(mask, drawn_by_hand(view, prompt))


def test_the_best_blind_prompts_are_those_of_brute_force(questions):
    grid = 3
    places = [((x + 0.5) / grid, (y + 0.5) / grid) for y in range(grid) for x in range(grid)]
    singles = [Prompt((place,), (1,)) for place in places]
    means = by_hand(questions, singles).mean(0)
    first = places[int(means.argmax())]
    pairs = [
        Prompt((first, place), (1, label)) for label in (1, 0) for place in places if place != first
    ]
    further = by_hand(questions, pairs).mean(0)
    found = pointing.best_blind(questions, grid=grid)
    assert found.prompt.points_unit[0] == first
    np.testing.assert_allclose(found.reward, max(means.max(), further.max()), atol=1e-5)
    assert len(found.prompt.labels) == (2 if further.max() > means.max() else 1)

    sides = list(itertools.combinations(np.arange(grid + 1) / grid, 2))
    boxes = [Prompt(box_unit=(x0, y0, x1, y1)) for y0, y1 in sides for x0, x1 in sides]
    assert pointing.boxes_between(grid) == boxes
    found = pointing.best_blind(questions, grid=grid, boxed=True)
    np.testing.assert_allclose(found.reward, by_hand(questions, boxes).mean(0).max(), atol=1e-5)


def test_shuffled_questions_have_the_picture_of_the_next_one_and_their_own_truth(questions):
    shuffled = pointing._with_next_picture(questions._batches)
    seen, shown = (
        [one.images.patches[row] for real, one in batches for row in range(real)]
        for batches in (questions._batches, shuffled)
    )
    assert len(seen) == 5
    for row, patches in enumerate(shown):
        np.testing.assert_array_equal(patches, seen[(row + 1) % 5])
        assert not np.array_equal(patches, seen[row])
    for (real, one), (same, other) in zip(questions._batches, shuffled, strict=True):
        assert real == same
        assert one.images.patches.shape == other.images.patches.shape
        assert other.truth is one.truth
        assert other.tokens is one.tokens


@pytest.mark.slow
def test_answers_are_scored_by_their_masks_and_shuffled_ones_are_shown_another_picture(
    questions, monkeypatch
):
    params, answer, shown = small_run.bundle().params, questions._answer, []

    def noted(params, placed):
        shown[-1] += [*np.asarray(placed.images.patches)]
        return answer(params, placed)

    def ask(**shuffled):
        shown.append([])
        return questions.answered(params, title="asked", **shuffled)

    monkeypatch.setattr(questions, "_answer", noted)
    one = ask()
    assert len(one.texts) == 5
    assert one.masks.shape == (5, FRAME // 32, FRAME)
    weighted = 0.7 * one.scores["iou"] + 0.3 * one.scores["structure"]
    np.testing.assert_allclose(one.scores["reward"], weighted, atol=1e-6)
    assert len(ask(shuffled=True).texts) == 5
    # Weights of chance write the same of most pictures, so that pictures are compared.
    right, wrong = (np.stack(pictures[:5]) for pictures in shown)
    np.testing.assert_array_equal(wrong, np.roll(right, -1, 0))


def test_iou_of_packed_masks():
    ours, true = np.zeros((2, 64, 40), bool)
    ours[:10, :10] = true[5:10, :20] = True
    words = [packed_masks.pack(mask, (64, 40)) for mask in (ours, true)]
    assert pointing.iou(*words) == 50 / 150
    assert pointing.iou(words[0] & 0, words[0] & 0) == 0.0
