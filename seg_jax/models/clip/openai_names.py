"""The names of OpenAI's own code, which open_clip keeps, and the sizes that shapes tell.

Source: openai/CLIP, `clip/model.py` (`CLIP`, `build_model`); mlfoundations/open_clip,
`src/open_clip/model.py` (`CLIP`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from seg_jax.models.clip.config import LEGACY_EOS, Activation, Config, Text, Vision

HEAD = 64
"""Channels of a head in all of OpenAI's models, and in the same sizes of open_clip."""
WIDEST = 1024
"""Width of the largest tower of images; open_clip's larger ones have heads of other widths."""

Shapes = Mapping[str, tuple[int, ...]]


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/scale": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}


def _blocks(ours: str, theirs: str) -> dict[str, str]:
    ours, theirs = f"{ours}/blocks/", f"{theirs}transformer.resblocks.{{}}."
    found = {}
    for part, letter in enumerate("qkv"):
        found[f"{ours}{letter}/kernel"] = f"{theirs}attn.in_proj_weight[{part}/3]"
        found[f"{ours}{letter}/bias"] = f"{theirs}attn.in_proj_bias[{part}/3]"
    return {
        **found,
        f"{ours}o/*": theirs + "attn.out_proj.*",
        f"{ours}up/*": theirs + "mlp.c_fc.*",
        f"{ours}down/*": theirs + "mlp.c_proj.*",
        **_norm(ours + "norm_attention", theirs + "ln_1"),
        **_norm(ours + "norm_ffn", theirs + "ln_2"),
    }


NAMES = {
    "log_scale": "logit_scale",
    "vision/patch/*": "visual.conv1.*",
    "vision/first": "visual.class_embedding",
    "vision/positions/embedding": "visual.positional_embedding",
    **_norm("vision/norm_before", "visual.ln_pre"),
    **_blocks("vision", "visual."),
    **_norm("vision/norm", "visual.ln_post"),
    "vision/project/kernel": "visual.proj[kernel]",
    "tower/embed/embedding": "token_embedding.weight",
    "tower/positions/embedding": "positional_embedding",
    **_blocks("tower", ""),
    **_norm("tower/norm", "ln_final"),
    "tower/project/kernel": "text_projection[kernel]",
}
"""Our names to theirs, as `io.weights` reads them."""


def is_openai(shapes: Shapes) -> bool:
    """Returns whether the names of tensors are those of OpenAI's code, of a tower of patches."""
    return {"visual.proj", "visual.conv1.weight", "token_embedding.weight"} <= set(shapes)


def sources(shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Returns the names of a file, each with itself, without what is computed."""
    return {name: (name,) for name in shapes if name != "attn_mask"}


def config_of(shapes: Shapes) -> Config:
    """Returns the config of a file, read off its shapes as OpenAI's `build_model` does.

    The activation stands in none of them: it is QuickGELU until `with_activation`.

    Raises:
      ValueError: shapes are missing, or of a model whose heads are of another width.
    """
    try:
        width, _, patch, _ = shapes["visual.conv1.weight"]
        places, _ = shapes["visual.positional_embedding"]
        vocabulary, narrow = shapes["token_embedding.weight"]
        length, _ = shapes["positional_embedding"]
        _, common = shapes["text_projection"]
        inner, _ = shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"]
        ffn, _ = shapes["transformer.resblocks.0.mlp.c_fc.weight"]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{error}: expected the tensor as OpenAI's code has it, got none or another shape; do: "
            "give a folder of the hub with safetensors"
        ) from None
    if width > WIDEST or width % HEAD or narrow % HEAD:
        raise ValueError(
            f"visual.conv1.weight: expected towers of {HEAD} channels a head, at most {WIDEST} "
            f"wide, got widths {width} and {narrow}; do: give a folder of the hub with safetensors"
        )
    side = math.isqrt(max(places - 1, 0)) * patch
    return Config(
        vision=Vision(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=_layers(shapes, "visual.transformer"),
            num_attention_heads=width // HEAD,
            image_size=side,
            patch_size=patch,
        ),
        text=Text(
            vocab_size=vocabulary,
            hidden_size=narrow,
            intermediate_size=ffn,
            num_hidden_layers=_layers(shapes, "transformer"),
            num_attention_heads=narrow // HEAD,
            max_position_embeddings=length,
            eos_token_id=LEGACY_EOS,  # Their code takes the largest id.
        ),
        projection_dim=common,
    )


def with_activation(config: Config, activation: str) -> Config:
    """Returns a config with `gelu` or `quick_gelu` in both towers."""
    kind = cast(Activation, activation)
    towers: dict[str, Any] = {
        name: dataclasses.replace(getattr(config, name), hidden_act=kind)
        for name in ("vision", "text")
    }
    return dataclasses.replace(config, **towers)


def _layers(shapes: Shapes, tower: str) -> int:
    pattern = re.compile(rf"{re.escape(tower)}\.resblocks\.(\d+)\.")
    return len({found[1] for name in shapes if (found := pattern.match(name))})
