"""Evaluation: numbers by hand from made-up answers, and batches against one question at a time."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from seg_jax.data import pipeline
from seg_jax.evaluation import task_metrics
from seg_jax.geometry import host_raster
from seg_jax.inference.predictor import Predictor
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import sampler
from seg_jax.records import Kind, Rollout, Verdict
from seg_jax.runs import evaluation
from seg_jax.tasks.referring import Mixture, Referring, RegionExample
from seg_jax.tasks.task import Judgement

NAN = float("nan")
TASK = Referring()
FIRST = [
    # kind, iou, intersection, union, centroid error, verdict, tokens
    (Kind.MASK, 0.8, 40, 50, 0.1, Verdict.OK, 4),
    (Kind.MASK, 0.5, 10, 20, 0.2, Verdict.CLAMPED, 2),
    (Kind.BOX, 0.25, 0, 0, 0.1, Verdict.OK, 5),
]
SECOND = [
    (Kind.MASK, 0.0, 0, 30, NAN, Verdict.EMPTY, 1),
    (Kind.POINT, 1.0, 0, 0, 0.3, Verdict.OK, 3),
]
PADDING = [(Kind.MASK, 0.9, 900, 900, 9.0, Verdict.MALFORMED, 6)]
MOST = 6


def example(number, kind):
    return RegionExample(
        key=str(number),
        image=np.zeros((2, 2, 3), np.uint8),
        question="q",
        answer="a",
        kind=kind,
        mask=np.ones((2, 2), bool),
    )


def batches(*groups, padding=()):
    """Yields batches whose prompts are the made-up answers; padding fills the last one."""
    for group in groups:
        rows = [*group, *(padding if group is groups[-1] else [])]
        yield [example(number, row[0]) for number, row in enumerate(group)], rows


def answer(rows):
    """Returns the made-up answers as a model's."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    _, iou, intersection, union, error, verdict, tokens = columns
    used = np.arange(MOST) < tokens[:, None]
    ids = np.where(used, 10 + np.arange(MOST), 0)
    rollout = Rollout(ids[:, None], used[:, None], np.zeros((len(rows), 1, MOST), np.float32))
    judged = Judgement(
        scores={"iou": iou, "format": 1 - iou},
        measures={"intersection": intersection, "union": union, "centroid_error": error},
        verdict=verdict,
    )
    return rollout, jax.tree.map(lambda column: column[:, None], judged)


def run(*groups, padding=(), progress=lambda done: None):
    def spell(ids):
        return " ".join(map(str, ids))

    return task_metrics.run(answer, batches(*groups, padding=padding), spell, progress=progress)


def means(summary):
    return {name: value["mean"] for name, value in summary.items() if "mean" in str(value)}


def assert_same(one, other):
    """Asserts that two outcomes are equal in all that came of the questions."""
    for field in dataclasses.fields(task_metrics.Outcome):
        if field.name not in ("examples", "computed", "together"):
            jax.tree.map(
                np.testing.assert_array_equal, getattr(one, field.name), getattr(other, field.name)
            )


def test_the_numbers_are_those_by_hand():
    summary = task_metrics.summarise(TASK, run(FIRST, SECOND))
    assert summary["questions"] == 5
    assert means(summary) == pytest.approx(
        {
            "giou": (0.8 + 0.5 + 0.0) / 3,
            "ciou": (40 + 10 + 0) / (50 + 20 + 30),
            "p_at_0.5": 1 / 3,
            "boundary_iou": 0.0,  # The texts say nothing: see test_boundaries.
            "box_iou": 0.25,
            "point_in_mask": 1.0,
            "centroid_error": (0.1 + 0.2 + 0.1 + 0.3) / 4,
            "parse_rate": 3 / 5,
            "tokens": 3.0,
        },
        abs=1e-6,
    )
    assert summary["verdicts"] == {
        "OK": 3,
        "CLAMPED": 1,
        "DEGENERATE": 0,
        "TRUNCATED": 0,
        "MALFORMED": 0,
        "EMPTY": 1,
    }
    json.dumps(summary, allow_nan=False)
    for name, mean in means(summary).items():
        assert 0 <= summary[name]["low"] <= mean <= summary[name]["high"]


def test_the_next_batch_is_asked_before_the_answers_of_one_are_awaited():
    events = []

    def drawn():
        for number, batch in enumerate(batches(FIRST, SECOND, FIRST)):
            events.append(f"draw {number}")
            yield batch

    def asked(rows):
        events.append("ask")
        return answer(rows)

    task_metrics.run(asked, drawn(), str, progress=lambda done: events.append(f"done {done}"))
    assert events == [
        "draw 0",
        "ask",
        "draw 1",
        "ask",
        "done 3",
        "draw 2",
        "ask",
        "done 5",
        "done 8",
    ]


def test_the_outcome_keeps_the_order_of_the_questions():
    done = []
    outcome = run(FIRST, SECOND, progress=done.append)
    assert done == [3, 5]
    assert [example.kind for example in outcome.examples] == [
        Kind.MASK,
        Kind.MASK,
        Kind.BOX,
        Kind.MASK,
        Kind.POINT,
    ]
    assert outcome.scores["iou"].tolist() == pytest.approx([0.8, 0.5, 0.25, 0.0, 1.0])
    assert outcome.tokens.tolist() == [4, 2, 5, 1, 3]
    assert outcome.texts == ["10 11 12 13", "10 11", "10 11 12 13 14", "10", "10 11 12"]
    assert np.isnan(outcome.measures["centroid_error"]).tolist() == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_padding_of_the_last_batch_counts_for_nothing():
    padded = run(FIRST, SECOND, padding=PADDING)
    assert_same(padded, run(FIRST, SECOND))
    assert len(padded.examples) == 5
    assert task_metrics.summarise(TASK, padded) == task_metrics.summarise(TASK, run(FIRST, SECOND))


def test_questions_that_were_not_asked_have_no_line():
    summary = task_metrics.summarise(TASK, run(SECOND[1:]))
    assert "point_in_mask" in summary
    assert not {"giou", "ciou", "p_at_0.5", "boundary_iou", "box_iou"} & set(summary)
    nothing = task_metrics.summarise(TASK, run(SECOND[:1]))
    assert not {"centroid_error", "box_iou", "point_in_mask"} & set(nothing)
    assert nothing["giou"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    json.dumps([summary, nothing], allow_nan=False)


def test_the_seed_chooses_the_resamples():
    outcome = run(FIRST, SECOND, FIRST, FIRST)
    assert task_metrics.summarise(TASK, outcome, seed=1) == task_metrics.summarise(
        TASK, outcome, seed=1
    )
    assert means(task_metrics.summarise(TASK, outcome, seed=2)) == means(
        task_metrics.summarise(TASK, outcome)
    )


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="expected at least one question, got none"):
        run()


SCENES = dataclasses.replace(small_run.sft_config().source, count=5, seed=5)


def evaluate(asked, size, task=None):
    bundle = asked.bundle
    prompts = pipeline.batches_in_order(SCENES, task or bundle.task, bundle.encoder, batch=size)
    return task_metrics.run(asked.answer, prompts, bundle.tokenizer.decode)


@pytest.mark.slow
def test_batches_answer_as_one_question_at_a_time():
    rng = np.random.default_rng(0)
    loud = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), small_run.bundle().params
    )
    asked = Predictor(dataclasses.replace(small_run.bundle(), params=loud))
    task = small_run.task("prompts")
    batched, alone = evaluate(asked, 3, task), evaluate(asked, 1, task)
    assert_same(batched, alone)
    assert (
        task_metrics.summarise(TASK, batched)["parse_rate"]["mean"] == 0.0
    )  # No grammar holds them.
    assert len(set(batched.texts)) == 5
    assert [example.question for example in batched.examples] == [
        example.question for example in alone.examples
    ]


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_with_the_grammar_all_is_read_and_the_same_on_eight_devices_and_in_fewer_rows():
    bundle = small_run.bundle()
    rng = np.random.default_rng(0)
    loud = jax.tree.map(
        lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), bundle.params
    )
    source = dataclasses.replace(small_run.sft_config().source, count=18, seed=5)
    task = dataclasses.replace(bundle.task, mixture=Mixture(text_point=1.0, text_box=1.0))
    outcomes = []
    # Eight devices without fewer rows: test_constrained. Fewer rows on one device: test_refill.
    for devices, rows in ((1, 0), (8, 8)):
        mesh = sharding.mesh(
            {"data": 2, "fsdp": -1} if devices > 1 else None, jax.devices()[:devices]
        )
        spread = jax.device_put(loud, sharding.shardings(loud, mesh))
        refill = sampler.Refill(rows=rows) if rows else None
        asked = Predictor(dataclasses.replace(bundle, params=spread), grammar=True, refill=refill)
        outcomes.append(
            evaluation.answer_greedily(asked, source, title="", task=task, batch=15, mesh=mesh)
        )
    assert {example.kind for example in outcomes[0].examples} == set(Kind)
    lengths = outcomes[0].tokens
    assert lengths.min() < lengths.max()
    assert outcomes[1].computed < outcomes[0].computed == outcomes[0].together
    first = task_metrics.summarise(TASK, outcomes[0])
    assert first["parse_rate"]["mean"] == 1.0
    assert outcomes[1].texts == outcomes[0].texts
    other = task_metrics.summarise(TASK, outcomes[1])
    for name in set(first) - {"useful_tokens", "useful_tokens_unfilled"}:
        assert other[name] == first[name], name


@pytest.mark.slow
def test_with_the_grammar_every_prediction_of_random_weights_is_read():
    held = Predictor(small_run.bundle(), grammar=True)
    image = np.zeros((64, 64, 3), np.uint8)
    for kind in Kind:
        assert held.predict_one(image, "the red star", kind).verdict == Verdict.OK


def test_a_layout_too_short_for_the_grammar_is_refused():
    bundle = small_run.bundle()
    layout = dataclasses.replace(bundle.layout, max_answer=6)
    held = Predictor(dataclasses.replace(bundle, layout=layout), grammar=True)
    with pytest.raises(ValueError, match="max_tokens: expected at least"):
        held.predict_one(np.zeros((64, 64, 3), np.uint8), "the red star", Kind.MASK)


def test_an_answer_is_held_against_the_mask_of_its_own_scene(monkeypatch):
    bundle = small_run.bundle()
    ring = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.7], [0.1, 0.7]])
    ids = bundle.tokenizer.encode("[[[0.10, 0.10], [0.90, 0.10], [0.90, 0.70], [0.10, 0.70]]].")

    def same_answer(model, tokens, images, **_):
        shape = (len(tokens.ids), 1, len(ids))
        full = jnp.broadcast_to(jnp.array(ids, jnp.int32), shape)
        return Rollout(full, jnp.ones(shape, bool), jnp.zeros(shape, jnp.float32))

    monkeypatch.setattr(sampler, "generate", same_answer)
    task = dataclasses.replace(bundle.task, mixture=Mixture(), rule="coco")
    outcome = evaluate(Predictor(bundle), 3, task)
    assert_same(outcome, evaluate(Predictor(bundle), 1, task))
    drawn = host_raster.fill((ring,), height=64, width=64, rule="coco")
    masks = [example.mask for example in outcome.examples]
    assert outcome.measures["intersection"].tolist() == [(drawn & mask).sum() for mask in masks]
    assert outcome.measures["union"].tolist() == [(drawn | mask).sum() for mask in masks]
    np.testing.assert_allclose(
        outcome.scores["iou"],
        outcome.measures["intersection"] / outcome.measures["union"],
        rtol=1e-6,
    )
    assert len(set(outcome.scores["iou"].tolist())) == 5
    assert (outcome.verdicts == Verdict.OK).all()
    assert (outcome.tokens == len(ids)).all()
