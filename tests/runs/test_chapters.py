"""Which thing an answer outlines, and what the quickstart's numbers are made of."""

import dataclasses

import numpy as np
import pytest
import small_run

from seg_jax.cli import quickstart_results as results
from seg_jax.evaluation import best_of, bootstrap, task_metrics
from seg_jax.records import Kind, Verdict
from seg_jax.runs import chapters, experiments
from seg_jax.runs.stage import Trained
from seg_jax.tasks.referring import Referring, outline_text
from seg_jax.training.validation import Entry

WORLD = experiments.load("simpleseg/quickstart_base.py")
TASK = Referring(digits=2, wordings="one")


def asked(count):
    """Returns scenes, and a question about the first thing of each."""
    samples = chapters.held_out(count)
    rng = np.random.default_rng(0)
    examples = [
        TASK.region_example(
            sample, 0, clue="text", kind=Kind.MASK, phrase=sample.phrases[0][0], rng=rng
        )
        for sample in samples
    ]
    return samples, examples


def outcome(examples, texts, iou):
    return task_metrics.Outcome(
        examples=examples,
        texts=texts,
        scores={"iou": np.asarray(iou, np.float32)},
        measures={},
        verdicts=np.full(len(texts), int(Verdict.OK)),
        tokens=np.full(len(texts), 11),
    )


def test_an_answer_finds_the_thing_that_it_covers_most():
    samples, examples = asked(4)
    texts = [
        outline_text(samples[0].masks[0], Kind.MASK, TASK),
        outline_text(samples[1].masks[1], Kind.MASK, TASK),
        "no outline",
        outline_text(samples[3].masks.any(0), Kind.MASK, TASK),
    ]
    found = chapters.finds_the_thing(outcome(examples, texts, [0] * 4), samples)
    assert found[:3].tolist() == [True, False, False]
    areas = samples[3].masks.sum((1, 2))
    assert found[3] == (areas[0] > areas[1])


def test_curved_things_are_those_of_the_world():
    _, examples = asked(40)
    curved = chapters.is_curved(examples)
    names = {one.category for one, is_curved in zip(examples, curved, strict=True) if is_curved}
    assert names == {"circle", "ellipse", "crescent", "blob"}
    rest = {one.category for one, is_curved in zip(examples, curved, strict=True) if not is_curved}
    assert rest == {"square", "triangle"}


@pytest.fixture
def story():
    samples, examples = asked(60)
    rng = np.random.default_rng(1)
    values = {name: rng.random(60) for name in ("sft", "gspo", "control", "teacher")}
    texts = [outline_text(sample.masks[0], Kind.MASK, TASK) for sample in samples]
    told = {}
    for name in ("sft", "gspo", "control"):
        one = outcome(examples, texts, values[name])
        trained = Trained(None, 60.0, (Entry(0, 0.1), Entry(5, 0.4)), Entry(5, 0.4))
        numbers = {"giou": 0.0, "parse_rate": 0.0, "p_at_0.5": 0.0, "tokens": 0.0}
        numbers = {
            key: dataclasses.asdict(bootstrap.mean_interval(values[name], seed=0))
            for key in numbers
        }
        told[name] = chapters.Chapter(name, small_run.bundle(), one, numbers, trained)
    sampled = {
        name: best_of.Groups(rng.random((8, 4)), {"iou": rng.random((8, 4))}, np.ones(8, bool))
        for name in ("sft", "gspo")
    }
    return results.Story(told, outcome(examples, texts, values["teacher"]), sampled, samples)


def test_the_numbers_of_a_quickstart_are_means_of_its_answers(story):
    got = results.summary(story, {"sft": 1.0, "gspo": 2.0, "control": 2.0, "all": 9.0})
    iou = {name: one.outcome.scores["iou"] for name, one in story.chapters.items()}
    iou["teacher"] = story.teacher.scores["iou"]
    for name in ("sft", "gspo", "control"):
        assert got[name]["giou"] == round(float(iou[name].astype(np.float64).mean()), 4)
        assert got[name]["best_step"] == 5
        assert "evaluation" in got[name]
    gain = got["gspo"]["gain_over_control"]
    assert gain["mean"] == pytest.approx((iou["gspo"] - iou["control"]).mean(), abs=1e-6)
    assert gain["low"] < gain["mean"] < gain["high"]
    assert got["gspo"]["gain_over_start"]["mean"] == pytest.approx(
        (iou["gspo"] - iou["sft"]).mean(), abs=1e-6
    )
    kinds = np.array([one.category for one in story.teacher.examples])
    assert got["by_kind"].keys() == set(kinds)
    for kind, numbers in got["by_kind"].items():
        for name in ("teacher", "sft", "control", "gspo"):
            assert numbers[name] == pytest.approx(iou[name][kinds == kind].mean(), abs=1e-4)
        assert numbers["curved"] == (kind in ("circle", "ellipse", "crescent", "blob"))
        assert numbers["questions"] == (kinds == kind).sum()
    curved = chapters.is_curved(story.teacher.examples)
    assert got["parts"]["curved"]["questions"] == curved.sum()
    assert got["parts"]["straight"]["gspo"] == pytest.approx(iou["gspo"][~curved].mean(), abs=1e-4)
    assert got["gspo"]["best_of_8"] == round(
        float(story.sampled["gspo"].scores["iou"].max(1).mean()), 4
    )


def test_the_report_says_whether_the_teacher_was_passed(story):
    seconds = dict.fromkeys(("sft", "gspo", "control", "all"), 1.0)
    values = story.chapters["gspo"].outcome.scores["iou"]
    for value, said in ((1.0, "it goes beyond its teacher"), (0.0, "it did not go beyond")):
        values[:] = value
        numbers = results.summary(story, seconds)
        assert any(said in sentence for sentence in results.sentences(numbers))
        rows = results.table_rows(story, numbers)
        assert [row["model"] for row in rows][1:] == ["sft", "gspo", "control"]
        assert rows[2]["curved"] == f"{value:.3f}"
