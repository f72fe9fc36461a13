"""Data sets on the command line of a run: mixed by weights, asked for what they have, checked."""

import dataclasses
import json

import numpy as np
import published_formats as formats
import pytest
import small_run

from seg_jax.cli import main
from seg_jax.data import pipeline
from seg_jax.data.sources import Built, Mixed, Scenes
from seg_jax.grammar import outline
from seg_jax.inference import bundle as bundles
from seg_jax.records import Kind
from seg_jax.runs import datasets, reinforcement, start, supervised
from seg_jax.tasks.referring import Mixture, Referring

NAMES = ("refcoco_unc", "grefcoco_unc", "reasonseg", "absent")
FILE = """
import dataclasses
import sys
sys.path.insert(0, {tests!r})
import small_run
from seg_jax.training import loop, optimizers

def config():
    base = small_run.sft_config()
    layout = dataclasses.replace(base.layout, max_prompt=66, max_question=40, max_answer=60)
    feed = dataclasses.replace(base.feed, batch=8, questions=3)
    plan = loop.Loop(steps=2, log_every=1)
    adam = optimizers.AdamW()
    return dataclasses.replace(base, layout=layout, feed=feed, loop=plan, optimizer=adam)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns the folder of built data sets; in the last one nothing that is told is there."""
    root = tmp_path_factory.mktemp("sets")
    for name in NAMES[:2]:
        formats.refer(root, name, images=4)
    bundles.save(small_run.bundle(), root / "given")
    formats.reasonseg(root / "reasonseg")
    formats.image(root / "absent" / "0.png", 0, form="PNG")
    line = {"image": "0.png", "objects": [], "phrases": [{"text": "a fork", "objects": []}]}
    (root / "absent" / "train.jsonl").write_text(json.dumps(line) + "\n")
    for name in NAMES:
        source = root / name if name in NAMES[2:] else root
        kind = "folder" if name == "absent" else name
        words = ["build", kind, "--source", source, "--out", root / "data" / name, "--workers", 1]
        assert main.main([str(word) for word in words]) == 0
    return root / "data"


@pytest.fixture
def run(capfd, monkeypatch):
    """Returns a function that runs a program: its status and the last line of its errors."""
    monkeypatch.delenv("SEG_JAX_TRACEBACK", raising=False)

    def call(*words):
        status = main.main([str(word) for word in words])
        errors = capfd.readouterr()[1]
        assert "Traceback" not in errors
        return status, errors.strip().splitlines()[-1] if errors.strip() else ""

    return call


def resolved(mixture=None, kind=supervised.Config, **given):
    task = Referring(mixture=mixture or Mixture())
    return datasets.with_source(kind(task=task, **given)).source


def test_data_sets_take_the_place_of_the_source(made):
    one, other = made / "refcoco_unc", made / "reasonseg"
    assert resolved() == Scenes()
    assert resolved(data=(one,)) == Built(folders=(one,))
    assert resolved(data=(one, other), split="val") == Built(folders=(one, other), split="val")
    source = resolved(data=(one, other), data_weights=(3.0, 1.0), kind=reinforcement.Config)
    parts = tuple(Built(folders=(path,)) for path in (one, other))
    assert source == Mixed(parts=parts, weights=(3.0, 1.0))
    config = datasets.with_source(supervised.Config(task=Referring(), data=(one,)))
    assert (config.data, config.data_weights) == ((), ())
    assert datasets.with_source(config) == config


def test_the_source_gives_what_is_asked_about(made):
    absent = Mixture(absent=0.5)
    folders = (made / "refcoco_unc", made / "grefcoco_unc")
    mixed = resolved(absent, data=folders, data_weights=(1.0, 1.0))
    assert [part.absent for part in mixed.parts] == [True, True]
    singly = Mixed(
        parts=tuple(Built(folders=(f,), singly=True) for f in folders), weights=(1.0, 1.0)
    )
    assert datasets.fitting(singly, absent.needs) == singly
    assert resolved(absent).style.absent == 1
    points = Mixture(text_mask=0.0, point_mask=1.0)
    assert resolved(points, data=folders).singly
    for mixture, wanted in ((absent, {True, False}), (Mixture(), {True}), (points, {True})):
        source = resolved(mixture, data=folders[1:])
        rng, task = np.random.default_rng(0), Referring(mixture=mixture)
        examples = [task.example(source[i % len(source)], rng) for i in range(80)]
        assert {bool(example.mask.any()) for example in examples} == wanted
        for example in examples:
            said = outline.read(example.answer, Kind.MASK).says_nothing
            assert said == ("the green cow" in example.question) == (not example.mask.any())
            assert "both of them" not in example.question or len(source[0].masks) > 2


def test_the_share_of_absent_things_in_training(made):
    folders = tuple(made / name for name in NAMES[:2])
    mixture = Mixture(text_mask=0.6, point_mask=0.2, absent=0.2)
    source = resolved(mixture, data=folders, data_weights=(1.0, 3.0))
    task = dataclasses.replace(small_run.task("sft"), mixture=mixture)
    rows = pipeline._samples(source, 0).random_map(pipeline._Ask(task, 8))
    examples = [example for index in range(120) for example in rows[index]]
    told = [e for e in examples if e.key.startswith("grefcoco")]
    assert len(told) == 0.75 * len(examples)
    # Every image of the second data set has such an expression, none of the first.
    assert abs(np.mean([not e.mask.any() for e in told]) - 0.2) < 0.05
    assert all(e.mask.any() for e in examples if e.key.startswith("refcoco"))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--data", "none"), "none: expected a data set with dataset_info.json, got none; do: seg"),
        (("--data", "refcoco_unc", "reasonseg", "--data-weights", 1), "expected one for each of 2"),
        (("--data-weights", 1), "data_weights: expected one for each of 0 data sets, got 1"),
        (("--data", "refcoco_unc", "--data-weights", 0), "expected weights > 0, got (0.0,)"),
        (("--data", "refcoco_unc", "--split", "dev"), "expected one of the splits testA, testB"),
        (("--data", "refcoco_unc", "--task.mixture.absent", 1), "expected expressions without a"),
        (("--data", "absent"), "expected images with objects in the split train, got none"),
        (
            ("--data", "absent", "--task.mixture.text-mask", 0, "--task.mixture.point-mask", 1),
            "expected images with objects in the split train, got none",
        ),
    ],
)
@pytest.mark.parametrize("program", ["finetune", "reinforce"])
def test_a_mistake_is_one_line(made, run, tmp_path, program, words, wanted):
    if program == "reinforce":
        words = [*words, "--checkpoint", made.parent / "given"]
    at = {name: made / name for name in (*NAMES, "none")}
    words = [at.get(word, word) for word in words]
    status, line = run(program, "--out", tmp_path / "out", *words)
    assert status in (1, 2)
    assert line.startswith(f"seg-jax {program}: ")
    assert wanted in line
    assert not (tmp_path / "out").exists()


def test_a_set_without_what_is_asked_about_is_named(made):
    # TFDS's sets have no report, so that its images are counted whatever is told of them.
    only = Built(folders=(made / "absent",), absent=True)
    config = supervised.Config(source=only)
    points = Mixture(text_mask=0.0, point_mask=1.0)
    for mixture, needed in ((Mixture(), "expressions of objects"), (points, "single objects")):
        with pytest.raises(ValueError, match=rf"absent: expected {needed} in train for \w+, got "):
            datasets.with_source(dataclasses.replace(config, task=Referring(mixture=mixture)))
    absent = Referring(mixture=Mixture(absent=0.1))
    assert datasets.with_source(dataclasses.replace(config, task=absent)).source == only


@pytest.mark.slow
def test_two_steps_on_mixed_data_sets(made, run, tmp_path, monkeypatch):
    # Both programs on several devices: test_processes.
    small_run.on_one_device(monkeypatch)
    tests = str(small_run.__file__).rpartition("/")[0]
    (tmp_path / "small.py").write_text(FILE.format(tests=tests))
    sets = ("--data", *(made / name for name in NAMES[:2]), "--data-weights", 1, 2)
    words = ("finetune", tmp_path / "small.py", *sets, "--task.mixture.absent", 0.5, "--out")
    assert run(*words, tmp_path / "sft")[0] == 0
    record = json.loads((tmp_path / "sft" / "config.json").read_text())
    assert record["source"]["weights"] == [1.0, 2.0]
    assert [part["absent"] for part in record["source"]["parts"]] == [True, True]
    saved = bundles.load(tmp_path / "sft" / "checkpoint")
    assert saved.task.nothing
    losses = [json.loads(one)["loss"] for one in (tmp_path / "sft" / "metrics.jsonl").open()]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert run(*words, tmp_path / "sft", "--resume")[0] == 0
    other = run(*words, tmp_path / "sft", "--resume", "--data-weights", 2, 1)
    assert other[0] == 1
    assert "another source.weights" in other[1]
    words = ("--checkpoint", tmp_path / "sft" / "checkpoint", *sets, "--task.mixture.absent", 1.0)
    words = (*words, "--feed.batch", 8, "--loop.steps", 2, "--loop.log-every", 1)
    words = (*words, "--sampling.answers", 4, "--sampling.max-tokens", 12, "--sampling.grammar")
    words = (*words, "--policy.minibatches", 2, "--panel-every", 1, "--out", tmp_path / "gspo")
    assert run("reinforce", *words)[0] == 0
    told = [json.loads(one) for one in (tmp_path / "gspo" / "metrics.jsonl").open()]
    assert [one["verdicts/OK"] for one in told] == [1.0, 1.0]
    assert all(np.isfinite(one["reward"]) for one in told)
    assert len([*(tmp_path / "gspo" / "panels").iterdir()]) == 2


def test_a_given_model_is_asked_other_questions_where_they_are_named(tmp_path):
    folder = tmp_path / "given"
    bundles.save(small_run.bundle(), folder)
    own = small_run.bundle().task
    config = supervised.Config(checkpoint=folder)
    assert config.completed().task == own
    asked = dataclasses.replace(own, mixture=Mixture(absent=0.3))
    run = dataclasses.replace(config, task=asked).completed()
    assert run.task == asked
    assert start.from_checkpoint(run).bundle.task == asked
    # What contradicts the checkpoint is no default of ours that gives way: it is refused.
    other = dataclasses.replace(config, task=Referring(digits=5, mixture=Mixture(absent=0.3)))
    with pytest.raises(ValueError, match="task.digits: expected 2, the decimals that .*, got 5"):
        other.completed()
    # A folder that says nothing of a task takes the configured one.
    (folder / bundles.MANIFEST).rename(tmp_path / "manifest")
    (folder / "checksums.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps({"patch_size": 8, "merge_size": 1}))
    assert dataclasses.replace(config, task=own).completed().task == own
    assert config.completed().task == Referring()
    with pytest.raises(ValueError, match="task.digits: expected 2, the decimals of the number tok"):
        start.from_checkpoint(config.completed())
    assert dataclasses.replace(config, checkpoint=None).completed().task == Referring()
