"""Sampled answers drawn on their images: judged as in training, whatever was written."""

import dataclasses

import jax
import numpy as np
import pytest
import small_run
from PIL import Image

from seg_jax.data.exports import overlay
from seg_jax.records import Kind, Rollout, Verdict
from seg_jax.report import panels
from seg_jax.tasks.referring import Mixture

LENGTH = 60
ASKED = {
    Kind.MASK: Mixture(),
    Kind.BOX: Mixture(text_mask=0.0, text_box=1.0),
    Kind.POINT: Mixture(text_mask=0.0, text_point=1.0),
}


@pytest.fixture(scope="module")
def rows():
    """Returns examples of all kinds of answers with their prompts, stacked."""
    task, encoder = small_run.task("prompts"), small_run.bundle().encoder
    source = small_run.gspo_config().source
    examples = [
        dataclasses.replace(task, mixture=ASKED[kind]).example(
            source[index], np.random.default_rng(index)
        )
        for index, kind in enumerate([*ASKED, Kind.MASK])
    ]
    prompts = [encoder.prompt_row(task, example) for example in examples]
    return examples, jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)


def rollout(texts):
    """Returns answers [B G L] as if the model had written the texts."""
    tokenizer = small_run.bundle().tokenizer
    ids = np.full((len(texts), len(texts[0]), LENGTH), tokenizer.pad_id, np.int32)
    used = np.zeros(ids.shape, bool)
    for row, answers in enumerate(texts):
        for column, text in enumerate(answers):
            told = [*tokenizer.encode(text), tokenizer.end_id][:LENGTH]
            ids[row, column, : len(told)], used[row, column, : len(told)] = told, True
    return Rollout(jax.numpy.asarray(ids), jax.numpy.asarray(used), np.zeros(ids.shape, np.float32))


@pytest.fixture(scope="module")
def shown(rows):
    examples, prompts = rows
    texts = [[e.answer, "nothing", e.answer[: len(e.answer) // 2]] for e in examples]
    viewer = panels.Viewer(small_run.bundle(), small_run.task("prompts"), scenes=3, answers=2)
    return viewer.exhibits(prompts, rollout(texts))


def test_what_is_shown_is_the_question_and_its_image(rows, shown):
    examples, _ = rows
    assert len(shown) == 3
    for example, exhibit in zip(examples[:3], shown, strict=True):
        assert exhibit.question == example.question
        assert exhibit.image.shape[2] == 3
        whole = np.asarray(Image.fromarray(example.image).resize(exhibit.image.shape[1::-1]))
        assert np.abs(exhibit.image.astype(int) - whole).mean() < 12


def test_answers_are_judged_and_drawn(rows, shown):
    examples, _ = rows
    for example, exhibit in zip(examples[:3], shown, strict=True):
        truth, good, bad = exhibit.panels
        assert [panel.caption for panel in exhibit.panels] == ["truth", "answer 1", "answer 2"]
        assert truth.iou is None
        assert good.text == example.answer
        assert good.verdict == Verdict.OK
        assert good.iou > 0.5
        assert (bad.text, bad.verdict, bad.iou, list(bad.rings_unit)) == (
            "nothing",
            Verdict.EMPTY,
            0.0,
            [],
        )
        points = {Kind.MASK: 3, Kind.BOX: 4, Kind.POINT: 1}[example.kind]
        for panel in (truth, good):
            assert min(len(ring) for ring in panel.rings_unit) >= points
            drawn = overlay.draw(exhibit.image, panel.rings_unit, scale=1)
            changed = (drawn != exhibit.image).any(-1)
            rows_, columns = np.nonzero(changed)
            place = np.array([rows_.mean(), columns.mean()]) / exhibit.image.shape[:2]
            there = np.argwhere(example.mask).mean(0) / example.mask.shape
            assert np.abs(place - there).max() < 0.12


def test_a_sheet_holds_every_panel(shown):
    drawn = panels.sheet(shown)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 3 * 192
    assert drawn.shape[1] > 3 * 192
    one = panels.sheet(shown[:1])
    np.testing.assert_array_equal(drawn[: one.shape[0], : one.shape[1]], one)
    strange = dataclasses.replace(shown[0], question="le \u2605 rouge \U0001f534")
    assert panels.sheet([strange]).shape == one.shape


def test_rows_of_a_mesh_are_shown_too(rows, shown):
    examples, prompts = rows
    texts = [[e.answer, "nothing"] for e in examples]
    on = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    spread = jax.device_put(rollout(texts), jax.NamedSharding(on, jax.P("data")))
    viewer = panels.Viewer(small_run.bundle(), small_run.task("prompts"), scenes=3, answers=2)
    with jax.set_mesh(on):
        again = viewer.exhibits(prompts, spread)
    for one, other in zip(shown, again, strict=True):
        assert [p.iou for p in one.panels] == [p.iou for p in other.panels]


def test_what_is_not_there_has_no_truth_to_draw(rows):
    examples, prompts = rows
    nothing = np.zeros_like(prompts.truth.words)
    prompts = prompts._replace(truth=prompts.truth._replace(words=nothing))
    viewer = panels.Viewer(small_run.bundle(), small_run.task("prompts"), scenes=3, answers=2)
    for exhibit in viewer.exhibits(prompts, rollout([["[].", e.answer] for e in examples])):
        truth, denied, shown = exhibit.panels
        assert truth.rings_unit == denied.rings_unit == []
        assert (denied.iou, denied.verdict) == (1.0, Verdict.OK)
        assert shown.rings_unit
        assert shown.iou == 0.0
