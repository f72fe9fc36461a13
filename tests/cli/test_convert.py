"""Drives convert as a user would: every family there and back, kills, full disks, wrong folders."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import huggingface_hub
import jax
import numpy as np
import pytest
import tiny_folders
from flax import nnx
from huggingface_hub import constants
from PIL import Image
from safetensors.numpy import load_file, save_file

from seg_jax import checksums
from seg_jax.cli import convert, main
from seg_jax.inference import bundle as bundles
from seg_jax.models.io import safetensors, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.records import Verdict
from seg_jax.runs import console

KINDS = tiny_folders.KINDS


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Returns a hub folder of each family."""
    folder = tmp_path_factory.mktemp("sources")
    return {kind: tiny_folders.make(kind, folder / kind) for kind in KINDS}


@pytest.fixture
def run(capfd, monkeypatch):
    """Returns a function that runs a program: its status, standard output, lines of errors."""
    monkeypatch.delenv("SEG_JAX_TRACEBACK", raising=False)
    monkeypatch.setattr(console.TERMINAL, "width", 1000)

    def call(*words):
        status = main.main([str(word) for word in words])
        out, errors = capfd.readouterr()
        assert "Traceback" not in errors, errors
        return status, out, errors.strip().splitlines()

    return call


@pytest.fixture
def fails(run):
    """Returns a function that runs a program that must fail, and its last line."""

    def call(*words, status=1):
        got, out, lines = run(*words)
        assert (got, out) == (status, "")
        assert lines[-1].startswith(f"seg-jax {words[0]}: ")
        assert "SEG_JAX_TRACEBACK" not in lines[-1]
        return lines[-1]

    return call


def raw(folder) -> dict[str, tuple]:
    """Returns the bytes of every tensor of a folder."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}


def others(folder) -> dict[str, bytes]:
    """Returns the contents of the files beside the weights and the checksums."""
    names = [path.name for path in folder.iterdir() if path.name != checksums.FILE]
    return {name: (folder / name).read_bytes() for name in names if ".safetensors" not in name}


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_folder_predicts_and_goes_there_and_back(
    kind, sources, run, tmp_path, monkeypatch
):
    source = sources[kind]
    status, out, lines = run("convert", source, tmp_path / "hf")
    assert (status, lines) == (0, [])
    told = json.loads(out)
    assert (told["model_type"], told["tensors"]) == (kind, len(raw(source)))
    assert raw(tmp_path / "hf") == raw(source)
    same = {name: json.loads(text) for name, text in others(source).items() if "config" in name}
    assert same == {n: json.loads(t) for n, t in others(tmp_path / "hf").items() if n in same}
    assert others(tmp_path / "hf").keys() == others(source).keys()
    assert run("convert", tmp_path / "hf", tmp_path / "ocp", "--to", "orbax")[0] == 0
    assert not list((tmp_path / "ocp").glob("*.safetensors"))
    assert run("convert", tmp_path / "ocp", tmp_path / "back")[0] == 0
    assert raw(tmp_path / "back") == raw(source)
    assert others(tmp_path / "back").keys() == others(source).keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "ocp"]
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "image.png")
    describe = bundles.describe

    def short(folder, **options):
        layout, task = describe(folder, **options)
        return dataclasses.replace(layout, max_answer=8, canvas=(64, 64)), task

    monkeypatch.setattr(bundles, "describe", short)
    folders = ("hf", "ocp") if kind == "kimi_vl" else ("hf",)
    answers = []
    for folder in folders:
        ask = ("--image", tmp_path / "image.png", "--text", "the red star")
        status, out, _ = run("predict", "--checkpoint", tmp_path / folder, *ask)
        assert status == 0
        answers.append(json.loads(out))
    assert answers[0] == answers[-1]
    assert answers[0]["verdict"] in Verdict.__members__


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_keeps_the_files_of_its_family(kind, sources, tmp_path):
    bundle = bundles.load(sources[kind])
    bundles.save(bundle, tmp_path / "saved")
    before, after = others(sources[kind]), others(tmp_path / "saved")
    assert after.keys() == before.keys() | {bundles.MANIFEST}
    config = json.loads(after.pop("config.json"))
    assert config == json.loads(before.pop("config.json"))
    # Of images it may say more than before; how they are cut, no less.
    told = json.loads(after.pop("preprocessor_config.json"))
    assert json.loads(before.pop("preprocessor_config.json")).items() <= told.items()
    assert {name: after[name] for name in before} == before
    again = bundles.load(tmp_path / "saved")
    assert again.layout == bundle.layout
    assert again.task == bundle.task
    assert again.end_ids == bundle.end_ids
    assert len(again.end_ids) == 2
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(bundle.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_dtype(sources, run, tmp_path):
    torch = pytest.importorskip("torch")
    source = sources["kimi_vl"]
    assert run("convert", source, tmp_path / "rough", "--dtype", "bfloat16")[0] == 0
    before, after = raw(source), raw(tmp_path / "rough")
    for name, (dtype, shape, data) in before.items():
        if name.endswith("e_score_correction_bias"):  # Routing is as sharp as it was.
            assert after[name] == before[name]
            continue
        want = torch.frombuffer(bytearray(data), dtype=torch.float32).to(torch.bfloat16)
        found = torch.frombuffer(bytearray(after[name][2]), dtype=torch.bfloat16)
        assert (dtype, after[name][:2]) == ("float32", ("bfloat16", shape))
        assert torch.equal(want, found)
    assert json.loads((tmp_path / "rough" / "config.json").read_text())["dtype"] == "bfloat16"
    assert run("convert", tmp_path / "rough", tmp_path / "o", "--to", "orbax")[0] == 0
    assert run("convert", tmp_path / "o", tmp_path / "back")[0] == 0
    assert raw(tmp_path / "back") == after
    # A trace of float32 among bfloat16 is not lost.
    (tmp_path / "rough" / checksums.FILE).unlink()
    file = tmp_path / "rough" / "model.safetensors"
    tensors = load_file(file)
    name = "language_model.model.norm.weight"
    save_file(tensors | {name: load_file(source / "model.safetensors")[name]}, file)
    assert run("convert", tmp_path / "rough", tmp_path / "wide", "--to", "orbax")[0] == 0
    assert run("convert", tmp_path / "wide", tmp_path / "again")[0] == 0
    assert raw(tmp_path / "again")[name] == before[name]


def test_converted_weights_load_in_transformers(sources, run, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert run("convert", sources["qwen2_5_vl"], tmp_path / "o", "--to", "orbax")[0] == 0
    assert run("convert", tmp_path / "o", tmp_path / "hf")[0] == 0
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    ids = torch.arange(12)[None]
    with torch.no_grad():
        one, other = (
            kind.from_pretrained(folder)(input_ids=ids).logits
            for folder in (sources["qwen2_5_vl"], tmp_path / "hf")
        )
    assert torch.equal(one, other)
    backend = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert backend("[0.5, 0.25]").input_ids


KILLED = """
import os, signal, sys
from seg_jax.cli import main
from seg_jax.models.io import safetensors
safetensors.SHARD_BYTES = {limit}
write, left = safetensors.write, [{files}]

def killing(file, folder, pieces):
    def cut(name):
        for piece in pieces(name):
            yield piece[:1]
            os.kill(os.getpid(), signal.SIGKILL)
    if not left[0]:
        return write(file, folder, cut)
    left[0] -= 1
    return write(file, folder, pieces)

safetensors.write = killing
sys.exit(main.main(["convert", *sys.argv[1:]]))
"""
LIMIT = 100_000


def test_a_killed_convert_leaves_nothing_that_looks_whole_and_goes_on(
    sources, run, tmp_path, monkeypatch
):
    source, dest = sources["qwen2_5_vl"], tmp_path / "dest"
    code = KILLED.format(limit=LIMIT, files=3)
    done = subprocess.run([sys.executable, "-c", code, source, dest], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    partial = tmp_path / "dest.partial"
    assert {path.name for path in tmp_path.iterdir()} == {partial.name, f".{partial.name}.lock"}
    assert len(list(partial.glob("*.safetensors"))) == 4
    assert not (partial / "config.json").exists()
    assert not (partial / safetensors.INDEX).exists()
    with pytest.raises(ValueError):
        weights.load(partial)
    # One of the whole files is damaged meanwhile.
    first = sorted(partial.glob("*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    written, write = [], safetensors.write

    def spy(file, *rest):
        written.append(file.name)
        return write(file, *rest)

    monkeypatch.setattr(safetensors, "write", spy)
    monkeypatch.setattr(safetensors, "SHARD_BYTES", LIMIT)
    status, _, lines = run("convert", source, dest)
    assert status == 0
    assert lines == [f"{partial}: 2 whole files are kept"]
    files = sorted(path.name for path in dest.glob("*.safetensors"))
    assert written == [name for name in files if name not in files[1:3]]
    assert raw(dest) == raw(source)
    assert bundles.load(dest).layout == bundles.load(source).layout
    assert not [path for path in dest.iterdir() if path.name.startswith(".")]
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def test_what_another_conversion_has_left_is_not_kept(sources, run, tmp_path, monkeypatch):
    source, dest = sources["qwen3_vl"], tmp_path / "dest"
    code = KILLED.format(limit=LIMIT, files=2)
    words = [source, dest, "--dtype", "bfloat16"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(safetensors, "SHARD_BYTES", LIMIT)
    assert run("convert", source, dest)[2] == []
    assert raw(dest) == raw(source)


def test_other_files_are_never_removed(sources, fails, run, tmp_path):
    source = sources["qwen3_vl"]
    for name in ("full", "new.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    line = fails("convert", source, tmp_path / "full")
    assert "expected a new or an empty folder, got a folder with files in it; do: choose" in line
    assert "got a file; do: choose" in fails("convert", source, tmp_path / "file")
    assert "got other files; do: remove the folder" in fails("convert", source, tmp_path / "new")
    assert "got a folder with files" in fails("convert", source, source)
    assert (tmp_path / "full" / "mine").read_text() == "x"
    assert (tmp_path / "new.partial" / "mine").read_text() == "x"
    (tmp_path / "empty").mkdir()
    assert run("convert", source, tmp_path / "empty")[0] == 0


def test_two_at_once(sources, fails, tmp_path):
    config = convert.Config(source=str(sources["qwen3_vl"]), dest=tmp_path / "dest")
    with convert._Partial(config, sources["qwen3_vl"]):
        line = fails("convert", sources["qwen3_vl"], tmp_path / "dest")
        assert "dest: expected to work alone in it, got " in line
        assert "; do: wait for its end" in line


def test_a_disk_without_room_is_told_before_anything_is_written(
    sources, fails, tmp_path, monkeypatch
):
    usage = types.SimpleNamespace(free=123_456)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    line = fails("convert", sources["qwen2_5_vl"], tmp_path / "new" / "dest")
    need = int(re.search(r"expected (\d+) bytes of free space", line)[1])
    assert need > sum(len(data) for *_, data in raw(sources["qwen2_5_vl"]).values())
    assert "got 123456 (0.0 GB); do: free some" in line
    assert not (tmp_path / "new" / "dest").exists()
    assert not (tmp_path / "new" / "dest.partial").exists()


def test_a_disk_that_fills_up_meanwhile(sources, fails, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28), "dest")

    monkeypatch.setattr(safetensors, "write", full)
    assert "disk full while writing" in fails("convert", sources["qwen3_vl"], tmp_path / "dest")
    assert list(tmp_path.iterdir()) == []


def test_a_name_on_the_hub(sources, run, fails, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, *, dry_run=False, **what):
        asked.append((name, dry_run, what))
        if dry_run:
            return [types.SimpleNamespace(file_size=1000, will_download=True)]
        return str(sources["kimi_vl"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert run("convert", "moonshotai/Kimi-VL", tmp_path / "dest")[0] == 0
    assert raw(tmp_path / "dest") == raw(sources["kimi_vl"])
    assert [(name, dry) for name, dry, _ in asked] == [("moonshotai/Kimi-VL", d) for d in (1, 0)]
    what = asked[0][2]
    kept = huggingface_hub.utils.filter_repo_objects(
        [
            "model-00001-of-00002.safetensors",
            "config.json",
            "tiktoken.model",
            "a.py",
            "pytorch_model.bin",
            "original/model.safetensors",
            "consolidated.safetensors",
        ],
        **what,
    )
    assert list(kept) == [
        "model-00001-of-00002.safetensors",
        "config.json",
        "tiktoken.model",
        "a.py",
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=999))
    line = fails("convert", "moonshotai/Kimi-VL", tmp_path / "other")
    assert "expected 1000 bytes of free space" in line
    assert len(asked) == 3, "nothing is fetched"


def test_offline_it_says_how_to_supply_a_folder(fails, tmp_path):
    line = fails("convert", "Qwen/None-Such-7B", tmp_path / "dest")
    assert "expected a folder or a model that the hub hands out" in line
    assert "`hf download Qwen/None-Such-7B --local-dir FOLDER`, then seg-jax convert" in line
    assert list(tmp_path.iterdir()) == []


def test_sources_that_are_none(fails, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "got a file; do: give its folder" in fails("convert", tmp_path / "file", tmp_path / "d")
    line = fails("convert", tmp_path / "nowhere", tmp_path / "d")
    assert "expected a folder or a name on the hub as org/name, got nothing there" in line
    (tmp_path / "empty").mkdir()
    assert "config.json: expected a file" in fails("convert", tmp_path / "empty", tmp_path / "d")
    assert "SOURCE" in fails("convert", status=2)
    assert "got 'c'; do" in fails("convert", "a", "b", "c", status=2)


@pytest.fixture
def broken(sources, tmp_path):
    return shutil.copytree(sources["qwen2_5_vl"], tmp_path / "broken")


def test_broken_sources_leave_nothing(broken, fails, tmp_path):
    dest = tmp_path / "dest"
    path = broken / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "got a broken or truncated one" in fails("convert", broken, dest)
    path.unlink()
    (broken / "pytorch_model.bin").write_bytes(b"x")
    line = fails("convert", broken, dest)
    assert "expected safetensors, got pytorch_model.bin: such a file can run code" in line
    assert "do: convert it with transformers' save_pretrained" in line
    path.write_bytes(whole)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    line = fails("convert", broken, dest)
    assert "expected one of qwen2_5_vl, qwen3_vl, kimi_vl, sam2, clip, got 'llama'" in line
    (broken / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros(3, np.float32)}, path)
    assert "missing: " in fails("convert", broken, dest)
    assert not dest.exists()
    assert not (tmp_path / "dest.partial").exists()


def test_a_damaged_orbax_checkpoint(sources, fails, run, tmp_path):
    run("convert", sources["qwen3_vl"], tmp_path / "o", "--to", "orbax")
    shutil.rmtree(tmp_path / "o" / "params" / "ocdbt.process_0", ignore_errors=True)
    for path in (tmp_path / "o" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    line = fails("convert", tmp_path / "o", tmp_path / "dest")
    assert "expected the parameters of the model in config.json, got damaged" in line
    (tmp_path / "o" / "params.json").write_text("{}")
    assert "do: give --dtype" in fails("convert", tmp_path / "o", tmp_path / "dest")


def test_departures_from_stock_models_are_told(broken, sources, run, fails, tmp_path):
    # 1-D rotary positions, as of OpenCUA.
    config = json.loads((broken / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = rope["rope_theta"]
    path = broken / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps(config))
    line = fails("convert", broken, tmp_path / "a")
    assert (
        "expected the mrope_section of Qwen2.5-VL, got none: 1-D rotary positions (as Open" in line
    )
    path.write_text(whole)
    # Moonshot's tokenizer.
    (broken / "tiktoken.model").write_text("")
    status, _, lines = run("convert", broken, tmp_path / "a")
    assert status == 0
    assert "expected Qwen's tokenizer beside qwen2_5_vl, got Moonshot's" in lines[0]
    (broken / "tiktoken.model").unlink()
    # A tokenizer without the special tokens, no preprocessor, another image token.
    path.write_text(json.dumps(json.loads(whole) | {"image_token_id": 7}))
    _, _, lines = run("convert", broken, tmp_path / "b")
    assert "image token to be 7 as in config.json" in lines[0]
    path.write_text(whole)
    (broken / "preprocessor_config.json").unlink()
    tokenizer = broken / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|image_pad|>", "<|cow|>"))
    _, _, lines = run("convert", broken, tmp_path / "c")
    assert "expected the token '<|image_pad|>' in the vocabulary, got none" in lines[0]
    assert "expected preprocessor_config.json, got none: predict will refuse" in lines[1]
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        bundles.load(tmp_path / "c")


def test_a_bar_is_for_terminals_only(sources, run, tmp_path, monkeypatch):
    assert run("convert", sources["qwen3_vl"], tmp_path / "a")[2] == []
    monkeypatch.setattr(console.TERMINAL, "_force_terminal", True)
    _, _, lines = run("convert", sources["qwen3_vl"], tmp_path / "b")
    assert any("converted (MB)" in line for line in lines)


def test_meshes_lay_a_bundle_out(sources):
    from seg_jax.models.parallel import sharding

    mesh = sharding.mesh({"fsdp": 4, "tensor": 2})
    rough = Compute(param_dtype="bfloat16")
    bundle = bundles.load(sources["kimi_vl"], compute=rough, on=mesh)
    places = sharding.shardings(bundle.params, mesh)
    for leaf, place in zip(*map(jax.tree.leaves, (bundle.params, places)), strict=True):
        assert leaf.sharding == place
    assert nnx.merge(bundle.graph, bundle.params).compute == rough
