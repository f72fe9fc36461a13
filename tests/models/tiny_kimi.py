"""Tiny random Kimi-VL models, and the same in transformers under the names of the hub."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import random_weights
import tiny_vlm
from flax import nnx
from tiny_vlm import IMAGE, VOCAB

from seg_jax.geometry import grid
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import kimi_vl, moonlight, moonvit
from seg_jax.records import Images, Tokens

LOADED = Compute()


def config(*, tie: bool = False, **changes: Any) -> kimi_vl.Config:
    """Returns a model of a few thousand weights: a dense layer, then two with eight experts."""
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "patch_size": 6,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "init_pos_emb_height": 8,
        "init_pos_emb_width": 8,
    }
    return kimi_vl.Config(
        text=moonlight.Text(**(text | changes.get("text", {}))),
        vision=moonvit.Vision(**(vision | changes.get("vision", {}))),
        tie_word_embeddings=tie,
        media_placeholder_token_id=IMAGE,
    )


def blank(config: kimi_vl.Config, compute: Compute = LOADED) -> kimi_vl.KimiVL:
    """Returns the shapes of a model."""
    return nnx.eval_shape(lambda: kimi_vl.KimiVL(config, compute=compute, rngs=nnx.Rngs(0)))


def model(
    config: kimi_vl.Config, *, compute: Compute = LOADED, amplify: float = 1.0
) -> kimi_vl.KimiVL:
    """Returns a model drawn by numpy; its router biases are drawn too."""
    graph, shapes = nnx.split(blank(config, compute))
    drawn = random_weights.drawn(shapes, amplify * 0.02, router=amplify * 10 * 0.02)
    return nnx.merge(graph, drawn)


def names_of(path) -> tuple[str, ...]:
    """Returns the names of a key path."""
    return tuple(str(key.key) for key in path if hasattr(key, "key"))


def slots(path: tuple[str, ...], lead: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Returns the hub names that make one of our arrays, with the part of their rows.

    Args:
      path: of our array.
      lead: sizes of its axes of layers and experts.
    """
    pattern = kimi_vl.NAMES.get("/".join(path))
    if pattern is None:
        theirs = {"kernel": "weight", "bias": "bias"}[path[-1]]
        pattern = kimi_vl.NAMES["/".join((*path[:-1], "*"))].replace("*", theirs)
    part, parts = 0, 1
    if found := re.fullmatch(r"(.*)\[(\d)/(\d)\]", pattern):
        pattern, part, parts = found[1], int(found[2]), int(found[3])
    out = []
    for where in np.ndindex(*lead):
        layer = where[0] if where else 0
        name = pattern.replace("{+1}", str(layer + 1)).replace("{}", str(layer))
        out.append((name.replace("{e}", str(where[-1]) if where else ""), part, parts))
    return out


def lead_of(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes of the axes of layers and of experts of one of our arrays."""
    stacked = "blocks" in path or path[0] == "first"
    return shape[: stacked + path[-2].startswith("expert_")]


def from_hub(config: kimi_vl.Config, tensors: dict[str, Any]) -> Any:
    """Returns the state of a model made of hub tensors, each of which must be used."""
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    used: dict[str, int] = {}

    def fill(path, leaf):
        names = names_of(path)
        pieces = []
        for name, part, parts in slots(names, lead_of(names, leaf.shape)):
            used[name] = used.get(name, 0) + 1
            piece = np.split(tensors[name], parts)[part]
            if names[-1] == "kernel":
                piece = piece.reshape(len(piece), -1).T
            pieces.append(piece)
        return jax.device_put(np.stack(pieces).reshape(leaf.shape))

    state = jax.tree_util.tree_map_with_path(fill, nnx.split(blank(config))[1])
    assert set(used) == set(tensors)
    return state


def hub(theirs: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Returns tensors of transformers' Kimi-K2.5 (or their gradients) under Kimi-VL's hub names.

    Query and key rows of the vision tower go back from halves to neighbouring pairs, q, k and v
    into one tensor, and stacked experts apart.
    """
    import torch

    heads = theirs.config.vision_config.num_attention_heads

    def pairs(tensor):
        half = tensor.shape[0] // heads // 2
        split = tensor.view(heads, 2, half, *tensor.shape[1:])
        return split.transpose(1, 2).reshape(tensor.shape)

    found, fused = {}, {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight" and theirs.config.tie_word_embeddings:
            continue
        if at := re.fullmatch(r"(.*vision_tower\.layers\.\d+\.attn)\.([qkv])_proj\.(\w+)", name):
            rows = tensor if at[2] == "v" else pairs(tensor)
            fused.setdefault(f"{at[1]}.wqkv.{at[3]}", {})[at[2]] = rows
        elif at := re.fullmatch(r"(.*mlp\.experts)\.(gate_up|down)_proj", name):
            for e, expert in enumerate(tensor):
                if at[2] == "down":
                    found[f"{at[1]}.{e}.down_proj.weight"] = expert
                    continue
                gate, up = expert.chunk(2)
                found[f"{at[1]}.{e}.gate_proj.weight"] = gate
                found[f"{at[1]}.{e}.up_proj.weight"] = up
        else:
            found[name] = tensor
    found |= {name: torch.cat([rows[k] for k in "qkv"]) for name, rows in fused.items()}
    renamed = (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.mm_projector.", "multi_modal_projector."),
        ("model.vision_tower.final_layernorm", "vision_tower.encoder.final_layernorm"),
        ("model.vision_tower.layers", "vision_tower.encoder.blocks"),
        ("model.vision_tower.", "vision_tower."),
        ("pos_emb.position_embeddings", "pos_emb.weight"),
        ("projector.in_proj", "projector.linear_1"),
        ("projector.out_proj", "projector.linear_2"),
    )
    vision = (("attn.wqkv", "wqkv"), ("attn.proj", "wo"), ("norm1", "norm0"), ("norm2", "norm1"))
    vision += (("mlp.fc1", "mlp.fc0"), ("mlp.fc2", "mlp.fc1"))

    def rename(name):
        for old, new in renamed:
            name = new + name.removeprefix(old) if name.startswith(old) else name.replace(old, new)
        if name.startswith("vision_tower.encoder.blocks"):
            for old, new in vision:
                if f".{old}." in name:
                    return name.replace(old, new)
        return name

    return {rename(name): tensor for name, tensor in found.items()}


def stack(rows: list[tiny_vlm.Row], **options: Any) -> tuple[Tokens, Images]:
    """Returns rows padded to one shape, with positions that count tokens."""
    tokens, images = tiny_vlm.stack(rows, **options)
    counted = np.maximum(np.cumsum(tokens.segments, 1) - 1, 0).astype(np.int32)
    positions = np.repeat(counted[:, None], 3, 1)
    return tokens._replace(positions=positions), images


def raster(row: tiny_vlm.Row) -> np.ndarray:
    """Returns a row's patches with those of each image line by line."""
    out, at = np.empty_like(row.patches), 0
    for gh, gw in row.grids:
        where = at + grid.patch_positions(gh, gw, 2) @ [gw, 1]
        out[where] = row.patches[at : at + gh * gw]
        at += gh * gw
    return out
