"""Where the weights of a SAM 2 stand in the files of the hub."""

from __future__ import annotations

import functools
import re

from seg_jax.models.sam2 import hiera
from seg_jax.models.sam2.config import Config

MEMORY = re.compile(
    r"memory_(?!embedding)|mask_downsample|object_pointer_proj|no_object_pointer|"
    r"temporal_positional_encoding_projection_layer|no_memory_positional_encoding|"
    r"occlusion_spatial_embedding_parameter"
)
"""Beginnings of what only the memory of videos has; `Sam2Model` of transformers passes over it."""

_TRUNK = "vision_encoder.backbone."
_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_DECODER = "mask_decoder."
_LAYER = _DECODER + "transformer.layers.{}."


@functools.cache
def table(config: Config) -> dict[str, str]:
    """Returns our names of a model's weights to those of the hub, as `io.weights` reads them."""
    return _of_trunk(config) | _of_neck() | _of_prompts() | _of_decoder()


def _of_trunk(config: Config) -> dict[str, str]:
    found = {
        "trunk/patch/*": _TRUNK + "patch_embed.projection.*",
        "trunk/background": _TRUNK + "pos_embed",
        "trunk/window": _TRUNK + "pos_embed_window",
    }
    for number, run in enumerate(hiera.runs(config.backbone)):
        ours, theirs = f"trunk/runs/{number}/", f"{_TRUNK}blocks.{{+{run.begin}}}."
        found |= {
            f"{ours}{letter}/*": f"{theirs}attn.qkv.*[{part}/3]"
            for part, letter in enumerate("qkv")
        }
        found |= {f"{ours}o/*": theirs + "attn.proj.*", f"{ours}widen/*": theirs + "proj.*"}
        found |= {
            f"{ours}up/*": theirs + "mlp.proj_in.*",
            f"{ours}down/*": theirs + "mlp.proj_out.*",
        }
        found |= _norm(ours + "norm_attention", theirs + "layer_norm1")
        found |= _norm(ours + "norm_ffn", theirs + "layer_norm2")
    return found


def _of_neck() -> dict[str, str]:
    laterals = ("coarsest", "coarse", "middle", "fine")
    found = {f"neck/{n}/*": f"vision_encoder.neck.convs.{i}.*" for i, n in enumerate(laterals)}
    return found | {
        "neck/to_fine/*": _DECODER + "conv_s0.*",
        "neck/to_middle/*": _DECODER + "conv_s1.*",
        "neck/no_memory": "no_memory_embedding",
    }


def _of_prompts() -> dict[str, str]:
    theirs = "prompt_encoder."
    return {
        "fourier/directions": "shared_image_embedding.positional_embedding",
        "prompts/fourier/directions": theirs + "shared_embedding.positional_embedding",
        "prompts/labels": theirs + "point_embed.weight",
        "prompts/nothing": theirs + "not_a_point_embed.weight",
        "prompts/no_mask": theirs + "no_mask_embed.weight",
        "prompts/shrink1/*": theirs + "mask_embed.conv1.*",
        "prompts/shrink2/*": theirs + "mask_embed.conv2.*",
        "prompts/project/*": theirs + "mask_embed.conv3.*",
        **_norm("prompts/shrink1_norm", theirs + "mask_embed.layer_norm1"),
        **_norm("prompts/shrink2_norm", theirs + "mask_embed.layer_norm2"),
    }


def _of_decoder() -> dict[str, str]:
    found = {
        "decoder/presence_token": _DECODER + "obj_score_token.weight",
        "decoder/quality_token": _DECODER + "iou_token.weight",
        "decoder/mask_tokens": _DECODER + "mask_tokens.weight",
        **_norm("decoder/norm", _DECODER + "transformer.layer_norm_final_attn"),
        **_norm("decoder/upscale_norm", _DECODER + "upscale_layer_norm"),
        "decoder/blocks/up/*": _LAYER + "mlp.proj_in.*",
        "decoder/blocks/down/*": _LAYER + "mlp.proj_out.*",
    }
    attentions = {
        "decoder/blocks/among/": _LAYER + "self_attn.",
        "decoder/blocks/to_image/": _LAYER + "cross_attn_token_to_image.",
        "decoder/blocks/from_image/": _LAYER + "cross_attn_image_to_token.",
        "decoder/to_image/": _DECODER + "transformer.final_attn_token_to_image.",
    }
    for ours, theirs in attentions.items():
        found |= {f"{ours}{a}/*": f"{theirs}{b}.*" for a, b in _ATTENTION.items()}
    for number, name in enumerate(("among", "to_image", "ffn", "image"), start=1):
        found |= _norm(f"decoder/blocks/norm_{name}", f"{_LAYER}layer_norm{number}")
    for number in (1, 2):
        for kind in ("weight", "bias"):
            ours = f"decoder/upscale{number}/{kind}"
            found[ours] = f"{_DECODER}upscale_conv{number}.{kind}"
    found |= _mlp("decoder/masks", _DECODER + "output_hypernetworks_mlps.{}.", "layers.0")
    found |= _mlp("decoder/quality", _DECODER + "iou_prediction_head.", "layers.{}")
    return found | _mlp("decoder/presence", _DECODER + "pred_obj_score_head.", "layers.{}")


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _mlp(ours: str, theirs: str, between: str) -> dict[str, str]:
    return {
        f"{ours}/first/*": theirs + "proj_in.*",
        f"{ours}/between/*": f"{theirs}{between}.*",
        f"{ours}/last/*": theirs + "proj_out.*",
    }
