"""Model folders: an exact round trip, and one line on whatever is wrong with one."""

import dataclasses
import json
import re
import shutil
import struct

import jax
import numpy as np
import pytest
import small_run
from safetensors.numpy import load_file, save_file

from seg_jax import checksums, schemas
from seg_jax.data import encode
from seg_jax.inference import bundle as bundles
from seg_jax.tasks.referring import Mixture, Referring

SENTENCE = "Outline the red star: [[[0.12, 0.34], [0.50, 0.60], [1.00, 0.00]]]. é\n"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns a folder that `save` wrote."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    bundles.save(small_run.bundle(), folder)
    return folder


@pytest.fixture
def broken(whole, tmp_path):
    """Returns a copy of the folder to break, without checksums, as older versions saved it."""
    without = shutil.ignore_patterns(checksums.FILE)
    return shutil.copytree(whole, tmp_path / "broken", ignore=without)


def complaint(folder, file=""):
    """Returns the line on a folder that cannot be loaded, which names a file of it."""
    with pytest.raises(ValueError) as caught:
        bundles.load(folder)
    line = str(caught.value)
    assert type(caught.value) in (ValueError, schemas.Invalid)
    assert str(folder) in line
    assert file in line
    assert "\n" not in line
    assert re.search(r"expected .+ got ", line)
    assert re.search(r"; do: (give|copy|check|fetch|take|leave|correct|divide|save)\b", line), line
    return line


def change(path, **parts):
    """Changes the objects in a JSON file, entry by entry; None removes an entry."""
    found = json.loads(path.read_text())
    for part, entries in parts.items():
        for name, value in entries.items():
            found[part][name] = value
            if value is None:
                del found[part][name]
    path.write_text(json.dumps(found))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_saved_bundle_loads_as_it_was(whole):
    first, again = small_run.bundle(), bundles.load(whole)
    small_run.assert_same(first.params, again.params)
    assert jax.tree.structure(first.params) == jax.tree.structure(again.params)
    assert again.layout == first.layout
    assert again.task == first.task
    for special in (False, True):
        ids = first.tokenizer.encode(SENTENCE, special=special)
        assert again.tokenizer.encode(SENTENCE, special=special) == ids
    assert again.tokenizer.decode(ids) == SENTENCE
    turn = [{"role": "user", "content": SENTENCE}]
    assert again.tokenizer.render(turn) == first.tokenizer.render(turn)


def test_a_loaded_bundle_saves_the_same_files(whole, tmp_path):
    bundles.save(bundles.load(whole), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(whole)
    assert {"config.json", WEIGHTS, bundles.MANIFEST, "tokenizer.json"} <= set(contents(whole))


def test_every_field_of_layout_and_task_travels(tmp_path):
    first = small_run.bundle()
    layout = {
        field.name: getattr(first.layout, field.name) + 32
        for field in dataclasses.fields(first.layout)
        if field.name not in ("patch", "merge", "canvas", "native")
    }
    layout["native"] = encode.Native(limit=77, pad=False)
    task = Referring(
        mixture=Mixture(
            **{f.name: 0.1 + i for i, f in enumerate(dataclasses.fields(Mixture))},
        ),
        digits=4,
        epsilon=0.1,
        max_points=7,
        max_rings=3,
        min_area=1.5,
        tracing="released",
        holes=False,
        order="counterclockwise",
        start="random",
        rule="center",
        wordings="more",
    )
    plain = Referring()
    assert all(getattr(task, f.name) != getattr(plain, f.name) for f in dataclasses.fields(task))
    other = dataclasses.replace(
        first, task=task, layout=dataclasses.replace(first.layout, canvas=(96, 33), **layout)
    )
    bundles.save(other, tmp_path / "other")
    again = bundles.load(tmp_path / "other")
    assert again.layout == other.layout
    assert again.task == task


def test_manifests_from_before_images_were_kept_at_their_size(broken):
    change(broken / bundles.MANIFEST, layout={"native": None})
    assert bundles.load(broken).layout == small_run.bundle().layout


def test_a_folder_that_is_none(tmp_path):
    assert "nothing there" in complaint(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    assert "a file" in complaint(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    complaint(tmp_path / "empty", bundles.MANIFEST)


def test_a_manifest_that_is_missing_or_cut(broken):
    manifest = broken / bundles.MANIFEST
    text = manifest.read_text()
    for wrong in (text[: len(text) // 2], "", "[]", "null", '{"layout": {}}', "[" * 100_000):
        manifest.write_text(wrong)
        complaint(broken, bundles.MANIFEST)
    manifest.write_bytes(b"\xff\xfe\x00")
    complaint(broken, bundles.MANIFEST)
    manifest.unlink()
    (broken / "preprocessor_config.json").unlink()
    assert "or preprocessor_config.json, got neither" in complaint(broken, bundles.MANIFEST)


def test_a_manifest_that_was_there_is_missed(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (folder / bundles.MANIFEST).unlink()
    complaint(folder, bundles.MANIFEST)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"max_prompt": 44.0}, "44.0"),
        ({"max_prompt": True}, "True"),
        ({"max_prompt": "44"}, "'44'"),
        ({"max_patches": -16}, "-16"),
        ({"max_answer": 0}, "0"),
        ({"max_answer": 2**40}, str(2**40)),
        ({"max_answer": None}, "max_answer"),
        ({"patch": None}, "patch"),
        ({"canvas": None}, "canvas"),
        ({"canvas": [64]}, "layout, canvas: expected list of length 2"),
        ({"canvas": [64.5, 64]}, "64.5"),
        ({"canvas": [50, 64]}, "50"),
        ({"colour": 3}, "colour"),
        ({"native": 3}, "layout, native: expected object | null, got 3"),
        ({"native": {"limit": 0}}, "layout, native.limit: expected int >= 1, got 0"),
        ({"native": {"limit": 9, "pad": 1}}, "layout, native.pad: expected bool, got 1"),
        ({"native": {"pads": True}}, "pads"),
    ],
)
def test_a_wrong_layout(broken, entries, word):
    change(broken / bundles.MANIFEST, layout=entries)
    assert word in complaint(broken, bundles.MANIFEST)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"colour": "red"}, "task: expected fields that are known, got one named 'colour'; do: "),
        ({"rule": "nearest"}, "nearest"),
        ({"wordings": 1}, "wordings"),
        ({"wordings": "few"}, "few"),
        ({"start": "last"}, "start"),
        ({"order": 3}, "order"),
        ({"tracing": "mine"}, "tracing"),
        ({"holes": 1}, "holes"),
        ({"mixture": {"absent": -1.0}}, "-1.0"),
        ({"mixture": {"absent": True}}, "absent"),
        ({"digits": 2.5}, "digits"),
        ({"digits": 0}, "digits"),
        ({"epsilon": "small"}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"mixture": None}, "mixture"),
        ({"mixture": {"text_ring": 1.0}}, "text_ring"),
        ({"mixture": {"text_mask": "1"}}, "text_mask"),
        ({"mixture": {"text_mask": float("nan")}}, "nan"),
        ({"mixture": {"text_mask": -1.0}}, "-1.0"),
    ],
)
def test_a_wrong_task(broken, entries, word):
    change(broken / bundles.MANIFEST, task=entries)
    assert word in complaint(broken, bundles.MANIFEST)


def test_weights_that_are_missing_or_cut(broken):
    path = broken / WEIGHTS
    whole = path.read_bytes()
    longer = struct.pack("<Q", struct.unpack("<Q", whole[:8])[0] + len(whole)) + whole[8:]
    for wrong in (whole[:-1], whole[: len(whole) // 2], whole[:100], b"", longer, whole + b"x"):
        path.write_bytes(wrong)
        assert "broken or truncated" in complaint(broken, WEIGHTS)
    path.unlink()
    assert "got neither" in complaint(broken, WEIGHTS)


def test_a_header_that_claims_more_bytes_than_there_are(broken):
    path = broken / WEIGHTS
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:start])
    for name, values in header.items():
        if name != "__metadata__" and values["data_offsets"][1] == len(whole) - start:
            values["shape"][0] *= 1000
            values["data_offsets"][1] += 999 * (len(whole) - start - values["data_offsets"][0])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[start:])
    assert "broken or truncated" in complaint(broken, WEIGHTS)


def test_tensors_that_are_not_of_the_config(broken):
    path = broken / WEIGHTS
    tensors = load_file(path)
    name = "model.norm.weight"
    save_file({**tensors, name: np.zeros(7, np.float32)}, path)
    assert f"{name}: expected (32,), got (7,)" in complaint(broken)
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    assert f"1 missing: {name}" in complaint(broken)
    save_file({**tensors, "stranger": np.zeros(7, np.float32)}, path)
    assert "1 surplus: stranger" in complaint(broken)


def test_a_tokenizer_that_is_missing_or_cut(broken):
    for name in ("tokenizer_config.json", "tokenizer.json"):
        whole = (broken / name).read_text()
        (broken / name).write_text(whole[: len(whole) // 2])
        complaint(broken, name)
        (broken / name).unlink()
        complaint(broken, name)
        (broken / name).write_text(whole)


def test_a_model_without_its_tokenizer_is_not_saved(broken, tmp_path):
    loaded = bundles.load(broken)
    shutil.rmtree(broken)
    with pytest.raises(OSError, match="tokenizer"):
        bundles.save(loaded, tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


def test_a_config_that_is_missing_cut_or_of_another_model(broken):
    path = broken / "config.json"
    whole = path.read_text()
    for wrong in (whole[: len(whole) // 2], "", "[]", "{}", "[" * 100_000, '{"model_type": "x"}'):
        path.write_text(wrong)
        complaint(broken, "config.json")
    path.unlink()
    complaint(broken, "config.json")


def test_files_that_do_not_belong_together(broken):
    config, manifest = broken / "config.json", broken / bundles.MANIFEST
    before = config.read_text(), manifest.read_text()
    change(config, vision_config={"patch_size": 14})
    assert "layout.patch: expected 14 as in config.json, got 8" in complaint(broken)
    change(manifest, layout={"patch": 14})
    assert "patch_embed" in complaint(broken)
    config.write_text(before[0])
    change(manifest, layout={"patch": 14})
    assert "layout.patch: expected 8 as in config.json, got 14" in complaint(broken)
    manifest.write_text(before[1])
    change(manifest, layout={"merge": 2})
    assert "layout.merge: expected 1 as in config.json, got 2" in complaint(broken)
    manifest.write_text(before[1])
    config.write_text(json.dumps(json.loads(before[0]) | {"image_token_id": 3}))
    assert "image token: expected 3" in complaint(broken)


def test_a_tokenizer_with_more_tokens_than_the_table(broken):
    path = broken / "tokenizer.json"
    found = json.loads(path.read_text())
    table = small_run.sft_config().model.text.vocab_size
    last = found["added_tokens"][-1]
    found["added_tokens"] += [
        last | {"id": number, "content": f"<{number}>"} for number in range(last["id"] + 1, table)
    ]
    path.write_text(json.dumps(found))
    assert bundles.load(broken).tokenizer.vocab_size == table
    found["added_tokens"].append(last | {"id": table, "content": "<beyond>"})
    path.write_text(json.dumps(found))
    line = complaint(broken)
    assert "tokens beyond the model's table: expected 0 as in config.json, got 1" in line


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        bundles.save(small_run.bundle(), tmp_path / "file" / "checkpoint")
    assert contents(tmp_path) == {"file": b"mine"}


class Interruptions:
    """Raises Ctrl-C at the n-th call of any of the given functions."""

    def __init__(self, patch, *places):
        self.calls, self.at = 0, None
        for owner, name in places:
            patch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, function):
        def call(*words, **named):
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt
            return function(*words, **named)

        return call


def test_an_interrupted_save_leaves_the_old_folder_whole(whole, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    old = {"mine": b"old"}
    path = type(folder)
    places = [(bundles.weights, "save"), (shutil, "copy")]
    places += [(path, "mkdir"), (path, "write_text"), (path, "rename")]
    with monkeypatch.context() as patch:
        count = Interruptions(patch, *places)
        bundles.save(small_run.bundle(), folder)
        last = count.calls
        bundles.save(small_run.bundle(), folder)
        assert count.calls == 2 * last + 1, "a rename more where there is an old folder"
    assert contents(folder) == contents(whole)
    for at in range(1, last + 2):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "mine").write_bytes(b"old")
        with monkeypatch.context() as patch:
            Interruptions(patch, *places).at = at
            with pytest.raises(KeyboardInterrupt):
                bundles.save(small_run.bundle(), folder)
        assert contents(folder) == old, at
        assert list(tmp_path.iterdir()) == [folder], at


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ([1, True], r"eos_token_id, \[1\]: expected int, got True"),
        ([9, 10], r"eos_token_id, \[1\]: expected int <= 9, got 10"),
        ("1", r"eos_token_id, \[0\]: expected int, got '1'"),
    ],
)
def test_tokens_that_end_answers_are_of_the_table(tmp_path, ends, told):
    """A message once had all of a million numbers."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ValueError, match=told) as error:
        bundles._ends(tmp_path, 10)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_tokens_that_end_answers_are_few(tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 3] * 100_000}))
    assert bundles._ends(tmp_path, 10) == (7, 3)
    path.write_text(json.dumps({"eos_token_id": [*range(101)]}))
    with pytest.raises(ValueError, match="expected at most 100 tokens, got 101; do: copy the file"):
        bundles._ends(tmp_path, 200)
