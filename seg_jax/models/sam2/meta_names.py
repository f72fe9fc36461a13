"""The names that Meta's own files have for a SAM 2, and its sizes, read off its shapes.

Source: facebookresearch/sam2, the modules that `sam2/build_sam.py` builds and the four
configurations `sam2/configs/sam2.1/sam2.1_hiera_{t,s,b+,l}.yaml`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from seg_jax.models.sam2.config import Config, Hiera

TINY = Hiera()
SMALL = dataclasses.replace(
    TINY, blocks_per_stage=(1, 2, 11, 2), global_attention_blocks=(7, 10, 13)
)
BASE_PLUS = dataclasses.replace(
    TINY,
    blocks_per_stage=(2, 3, 16, 3),
    embed_dim_per_stage=(112, 224, 448, 896),
    num_attention_heads_per_stage=(2, 4, 8, 16),
    global_attention_blocks=(12, 16, 20),
    window_positional_embedding_background_size=(14, 14),
)
LARGE = dataclasses.replace(
    TINY,
    blocks_per_stage=(2, 6, 36, 4),
    embed_dim_per_stage=(144, 288, 576, 1152),
    num_attention_heads_per_stage=(2, 4, 8, 16),
    window_size_per_stage=(8, 4, 16, 8),
    global_attention_blocks=(23, 33, 43),
)
SIZES = {"tiny": TINY, "small": SMALL, "base-plus": BASE_PLUS, "large": LARGE}
"""The published trunks. Windows and heads stand in no shape: a file of other sizes is refused."""

_TRUNK = "image_encoder.trunk."
_ONLY_21 = "no_obj_embed_spatial"
"""A tensor that SAM 2.1 has and SAM 2.0 has not."""
_PLACES = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

_MEMORY = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj)\.|"
    r"(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial)$"
)

_RULES = (
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.norm(\d|_final_attn)", r".layer_norm\1"),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
)
_HEAD = re.compile(
    r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))"
    r"\.layers\.(\d+)\.(weight|bias)"
)
_LABEL = re.compile(r"prompt_encoder\.point_embeddings\.(\d)\.weight")


def is_meta(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Returns whether the names of tensors are those of Meta's files."""
    return f"{_TRUNK}patch_embed.proj.weight" in shapes


def remarks(hub: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Returns that a model is a SAM 2.0, if it is: by its `config.json` or by the names of a file.

    The image path of both is the same; nothing that `Sam2Model` writes tells them apart.
    """
    first = hub.get("enable_occlusion_spatial_embedding") is False
    if not first and (not names or _ONLY_21 in names):
        return []
    return [
        "expected a SAM 2.1, got a SAM 2.0; it is taken, but published results of Seg-R1 are of "
        "2.1; do: fetch sam2.1 for those"
    ]


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """Returns the config of a file, by the number and width of its blocks.

    Raises:
      ValueError: it is none of the published sizes.
    """
    width = shapes[f"{_TRUNK}patch_embed.proj.weight"][:1]
    blocks = {found[1] for name in shapes if (found := re.match(rf"{_TRUNK}blocks\.(\d+)\.", name))}
    for trunk in SIZES.values():
        if (trunk.embed_dim_per_stage[:1], sum(trunk.blocks_per_stage)) == (width, len(blocks)):
            return Config(backbone=trunk)
    known = ", ".join(
        f"{name} ({trunk.embed_dim_per_stage[0]}, {sum(trunk.blocks_per_stage)})"
        for name, trunk in SIZES.items()
    )
    raise ValueError(
        f"image_encoder.trunk: expected the width and the number of blocks of {known}, got "
        f"{(*width, len(blocks))}; do: convert a model of other sizes with transformers first"
    )


def sources(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
    """Returns the names of the hub, each with the tensors of a file that it is made of.

    What only the memory of videos has is left out.
    """
    last = {}
    known = [name for name in shapes if not _MEMORY.match(name)]
    for name in known:
        if found := _HEAD.fullmatch(_renamed(name)):
            last[found[1]] = max(int(found[2]), last.get(found[1], 0))
    out: dict[str, tuple[str, ...]] = {}
    labels: dict[int, str] = {}
    for name in known:
        hub = _renamed(name)
        if name == _PLACES:
            out["prompt_encoder.shared_embedding.positional_embedding"] = (name,)
            out["shared_image_embedding.positional_embedding"] = (name,)
        elif found := _LABEL.fullmatch(hub):
            labels[int(found[1])] = name
        elif found := _HEAD.fullmatch(hub):
            out[f"{found[1]}.{_layer(int(found[2]), last[found[1]])}.{found[3]}"] = (name,)
        else:
            out[hub] = (name,)
    if labels:
        out["prompt_encoder.point_embed.weight"] = tuple(labels[i] for i in sorted(labels))
    return out


def _renamed(name: str) -> str:
    for pattern, theirs in _RULES:
        name = re.sub(pattern, theirs, name)
    return name


def _layer(number: int, last: int) -> str:
    """Returns the hub's name of a layer of a head."""
    if number == 0:
        return "proj_in"
    return "proj_out" if number == last else f"layers.{number - 1}"
