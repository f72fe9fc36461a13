"""`compile FILE` compiles the very program of the command that FILE documents, for every FILE."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import pytest
import tiny_folders
from flax import nnx

from seg_jax.cli import arguments, compile, finetune, reinforce
from seg_jax.data import pipeline
from seg_jax.data.sources import Scenes
from seg_jax.grammar import chat
from seg_jax.grammar.tokenizer import tokens
from seg_jax.inference import bundle as bundles
from seg_jax.inference import frozen_segmenter
from seg_jax.models import families
from seg_jax.models.parallel import sharding
from seg_jax.models.sam2 import config as sam2_config
from seg_jax.models.sam2 import meta_names
from seg_jax.runs import datasets, experiments, stage, start
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import optimizers, state, steps

sys.path.append(str(Path(__file__).parents[1] / "models"))
import published_configs
import small_run

FILES = sorted(
    path
    for room in ("simpleseg", "seg_r1")
    for path in (experiments.folder() / room).glob("*.py")
    # The runs of studies are those of the quickstart; segmenters alone are no such runs.
    if not path.name.startswith("study") and "sam2" not in path.name
)
TRAIN = start.make_tokenizer
PROGRAMS = {"finetune": finetune, "reinforce": reinforce}


class ReachedError(Exception):
    """A run has come to its first step."""


@pytest.fixture(autouse=True)
def eight_devices(monkeypatch):
    """Lays every run over the same eight devices: pods are not here."""
    if jax.device_count() < 8:
        pytest.skip("needs eight (virtual) devices")
    mesh = sharding.mesh({"fsdp": 8}, jax.devices()[:8])
    monkeypatch.setattr(steps.Mesh, "build", lambda self, devices=None: mesh)


@pytest.fixture(autouse=True)
def built_data(monkeypatch):
    """Puts scenes in the place of data sets, which are not here; shapes are the same."""
    real = datasets.with_source

    def with_scenes(run):
        drawn = isinstance(run.source, Scenes)
        count = None if run.loop.epochs is None else 1000  # Passes are over what has an end.
        return real(run if drawn else dataclasses.replace(run, source=Scenes(count=count)))

    monkeypatch.setattr(datasets, "with_source", with_scenes)


@pytest.fixture(autouse=True, scope="module")
def one_tokenizer(tmp_path_factory):
    """Lets runs of one source share its tokenizer, which takes seconds to train."""

    @functools.cache
    def trained(source, task):
        return TRAIN(source, task, tmp_path_factory.mktemp("tokenizer"))

    small_run.bundle()  # Its tokenizer lies in its own folder, for whoever comes later.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "make_tokenizer", lambda source, task, _: trained(source, task))
        yield


def documented_command(path):
    """Returns the words of the command in a file's docstring, from the program on."""
    text = " ".join(path.read_text().split('"""')[1].split())
    file = f"configs/{path.parent.name}/{path.name}"
    command = rf"seg-jax ((?:finetune|reinforce) {file}(?: --(?:checkpoint|segmenter) \S+)*)"
    (found,) = re.findall(command, text)
    return shlex.split(found)


def hub_tokenizer(kind, folder):
    """Returns a small tokenizer that knows the words of every task, as a published one does."""
    if kind == "kimi_vl":
        return tiny_folders._tokenizer(kind, folder)
    told = list(chat.sentences(["the red star"]))
    for stage_ in ("prerl", "rl", "sft"):
        told += Prompted(stage=stage_).sentences(["the red star"])
    return tokens.train(told, folder=folder, vocab_size=1000)


def hub_folder(folder, name):
    """Writes what a published checkpoint of a size says of itself: all of its files but weights."""
    kind = "kimi_vl" if "kimi" in name else "qwen2_5_vl"
    tokenizer = hub_tokenizer(kind, folder)
    preprocessor = {"patch_size": 14, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if kind == "kimi_vl":
        hub = published_configs.KIMI | {"media_placeholder_token_id": tokenizer.image_id}
        preprocessor |= {"in_token_limit": 4096, "pad_input": True, "merge_kernel_size": [2, 2]}
    else:
        hub = published_configs.qwen25(name.rpartition("-")[2].upper())
        hub |= {"image_token_id": tokenizer.image_id}
        preprocessor |= {"merge_size": 2, "min_pixels": 3136, "max_pixels": 12_845_056}
    (folder / "config.json").write_text(json.dumps(hub))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def trained_folder(folder, name):
    """Writes what the run of a configuration leaves: all of its files but weights."""
    short = name.removeprefix("seg_r1_")
    room = "seg_r1" if name.startswith(("seg_r1", "clickstart")) else "simpleseg"
    run = experiments.load(f"{room}/{short}.py").config()
    if name.startswith(("several", "clickstart")):  # It speaks with the tokenizer of its start.
        click, several = experiments.CLICKSTART_START, experiments.QUICKSTART_START
        for path in (click if room == "seg_r1" else several).iterdir():
            if path.suffix != ".safetensors" and path.name != "checksums.json":
                shutil.copy(path, folder)
    elif name.startswith(("tiny", "nano", "quickstart")):
        tokenizer = TRAIN(run.source, run.task, folder)
        hub = families.with_tokens(run.model, tokenizer).to_hf()
        (folder / "config.json").write_text(json.dumps(hub))
    else:
        size = short.removeprefix("qwen25_vl_").partition("_")[0]
        hub_folder(folder, short if "kimi" in short else f"qwen25-vl-{size}")
    bundles.write_manifest(folder, run.layout, run.task)


def make_checkpoint(checkpoint):
    """Makes the folder that a documented command names, in the true format, without weights."""
    folder = Path(checkpoint)
    folder.mkdir(parents=True)
    if folder.name.startswith("sam2"):
        sizes = sam2_config.Config(backbone=meta_names.LARGE)
        (folder / "config.json").write_text(json.dumps(sizes.to_hf()))
    elif folder.parts[0] == "models":
        hub_folder(folder, folder.name)
    else:
        trained_folder(folder, folder.parts[1])


def started(program, run, monkeypatch):
    """Returns what a program has made once it comes to its first step: run, start and batches."""
    made = {}

    def reach(run, body, start, *, batches, **_):
        made.update(run=run, start=start)
        raise ReachedError

    def note(*arguments, **options):
        made["batches"] = arguments, options
        return iter(())

    real = pipeline.batches
    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_stage", reach)
        patch.setattr(
            bundles,
            "load",
            lambda folder, *, compute, on, task_kind: bundles.blank(
                folder, compute=compute, task_kind=task_kind
            ),
        )
        patch.setattr(pipeline, "batches", note)
        patch.setattr(frozen_segmenter, "load", frozen_segmenter.shapes)
        with pytest.raises(ReachedError):
            program.main(run)
    return made, real


def shapes(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_documented_command_runs_what_is_compiled(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, file, *options = documented_command(path)
    for folder in options[1::2]:
        make_checkpoint(folder)
    program = PROGRAMS[name]
    wanted = arguments.read(program.Config, [file, *options], program=name)
    made, batches = started(program, wanted, monkeypatch)
    drawing = options[options.index("--segmenter") :] if "--segmenter" in options else []
    alone = arguments.read(compile.Config, [file, *drawing], program="compile").run
    plan = alone.plan(jax.devices()[:8])
    run, bundle = made["run"], made["start"].bundle

    transform = optimizers.build(run.optimizer)
    like = state.shapes(bundle.params, transform, run.mesh.build(), offload=run.offload)
    assert shapes(plan.state) == shapes(like)
    given = inspect.signature(batches).bind(*made["batches"][0], **made["batches"][1]).arguments
    encoder, feed, rows = (given[name] for name in ("encoder", "feed", "rows"))
    # All rows of a batch are alike, and of the lengths of prompts the longest is compiled.
    encoder = dataclasses.replace(encoder, layout=dataclasses.replace(encoder.layout, buckets=1))
    one = dataclasses.replace(feed, batch=1, workers=0)
    # Scenes have no written conversations; what is asked about them has the same shapes.
    asked = given["task"].without_unjudged()
    row = next(batches(given["source"], asked, encoder, feed=one, rows=rows))
    assert rows == ("sft" if name == "finetune" else "prompts")
    assert shapes(plan.rows(rows)) == [
        ((feed.batch, *shape[1:]), dtype) for shape, dtype in shapes(row)
    ]
    # What else a step is compiled from.
    for part in ("compute", "optimizer", "layout", "loss_chunk", "offload"):
        assert getattr(plan.run, part) == getattr(run, part), part
    # By what they say: a class that the file defines is another one each time that it is read.
    assert repr(plan.run.task) == repr(run.task)
    rest = ("objective",) if name == "finetune" else ("sampling", "policy", "weights")
    assert [getattr(plan.run, part) for part in rest] == [getattr(run, part) for part in rest]
    assert repr(plan.bundle.task) == repr(bundle.task)
    assert plan.bundle.layout == bundle.layout
    assert type(plan.config) is type(nnx.merge(bundle.graph, bundle.params).config)
