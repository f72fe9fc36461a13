"""A second task, of one file, goes through all programs: SFT, GSPO, evaluate and predict."""

import dataclasses
import json

import counting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from counting import Counting

from seg_jax.cli import main
from seg_jax.data import image_files, pipeline
from seg_jax.inference import bundle as bundles
from seg_jax.records import Verdict
from seg_jax.tasks import table
from seg_jax.training import steps

FILES = {
    "sft": """
import dataclasses
import counting
import small_run
from seg_jax.training import loop, optimizers
ADAM = optimizers.AdamW(lr=1e-2, schedule=optimizers.Schedule(warmup=0.0, final=1.0))
def config():
    return dataclasses.replace(
        small_run.sft_config(),
        task=counting.Counting(),
        optimizer=ADAM,
        loop=loop.Loop(steps=12, log_every=1),
    )
""",
    "gspo": """
import dataclasses
import counting
import small_run
from seg_jax.training import loop, steps
def config():
    base = small_run.gspo_config()
    return dataclasses.replace(
        base,
        model=None,
        layout=None,
        task=counting.Counting(),
        panel_every=1,
        probe=1,
        sampling=dataclasses.replace(base.sampling, max_tokens=4, grammar=True),
        loop=loop.Loop(steps=2, log_every=1),
    )
""",
    "evaluate": """
import counting
from seg_jax.cli import evaluate
def config():
    return evaluate.Config(task=counting.Counting)
""",
    "predict": """
import pathlib
import counting
from seg_jax.cli import predict
def config():
    return predict.Config(task=counting.Counting, image=pathlib.Path("none.png"))
""",
}
"""Configuration files of the programs."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counting")
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def call(*words):
    return main.main([*map(str, words)])


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_task_of_one_file_goes_through_every_program(files, monkeypatch, capsys):
    small_run.on_one_device(monkeypatch)
    sft, gspo = files / "sft", files / "gspo"
    assert call("finetune", files / "sft.py", "--out", sft, "--task.most", 5) == 0
    losses = [line["loss"] for line in log(sft)]
    assert losses[-1] < 0.5 * losses[0]
    manifest = json.loads((sft / "checkpoint" / bundles.MANIFEST).read_text())
    assert manifest["task"] == {"name": "counting", "most": 5}

    words = ("--checkpoint", sft / "checkpoint", "--out", gspo, "--weights.near", 0.25)
    assert call("reinforce", files / "gspo.py", *words) == 0
    for line in log(gspo):
        assert line["verdicts/OK"] == 1.0
        total = line["scores/exact"] + 0.25 * line["scores/near"]
        np.testing.assert_allclose(line["reward"], total, rtol=1e-5)
        assert line["sampler_gap/max"] < 1e-4
    assert (gspo / "panels" / "000001.png").exists()

    capsys.readouterr()
    asked = ("--checkpoint", gspo / "checkpoint", "--grammar")
    scenes = ("--scenes", 6, "--world", "tiny")
    assert call("evaluate", files / "evaluate.py", *asked, *scenes) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["parse_rate"]["mean"] == 1.0
    assert 0 <= summary["accuracy"]["low"] <= summary["accuracy"]["mean"] <= 1
    assert summary["relative_error"]["mean"] >= 0
    assert "giou" not in summary

    image = files / "image.png"
    image_files.write(image, np.zeros((32, 32, 3), np.uint8))
    words = ("--image", image, "--text", "things")
    assert call("predict", files / "predict.py", *asked, *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == "How many things?"
    assert told["number"] in range(10)


def test_scores_of_another_task_are_refused_in_one_line(files, capsys):
    words = ("--out", files / "x", "--checkpoint", files / "none", "--weights.iou", 1)
    assert call("reinforce", files / "gspo.py", *words) != 0
    run = dataclasses.replace(small_run.gspo_config(), task=Counting(), model=None, layout=None)
    with pytest.raises(ValueError, match="weights: expected scores .* exact, near, got iou"):
        dataclasses.replace(run, weights={"iou": 1.0})
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_task_is_stored_by_its_name_and_known_when_handed_over():
    stored = json.loads(json.dumps(table.as_json(Counting(most=4))))
    assert table.from_json(stored, Counting) == Counting(most=4)
    with pytest.raises(
        ValueError, match="expected one of referring, prompted, got 'counting'; do: give"
    ):
        table.from_json(stored)
    for wrong in ({"most": 2.5}, {"least": 1}):
        with pytest.raises(ValueError, match="^task.*: expected .*, got .*; do: give"):
            table.from_json(stored | wrong, Counting)


class Wordy(Counting):
    """The same, whose answers no grammar holds."""

    grammar = counting.Task.grammar


def test_a_task_without_a_grammar_refuses_to_be_held_to_one():
    sampling = dataclasses.replace(small_run.gspo_config().sampling, grammar=True)
    with pytest.raises(ValueError, match="grammar: expected a task with a grammar, got 'counting'"):
        steps.sampler(small_run.actor(), sampling, seed=0, task=Wordy())


@pytest.mark.slow
def test_a_model_that_draws_is_handed_to_the_task_and_sees_each_image_once():
    config, task, seen = small_run.gspo_config(), Counting(), []
    prompts = next(
        pipeline.batches(
            config.source, task, small_run.bundle().encoder, feed=config.feed, rows="prompts"
        )
    )
    sampling = dataclasses.replace(config.sampling, max_tokens=4)

    def segment(weights, truth, answer):
        seen.append((truth.count.shape, answer.shape))
        return jnp.full(answer.shape, weights)

    draw = steps.sampler(small_run.actor(), sampling, seed=0)
    score = steps.scorer(small_run.actor(), task, weights={"near": 1.0}, segment=segment)
    rollout = draw(small_run.bundle().params, prompts, jnp.int32(0))
    for value in (0.25, 0.75):  # Weights are an argument, no constant of the program.
        worth = score(rollout, prompts.truth, jnp.float32(value))
        np.testing.assert_allclose(worth.reward, value)
        assert not worth.differ.any()
    assert seen == [((small_run.BATCH,), (small_run.BATCH, small_run.ANSWERS))]


def test_the_reader_reads_what_the_grammar_writes():
    tokenizer, task = small_run.bundle().tokenizer, Counting()
    texts = [[f"{n}." for n in range(10)], ["", "none", "x7", "12", "no 3"] * 2]
    ids = np.full((2, 10, 8), tokenizer.pad_id, np.int32)
    used = np.zeros(ids.shape, bool)
    for row, some in enumerate(texts):
        for column, text in enumerate(some):
            row_ids = [*tokenizer.encode(text), tokenizer.end_id]
            ids[row, column, : len(row_ids)], used[row, column, : len(row_ids)] = row_ids, True
    truth = counting.Truth(np.zeros((2, 10), np.int32))
    number, verdict = jax.jit(task.reader(tokenizer.pieces))(ids, used, truth)
    for row, some in enumerate(texts):
        for column, text in enumerate(some):
            read = task.predict(task.ask(None, "things"), text)
            assert read.verdict == Verdict(int(verdict[row, column]))
            assert (read.number if read.number is not None else -1) == int(number[row, column])
