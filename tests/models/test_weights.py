"""Holds weight files to transformers, and their errors to their words."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import tiny_vlm
from flax import nnx

from seg_jax.models import layers, qwen25_vl, weights


@pytest.fixture(scope="module")
def model():
    return random_model(tie=False)


def random_model(*, tie: bool):
    config = tiny_vlm.config(tie=tie)
    graph, params = nnx.split(tiny_vlm.model(config))
    rng = np.random.default_rng(1)
    draw = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    return nnx.merge(graph, draw)


def same(one, other) -> bool:
    pairs = zip(*(jax.tree.leaves(nnx.state(m)) for m in (one, other)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


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
    monkeypatch.setattr(weights, "SHARD_BYTES", 60_000)
    weights.save(model, tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same(model, weights.load(tmp_path))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    (tmp_path / index["weight_map"]["lm_head.weight"]).unlink()
    with pytest.raises(ValueError, match="expected a file named by the index, got none"):
        weights.load(tmp_path)


def test_bfloat16_stays_bfloat16(model, tmp_path):
    rough = weights.load(
        weights.export(model), config=model.config, compute=layers.Compute(param_dtype="bfloat16")
    )
    weights.save(rough, tmp_path)
    again = weights.load(tmp_path, compute=layers.Compute(param_dtype="bfloat16"))
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
    slots = list(weights.slots(model.config))
    assert len({(slot.name, slot.part) for slot in slots}) == len(slots)
    assert sum(np.prod(slot.shape) / slot.parts for slot in slots) == sum(
        leaf.size for leaf in jax.tree.leaves(nnx.state(model))
    )
