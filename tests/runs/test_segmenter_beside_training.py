"""A frozen model that draws, where a run validates, shows answers and learns of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_clicks
import small_run

from seg_jax.cli import main
from seg_jax.data import sources
from seg_jax.inference.frozen_segmenter import Frozen
from seg_jax.records import Rollout
from seg_jax.report import panels
from seg_jax.runs import abstract, reinforcement
from seg_jax.training import optimizers, policy, state, steps
from seg_jax.training.validation import Validation

SCENES = sources.Scenes(seed=3, count=4)
CONFIG = """
import dataclasses
import small_clicks, small_run
from seg_jax.training import loop, optimizers
def config():
    base, layout = small_run.{base}_config(), small_clicks.bundle().layout
    return dataclasses.replace(
        base,
        task=small_clicks.ASKS,
        layout=layout,
        feed=dataclasses.replace(base.feed, batch=2, **{feed}),
        optimizer=optimizers.AdamW(lr=1e-3),
        loop=loop.Loop(steps=1, log_every=1),
        {more}
    )
"""
MORE = (
    "model=None, panel_every=1, sampling=dataclasses.replace("
    "base.sampling, answers=2, max_tokens=100, grammar=True)"
)


def lower_half(params, truth, answer):
    """Stands for a model that draws the lower half of every image."""
    half = jnp.arange(truth.words.shape[-2]) >= truth.words.shape[-2] // 2
    words = jnp.where(half[:, None], jnp.uint32(2**32 - 1), jnp.uint32(0))
    shape = (*answer.used.shape[:2], *truth.words.shape[-2:])
    return jnp.broadcast_to(words, shape) + params


def prompts_of(count):
    """Returns prompts of scenes with their true answers as a rollout of one each."""
    bundle, rng = small_clicks.bundle(), np.random.default_rng(0)
    examples = [small_clicks.ASKS.example(SCENES[n], rng) for n in range(count)]
    rows = [bundle.encoder.prompt_row(small_clicks.ASKS, example) for example in examples]
    prompts = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    written = [bundle.tokenizer.encode(example.answer) for example in examples]
    length = max(map(len, written))
    ids, used = np.zeros((count, 1, length), np.int32), np.zeros((count, 1, length), bool)
    for row, one in enumerate(written):
        ids[row, 0, : len(one)], used[row, 0, : len(one)] = one, True
    return prompts, Rollout(ids, used, np.zeros(ids.shape, np.float32))


@pytest.mark.parametrize("grammar", [False, True])
def test_images_to_draw_on_do_not_go_into_the_loss(grammar, monkeypatch):
    seen, update = [], policy.update

    def noted(config, state, experience, **more):
        seen.append(experience.prompts.truth)
        return update(config, state, experience, **more)

    monkeypatch.setattr(policy, "update", noted)
    run, bundle = small_run.gspo_config(), small_clicks.bundle()
    actor = steps.Actor(bundle.graph, bundle.tokenizer, ends=bundle.end_ids)
    step = steps.reinforcing_step(
        actor,
        small_clicks.ASKS,
        policy=policy.Policy(minibatches=1),
        weights=small_clicks.ASKS.reward_weights,
        optimizer=run.optimizer,
        sampling=steps.Sampling(answers=1, max_tokens=100, grammar=grammar),
        segment=lower_half,
    )
    prompts, rollout = prompts_of(2)
    assert prompts.truth.view.shape == (2, small_clicks.FRAME, small_clicks.FRAME, 3)
    jax.eval_shape(step, _fresh(run, bundle), prompts, rollout, None, jnp.uint32(0))
    (truth,) = seen
    assert (truth is None) == (not grammar)
    assert grammar is False or truth.shape == (2,)


def _fresh(run, bundle):
    """Returns the shapes of a first state."""
    transform = optimizers.build(run.optimizer)
    return jax.eval_shape(lambda params: state.fresh(params, transform, horizon=1), bundle.params)


def test_panels_show_what_is_drawn_with_its_score():
    prompts, rollout = prompts_of(2)
    frozen = Frozen(lower_half, jnp.uint32(0))
    bundle = small_clicks.bundle()
    shown = panels.Viewer(bundle, small_clicks.ASKS, frozen=frozen).exhibits(prompts, rollout)
    plain = panels.Viewer(bundle, small_clicks.ASKS).exhibits(prompts, rollout)
    for number, (exhibit, without) in enumerate(zip(shown, plain, strict=True)):
        answer = exhibit.panels[1]
        ring = answer.rings_unit[0]
        np.testing.assert_allclose([ring.min(0), ring.max(0)], [(0, 0.5), (1, 1)])
        bits = np.asarray(prompts.truth.words[number])
        true = sum(int(word).bit_count() for word in bits.ravel())
        below = sum(int(word).bit_count() for word in bits[len(bits) // 2 :].ravel())
        want = below / (true + small_clicks.FRAME**2 / 2 - below)
        assert answer.iou == pytest.approx(want, abs=1e-6)
        # Boxes frame what is drawn, and stand for it where nobody draws.
        assert {len(one) for one in answer.rings_unit[1:]} == {1, 2}
        assert without.panels[1].iou is None
        assert len(without.panels[1].rings_unit[0]) == 4
        assert exhibit.panels[0].caption == "truth"
    assert panels.sheet(shown).ndim == 3


def test_a_run_reads_the_shapes_of_its_segmenter_once(tmp_path, monkeypatch):
    small_clicks.save_segmenter(tmp_path / "sam2")
    run = small_run.gspo_config(task=small_clicks.ASKS, segmenter=tmp_path / "sam2")
    plan = reinforcement.Plan(run, small_clicks.bundle(), small_run.alone())
    read, shapes = [], abstract.frozen_segmenter.shapes

    def counted(*arguments, **more):
        read.append(arguments)
        return shapes(*arguments, **more)

    monkeypatch.setattr(abstract.frozen_segmenter, "shapes", counted)
    weights = plan.segmenter.params
    for step in (plan.update(), plan.evaluate()):
        assert step.arguments[-1] is weights
    assert len(read) == 1


def test_fine_tuning_takes_a_segmenter_to_validate_with_and_for_nothing_else(tmp_path):
    small_clicks.save_segmenter(tmp_path / "sam2")
    clicks = dataclasses.replace(small_run.sft_config(), task=small_clicks.ASKS)
    validating = dataclasses.replace(clicks, validate=Validation(samples=2))
    assert clicks.completed().segmenter is None
    dataclasses.replace(validating, segmenter=tmp_path / "sam2").completed()
    for wrong, told in (
        (dataclasses.replace(clicks, segmenter=tmp_path / "sam2"), "expected validate.samples"),
        (validating, "expected the folder of a model that draws for the task 'prompted'"),
        (
            small_run.sft_config(segmenter=tmp_path / "sam2", validate=Validation(samples=2)),
            "expected none for the task 'referring'",
        ),
    ):
        with pytest.raises(ValueError, match=f"^segmenter: {told}.*; do: "):
            wrong.completed()


@pytest.mark.slow
def test_both_kinds_of_runs_validate_by_masks(tmp_path, monkeypatch):
    small_run.on_one_device(monkeypatch)
    small_clicks.save_segmenter(tmp_path / "sam2")
    (tmp_path / "sft.py").write_text(
        CONFIG.format(base="sft", feed={"questions": 1}, more="ordered_numbers=False")
    )
    (tmp_path / "gspo.py").write_text(CONFIG.format(base="gspo", feed={}, more=MORE))

    def run(*words):
        more = ["--segmenter", tmp_path / "sam2", "--validate.samples", 2, "--validate.every", 1]
        assert main.main([str(word) for word in (*words, *more)]) == 0
        out = words[words.index("--out") + 1]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        told = [line for line in lines if "validation/iou" in line]
        assert len(told) == 2
        assert all(0 <= line["validation/iou"] <= 1 for line in told)
        assert all(np.isfinite(line["validation/structure"]) for line in told)
        return out

    out = run("finetune", tmp_path / "sft.py", "--out", tmp_path / "sft")
    start = ("--checkpoint", out / "checkpoint")
    out = run("reinforce", tmp_path / "gspo.py", *start, "--out", tmp_path / "gspo")
    assert len(list((out / "panels").glob("*.png"))) == 1
