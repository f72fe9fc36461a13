"""SAM 2 goes from the hub and from Meta's files into a folder and back, by `seg-jax convert`."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from seg_jax.cli import main
from seg_jax.models import families
from seg_jax.models.io import weights
from seg_jax.models.sam2 import meta_names
from seg_jax.models.sam2.config import Config, Hiera

HIERA = Hiera(
    blocks_per_stage=(1, 2, 3, 1),
    embed_dim_per_stage=(8, 16, 24, 32),
    num_attention_heads_per_stage=(1, 2, 2, 4),
    window_size_per_stage=(8, 4, 2, 7),
    global_attention_blocks=(4,),
)
CONFIG = Config(backbone=HIERA)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = transformers.Sam2Model(transformers.Sam2Config(**CONFIG.to_hf())).eval()
    with torch.no_grad():
        for one in made.parameters():
            one.add_(0.1 * torch.randn_like(one))
        encoder = made.prompt_encoder.shared_embedding  # Meta's files have it once.
        made.shared_image_embedding.positional_embedding.copy_(encoder.positional_embedding)
    return made


@pytest.fixture(scope="module")
def source(model, tmp_path_factory) -> Path:
    """Returns a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("sam2") / "source"
    model.save_pretrained(folder)
    told = CONFIG.to_preprocessor() | {"image_mean": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def raw(folder: Path) -> dict[str, tuple]:
    tensors = load_file(folder / "model.safetensors")
    return {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()}


def convert(*words, capfd) -> tuple[int, str]:
    """Returns the status of a convert and its last line of errors."""
    capfd.readouterr()  # Bars of transformers.
    status = main.main(["convert", *map(str, words)])
    errors = capfd.readouterr().err.strip().splitlines()
    return status, " ".join(errors)


def test_a_folder_of_the_hub_goes_there_and_back(source, model, tmp_path, capfd):
    assert convert(source, tmp_path / "hf", capfd=capfd) == (0, "")
    assert raw(tmp_path / "hf") == raw(source)
    assert families.read(tmp_path / "hf").image_mean == (0.5, 0.4, 0.3)
    loaded = transformers.Sam2Model.from_pretrained(tmp_path / "hf")
    for (name, got), want in zip(
        loaded.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name
    assert convert(tmp_path / "hf", tmp_path / "o", "--to", "orbax", capfd=capfd)[0] == 0
    assert convert(tmp_path / "o", tmp_path / "back", capfd=capfd)[0] == 0
    assert raw(tmp_path / "back") == raw(source)
    assert convert(source, tmp_path / "half", "--dtype", "bfloat16", capfd=capfd)[0] == 0
    kinds = {name: kind for name, (kind, *_) in raw(tmp_path / "half").items()}
    wide = {name for name, kind in kinds.items() if kind == "float32"}
    assert wide == {name for name in kinds if name.endswith("positional_embedding")}


MEMORY = {
    "memory_attention.layers.0.linear1.weight": (4, 4),
    "memory_encoder.projection.bias": (3,),
    "memory_temporal_positional_encoding": (7, 1, 1, 64),
    "mask_downsample.weight": (1, 1, 4, 4),
    "object_pointer_proj.proj_in.weight": (4, 4),
    "no_object_pointer": (1, 4),
    "no_memory_positional_encoding": (1, 1, 4),
    "occlusion_spatial_embedding_parameter": (1, 4),
    "temporal_positional_encoding_projection_layer.weight": (4, 4),
}


def test_a_folder_that_follows_videos_gives_its_image_path(source, tmp_path, capfd):
    video = tmp_path / "video"
    video.mkdir()
    tensors = load_file(source / "model.safetensors")
    more = {name: np.ones(shape, np.float32) for name, shape in MEMORY.items()}
    save_file(tensors | more, video / "model.safetensors")
    hub = json.loads((source / "config.json").read_text())
    hub |= {"model_type": "sam2_video", "num_maskmem": 7, "architectures": ["Sam2VideoModel"]}
    for part in ("prompt_encoder", "mask_decoder"):
        hub[f"{part}_config"]["model_type"] = f"sam2_video_{part}"
    (video / "config.json").write_text(json.dumps(hub))
    assert convert(video, tmp_path / "out", capfd=capfd) == (0, "")
    assert raw(tmp_path / "out") == raw(source)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["model_type"], told["architectures"]) == ("sam2", ["Sam2Model"])
    assert "num_maskmem" not in told
    transformers.Sam2Model.from_pretrained(tmp_path / "out")
    old = hub | {"enable_occlusion_spatial_embedding": False}
    (video / "config.json").write_text(json.dumps(old))
    status, errors = convert(video, tmp_path / "old", capfd=capfd)
    assert status == 0
    assert "expected a SAM 2.1, got a SAM 2.0; it is taken" in " ".join(errors.split())
    save_file(tensors | {"memories": np.ones(3, np.float32)}, video / "model.safetensors")
    assert "1 surplus: memories" in convert(video, tmp_path / "no", capfd=capfd)[1]


def test_only_the_memory_of_videos_is_passed_over():
    config = transformers.Sam2VideoConfig()
    with torch.device("meta"):
        names = transformers.Sam2VideoModel(config).state_dict().keys()
    ours = {part.name for part in weights.tensor_parts(Config())}
    surplus = families.FAMILIES["sam2"].surplus
    assert {name for name in names if not surplus.match(name)} == ours


# Meta's files.

THEIRS = (
    ("vision_encoder.backbone.", "image_encoder.trunk."),
    (
        "prompt_encoder.shared_embedding.positional_embedding",
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    ("prompt_encoder.", "sam_prompt_encoder."),
    ("mask_decoder.", "sam_mask_decoder."),
    ("no_memory_embedding", "no_mem_embed"),
    ("patch_embed.projection", "patch_embed.proj"),
    ("mask_embed.conv1", "mask_downscaling.0"),
    ("mask_embed.layer_norm1", "mask_downscaling.1"),
    ("mask_embed.conv2", "mask_downscaling.3"),
    ("mask_embed.layer_norm2", "mask_downscaling.4"),
    ("mask_embed.conv3", "mask_downscaling.6"),
    ("upscale_conv1", "output_upscaling.0"),
    ("upscale_layer_norm", "output_upscaling.1"),
    ("upscale_conv2", "output_upscaling.3"),
    ("layer_norm", "norm"),
    ("o_proj", "out_proj"),
    ("mlp.proj_in", "mlp.layers.0"),
    ("mlp.proj_out", "mlp.layers.1"),
)
HEADS = ("output_hypernetworks_mlps", "iou_prediction_head", "pred_obj_score_head")


def by_meta(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns tensors of the hub by the names of Meta's modules."""
    found = {}
    for name, tensor in tensors.items():
        if name == "shared_image_embedding.positional_embedding":
            continue
        if name == "prompt_encoder.point_embed.weight":
            for i in range(4):
                found[f"sam_prompt_encoder.point_embeddings.{i}.weight"] = tensor[i : i + 1]
            continue
        if any(head in name for head in HEADS):
            name = re.sub(r"layers\.0\.", "layers.1.", name)
            name = name.replace("proj_in", "layers.0").replace("proj_out", "layers.2")
        name = re.sub(
            r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv.", name
        )
        for hub, meta in THEIRS:
            name = re.sub(rf"(^|(?<=\.)){re.escape(hub)}", meta, name, count=1)
        found[name] = tensor
    return found


def meta_file(path: Path, tensors: dict[str, torch.Tensor], *more: str) -> Path:
    more = more or ("no_obj_embed_spatial", "memory_encoder.out_proj.weight", "maskmem_tpos_enc")
    more += ("mask_downsample.weight", "obj_ptr_tpos_proj.bias", "obj_ptr_proj.layers.0.bias")
    more += ("memory_attention.norm.weight", "no_obj_ptr", "no_mem_pos_enc")
    torch.save({"model": by_meta(tensors) | {name: torch.ones(2) for name in more}}, path)
    return path


@pytest.fixture
def toy(monkeypatch):
    """Makes the tiny trunk one of the published ones."""
    monkeypatch.setitem(meta_names.SIZES, "toy", HIERA)


def test_a_file_of_metas_gives_the_same_folder(toy, model, source, tmp_path, capfd):
    path = meta_file(tmp_path / "sam2.1_hiera_toy.pt", model.state_dict())
    assert convert(path, tmp_path / "out", capfd=capfd) == (0, "")
    assert raw(tmp_path / "out") == raw(source)
    assert families.read(tmp_path / "out") == CONFIG
    transformers.Sam2Model.from_pretrained(tmp_path / "out")
    loaded = weights.export(weights.load(path))
    assert {n: (t.dtype.name, t.shape, t.tobytes()) for n, t in loaded.items()} == raw(source)
    assert convert(path, tmp_path / "o", "--to", "orbax", capfd=capfd) == (0, "")
    assert convert(tmp_path / "o", tmp_path / "back", capfd=capfd) == (0, "")
    assert raw(tmp_path / "back") == raw(source)
    old = meta_file(tmp_path / "sam2_hiera_toy.pt", model.state_dict(), "maskmem_tpos_enc")
    status, errors = convert(old, tmp_path / "old", capfd=capfd)
    assert status == 0
    assert "got a SAM 2.0; it is taken" in " ".join(errors.split())


def test_files_that_are_not_metas_are_told(model, tmp_path, capfd):
    def fails(path) -> str:
        status, errors = convert(path, tmp_path / "out", capfd=capfd)
        assert status == 1
        assert not list(tmp_path.glob("out*"))
        return errors

    tensors = model.state_dict()
    path = meta_file(tmp_path / "a.pt", tensors)
    known = "tiny (96, 12), small (96, 16), base-plus (112, 24), large (144, 48)"
    line = fails(path)
    assert f"expected the width and the number of blocks of {known}, got (8, 7)" in line
    torch.save(tensors, tmp_path / "b.pt")
    line = fails(tmp_path / "b.pt")
    assert "expected weights as the authors of sam2, clip publish them, got the tensor" in line
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        attack = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "made") + b"'\ntR."
        archive.writestr("archive/data.pkl", attack)
    line = fails(tmp_path / "evil.pt")
    assert "got 'os.system'" in line
    assert "could run code; none was run" in line
    assert not (tmp_path / "made").exists()


def test_a_meta_file_that_lacks_something_is_told_by_name(toy, model, tmp_path, capfd):
    tensors = dict(model.state_dict())
    del tensors["mask_decoder.conv_s0.bias"]
    path = meta_file(tmp_path / "a.pt", tensors)
    status, errors = convert(path, tmp_path / "out", capfd=capfd)
    assert status == 1
    assert "1 missing: mask_decoder.conv_s0.bias" in errors
