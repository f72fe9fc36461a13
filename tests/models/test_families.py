"""Holds families to their one record: others come in without a line changed outside their own."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_encoder
import tiny_folders
import torch
from flax import nnx
from safetensors.numpy import load_file

import seg_jax
from seg_jax import checksums
from seg_jax.cli import main
from seg_jax.inference import bundle as bundles
from seg_jax.models import families, flops
from seg_jax.models.io import model_folder, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import qwen25_vl

PACKAGE = Path(seg_jax.__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renamed(qwen25_vl.Config):
    """Qwen2.5-VL under another name, as a new family would be."""

    @classmethod
    def from_hf(cls, hf):
        found = qwen25_vl.Config.from_hf(hf | {"model_type": "qwen2_5_vl"})
        return cls(**{f.name: getattr(found, f.name) for f in dataclasses.fields(found)})

    def to_hf(self):
        return super().to_hf() | {"model_type": "renamed_vl"}


@pytest.fixture
def renamed(monkeypatch):
    family = dataclasses.replace(qwen25_vl.FAMILY, model_type="renamed_vl", config=Renamed)
    monkeypatch.setitem(families.FAMILIES, "renamed_vl", family)
    return family


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    """Puts the family of the image encoder in the table; returns its folder and PyTorch's model."""
    monkeypatch.setitem(families.FAMILIES, "tiny_encoder", tiny_encoder.FAMILY)
    return tmp_path / "source", tiny_encoder.make(tmp_path / "source")


def names(folder) -> set[str]:
    """Returns the names of the files of a folder."""
    return {path.name for path in folder.iterdir()}


def raw(folder: Path) -> dict[str, tuple]:
    tensors = load_file(folder / "model.safetensors")
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}


def test_a_new_family_is_loaded_laid_out_counted_and_saved(renamed, tmp_path):
    old = tiny_folders.make("qwen2_5_vl", tmp_path / "old")
    hub = json.loads((old / "config.json").read_text())
    new = tmp_path / "new"
    new.mkdir()
    for path in old.iterdir():
        (new / path.name).write_bytes(path.read_bytes())
    (new / "config.json").write_text(json.dumps(hub | {"model_type": "renamed_vl"}))
    known, bundle = bundles.load(old), bundles.load(new)
    config = nnx.merge(bundle.graph, bundle.params).config
    assert type(config) is Renamed
    assert families.family_of(config) is renamed
    assert bundle.layout == known.layout
    same = nnx.merge(known.graph, known.params).config
    counts = [flops.Counter(c, Compute()).read(2, 24, 32) for c in (config, same)]
    assert counts[0] == counts[1]
    told = families.with_tokens(Renamed(), bundle.tokenizer)
    assert type(told) is Renamed
    assert told.image_token_id == bundle.tokenizer.image_id
    bundles.save(bundle, tmp_path / "saved")
    assert raw(tmp_path / "saved") == raw(old)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == (
        "renamed_vl"
    )


def test_a_model_that_is_no_vlm_goes_there_and_back(encoder, tmp_path, capsys):
    source, _ = encoder
    assert main.main(["convert", str(source), str(tmp_path / "hf")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model_type"], told["tensors"]) == ("tiny_encoder", len(raw(source)))
    assert raw(tmp_path / "hf") == raw(source)
    assert names(tmp_path / "hf") == names(source) | {checksums.FILE}
    orbax = ["convert", str(tmp_path / "hf"), str(tmp_path / "orbax"), "--to", "orbax"]
    assert main.main(orbax) == 0
    assert not list((tmp_path / "orbax").glob("*.safetensors"))
    assert main.main(["convert", str(tmp_path / "orbax"), str(tmp_path / "back")]) == 0
    assert raw(tmp_path / "back") == raw(source)
    half = ["convert", str(source), str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert main.main(half) == 0
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
def test_a_model_that_is_no_vlm_runs_in_shards_and_is_saved_bit_for_bit(encoder, tmp_path):
    source, theirs = encoder
    mesh = sharding.mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = weights.load(source, on=mesh)
    graph, params = nnx.split(model)
    places = sharding.shardings(params, mesh)
    for leaf, place in zip(*map(jax.tree.leaves, (params, places)), strict=True):
        assert leaf.sharding == place
    q = params["blocks"]["q"]["kernel"][...]
    assert q.addressable_shards[0].data.size == q.size // 4
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    patches = images.reshape(4, 3, 4, 4, 4, 4).transpose(0, 2, 4, 1, 3, 5).reshape(4, 16, 48)

    def features(params, patches):
        return nnx.merge(graph, params)(patches)

    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        shapes = jax.ShapeDtypeStruct(patches.shape, jnp.float32, sharding=sharding.batch(mesh))
        program = jax.jit(features).lower(params, shapes).compile()
        got = program(params, jax.device_put(patches, sharding.batch(mesh)))
    with torch.no_grad():
        want = theirs(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    model_folder.save(model, tmp_path / "saved", source=source)
    assert raw(tmp_path / "saved") == raw(source)
    assert names(tmp_path / "saved") == names(source) | {checksums.FILE}
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved == json.loads((source / "config.json").read_text())


def test_a_model_that_is_no_vlm_is_not_asked(encoder):
    source, _ = encoder
    with pytest.raises(ValueError, match="expected a vision-language model, got 'tiny_encoder'"):
        bundles.load(source)
    with pytest.raises(ValueError, match="expected one that has a layout, got 'tiny_encoder'"):
        families.image_layout("tiny_encoder", {}, visual_tokens=64)


# The model that a run begins with if none is named, what teaches and measures SAM 2, a benchmark
# against Hugging Face's own, and the models that PyTorch runs for annotation. Optimizers clip.
NAMES_A_PORT = {
    "runs/supervised.py",
    "inference/frozen_segmenter.py",
    "runs/teaching.py",
    "training/mask_learning.py",
    "training/optimizers.py",
    "cli/benchmarks/masks.py",
    "cli/benchmarks/segmenter.py",
    "cli/benchmarks/torch_peer.py",
    "annotation/sam.py",
    "annotation/sam2.py",
    "annotation/choice.py",
}


def ports_named(source: str) -> set[str]:
    """Returns the ports that code imports and the types of models that it spells out."""
    ports = {family.model.__module__.rpartition(".")[2] for family in families.FAMILIES.values()}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names} & ports
            found |= set((node.module or "").split(".")) & ports
        elif isinstance(node, ast.Constant) and node.value in families.FAMILIES:
            found.add(node.value)
    return found


def test_no_other_code_knows_one_family_from_another():
    assert ports_named("from seg_jax.models.vlm import kimi_vl\nx == 'qwen3_vl'") == {
        "kimi_vl",
        "qwen3_vl",
    }
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    ports = ("models/vlm/", "models/sam2/", "models/clip/")
    outside = {p for p in found if not p.startswith(ports)} - {"models/families.py"}
    named = {path for path in outside if ports_named((PACKAGE / path).read_text())}
    assert named <= NAMES_A_PORT
