"""Weight files that are damaged, hostile or not what their folder says: one line each."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import tiny_folders
from safetensors.numpy import load_file, save_file

from seg_jax import checksums
from seg_jax.inference import bundle as bundles
from seg_jax.models import families
from seg_jax.models.facts import hub_config
from seg_jax.models.io import model_folder, safetensors, weights

WHOLE = safetensors.WHOLE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a folder as the hub has it."""
    return tiny_folders.make("qwen2_5_vl", tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    """Returns a folder that we have saved, with checksums."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    bundles.save(bundles.load(made), folder)
    return folder


def change(folder, new, *, lost=()):
    """Rewrites the weights with other tensors among them."""
    tensors = load_file(folder / WHOLE) | new
    save_file({name: t for name, t in tensors.items() if name not in lost}, folder / WHOLE)


def fails(folder, load=weights.load):
    with pytest.raises(ValueError) as refused:
        load(folder)
    line = str(refused.value)
    assert "; do: " in line
    assert "\n" not in line
    return line


# tie-1, lora-1.


def tie(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_repeated_head_is_passed_over_only_if_it_is_the_embedding(folder, dtype):
    """tie-1."""
    tie(folder)
    head = load_file(folder / WHOLE)["model.embed_tokens.weight"].astype(dtype)
    change(folder, {"lm_head.weight": head})
    weights.load(folder)
    head[5] += 1
    change(folder, {"lm_head.weight": head})
    line = fails(folder)
    assert "lm_head.weight: expected the values of model.embed_tokens.weight, to which" in line
    assert "do: set tie_word_embeddings to false to keep it, as transformers does, or" in line
    change(folder, {"lm_head.weight": head[:-1]})
    assert "lm_head.weight: expected the values of" in fails(folder)
    change(folder, {}, lost=["model.embed_tokens.weight"])
    assert "1 missing: model.embed_tokens.weight" in fails(folder)


def test_an_adapter_is_named(folder):
    """lora-1."""
    (folder / WHOLE).rename(folder / "adapter_model.safetensors")
    for load in (weights.load, bundles.load, bundles.describe, families.read):
        line = fails(folder, load)
        assert "got adapter_model.safetensors, an adapter (LoRA) that changes another" in line
        assert line.count("; do: ") == 1
    (folder / "config.json").unlink()
    assert "do: give its base here and this folder as the adapter" in fails(folder, bundles.load)


def test_an_adapters_tensors_are_named(folder):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    change(folder, {name: np.zeros((2, 2), np.float32)})
    assert f"{name}: expected the weights of a model, got those of an adapter" in fails(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "visual.rotary_pos_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "visual.embeddings.position_ids",
    ],
)
def test_buffers_that_are_no_weights_are_passed_over(folder, name):
    """lora-1: as transformers does."""
    kind = np.int64 if "ids" in name else np.float32
    change(folder, {name: np.arange(4, dtype=kind)})
    weights.load(folder)
    change(folder, {"visual.inv_freqs": np.zeros(3, np.float32)})
    assert "1 surplus: visual.inv_freqs" in fails(folder)


def test_a_tensor_under_two_names_is_refused(folder):
    name = "model.norm.weight"
    change(folder, {"model.language_model.norm.weight": load_file(folder / WHOLE)[name] + 1})
    assert "norm.weight: expected each tensor once, got it as model." in fails(folder)


# config.json.

SIZES = {
    "qwen2_5_vl": ("text_config", "vision_config"),
    "qwen3_vl": ("text_config", "vision_config"),
    "kimi_vl": ("text_config", "vision_config"),
}


def refusal(folder):
    """Returns the line on a config that is refused, or None."""
    try:
        families.read(folder)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", SIZES)
def test_a_value_of_a_config_that_makes_no_sense_is_one_line_at_once(kind, tmp_path):
    folder = tiny_folders.make(kind, tmp_path)
    path = folder / "config.json"
    whole = path.read_text()
    known, told = families.read(folder), 0
    for part in SIZES[kind]:
        ours = getattr(known, part.removesuffix("_config"))
        for name in json.loads(whole)[part].keys() & {field.name for field in fields(ours)}:
            for value in ("64", [], {}, True, -1, 1e400, 10**9 * 10, [10**12], None):
                hub = json.loads(whole)
                before, hub[part][name] = hub[part][name], value
                if value is None or type(value) is type(before) is bool:
                    continue
                path.write_text(json.dumps(hub))
                line = refusal(folder)
                told += line is not None
                assert line is None or line.startswith(f"{path}: ")
                assert line is None or line.count("; do: ") == 1
                assert line is not None or not isinstance(value, str), (part, name, value)
    assert told > 100


@pytest.mark.parametrize(
    ("name", "value"), [("num_hidden_layers", 10**9), ("head_dim", 0), ("hidden_size", 10**12)]
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(tmp_path, name, value):
    folder = tiny_folders.make("qwen3_vl", tmp_path)
    path = folder / "config.json"
    hub = json.loads(path.read_text())
    hub["text_config"][name] = value
    path.write_text(json.dumps(hub))
    assert f"{path}: text.{name}: expected" in fails(folder)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Stands for a part of a model's config, whose types nothing checks in the tests either."""

    depth: int = 3
    rate: float = 1.0
    parts: tuple[int, int] = (1, 2)
    tie: bool = False
    a_token_id: int | None = 0


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("depth", "3", "int, got '3'"),
        ("depth", True, "int, got True"),
        ("depth", 1001, "at most 1000, got 1001"),
        ("depth", 0, "a positive number, got 0"),
        ("rate", math.nan, "a positive number, got nan"),
        ("rate", math.inf, "a positive number, got inf"),
        ("rate", None, "float, got None"),
        ("parts", (1,), ""),
        ("parts", ("a", "b"), "int, got"),
        ("tie", "no", "bool, got 'no'"),
        ("a_token_id", -1, "a positive number, got -1"),
        ("a_token_id", 2**31, "at most 2147483647, got 2147483648"),
    ],
)
def test_sizes_have_types_and_bounds(name, value, expected):
    hub_config.check_sizes(Sizes(), "text")
    hub_config.check_sizes(Sizes(a_token_id=None, rate=2), "text")
    with pytest.raises(ValueError, match=rf"^text.{name}.*: expected {expected}.*; do: "):
        hub_config.check_sizes(Sizes(**{name: value}), "text")


@pytest.mark.parametrize("value", ["no", 1, [], {"a": 1}])
def test_a_tie_that_is_neither_true_nor_false_is_refused(folder, value):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": value}))
    assert "tie_word_embeddings: expected true or false, got" in fails(folder)


def test_a_quantized_model_is_refused_and_so_are_blocks_that_are_not_there(folder):
    """Both were taken: numbers of a few bits as they stand, and windows where all was meant."""
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"quantization_config": {"quant_method": "fp8"}}))
    assert "quantization_config: expected none, got one" in fails(folder)
    part = whole["vision_config"]
    for wrong, told in (
        (
            [0, part["depth"]],
            f"fullatt_block_indexes, [1]: expected int <= {part['depth'] - 1}, got",
        ),
        ([-1], "fullatt_block_indexes, [0]: expected int >= 0, got -1"),
        (["1"], "fullatt_block_indexes, [0]: expected int, got '1'"),
        (7, "fullatt_block_indexes: expected list, got 7"),
        ([0] * 9, "fullatt_block_indexes: expected each block once, got 9 numbers of 1 blocks"),
    ):
        vision = {"vision_config": part | {"fullatt_block_indexes": wrong}}
        path.write_text(json.dumps(whole | vision | {"quantization_config": None}))
        assert told in fails(folder)


# Hostile files.


def header(text, data=b""):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(shape, offsets, dtype="F32"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HOSTILE = {
    "nothing": b"",
    "short": b"\0\0\0",
    "a length beyond the file": struct.pack("<Q", 2**63) + b"{}",
    "no json": header(b"{" * 20),
    "deep": header(b'{"a":' * 50_000),
    "a list": header([]),
    "an entry that is none": header({"a": 3}),
    "offsets beyond the file": header(one([2], [0, 8])),
    "offsets backwards": header(one([0], [8, 0]), b"\0" * 8),
    "negative offsets": header(one([2], [-8, 0]), b"\0" * 8),
    "an absurd shape": header(one([2**40, 2**40], [0, 8]), b"\0" * 8),
    "a negative shape": header(one([-1], [0, 4]), b"\0" * 4),
    "a shape of words": header(one(["x"], [0, 4]), b"\0" * 4),
    "an unknown dtype": header(one([1], [0, 4], "F33"), b"\0" * 4),
    "a hole": header(one([1], [4, 8]), b"\0" * 8),
    "more behind": header(one([1], [0, 4]), b"\0" * 8),
    "two at one place": header(
        one([1], [0, 4]) | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
    "a name twice": header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"\0" * 8,
    ),
    "metadata that is none": header(one([1], [0, 4]) | {"__metadata__": [1]}, b"\0" * 4),
    "not UTF-8": header(b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_line(folder, kind):
    (folder / WHOLE).write_bytes(HOSTILE[kind])
    assert fails(folder).startswith(f"{folder}")


def test_a_pipe_or_a_folder_in_the_place_of_weights_is_one_line(folder):
    (folder / WHOLE).unlink()
    os.mkfifo(folder / WHOLE)
    assert "expected a safetensors file, got a folder or a pipe" in fails(folder)
    (folder / WHOLE).unlink()
    (folder / WHOLE).mkdir()
    assert f"{folder / WHOLE}: expected" in fails(folder)


@pytest.mark.parametrize(
    "place", ["../model.safetensors", "/etc/passwd", "..", "", "a/../model.safetensors", "x\0y"]
)
def test_an_index_reads_no_file_beyond_its_folder(folder, tmp_path, place):
    shutil.copy(folder / WHOLE, tmp_path / WHOLE)
    names = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, place)}))
    assert fails(folder).startswith(f"{folder}")


# Checksums.


def test_a_saved_folder_lists_its_files_and_loads(saved):
    listed = checksums.read(saved / checksums.FILE)
    assert sorted([*listed, checksums.FILE]) == checksums.files_of(saved)
    bundles.load(saved)


def test_a_damaged_bit_of_any_file_is_told(saved, tmp_path):
    names = [name for name in checksums.files_of(saved) if name != checksums.FILE]
    assert {WHOLE, "config.json", "tokenizer.json", bundles.MANIFEST} <= {*names}
    for name in names:
        folder = shutil.copytree(saved, tmp_path / name)
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        # What can no longer be read is told in words of its own.
        assert fails(folder, bundles.load).startswith(f"{folder}")
        (folder / name).unlink()
        assert fails(folder, bundles.load).startswith(f"{folder}")
    folder = shutil.copytree(saved, tmp_path / "weights")
    with (folder / WHOLE).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x3f")
    line = fails(folder, bundles.load)
    assert line.startswith(f"{folder / WHOLE}: expected it as it was saved, got another one (its ")
    assert "do: copy the folder again, or remove its checksums.json if you have changed" in line


def test_a_damaged_list_is_told_and_a_removed_one_asks_nothing(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    path = folder / checksums.FILE
    for text in ("{}", "x", "[]", path.read_text().replace('"own": "', '"own": "0')):
        path.write_text(text)
        assert str(path) in fails(folder, bundles.load)
    path.unlink()
    bundles.load(folder)


def test_a_list_asks_for_no_file_beyond_its_folder(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "other.json").write_text("x")
    path = folder / checksums.FILE
    sums = checksums.read(path)
    checksums.write(path, sums | {"../other.json": checksums.of_file(tmp_path / "other.json")})
    assert "expected it as it was saved" in fails(folder, bundles.load)


def test_a_folder_that_is_saved_again_gets_new_checksums(saved, tmp_path):
    model = weights.load(saved)
    model_folder.save(model, tmp_path / "again", source=saved)
    weights.load(tmp_path / "again")
    listed = checksums.read(tmp_path / "again" / checksums.FILE)
    assert sorted([*listed, checksums.FILE]) == checksums.files_of(tmp_path / "again")


# Equal bytes.

ORDER = """
import json, sys
sys.path[:0] = sys.argv[1:]
import tiny_kimi, tiny_qwen3, tiny_vlm

print(json.dumps([tiny.config().to_hf() for tiny in (tiny_kimi, tiny_qwen3, tiny_vlm)]))
"""


def test_a_config_is_written_in_the_same_order_by_every_process():
    """key-1."""
    here = Path(__file__).parent
    printed = {
        subprocess.run(
            [sys.executable, "-c", ORDER, str(here), str(here.parent)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(here.parents[1])},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, dtype, value):
    name, array = next((n, a) for n, a in load_file(folder / WHOLE).items() if a.ndim)
    spoiled = np.array(array, np.dtype(dtype))
    change(folder, {name: spoiled})
    weights.load(folder)
    spoiled.flat[-1] = value
    change(folder, {name: spoiled})
    assert f"{name}: expected finite weights, got NaN or infinity; do: " in fails(folder)
