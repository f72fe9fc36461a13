"""Holds names and shapes of the published sizes to transformers, without any weight."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest
import tables
from flax import nnx
from published_configs import QWEN25, qwen25

from seg_jax.models.clip import config as clip
from seg_jax.models.clip import openai_names
from seg_jax.models.io import weights
from seg_jax.models.nn.compute import Compute
from seg_jax.models.sam2 import meta_names
from seg_jax.models.sam2.config import Config
from seg_jax.models.vlm import qwen3_vl, qwen25_vl
from seg_jax.records import Images

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QWEN3 = {
    # Width, ffn, layers, heads, tied, then of the tower: blocks, width, ffn, blocks that go deep.
    "2B": (2048, 6144, 28, 16, True, 24, 1024, 4096, [5, 11, 17], 2.13),
    "4B": (2560, 9728, 36, 32, True, 24, 1024, 4096, [5, 11, 17], 4.44),
    "8B": (4096, 12_288, 36, 32, False, 27, 1152, 4304, [8, 16, 24], 8.77),
    "32B": (5120, 25_600, 64, 64, False, 27, 1152, 4304, [8, 16, 24], 33.36),
}


def qwen3(size: str) -> dict:
    """Returns a published `config.json`."""
    width, ffn, depth, heads, tie, blocks, vision_width, vision_ffn, deep, _ = QWEN3[size]
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "dtype": "bfloat16",
        "eos_token_id": 151_645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 262_144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5_000_000,
        "use_cache": True,
        "vocab_size": 151_936,
    }
    vision = {
        "deepstack_visual_indexes": deep,
        "depth": blocks,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": vision_width,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": vision_ffn,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": width,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151_655,
        "model_type": "qwen3_vl",
        "text_config": text,
        "tie_word_embeddings": tie,
        "video_token_id": 151_656,
        "vision_config": vision,
        "vision_end_token_id": 151_653,
        "vision_start_token_id": 151_652,
    }


def theirs(kind: str, hub: dict) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of transformers' model; a tied head is the embedding."""
    config = getattr(transformers, f"{kind}Config")(**hub)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


@pytest.mark.parametrize("size", QWEN25)
def test_published_sizes_of_qwen25_vl(size):
    config = qwen25_vl.Config.from_hf(qwen25(size))
    want = theirs("Qwen2_5_VL", qwen25(size))
    # Inside transformers the parts stand under other names than in files.
    inside = (("model.visual.", "visual."), ("model.language_model.", "model."))
    for old, new in inside:
        want = {new + n.removeprefix(old) if n.startswith(old) else n: s for n, s in want.items()}
    assert {slot.name: slot.shape for slot in weights.tensor_parts(config)} == want
    _check_count(lambda rngs: qwen25_vl.Qwen25VL(config, rngs=rngs), want, QWEN25[size][-1])


@pytest.mark.parametrize("size", QWEN3)
def test_published_sizes_of_qwen3_vl(size):
    config = qwen3_vl.Config.from_hf(qwen3(size))
    want = theirs("Qwen3VL", qwen3(size))
    params = _check_count(lambda rngs: qwen3_vl.Qwen3VL(config, rngs=rngs), want, QWEN3[size][-1])
    found = {place.name: place.shape for place in tables.places(qwen3_vl.NAMES, params)}
    assert found == {name: tables.matrix(shape) for name, shape in want.items()}


SAM2 = {"tiny": 31.4, "small": 38.5, "base-plus": 73.3, "large": 216.9}
"""Millions of weights of the image path."""


@pytest.mark.parametrize("size", SAM2)
def test_published_sizes_of_sam2(size):
    config = Config(backbone=meta_names.SIZES[size])
    with torch.device("meta"):
        model = transformers.Sam2Model(transformers.Sam2Config(**config.to_hf()))
    want = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parts = weights.tensor_parts(config)
    assert {part.name: part.shape for part in parts} == want
    ours = weights.leaves(weights.blank(config, Compute()))
    count = sum(leaf.size for leaf in ours.values())
    assert count == sum(map(math.prod, want.values()))
    assert round(count / 1e6, 1) == SAM2[size]


CLIP = {
    # Patch, width, layers, side, width of the texts, common width; millions of weights.
    "ViT-B/32": (32, 768, 12, 224, 512, 512, 151.3),
    "ViT-B/16": (16, 768, 12, 224, 512, 512, 149.6),
    "ViT-L/14": (14, 1024, 24, 224, 768, 768, 427.6),
    "ViT-L/14@336px": (14, 1024, 24, 336, 768, 768, 427.9),
}


def clip_config(size: str) -> clip.Config:
    patch, width, layers, side, narrow, common, _ = CLIP[size]
    return clip.Config(
        vision=clip.Vision(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            image_size=side,
            patch_size=patch,
        ),
        text=clip.Text(
            hidden_size=narrow,
            intermediate_size=4 * narrow,
            num_attention_heads=narrow // 64,
            eos_token_id=2,
        ),
        projection_dim=common,
    )


def openai_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes as `open_clip.model.CLIP` has them.

    They were compared once with open_clip 3.3.0 (ViT-B-32, ViT-B-16, ViT-L-14, ViT-L-14-336).
    """
    patch, width, layers, side, narrow, common, _ = CLIP[size]
    found = {
        "logit_scale": (),
        "positional_embedding": (77, narrow),
        "text_projection": (narrow, common),
        "token_embedding.weight": (49_408, narrow),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.proj": (width, common),
        "visual.conv1.weight": (width, 3, patch, patch),
    }
    norms = {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": narrow}
    for tower, many, wide in (("visual.", layers, width), ("", 12, narrow)):
        for layer in range(many):
            block = f"{tower}transformer.resblocks.{layer}."
            norms |= {f"{block}ln_1": wide, f"{block}ln_2": wide}
            found |= {f"{block}attn.in_proj_weight": (3 * wide, wide)}
            found |= {f"{block}attn.in_proj_bias": (3 * wide,)}
            for name, shape in {
                "attn.out_proj": (wide, wide),
                "mlp.c_fc": (4 * wide, wide),
                "mlp.c_proj": (wide, 4 * wide),
            }.items():
                found |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    for name, wide in norms.items():
        found |= {f"{name}.{kind}": (wide,) for kind in ("weight", "bias")}
    return found


@pytest.mark.parametrize("size", CLIP)
def test_published_sizes_of_clip(size):
    config = clip_config(size)
    with torch.device("meta"):
        model = transformers.CLIPModel(transformers.CLIPConfig(**config.to_hf()))
    want = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {part.name: part.shape for part in weights.tensor_parts(config)} == want
    ours = weights.leaves(weights.blank(config, Compute()))
    count = sum(leaf.size for leaf in ours.values())
    assert count == sum(map(math.prod, want.values()))
    assert round(count / 1e6, 1) == CLIP[size][-1]
    theirs = openai_shapes(size)
    parts = weights.tensor_parts(config, published=True)
    assert {part.name: part.shape for part in parts} == theirs
    assert openai_names.config_of(theirs) == config


def test_the_defaults_of_clip_are_those_of_vit_b_32():
    named = clip_config("ViT-B/32")
    assert clip.Config(text=dataclasses.replace(clip.Text(), eos_token_id=2)) == named
    assert clip.Config.from_hf({"model_type": "clip"}) == clip.Config()


def _check_count(make, want, billions):
    """Checks the number of parameters, ours and theirs; returns the shapes of ours."""
    params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[1]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(map(math.prod, want.values()))
    assert round(count / 1e9, 2) == billions
    return params


def test_the_defaults_are_the_published_7b_and_8b():
    assert qwen25_vl.Config.from_hf(qwen25("7B")) == qwen25_vl.Config()
    assert qwen3_vl.Config.from_hf(qwen3("8B")) == qwen3_vl.Config()


LARGE = 5184
"""Patches of an image of about a megapixel."""


@pytest.mark.parametrize("kind", ["qwen25", "qwen3"])
def test_large_images_never_hold_all_pairs_of_patches(kind):
    compute = Compute(dtype="bfloat16", param_dtype="bfloat16", remat="full")
    make, config = {
        "qwen25": (qwen25_vl.Qwen25VL, qwen25_vl.Config()),
        "qwen3": (qwen3_vl.Qwen3VL, qwen3_vl.Config()),
    }[kind]
    side = config.vision.patch_size
    model = nnx.eval_shape(lambda: make(config, compute=compute, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model.vision)
    whole = jax.ShapeDtypeStruct((1, LARGE), "int32")
    images = Images(
        jax.ShapeDtypeStruct((1, LARGE, 3 * side * side), "uint8"),
        jax.ShapeDtypeStruct((1, LARGE, 2), "int32"),
        whole,
        whole,
    )

    def loss(params, images):
        return nnx.merge(graph, params)(images).visual_tokens.astype("float32").sum()

    text = jax.jit(jax.grad(loss)).lower(params, images).as_text()
    assert f"{LARGE}x{LARGE}" not in text
