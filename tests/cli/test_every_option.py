"""Every option of every program acts on the run or is refused: none is read and dropped.

Training runs are started with stand-ins in the place of whatever is built from their options; what
these receive is the run's fingerprint. A configuration itself is no part of it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import option_walk
import pytest
import run_stand_ins
import small_run
from fingerprints import Notes, walk

from seg_jax.cli import finetune, main, reinforce
from seg_jax.cli.benchmarks import harness
from seg_jax.data import pipeline, priority, sources
from seg_jax.data.encode import Layout, Native
from seg_jax.data.packing import Pack
from seg_jax.data.sources import Built, Mixed
from seg_jax.inference import bundle as bundles
from seg_jax.models.adapters.lora import LoRA
from seg_jax.models.vlm import kimi_vl, qwen3_vl
from seg_jax.runs import supervised
from seg_jax.tasks.prompted import Mixture, Prompted
from seg_jax.training import loop, optimizers, policy, steps
from seg_jax.training.validation import Validation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Returns the folder of a model that was trained here."""
    folder = tmp_path_factory.mktemp("given") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return folder


@pytest.fixture
def prints(monkeypatch, tmp_path):
    """Returns a function (program, config) -> the fingerprint of the run that it starts."""
    note = Notes(monkeypatch, tmp_path)
    run_stand_ins.put(monkeypatch, note)
    return note.of


SMALL = small_run.sft_config()
SETS = Built(folders=(Path("one"),))
FINETUNE = {
    "random weights": (SMALL, ("",)),
    "AdamW": (dataclasses.replace(SMALL, optimizer=optimizers.AdamW()), ("optimizer",)),
    "packed rows": (
        dataclasses.replace(SMALL, feed=pipeline.Feed(batch=2, pack=Pack(tokens=280, patches=40))),
        ("feed",),
    ),
    "validation": (
        dataclasses.replace(SMALL, validate=Validation(samples=8, patience=3, score="iou")),
        ("validate",),
    ),
    "passes over a finite set": (
        dataclasses.replace(
            SMALL,
            source=dataclasses.replace(SMALL.source, count=64),
            loop=loop.Loop(epochs=3),
        ),
        ("loop", "source.count"),
    ),
    "data sets": (dataclasses.replace(SMALL, source=SETS), ("source",)),
    "data sets by name": (
        dataclasses.replace(SMALL, data=(Path("one"),), data_weights=(1.0,)),
        ("data", "split"),
    ),
    "mixed data sets": (
        dataclasses.replace(SMALL, source=Mixed(parts=(SETS, SETS), weights=(1.0, 2.0))),
        ("source",),
    ),
    "boxes and clicks": (
        dataclasses.replace(
            SMALL,
            task=Prompted(stage="sft", mixture=Mixture(text=1.0, trace=1.0)),
            source=SETS,
        ),
        ("task",),
    ),
    "Qwen3-VL": (
        dataclasses.replace(
            SMALL,
            model=qwen3_vl.Config(),
            layout=dataclasses.replace(SMALL.layout, patch=16, merge=2),
        ),
        ("model",),
    ),
    "Kimi-VL": (
        dataclasses.replace(
            SMALL,
            model=kimi_vl.Config(),
            layout=Layout(native=Native()),
        ),
        ("model", "layout"),
    ),
}
REINFORCE = {
    "a checkpoint": (small_run.gspo_config(), ("",)),
    "refilled rows": (small_run.gspo_config(sampling=steps.Sampling(rows=8)), ("sampling",)),
    "corrected ratios": (
        small_run.gspo_config(
            policy=policy.Policy(kl=0.1, correction=policy.Correction(level="token"))
        ),
        ("policy",),
    ),
    "validation": (small_run.gspo_config(validate=Validation(samples=8)), ("validate",)),
    "true answers, ranked": (
        small_run.gspo_config(policy=policy.Policy(truth="judged", ranked=True)),
        ("policy", "sampling"),
    ),
    "further batches": (
        small_run.gspo_config(rounds=3, policy=policy.Policy(minibatches=2, drop_equal=True)),
        ("rounds", "policy.drop_equal", "layout.buckets"),
    ),
    "by past answers": (
        small_run.gspo_config(
            source=sources.Scenes(count=64), priority=priority.Priority(by="learnability")
        ),
        ("priority", "feed", "source.count"),
    ),
    "Muon": (small_run.gspo_config(optimizer=optimizers.Muon()), ("optimizer",)),
}
"""Configurations, and which of their options are walked over."""


@pytest.mark.parametrize("name", FINETUNE)
def test_every_option_of_finetune(name, prints):
    base, parts = FINETUNE[name]
    walk(prints, finetune, base, parts=parts)


def test_every_option_of_finetune_from_a_checkpoint(prints, checkpoint):
    bare = dataclasses.replace(SMALL, checkpoint=checkpoint, model=None, task=None, layout=None)
    walk(prints, finetune, bare.completed())


def test_every_option_of_finetune_with_adapters(prints, checkpoint):
    bare = dataclasses.replace(
        SMALL,
        checkpoint=checkpoint,
        model=None,
        adapter=LoRA(rank=4, alpha=8.0, targets=("q_proj", "v_proj")),
    )
    walk(prints, finetune, bare.completed(), parts=("adapter", "parts", "seed"))


def test_every_option_of_reinforce_with_scores_of_one_s_own(prints, checkpoint, tmp_path):
    file = tmp_path / "mine.py"
    one = "def {0}(answer, truth, height, width):\n    return {{'{0}_': height * 0.001}}\n"
    file.write_text(one.format("near") + one.format("even"))
    base = small_run.gspo_config(
        checkpoint=checkpoint,
        reward=(f"{file}:near", f"{file}:even"),
        weights={"iou": 1.0, "near_": 0.5},
    )
    bare = dataclasses.replace(base, model=None, layout=None)
    walk(prints, reinforce, bare.completed(), parts=("reward", "weights", "validate.score"))
    two = prints(reinforce, bare)
    assert prints(reinforce, dataclasses.replace(bare, reward=bare.reward[:1])) != two


@pytest.mark.parametrize("name", REINFORCE)
def test_every_option_of_reinforce(name, prints, checkpoint):
    base, parts = REINFORCE[name]
    bare = dataclasses.replace(base, checkpoint=checkpoint, model=None, layout=None)
    walk(prints, reinforce, bare.completed(), parts=parts)


def test_an_option_that_nothing_reads_is_found(prints):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(supervised.Config):
        """A run with an option too many."""

        spare: int = 0

    values = {field.name: getattr(SMALL, field.name) for field in dataclasses.fields(SMALL)}
    with pytest.raises(AssertionError, match="spare: read and dropped"):
        walk(prints, finetune, Config(**values), parts=("seed", "spare"))


def test_the_walk_reaches_every_leaf():
    names = [leaf.name for leaf in option_walk.leaves(SMALL)]
    assert {"feed.batch", "source.world.height", "task.mixture.absent", "model.text.vocab_size"} < {
        *names
    }
    assert len(names) > 150
    other = [leaf for leaf in option_walk.leaves(SMALL) if leaf.name == "task.digits"]
    assert other[0].changed[0].task.digits == SMALL.task.digits + 1


# What the stages of the other programs receive in each mode is walked over in test_options_of_*.py.


def test_no_program_is_left_out():
    walked = {
        function.removeprefix("test_every_option_of_")
        for file in Path(__file__).parent.glob("test_*option*.py")
        for function in re.findall(r"def (test_every_option_of_\w+)", file.read_text())
    }
    programs = {*main.PROGRAMS, *harness.PARTS} - {"benchmark"}
    assert programs - walked == set()
