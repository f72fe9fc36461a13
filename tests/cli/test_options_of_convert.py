"""Every option of convert acts, or is refused, whatever the source and the format to write."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import fingerprints
import huggingface_hub
import jax
import pytest
import tiny_folders
from huggingface_hub import constants

from seg_jax.cli import convert
from seg_jax.models.io import orbax_params, safetensors, weights

KIND = "qwen2_5_vl"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a folder with a model as the hub has it, another, and an Orbax checkpoint."""
    root = tmp_path_factory.mktemp("models")
    tiny_folders.make(KIND, root / "hub")
    shutil.copytree(root / "hub", root / "orbax")
    for path in (root / "orbax").glob("*.safetensors*"):
        path.unlink()
    (root / "orbax" / orbax_params.FOLDER).mkdir()
    (root / "orbax" / orbax_params.NOTE).write_text(json.dumps({"dtype": "float32"}))
    return root


@pytest.fixture
def prints(monkeypatch, tmp_path, root):
    """Returns a function (program, config) -> what is read and what is written."""

    def before(config):
        for name in ("hub", "orbax"):
            Path(name).symlink_to(root / name)
        Path("val").symlink_to(root / ("orbax" if config.source == "orbax" else "hub"))

    def after(_):
        made = [place for place in Path().iterdir() if not place.is_symlink()]
        for place in made:
            hub = json.loads((place / "config.json").read_text())
            note("made", place, sorted(one.name for one in place.iterdir()), hub["dtype"])

    note = fingerprints.Notes(monkeypatch, tmp_path, before=before, after=after)
    _stand_ins(monkeypatch, note, root)
    return note.of


def _stand_ins(patch, note, root):
    """Notes what is read and written, tensors by their dtypes alone; nothing is copied."""
    read_hub = safetensors.open_folder

    def open_folder(folder):
        note("open", folder)
        return read_hub(folder)

    def load(folder, *, compute, config=None, on=None):
        note("load", folder, compute)
        return weights.blank(config or convert.families.read(folder), compute)

    def write(file, folder, pieces):
        note("write", file.name, [(one.name, str(one.dtype)) for one in file.entries])
        return safetensors.Written(file.name, 0, "")

    def write_orbax(params, folder):
        note("orbax", sorted({str(leaf.dtype) for _, leaf in weights.leaves(params).items()}))

    def fetch(name, **options):
        note("fetch", name)
        return str(root / "hub")

    patch.setattr(safetensors, "open_folder", open_folder)
    patch.setattr(safetensors, "write", write)
    patch.setattr(safetensors, "write_index", lambda parts, folder: None)
    patch.setattr(weights, "load", load)
    patch.setattr(orbax_params, "write", write_orbax)
    patch.setattr(huggingface_hub, "snapshot_download", fetch)
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("source", ["hub", "orbax", "org/name"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_every_option_of_convert(source, dtype, to, prints):
    base = convert.Config(source=source, dest=Path("made"), dtype=dtype, to=to)
    fingerprints.walk(prints, convert, base, aliases=("dtype",))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_every_option_beside_whole_numbers(dtype, prints, monkeypatch, root):
    def save(bundle, folder, *, frame):
        dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(bundle.params)})
        prints.__self__("grown", bundle.tokenizer_folder, dtypes, frame)
        shutil.copytree(root / "hub", folder)

    monkeypatch.setattr(convert.whole_numbers, "save", save)
    base = convert.Config(source="hub", dest=Path("made"), dtype=dtype, whole_numbers=9)
    fingerprints.walk(prints, convert, base, aliases=("dtype",))


def test_an_option_of_convert_that_nothing_reads_is_found(prints):
    base = convert.Config(source="hub", dest=Path("made"), to="orbax")

    def dropping(config):
        convert.main(convert.Config(source=config.source, dest=config.dest, to=config.to))

    program = types.SimpleNamespace(main=dropping)
    with pytest.raises(AssertionError, match="dtype: no value acts"):
        fingerprints.walk(prints, program, base, aliases=("dtype",))
