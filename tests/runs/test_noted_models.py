"""A run goes on with the models that it began with: another one at the same path is told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from seg_jax import checksums
from seg_jax.runs import noted_models, run_folder


@pytest.fixture
def model(tmp_path):
    """Returns the folder of a model as a hub has it: without a list of checksums."""
    folder = tmp_path / "model"
    (folder / "params").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "params" / "d").write_bytes(b"more")
    (folder / ".cache").write_text("hub")
    return folder


def begin(tmp_path, **models):
    """Begins a run; returns its folder."""
    with run_folder.hold(tmp_path / "run", {}, resume=False, anew=False, models=models):
        pass
    return tmp_path / "run"


def go_on(folder, **models):
    with run_folder.hold(folder, {}, resume=True, anew=False, models=models):
        pass


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "params/d"])
def test_a_changed_file_of_a_model_is_told(name, listed, model, tmp_path):
    """Of a folder with a list of checksums the list is compared, as loading compares the files."""

    def list_sums():
        names = [one for one in checksums.files_of(model) if one != checksums.FILE]
        checksums.write(model / checksums.FILE, checksums.of_files(model, names))

    if listed:
        list_sums()
    run = begin(tmp_path, segmenter=model)
    go_on(run, segmenter=model)
    before = (model / name).read_bytes()
    (model / name).write_bytes(before[::-1])
    if listed:
        go_on(run, segmenter=model)  # Loading tells.
        list_sums()
    expected = re.escape(str(model / name))
    with pytest.raises(ValueError, match=f"segmenter: expected {expected} as it was .*; do: put"):
        go_on(run, segmenter=model)
    (model / name).write_bytes(before)
    if listed:
        list_sums()
    go_on(run, segmenter=model)


def test_a_list_of_checksums_that_came_later_is_compared(model, tmp_path):
    run = begin(tmp_path, checkpoint=model)
    names = checksums.files_of(model)
    checksums.write(model / checksums.FILE, checksums.of_files(model, names))
    go_on(run, checkpoint=model)
    (model / "params" / "d").unlink()
    checksums.write(model / checksums.FILE, checksums.of_files(model, names[:-1]))
    with pytest.raises(ValueError, match=r"checkpoint: expected .*params/d as .*, got none"):
        go_on(run, checkpoint=model)


def test_what_is_no_part_of_a_model_may_change(model, tmp_path, monkeypatch):
    monkeypatch.setattr(noted_models, "_SMALL_BYTES", 7)
    (model / "model.bin").write_bytes(b"as large")
    run = begin(tmp_path, checkpoint=model)
    (model / "model.bin").unlink()
    (model / ".cache").unlink()
    (model / "README.md").write_text("new")
    go_on(run, checkpoint=model)
    noted = json.loads((run / noted_models.RECORD).read_text())
    assert {*noted["checkpoint"]} == {"config.json", "model.safetensors", "params/d"}
    assert noted["checkpoint"]["params/d"]["bytes"] == 4


def test_a_moved_model_is_the_same_and_a_file_is_one(model, tmp_path):
    file = tmp_path / "sam.pt"
    file.write_bytes(b"numbers")
    run = begin(tmp_path, checkpoint=model, segmenter=file)
    moved = shutil.move(model, tmp_path / "moved")
    go_on(run, checkpoint=Path(moved), segmenter=file)
    file.write_bytes(b"Numbers")
    with pytest.raises(ValueError, match=r"segmenter: expected .*/sam.pt as it was"):
        go_on(run, checkpoint=Path(moved), segmenter=file)


def test_a_run_of_an_earlier_version_notes_its_models_when_it_goes_on(model, tmp_path):
    run = begin(tmp_path)
    assert not (run / noted_models.RECORD).exists()
    go_on(run, checkpoint=model)
    go_on(run, checkpoint=model, segmenter=model)
    assert {*json.loads((run / noted_models.RECORD).read_text())} == {"checkpoint", "segmenter"}
    (model / "config.json").write_text("{ }")
    for name in ("checkpoint", "segmenter"):
        with pytest.raises(ValueError, match=f"{name}: expected .*config.json as it was"):
            go_on(run, **{name: model})


@pytest.mark.parametrize("text", ["[]", '{"checkpoint": {"config.json": {}}}', "{"])
def test_a_damaged_note_is_one_line(text, model, tmp_path):
    run = begin(tmp_path, checkpoint=model)
    (run / noted_models.RECORD).write_text(text)
    with pytest.raises(ValueError, match=r"models.json.*: expected .* got .*; do: put it back"):
        go_on(run, checkpoint=model)
