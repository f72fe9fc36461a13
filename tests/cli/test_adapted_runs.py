"""Adapters from the command line: learnt, resumed, asked, merged, gone on with, and refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path

import cheap_runs
import numpy as np
import pytest
import safetensors.numpy
import small_run

from seg_jax.cli import main, serve, study
from seg_jax.inference.predictor import Predictor
from seg_jax.models.adapters.lora import LoRA
from seg_jax.models.vlm.running_batch import Sizes
from seg_jax.serving.answering import Manner

ADAPTED = ("--adapter.rank", 4, "--adapter.alpha", 8, "--parts.merger", "trained")
ADAPTED += ("--optimizer.lr", 1e-2)
EVERY = ("--loop.save-minutes", 1e-9)
FILES = ["adapter_config.json", "adapter_model.safetensors", "checksums.json", "seg_jax.json"]


@pytest.fixture(scope="module")
def learnt(given, tmp_path_factory):
    """Returns the folder of a run of four steps with adapters."""
    folder = tmp_path_factory.mktemp("learnt")
    file = folder / "four.py"
    file.write_text(cheap_runs.CONFIG)
    out = folder / "out"
    words = ("finetune", file, "--checkpoint", given, "--out", out, *ADAPTED, *EVERY)
    assert main.main([str(word) for word in words]) == 0
    return out


def adapter_of(out: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(out / "checkpoint" / "adapter_model.safetensors")


def test_only_what_learns_is_saved(learnt, given):
    assert sorted(path.name for path in (learnt / "checkpoint").iterdir()) == FILES
    told = json.loads((learnt / "checkpoint" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (4, 8)
    assert told["base_model_name_or_path"] == str(given)
    found = adapter_of(learnt)
    assert all(np.abs(one).max() > 0 for name, one in found.items() if "lora_B" in name)
    base = safetensors.numpy.load_file(given / "model.safetensors")
    kept = sum(one.nbytes for one in base.values())
    checkpoint = max((learnt / "state" / "sft").glob("[0-9]*"))
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    learned = sum(one.nbytes for one in found.values())
    assert learned < 0.7 * kept
    # Weights and two moments, and what Orbax writes of its own.
    assert size < 3 * learned + 2**18


def test_a_run_that_stopped_goes_on_as_if_it_had_not(learnt, run, tune, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(learnt, begun)
    shutil.rmtree(begun / "checkpoint")
    steps = sorted((begun / "state" / "sft").glob("[0-9]*"), key=lambda path: int(path.name))
    assert [int(path.name) for path in steps] == [3, 4]
    shutil.rmtree(steps[-1])
    status, _, errors = run(*tune(begun, *ADAPTED, *EVERY, "--resume"))
    assert status == 0, errors
    found, wanted = adapter_of(begun), adapter_of(learnt)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        np.testing.assert_array_equal(found[name], one, err_msg=name)
    assert cheap_runs.curve_of(begun) == cheap_runs.curve_of(learnt)


def test_a_run_does_not_go_on_over_another_base(learnt, given, run, tmp_path):
    """The weights beside its adapters are not in its checkpoints: they are read again."""
    begun, base = tmp_path / "begun", tmp_path / "base"
    shutil.copytree(learnt, begun)
    shutil.rmtree(begun / "checkpoint")
    shutil.copytree(given, base)
    weights = safetensors.numpy.load_file(base / "model.safetensors")
    safetensors.numpy.save_file({n: 2 * w for n, w in weights.items()}, base / "model.safetensors")
    (base / "checksums.json").unlink(missing_ok=True)
    words = ("finetune", learnt.parent / "four.py", "--checkpoint", base, "--out", begun)
    status, _, errors = run(*words, *ADAPTED, *EVERY, "--resume")
    assert status == 1
    wanted = f"checkpoint: expected {base / 'model.safetensors'} as it was when the run in {begun}"
    assert wanted in errors
    assert not (begun / "checkpoint").exists()


def test_a_base_with_its_adapter_answers_as_what_both_are_merged_to(
    learnt, given, run, image, tmp_path
):
    adapter, merged = learnt / "checkpoint", tmp_path / "merged"
    status, _, errors = run("convert", given, merged, "--merge", adapter)
    assert status == 0, errors
    base = safetensors.numpy.load_file(given / "model.safetensors")
    whole = safetensors.numpy.load_file(merged / "model.safetensors")
    changed = {name for name, one in base.items() if np.abs(whole[name] - one).max() > 0}
    told = adapter_of(learnt)
    wanted = {name.split(".lora_")[0] + ".weight" for name in told if ".lora_" in name}
    wanted |= {name for name in told if ".lora_" not in name}
    outside = (("model.visual.", "visual."), ("model.language_model.", "model."))
    hub = set()
    for name in wanted:
        name = name.removeprefix("base_model.model.")
        for start, short in outside:
            name = short + name.removeprefix(start) if name.startswith(start) else name
        hub.add(name)
    assert changed == hub
    asked = ("predict", "--image", image, "--text", "the red star", "--checkpoint")
    beside = run(*asked, given, "--adapter", adapter)
    assert beside[0] == 0
    assert beside[1] == run(*asked, merged)[1]


def test_frozen_parts_stay_as_they_are_in_a_whole_model(run, tune, given, steps, tmp_path):
    out = tmp_path / "out"
    words = ("--parts.vision", "frozen", "--parts.merger", "frozen", *EVERY)
    status, _, errors = run(*tune(out, *words))
    assert status == 0, errors
    base = safetensors.numpy.load_file(given / "model.safetensors")
    made = safetensors.numpy.load_file(out / "checkpoint" / "model.safetensors")
    assert made.keys() == base.keys()
    for name, one in base.items():
        assert np.array_equal(made[name], one) == name.startswith("visual."), name
    shutil.rmtree(out / "state" / "sft" / "4")
    shutil.rmtree(out / "checkpoint")
    assert run(*tune(out, *words, "--resume"))[0] == 0
    again = safetensors.numpy.load_file(out / "checkpoint" / "model.safetensors")
    assert all(np.array_equal(again[name], one) for name, one in made.items())


@pytest.mark.slow
def test_reinforcement_goes_on_with_an_adapter_held_to_where_it_began(learnt, given, run, tmp_path):
    words = ("--sampling.answers", 2, "--sampling.max-tokens", 12, "--feed.batch", 8)
    words += ("--policy.kl", 0.1, "--loop.steps", 2, "--probe", 0, "--optimizer.lr", 1e-2)
    words += ("--policy.minibatches", 1, "--loop.log-every", 1)
    out = tmp_path / "out"
    status, _, errors = run(
        "reinforce",
        "--checkpoint",
        given,
        "--adapter.folder",
        learnt / "checkpoint",
        "--out",
        out,
        *words,
    )
    assert status == 0, errors
    first, second = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert first["reference_kl"] == pytest.approx(0, abs=1e-6)
    assert second["reference_kl"] > first["reference_kl"]
    assert first["sampler_gap/max"] < 1e-4
    assert adapter_of(out).keys() == adapter_of(learnt).keys()


NO_BASE = "expected a --checkpoint whose weights stay as they are, got random ones"
REFUSED = {
    "rank 0": (("--adapter.rank", 0), "adapter.rank: expected at least 1, got 0"),
    "a pattern that matches nothing": (
        ("--adapter.rank", 4, "--adapter.targets", "q_proj", "c_attn"),
        "got 'c_attn', which matches none",
    ),
    "no expression": (
        ("--adapter.rank", 4, "--adapter.targets", "("),
        "expected ends of names or regular expressions, got '('",
    ),
    "alpha alone": (("--adapter.alpha", 4.0), "expected an adapter.rank beside it"),
    "adapted without a rank": (("--parts.text", "adapted"), "expected an adapter.rank beside"),
    "nothing adapted": (
        ("--adapter.rank", 4, "--parts.text", "trained"),
        "expected a part that is adapted, got none",
    ),
    "nothing that learns": (
        ("--parts.text", "frozen", "--parts.merger", "frozen", "--parts.vision", "frozen"),
        "expected a part that learns, got all frozen",
    ),
    "no targets in a part": (
        ("--adapter.rank", 4, "--parts.merger", "adapted", "--adapter.targets", "q_proj"),
        "parts.merger: expected adapter.targets in it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_cannot_be_are_refused(run, tune, tmp_path, name):
    words, told = REFUSED[name]
    status, out, line = run(*tune(tmp_path / "out", *words))
    assert status in (1, 2)
    assert out == ""
    assert told in line
    assert not (tmp_path / "out").exists()


def test_an_adapter_needs_a_base(fails, tmp_path, learnt, image):
    config = "configs/simpleseg/tiny_sft.py"
    assert NO_BASE in fails("finetune", config, "--out", tmp_path / "out", "--adapter.rank", 4)
    adapter = learnt / "checkpoint"
    asked = ("predict", "--image", image, "--text", "the red star")
    assert "give its base here and this folder as the adapter" in fails(
        *asked, "--checkpoint", adapter
    )


def test_an_adapter_of_another_base_names_the_first_mismatch(learnt, given, fails, tmp_path, image):
    adapter = tmp_path / "adapter"
    shutil.copytree(learnt / "checkpoint", adapter)
    (adapter / "checksums.json").unlink()
    tensors = adapter_of(learnt)
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    asked = ("predict", "--image", image, "--text", "the red star", "--checkpoint", given)
    asked += ("--adapter", adapter)

    def told(tensors):
        safetensors.numpy.save_file(tensors, adapter / "adapter_model.safetensors")
        return fails(*asked)

    assert f"{name}: expected (4, 32), got (4, 64); do: give the base that" in told(
        tensors | {name: np.zeros((4, 64), np.float32)}
    )
    other = name.replace("layers.0", "layers.7")
    assert f"{other}: expected a linear layer or a weight of the base, got none" in told(
        tensors | {other: tensors[name]}
    )
    assert "expected A and B of each layer, got one alone" in told(
        {key: one for key, one in tensors.items() if key != name}
    )
    assert "expected finite numbers, got NaN or infinity" in told(
        tensors | {name: np.full((4, 32), np.nan, np.float32)}
    )
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for field, value in (("use_dora", True), ("bias", "all"), ("init_lora_weights", "pissa")):
        path.write_text(json.dumps(config | {field: value}))
        assert field in fails(*asked)


def test_a_study_trains_all_weights():
    run = small_run.sft_config(adapter=LoRA(rank=4))
    with pytest.raises(ValueError, match="expected stages that train all weights, got adapters"):
        study.Variant(name="few", sft=run)


def test_a_server_answers_by_base_and_adapter(learnt, given):
    both = {"checkpoint": given, "adapter": learnt / "checkpoint"}
    sizes = Sizes(slots=1, together=1, pictures=0)
    config = serve.Config(**both, batch=sizes, buckets=1, quiet=True, name="both")
    answering = serve._service(config, None).answering
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    try:
        (told,) = asyncio.run(
            answering.ask(image, "the red star", kind=None, manner=Manner(max_tokens=24))
        )
    finally:
        answering.stop()
    wanted = answer_of(serve.Config(**both), image)
    alone = answer_of(serve.Config(checkpoint=given), image)
    assert told.written.text == wanted.prediction.text
    assert told.written.score == pytest.approx(wanted.score, rel=1e-4)
    assert told.written.score != pytest.approx(alone.score, rel=1e-3)


def answer_of(config, image):
    """Returns what `predict` would answer, cut at 24 tokens."""
    bundle = config.predictor().bundle
    layout = dataclasses.replace(bundle.layout, max_answer=24)
    asked = Predictor(dataclasses.replace(bundle, layout=layout))
    (found,) = asked.answer_rows([asked.row(image, "the red star")], batch=1)
    return found
