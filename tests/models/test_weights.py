"""Holds weight files to transformers, and their errors to their words."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tables
import tiny_kimi
import tiny_qwen3
import tiny_vlm
from flax import nnx
from safetensors.numpy import load_file, save_file

from seg_jax.models import families
from seg_jax.models.io import safetensors, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.parallel import sharding
from seg_jax.models.vlm import qwen3_vl, qwen25_vl

ROUGH = Compute(param_dtype="bfloat16")


def random(config, compute=Compute()):  # noqa: B008 - frozen
    """Returns a model whose every number is drawn, in numpy."""
    graph, params = nnx.split(weights.blank(config, compute))
    rng = np.random.default_rng(1)

    def draw(leaf):
        return rng.normal(size=leaf.shape).astype(np.float32).astype(leaf.dtype)

    return nnx.merge(graph, jax.tree.map(draw, params))


def random_model(*, tie: bool):
    return random(tiny_vlm.config(tie=tie))


@pytest.fixture(scope="module")
def model():
    return random_model(tie=False)


CONFIGS = {
    "qwen2_5_vl": tiny_vlm.config(),
    "qwen3_vl": tiny_qwen3.config(tie=True),
    "kimi_vl": tiny_kimi.config(),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_no_size_of_a_model_is_zero(family):
    counted = 0
    for room in ("text", "vision"):
        part = getattr(CONFIGS[family], room)
        for name, value in vars(part).items():
            if type(value) in (int, float) and not name.endswith("token_id"):
                counted += 1
                with pytest.raises(ValueError, match=rf"^{room}.{name}: expected a positive"):
                    dataclasses.replace(part, **{name: type(value)(0)})
    assert counted > 12


def same(one, other) -> bool:
    pairs = zip(*(jax.tree.leaves(nnx.state(m)) for m in (one, other)), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_shapes_that_were_made_under_a_mesh_are_laid_over_none():
    weights._shapes.cache_clear()
    with jax.set_mesh(sharding.mesh(devices=jax.devices()[:1])):
        shapes = jax.tree.leaves(nnx.state(weights.blank(tiny_vlm.config(), ROUGH)))
    assert {leaf.sharding for leaf in shapes} == {None}


def raw(folder) -> dict[str, tuple]:
    """Returns the bytes of every tensor of a folder."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}


@pytest.mark.parametrize("tie", [False, True])
def test_saved_weights_pass_through_transformers_unchanged(tie, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = random_model(tie=tie)
    weights.save(model, tmp_path / "ours")
    theirs, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = weights.export(model)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    for name, array in ours.items():
        inside = name.replace("model.", "model.language_model.", 1)
        inside = "model." + name if name.startswith("visual.") else inside
        np.testing.assert_array_equal(state[inside], array)
    # From their own names, and from the folder that they write.
    assert same(model, weights.load(state, config=model.config))
    theirs.save_pretrained(tmp_path / "theirs")
    again = weights.load(tmp_path / "theirs")
    assert same(model, again)
    assert again.config == model.config


def test_shards_and_their_index(model, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(safetensors, "BLOCK_BYTES", 1000)  # Blocks of few rows.
    weights.save(model, tmp_path)
    files = list(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    # None is larger than it may be, unless it holds a single tensor.
    assert all(f.stat().st_size < 70_000 or len(load_file(f)) == 1 for f in files)
    assert same(model, weights.load(tmp_path))
    path = tmp_path / "model.safetensors.index.json"
    whole = path.read_text()
    index = json.loads(whole)
    named = index["weight_map"]

    def wrong(words, **change):
        path.write_text(json.dumps({"weight_map": named | change}))
        with pytest.raises(ValueError, match=words):
            weights.load(tmp_path)

    name = "model.layers.0.input_layernorm.weight"
    other = next(file for file in named.values() if file != named[name])
    wrong(f"expected {name} in {other}, got it in {named[name]}; do", **{name: other})
    wrong(f"expected stranger in {other}, got none; do: fetch", stranger=other)
    for text in ("[]", "{}", whole[:50], '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected an index with a weight_map, got"):
            weights.load(tmp_path)
    lost = named.pop(name)
    wrong(f"expected all tensors of its files, got none for {name}")
    path.write_text(whole)
    (tmp_path / lost).unlink()
    with pytest.raises(ValueError, match="expected a file named by the index, got none"):
        weights.load(tmp_path)


def test_bfloat16_stays_bfloat16(model, tmp_path):
    rough = weights.load(
        weights.export(model), config=model.config, compute=Compute(param_dtype="bfloat16")
    )
    weights.save(rough, tmp_path)
    again = weights.load(tmp_path, compute=Compute(param_dtype="bfloat16"))
    assert same(rough, again)
    assert weights.export(again)["lm_head.weight"].dtype.name == "bfloat16"


def test_config_passes_through_json_and_hub_flavours(model):
    written = json.loads(json.dumps(model.config.to_hf()))
    assert qwen25_vl.Config.from_hf(written) == model.config
    flat = written | written.pop("text_config")
    rope = flat.pop("rope_parameters")
    flat |= {
        "model_type": "qwen2_5_vl",
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    assert qwen25_vl.Config.from_hf(flat) == model.config
    with pytest.raises(ValueError, match="model_type: expected 'qwen2_5_vl', got 'llama'"):
        qwen25_vl.Config.from_hf({"model_type": "llama"})
    del flat["num_key_value_heads"]
    with pytest.raises(ValueError, match="expected all sizes of a model, got no .'num_key_value"):
        qwen25_vl.Config.from_hf(flat)
    with pytest.raises(ValueError, match="mrope_section: expected three numbers that add up to 8"):
        tiny_vlm.config(text={"mrope_section": (2, 3, 4)})


def test_names_are_checked_both_ways(model):
    arrays = weights.export(model)
    lost = dict(arrays)
    lost["model.layers.1.mlp.gate.weight"] = lost.pop("model.layers.1.mlp.gate_proj.weight")
    with pytest.raises(ValueError, match=r"1 missing: .*gate_proj.weight .near .*mlp.gate.weight"):
        weights.load(lost, config=model.config)
    with pytest.raises(ValueError, match="1 surplus: stranger"):
        weights.load(arrays | {"stranger": np.zeros(1)}, config=model.config)
    wrong = arrays | {"model.norm.weight": np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match=r"model.norm.weight: expected \(64,\), got \(7,\)"):
        weights.load(wrong, config=model.config)
    with pytest.raises(ValueError, match="config: expected a Config"):
        weights.load(arrays)


def test_broken_folders_say_what_is_wrong(model, tmp_path):
    weights.save(model, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-1000], whole[:100], whole[:4], b"", b"\xff" * 64):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="expected a whole safetensors file, got a broken"):
            weights.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"expected model.safetensors or its index, got neither"):
        weights.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected safetensors, got pytorch_model.bin"):
        weights.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: expected a file, got none"):
        weights.load(tmp_path)


def test_every_weight_has_one_place(model):
    slots = list(weights.tensor_parts(model.config))
    assert len({(slot.name, slot.part) for slot in slots}) == len(slots)
    assert sum(np.prod(slot.shape) / slot.parts for slot in slots) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(model))
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_family_passes_through_its_files(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 60_000)
    model = random(CONFIGS[kind])
    weights.save(model, tmp_path / "one")
    again = weights.load(tmp_path / "one")
    assert same(model, again)
    assert again.config == model.config
    assert type(again) is families.FAMILIES[kind].model
    weights.save(again, tmp_path / "two")
    assert raw(tmp_path / "one") == raw(tmp_path / "two")
    slots = list(weights.tensor_parts(model.config))
    assert len({(slot.name, slot.part) for slot in slots}) == len(slots)
    assert sum(np.prod(slot.shape) / slot.parts for slot in slots) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(model))
    )


def test_names_and_orders_are_those_of_a_plain_reading():
    """The tables are read once more, slowly, by the tests of the ports."""
    kimi, qwen3 = random(CONFIGS["kimi_vl"]), random(CONFIGS["qwen3_vl"])
    slow = (
        tiny_kimi.from_hub(kimi.config, weights.export(kimi)),
        tables.fill(qwen3_vl.NAMES, nnx.state(qwen3), weights.export(qwen3)),
    )
    for model, state in zip((kimi, qwen3), slow, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (nnx.state(model), state)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_qwen3_vl_passes_through_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = random(CONFIGS["qwen3_vl"])
    weights.save(model, tmp_path / "ours")
    theirs, report = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs.save_pretrained(tmp_path / "theirs")
    assert same(model, weights.load(tmp_path / "theirs"))


def test_logits_are_the_same_in_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = tiny_vlm.config()
    model = tiny_vlm.model(config, amplify=3.0)
    weights.save(model, tmp_path)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 280, (1, 12))
    tokens, _ = tiny_vlm.stack([tiny_vlm.row(np.random.default_rng(0), [], texts=(12,))])
    ids = tokens.ids
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    got = model.logits(model.hidden(tokens, None))
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_bfloat16_is_rounded_as_torch_does_while_reading(model, tmp_path):
    torch = pytest.importorskip("torch")
    weights.save(model, tmp_path)
    rough = weights.export(weights.load(tmp_path, compute=ROUGH))
    for name, array in weights.export(model).items():
        want = torch.tensor(array).to(torch.bfloat16).view(torch.int16).numpy()
        np.testing.assert_array_equal(rough[name].view(np.int16), want)


def test_what_is_kept_wide_stays_wide(tmp_path):
    model = random(tiny_kimi.config(), ROUGH)
    weights.save(model, tmp_path)
    bias = "language_model.model.layers.1.mlp.gate.e_score_correction_bias"
    found = raw(tmp_path)
    assert found[bias][0] == "float32"
    assert {dtype for name, (dtype, *_) in found.items() if name != bias} == {"bfloat16", "float32"}
    assert same(model, weights.load(tmp_path, compute=ROUGH))


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_are_read_straight_to_their_devices(kind, tmp_path, monkeypatch):
    model = random(CONFIGS[kind])
    weights.save(model, tmp_path)
    mesh = sharding.mesh({"fsdp": 4, "tensor": 2})
    held, read_share = [], weights._read_share

    def spy(*found, **options):
        out = read_share(*found, **options)
        held.append(out.nbytes)
        return out

    monkeypatch.setattr(weights, "_read_share", spy)
    spread = weights.load(tmp_path, on=mesh)
    assert same(model, spread)
    places = sharding.shardings(nnx.state(spread), mesh)
    for leaf, place in zip(*map(jax.tree.leaves, (nnx.state(spread), places)), strict=True):
        assert leaf.sharding == place
    largest = max(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(nnx.state(spread)))
    assert max(held) == largest
    # Each share is read once, however many devices hold it.
    assert sum(held) == sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(spread)))


MEASURE = """
import os, pathlib, sys
import jax
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute

def memory(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split(name + ":")[1].split()[0])

compute = Compute(param_dtype="bfloat16")
weights.load(sys.argv[1], compute=compute)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
model = weights.load(sys.argv[2], compute=compute)
leaves = jax.tree.leaves(weights.leaves(model))
jax.block_until_ready(leaves)
largest = max(leaf.nbytes for leaf in leaves)
print(memory("VmHWM") - before, largest, sum(leaf.nbytes for leaf in leaves))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_no_more_than_one_array_is_held_beside_the_model(model, tmp_path):
    """The files hold 200 MB, twice of what the model keeps."""
    text = {"hidden_size": 512, "intermediate_size": 5120, "num_hidden_layers": 6}
    text |= {"mrope_section": (16, 24, 24)}
    large = random(tiny_vlm.config(text=text))
    weights.save(model, tmp_path / "small")
    weights.save(large, tmp_path / "large")
    command = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large"]
    # What is freed goes back at once, as it does where arrays are larger.
    flags = os.environ | {"XLA_FLAGS": "", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, env=flags, capture_output=True, text=True, check=True)
    peak, largest, arrays = map(int, done.stdout.split())
    assert largest > 25e6
    assert peak < arrays + 1.3 * largest, (peak, largest, arrays)


def test_tensors_of_other_kinds_are_refused(model, tmp_path):
    weights.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.norm.weight": np.zeros(64, np.int8)}, path)
    with pytest.raises(ValueError, match=r"model.norm.weight: expected one of .*, got 'I8'; do"):
        weights.load(tmp_path)
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(half, path)
    found = weights.load(tmp_path)
    want = {name: tensor.astype(np.float32) for name, tensor in half.items()}
    assert same(found, weights.load(want, config=model.config))


def test_a_config_of_no_known_family_names_the_known_ones(model, tmp_path):
    weights.save(model, tmp_path)
    path = tmp_path / "config.json"
    hub = json.loads(path.read_text())

    def wrong(words, **changes):
        path.write_text(json.dumps(hub | changes))
        with pytest.raises(ValueError, match=words) as caught:
            weights.load(tmp_path)
        assert "\n" not in str(caught.value)

    wrong(
        "expected one of qwen2_5_vl, qwen3_vl, kimi_vl, sam2, clip, got 'llava'; do",
        model_type="llava",
    )
    wrong("got 'qwen2_vl' .near qwen2_5_vl.; do", model_type="qwen2_vl")
    wrong("got None; do", model_type=None)
    wrong("got 'opencua' .Qwen2.5-VL with 1-D rotary", model_type="opencua")
    plain = hub["text_config"] | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    wrong("expected the mrope_section of Qwen2.5-VL, got none: 1-D rotary", text_config=plain)
    wrong(r"text_config: expected an object, got \[1\]; do: copy", text_config=[1])


def test_pixel_statistics_come_with_the_preprocessor(model, tmp_path):
    weights.save(model, tmp_path)
    ours = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({"image_processor": ours}))
    vision = weights.load(tmp_path).config.vision
    assert (vision.image_mean, vision.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(ours | {"image_mean": [1, 2, 3]}))
    assert weights.load(tmp_path).config.vision.image_mean == (1, 2, 3)
    for wrong, words in (
        ([1, 2], "image_mean: expected list of length 3, got a list of 2; do: copy"),
        ("abc", "image_mean: expected list, got 'abc'; do: copy"),
        ([1, 2, "x"], "image_mean, .2.: expected float, got 'x'; do: copy"),
    ):
        path.write_text(json.dumps(ours | {"image_mean": wrong}))
        with pytest.raises(ValueError, match=words):
            weights.load(tmp_path)
    path.write_text(json.dumps(ours | {"image_std": [1, 0, 1]}))  # Pixels are divided by it.
    with pytest.raises(ValueError, match=r"image_std: expected numbers above 0, got \[1.0, 0.0, 1"):
        weights.load(tmp_path)
