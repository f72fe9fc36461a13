"""CLIP goes from the hub and from files of OpenAI's code into a folder, by `seg-jax convert`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
import transformers
from safetensors.numpy import load_file

from seg_jax.cli import main
from seg_jax.models import families
from seg_jax.models.io import weights

CONFIG = tiny_clip.CONFIG


@pytest.fixture(scope="module")
def model():
    return tiny_clip.theirs()


@pytest.fixture(scope="module")
def source(model, tmp_path_factory) -> Path:
    """Returns a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("clip") / "source"
    model.save_pretrained(folder)
    told = CONFIG.to_preprocessor() | {"image_mean": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    (folder / "vocab.json").write_text("{}")  # Travels with the weights.
    return folder


def raw(folder: Path) -> dict[str, tuple]:
    tensors = load_file(folder / "model.safetensors")
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}


def convert(*words, capfd) -> tuple[int, str]:
    """Returns the status of a convert and its errors."""
    capfd.readouterr()  # Bars of transformers.
    status = main.main(["convert", *map(str, words)])
    return status, " ".join(capfd.readouterr().err.split())


def test_a_folder_of_the_hub_goes_there_and_back(source, model, tmp_path, capfd):
    assert convert(source, tmp_path / "hf", capfd=capfd) == (0, "")
    assert raw(tmp_path / "hf") == raw(source)
    assert (tmp_path / "hf" / "vocab.json").exists()
    assert families.read(tmp_path / "hf").image_mean == (0.5, 0.4, 0.3)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path / "hf").state_dict()
    for name, want in model.state_dict().items():
        assert torch.equal(loaded[name], want), name
    assert convert(tmp_path / "hf", tmp_path / "o", "--to", "orbax", capfd=capfd)[0] == 0
    assert convert(tmp_path / "o", tmp_path / "back", capfd=capfd)[0] == 0
    assert raw(tmp_path / "back") == raw(source)
    assert convert(source, tmp_path / "half", "--dtype", "bfloat16", capfd=capfd)[0] == 0
    kinds = {name: kind for name, (kind, *_) in raw(tmp_path / "half").items()}
    assert {name for name, kind in kinds.items() if kind == "float32"} == {"logit_scale"}
    status, errors = convert(source, tmp_path / "no", "--activation", "gelu", capfd=capfd)
    assert status != 0
    assert "activation: expected none beside" in errors


@pytest.mark.parametrize("kind", ["openai", "open_clip"])
def test_a_file_of_openais_names_gives_the_same_tensors(kind, model, source, tmp_path, capfd):
    tensors, path = tiny_clip.openai(model), tmp_path / f"{kind}.pt"
    more = {"context_length": torch.tensor(12), "input_resolution": torch.tensor(32)}
    if kind == "openai":
        torch.save(tensors | more, path)
    else:
        state = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {}}, path)
    status, errors = convert(path, tmp_path / "no", capfd=capfd)
    assert status != 0
    assert "expected --activation beside it, as no tensor tells it, got none; do: give" in errors
    words = (path, tmp_path / "out", "--activation", "gelu")
    assert convert(*words, capfd=capfd) == (0, "")
    assert raw(tmp_path / "out") == raw(source)
    told = families.read(tmp_path / "out")
    assert told == tiny_clip.config("gelu")
    loaded = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    assert loaded.config.vision_config.hidden_act == "gelu"
    assert families.preprocessor(tmp_path / "out")["crop_size"] == {"height": 32, "width": 32}
    half = (path, tmp_path / "half", "--activation", "gelu", "--dtype", "bfloat16")
    assert convert(*half, capfd=capfd)[0] == 0
    exact = weights.export(weights.load(tmp_path / "half"))
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(exact[name], tensor, rtol=4e-3, err_msg=name)


def test_files_that_are_not_whole_are_named(model, tmp_path, capfd):
    tensors = tiny_clip.openai(model)
    path, words = tmp_path / "clip.pt", (tmp_path / "out", "--activation", "gelu")

    def refused(changed) -> str:
        torch.save(changed, path)
        status, errors = convert(path, *words, capfd=capfd)
        assert status != 0
        assert not (tmp_path / "out").exists()
        return errors

    lost = {name: t for name, t in tensors.items() if name != "ln_final.bias"}
    assert "1 missing: ln_final.bias" in refused(lost)
    assert "1 surplus: visual.head" in refused(tensors | {"visual.head": torch.ones(3)})
    turned = tensors | {"visual.proj": tensors["visual.proj"].T.contiguous()}
    assert "visual.proj: expected (128, 24), got (24, 128)" in refused(turned)
    flat = tensors | {"visual.conv1.weight": torch.ones(128, 192)}
    assert "expected the tensor as OpenAI's code has it" in refused(flat)
    wide = tensors | {"visual.conv1.weight": torch.ones(1280, 3, 8, 8)}
    assert "got widths 1280 and 64" in refused(wide)


def test_a_program_of_torchscript_is_not_run(tmp_path, capfd):
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    status, errors = convert(path, tmp_path / "out", "--activation", "gelu", capfd=capfd)
    assert status != 0
    assert "got a program of TorchScript, which is not run; do: give the model's folder" in errors
