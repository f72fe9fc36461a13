"""Answers judged by the masks that a frozen model draws of them, in the steps of reinforcement."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
import tiny_sam2

from seg_jax.cli import main
from seg_jax.data import sources
from seg_jax.grammar import clicks
from seg_jax.inference import bundle as bundles
from seg_jax.inference import segmenter
from seg_jax.models.parallel import sharding
from seg_jax.records import Rollout
from seg_jax.runs import frozen_segmenter, start
from seg_jax.tasks.prompted import Prompted
from seg_jax.tasks.referring import Referring
from seg_jax.training import steps

FRAME = tiny_sam2.SIDE
ASKS = Prompted(frame=FRAME, boxes=2, points=4, clicks=4)
GSPO = """
import dataclasses
import small_run
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import loop
def config():
    base = small_run.gspo_config()
    layout = dataclasses.replace(
        base.layout, max_prompt=1000, max_question=900, max_answer=80
    )
    return dataclasses.replace(
        base,
        model=None,
        task=Prompted(stage="prerl", frame=96, points=4, clicks=4),
        layout=layout,
        feed=dataclasses.replace(base.feed, batch=4),
        panel_every=1,
        probe=1,
        sampling=dataclasses.replace(base.sampling, answers=2, max_tokens=80, grammar=True),
        loop=loop.Loop(steps=2, log_every=1),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("frozen") / "sam2"
    tiny_sam2.theirs().save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(tiny_sam2.CONFIG.to_preprocessor()))
    return path


def rollout_of(tokenizer, texts) -> Rollout:
    """Returns texts [B G] as sampled answers."""
    ids = [[[*tokenizer.encode(text), tokenizer.end_id] for text in row] for row in texts]
    length = max(len(one) for row in ids for one in row)
    rows = np.zeros((len(ids), len(ids[0]), length), np.int32)
    used = np.zeros(rows.shape, bool)
    for b, row in enumerate(ids):
        for g, one in enumerate(row):
            rows[b, g, : len(one)], used[b, g, : len(one)] = one, True
    return Rollout(rows, used, np.zeros(rows.shape, np.float32))


@pytest.mark.slow
def test_scores_are_of_the_masks_that_the_model_draws_alone(folder, tmp_path):
    blank = start.blank_model(small_run.sft_config(), tmp_path / "tokenizer")
    scenes, rng = sources.Scenes(seed=3, count=4), np.random.default_rng(0)
    examples = [ASKS.example(scenes[n], rng) for n in range(2)]
    square = clicks.write([(0.1, 0.2, 0.7, 0.8)], [(0.4, 0.5)], [1], frame=FRAME, thought="so")
    texts = [[example.answer, square, "nothing"] for example in examples]
    truth = [ASKS.truth(example, canvas=(32, 32)) for example in examples]
    frozen = frozen_segmenter.load(ASKS, folder, on=small_run.alone())
    score = steps.scorer(
        steps.Actor(blank.graph, blank.tokenizer),
        ASKS,
        weights=ASKS.reward_weights,
        segment=frozen.segment,
    )
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *truth)
    rollout = rollout_of(blank.tokenizer, texts)
    worth = jax.device_get(score(rollout, stacked, *frozen.argument))
    alone = segmenter.load(folder)
    for b, row in enumerate(texts):
        bits = (stacked.words[b][:, None] >> np.arange(32, dtype=np.uint32)[:, None]) & 1
        true = bits.reshape(FRAME, FRAME) > 0
        for g, text in enumerate(row[:2]):
            read = clicks.read(text, frame=FRAME)
            drawn = np.zeros((FRAME, FRAME), bool)
            for box in read.boxes_unit:
                low, high = box.reshape(2, 2)
                within = ((read.points_unit >= low) & (read.points_unit <= high)).all(1)
                asked = segmenter.prompt(
                    box_px=box * FRAME,
                    clicks_px=read.points_unit[within] * FRAME,
                    inside=read.labels[within] == 1,
                )
                drawn |= alone.draw(truth[b].view, [asked])[0].mask
            want = (drawn & true).sum() / (drawn | true).sum()
            np.testing.assert_allclose(worth.scores["iou"][b, g], want, atol=2e-3)
            assert worth.scores["format"][b, g] == 1
            total = 0.7 * want + 0.3 * worth.scores["structure"][b, g] + 1
            np.testing.assert_allclose(worth.reward[b, g], total, atol=2e-3)
        assert worth.reward[b, 2] == 0
    # The weights are an argument: others give other masks, by the same program.
    other = jax.tree.map(lambda leaf: -leaf, frozen.params)
    again = jax.device_get(score(rollout, stacked, other))
    assert np.abs(again.scores["iou"][:, :2] - worth.scores["iou"][:, :2]).max() > 0.01
    shapes = frozen_segmenter.shapes(ASKS, folder, on=small_run.alone())
    for one, real in zip(
        jax.tree.leaves(shapes.params), jax.tree.leaves(frozen.params), strict=True
    ):
        assert (one.shape, one.dtype) == (real.shape, real.dtype)
        assert one.sharding == sharding.replicated_sharding(small_run.alone())


@pytest.mark.slow
def test_reinforce_takes_a_segmenter_and_learns_of_its_masks(folder, tmp_path, monkeypatch, capsys):
    small_run.on_one_device(monkeypatch)
    (tmp_path / "gspo.py").write_text(GSPO)
    bundles.save(small_run.bundle(), tmp_path / "start")
    words = ["reinforce", str(tmp_path / "gspo.py"), "--checkpoint", str(tmp_path / "start")]
    words += ["--out", str(tmp_path / "run")]
    assert main.main([*words, "--segmenter", str(folder)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["scores/format"] == 1
        assert 0 < line["scores/iou"] < 1
        total = 0.7 * line["scores/iou"] + 0.3 * line["scores/structure"] + 1
        np.testing.assert_allclose(line["reward"], total, rtol=1e-5)
    capsys.readouterr()
    assert main.main([*words[:5], str(tmp_path / "other")]) != 0
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert "segmenter: expected the folder of a model that draws for the task 'prompted'" in told


def test_a_task_and_a_segmenter_go_together_or_are_refused(folder, tmp_path):
    frozen_segmenter.check(ASKS, folder)
    assert frozen_segmenter.load(Referring(), None, on=small_run.alone()).argument == ()
    for task, given, told in (
        (
            ASKS,
            None,
            "segmenter: expected the folder of a model that draws for the task 'prompted'",
        ),
        (Referring(), folder, "segmenter: expected none for the task 'referring'"),
        (ASKS, tmp_path / "none", "segmenter: .*none"),
    ):
        with pytest.raises(ValueError, match=told):
            frozen_segmenter.check(task, given)
