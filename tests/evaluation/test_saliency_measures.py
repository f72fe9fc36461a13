"""Measures of grey maps against PySODMetrics' golden values and the definitions, pixel by pixel."""

import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from saliency_cases import cases, digest
from scipy import ndimage

from seg_jax.evaluation.foreground import measures
from seg_jax.geometry import bitmask, overlap, saliency

CASES = cases()
GOLDEN = json.loads(Path(__file__).with_name("saliency_golden.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_all_measures_are_those_of_pysodmetrics(name):
    grey, truth = CASES[name]
    golden = GOLDEN[name]
    assert digest(grey, truth) == golden["digest"], "run make_saliency_golden.py again"
    got = measures.measure(grey, truth)
    for field in ("absolute_error", "structure", "weighted_f", "f_adaptive", "e_adaptive"):
        assert getattr(got, field) == pytest.approx(golden[field], rel=0, abs=1e-9), field
    for field in ("f_curve", "e_curve"):
        curve = getattr(got, field)
        points = [curve.mean(), curve.max(), *curve[::37]]
        np.testing.assert_allclose(points, golden[field], rtol=0, atol=1e-9, err_msg=field)


def stretched(grey):
    """Returns a map in 0..1."""
    values = grey / 255
    low, high = values.min(), values.max()
    return values if low == high else (values - low) / (high - low)


def structure(values, truth):
    """Returns S as the paper defines it, with moments of pixels."""
    if not truth.any():
        return 1 - values.mean()
    if truth.all():
        return values.mean()

    def likeness(some):
        spread = some.std(ddof=1) if len(some) > 1 else 0
        return 2 * some.mean() / (some.mean() ** 2 + 1 + spread)

    share = truth.mean()
    objects = share * likeness(values[truth]) + (1 - share) * likeness(1 - values[~truth])
    row, column = (int(np.round(mean)) + 1 for mean in np.argwhere(truth).mean(0))
    regions = 0.0
    for rows in (slice(row), slice(row, None)):
        for columns in (slice(column), slice(column, None)):
            x, y = values[rows, columns].ravel(), truth[rows, columns].ravel() * 1.0
            moments = np.cov(x, y) if len(x) > 1 else np.zeros((2, 2))
            above = 4 * x.mean() * y.mean() * moments[0, 1] if len(x) else 0
            below = (
                (x.mean() ** 2 + y.mean() ** 2) * (moments[0, 0] + moments[1, 1]) if len(x) else 1
            )
            score = above / below if above else float(below == 0)
            regions += len(x) / truth.size * score
    return max(0, (objects + regions) / 2)


def f_and_e(found, truth):
    """Returns F and E of one binary map, from the matrices of the papers."""
    right = (found & truth).sum()
    precision, recall = right / max(found.sum(), 1), right / max(truth.sum(), 1)
    f = 1.3 * precision * recall / (0.3 * precision + recall) if right else 0.0
    if not truth.any():
        matrix = ~found * 1.0
    elif truth.all():
        matrix = found * 1.0
    else:
        one, other = found - found.mean(), truth - truth.mean()
        matrix = (2 * one * other / (one**2 + other**2 + np.spacing(1)) + 1) ** 2 / 4
    return f, matrix.sum() / (truth.size - 1)


def weighted_f(values, truth):
    """Returns weighted F with a kernel of two dimensions over the whole image."""
    if not truth.any():
        return 0.0
    error = np.abs(values - truth)
    distance, (rows, columns) = ndimage.distance_transform_edt(~truth, return_indices=True)
    y, x = np.mgrid[-3:4, -3:4]
    kernel = np.exp(-(x**2 + y**2) / 50)
    smooth = ndimage.convolve(error[rows, columns], kernel / kernel.sum(), mode="constant")
    least = np.where(truth & (smooth < error), smooth, error)
    weighted = least * np.where(truth, 1, 2 - 0.5 ** (distance / 5))
    right, wrong = truth.sum() - weighted[truth].sum(), weighted[~truth].sum()
    recall, precision = 1 - weighted[truth].mean(), right / (right + wrong + 1e-300)
    return 2 * recall * precision / max(recall + precision, 1e-300)


@pytest.mark.parametrize("name", [*CASES][::3])
def test_all_measures_are_what_the_papers_define(name):
    grey, truth = CASES[name]
    values, got = stretched(grey), measures.measure(grey, truth)
    assert got.absolute_error == pytest.approx(np.abs(values - truth).mean(), abs=1e-12)
    assert got.structure == pytest.approx(structure(values, truth), abs=1e-9)
    assert got.weighted_f == pytest.approx(weighted_f(values, truth), abs=1e-9)
    levels = (values * 255).astype(np.uint8)
    slow = [f_and_e(levels >= level, truth) for level in range(255, -1, -1)]
    np.testing.assert_allclose(got.f_curve, [f for f, _ in slow], atol=1e-9)
    np.testing.assert_allclose(got.e_curve, [e for _, e in slow], atol=1e-9)
    f, e = f_and_e(values >= min(1, 2 * values.mean()), truth)
    assert (got.f_adaptive, got.e_adaptive) == pytest.approx((f, e), abs=1e-9)


def test_where_a_quarter_has_no_pixels_it_alone_counts_nothing():
    """PySODMetrics gives NaN there, and Seg-R1's evaluator 0 for the whole image."""
    truth = np.zeros((12, 12), bool)
    truth[-1, 2:9] = True
    grey = np.where(truth, 255, 10).astype(np.uint8)
    got = measures.measure(grey, truth).structure
    assert got == pytest.approx(structure(stretched(grey), truth), abs=1e-12)
    assert 0.5 < got < 1
    assert measures.measure(grey, truth, released=True).structure == 0
    other = CASES["soft 0"]
    assert measures.measure(*other)[1] == measures.measure(*other, released=True)[1]


def test_constant_quarters_agree_whatever_numpy_rounds():
    """PySODMetrics lets the rounding of a mean decide between 1 and 0."""
    grey = np.full((20, 30), 77, np.uint8)
    truth = CASES["an angle"][1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = measures.measure(grey, truth).structure
    # Three quarters hold a part of the angle; the fourth is free of it, and the map constant there.
    row, column = (int(np.round(mean)) + 1 for mean in np.argwhere(truth).mean(0))
    assert not truth[:row, column:].any()
    share = row * (30 - column) / 600
    values, true = grey / 255, truth.mean()
    spared = 1 - values[0, 0]
    objects = true * 2 * values[0, 0] / (values[0, 0] ** 2 + 1)
    objects += (1 - true) * 2 * spared / (spared**2 + 1)
    assert got == pytest.approx((objects + share) / 2, abs=1e-9)


def binary_pairs():
    """Returns masks of many sizes on one canvas: answers, truths, sizes."""
    rng = np.random.default_rng(5)
    answers, truths = np.zeros((2, 80, 96, 70), bool)
    sizes = np.stack([rng.integers(2, 97, 80), rng.integers(2, 71, 80)], 1).astype(np.int32)
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        middle = rng.random((2, 2)) * (height, width)
        reach = rng.random(2) * max(height, width) / 1.5
        one, other = (
            (y - row) ** 2 + (x - column) ** 2 <= radius**2
            for (row, column), radius in zip(middle, reach, strict=True)
        )
        if number % 4 == 0:  # Almost right.
            one = other ^ (rng.random(other.shape) < 0.02)
        answers[number, :height, :width], truths[number, :height, :width] = one, other
    answers[4], truths[7] = False, False
    for masks, number in ((answers, 9), (truths, 10), (answers, 11), (truths, 11)):
        masks[number, : sizes[number, 0], : sizes[number, 1]] = True
    return answers, truths, sizes


def test_masks_on_the_device_give_the_numbers_of_the_host():
    answers, truths, sizes = binary_pairs()

    @jax.jit
    def on_device(answers, truths, sizes):
        words = bitmask.pack(answers), bitmask.pack(truths)
        return (
            saliency.structure(*words, sizes),
            saliency.enhanced(*words, sizes),
            saliency.absolute_error(*words, sizes),
            overlap.iou(*words),
        )

    got = np.stack(on_device(answers, truths, sizes), 1)
    for number, (height, width) in enumerate(sizes):
        one, other = (masks[number, :height, :width] for masks in (answers, truths))
        want = measures.measure(255 * one.astype(np.uint8), other)
        union = (one | other).sum()
        # The last threshold but one of a mask is the mask itself; the last is the whole image.
        expected = [
            want.structure,
            want.e_curve[-2],
            want.absolute_error,
            (one & other).sum() / union if union else 1,
        ]
        np.testing.assert_allclose(got[number], expected, atol=1e-5, err_msg=str(number))
        whole = f_and_e(np.ones_like(other), other)[1]
        mean = (255 * got[number, 1] + whole) / 256
        assert mean == pytest.approx(want.e_curve.mean(), abs=1e-5)


def test_masks_on_the_device_hold_at_a_million_pixels():
    rng = np.random.default_rng(1)
    truth = np.ones((1, 1024, 1500), bool)
    truth[0, 300:305, 200:210] = False
    answers = np.repeat(truth, 3, 0)
    answers[1, 301, 203] = True
    answers[2] ^= rng.random(truth.shape[1:]) < 1e-5
    size = np.array([1024, 1500], np.int32)
    got = saliency.structure(bitmask.pack(answers), bitmask.pack(truth), size)
    want = [structure(one * 1.0, truth[0]) for one in answers]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_answers_share_a_truth_and_what_lies_beyond_the_image_is_dropped():
    answers, truths, sizes = binary_pairs()
    words, truth = bitmask.pack(answers[:6]).reshape(2, 3, 3, 70), bitmask.pack(truths[:2])
    got = saliency.structure(words, truth[:, None], sizes[:2, None])
    for row in range(2):
        height, width = sizes[row]
        for column in range(3):
            one = answers[3 * row + column, :height, :width]
            want = structure(one * 1.0, truths[row, :height, :width])
            assert got[row, column] == pytest.approx(want, abs=1e-5)


def test_the_released_reward_has_the_free_share_in_the_place_of_s():
    """Figures of the released code: 0.7 IoU + 0.3 of it is 0.936 for a right mask of 21 %."""
    truth = np.zeros((100, 100), bool)
    truth[:21] = True
    words = bitmask.pack(truth)
    size = np.array([100, 100], np.int32)
    released = saliency.structure(words, words, size, released=True)
    assert 0.7 + 0.3 * float(released) == pytest.approx(0.937, abs=1e-6)
    assert float(saliency.structure(words, words, size)) == pytest.approx(1, abs=1e-6)
