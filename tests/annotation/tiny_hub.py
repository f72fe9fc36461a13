"""Folders of tiny Grounding DINO, SAM and SAM 2 models of random weights, as on the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

WORDS = ("red", "blue", "star", "circle", "a", "the", "dog", "##s")


def detector(folder: Path, *, max_text_len: int = 24) -> Path:
    """Writes a Grounding DINO of a few thousand weights; returns its folder."""
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        window_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        image_size=64,
        out_features=["stage2", "stage3", "stage4"],
    )
    bert = transformers.BertConfig(
        vocab_size=1100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=max_text_len,
    )
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    _tokenizer(folder)
    _write(
        folder,
        {
            "image_processor_type": "GroundingDinoImageProcessor",
            "size": {"shortest_edge": 96, "longest_edge": 160},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    )
    return folder


def _tokenizer(folder: Path) -> None:
    """Writes a tokenizer of words, with BERT's numbers for what Grounding DINO looks for."""
    places = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    places |= {1012: ".", 1029: "?"}
    places |= {1030 + place: word for place, word in enumerate(WORDS)}
    names = [places.get(number, f"[unused{number}]") for number in range(1100)]
    vocab = {name: number for number, name in enumerate(names)}
    transformers.BertTokenizer(vocab=vocab, do_lower_case=True).save_pretrained(folder)


def sam(folder: Path) -> Path:
    """Writes a SAM of a few thousand weights; returns its folder."""
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=16,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[1],
            num_pos_feats=8,
            mlp_dim=32,
            initializer_range=0.02,
        ).to_dict(),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
        ).to_dict(),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ).to_dict(),
    )
    _loud(transformers.SamModel(config)).save_pretrained(folder)
    _write(
        folder,
        {
            "image_processor_type": "SamImageProcessor",
            "size": {"longest_edge": 64},
            "pad_size": {"height": 64, "width": 64},
        },
    )
    return folder


def sam2(folder: Path, *, video: bool = False) -> Path:
    """Writes a SAM 2 of a few thousand weights; returns its folder.

    Args:
      folder: where to.
      video: whether as the published ones, whose weights follow objects through videos, too.
    """
    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 2, 1],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2}
    decoder |= {"iou_head_hidden_dim": 16}
    parts = {"vision_config": vision.to_dict(), "prompt_encoder_config": prompt}
    parts |= {"mask_decoder_config": decoder}
    if video:
        memory = {"memory_attention_hidden_size": 16, "memory_attention_num_layers": 1}
        memory |= {"memory_attention_feed_forward_hidden_size": 32}
        memory |= {"memory_encoder_hidden_size": 16, "memory_encoder_output_channels": 8}
        memory |= {"mask_downsampler_embed_dim": 16, "memory_fuser_embed_dim": 16}
        memory |= {"memory_fuser_intermediate_dim": 32, "image_size": 64}
        config = transformers.Sam2VideoConfig(**parts, **memory)
        _loud(transformers.Sam2VideoModel(config)).save_pretrained(folder)
    else:
        _loud(transformers.Sam2Model(transformers.Sam2Config(**parts))).save_pretrained(folder)
    _write(
        folder,
        {
            "image_processor_type": "Sam2ImageProcessorFast",
            "size": {"height": 64, "width": 64},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    )
    return folder


def _loud(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a model with weights so large that its logits are no mere noise around zero."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.3)
    return model


def _write(folder: Path, processor: dict) -> None:
    common = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2}
    common |= {"rescale_factor": 1 / 255, "image_mean": [0.485, 0.456, 0.406]}
    common |= {"image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(common | processor))
