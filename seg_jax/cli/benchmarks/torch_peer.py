"""Gives PyTorch's side of a benchmark the same model and the same questions as ours."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from flax import nnx

from seg_jax.data import pipeline
from seg_jax.data.sources import Scenes
from seg_jax.inference import bundle as bundles
from seg_jax.inference.bundle import Bundle
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import qwen25_vl
from seg_jax.records import Prompts
from seg_jax.runs import console, experiments, start, supervised
from seg_jax.scenes import world
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.tasks.task import Example

Size = Literal["tiny", "3b", "7b"]
"""The quickstart's start, or Qwen2.5-VL of that size with random weights."""


class Questions(NamedTuple):
    """A model and what it is asked: outlines of things in drawn scenes."""

    bundle: Bundle
    examples: list[Example]
    prompts: Prompts
    """The same on the host."""
    config: qwen25_vl.Config
    compute: Compute


def questions(count: int, seed: int, size: Size = "tiny") -> Questions:
    """Returns a Qwen2.5-VL and `count` questions about one image each.

    The tiny one has a million trained weights, for 64-pixel scenes; untrained ones would take the
    same time, but say one token forever. The others compute in bfloat16, for 640-pixel scenes.
    """
    if size == "tiny":
        tiny = experiments.load("simpleseg/tiny_sft.py")
        compute, source = tiny.COMPUTE, tiny.scenes(seed=seed)
        bundle = bundles.load(experiments.QUICKSTART_START, compute=compute)
    else:
        compute, source = Compute(dtype="bfloat16", param_dtype="bfloat16"), large(seed)
        run = experiments.load(f"simpleseg/qwen25_vl_{size}_sft.py").config()
        run = dataclasses.replace(run, compute=compute, source=source, ordered_numbers=False)
        with tempfile.TemporaryDirectory() as folder:
            begin = start.with_random_weights(run, Path(folder))
        bundle = dataclasses.replace(begin.bundle, params=begin.weights())
    task = dataclasses.replace(cast(Referring, bundle.task), mixture=Mixture())
    source = dataclasses.replace(source, count=count)
    [(examples, prompts)] = pipeline.batches_in_order(source, task, bundle.encoder, batch=count)
    config = nnx.merge(bundle.graph, bundle.params).config
    return Questions(bundle, examples, prompts, config, compute)


def large(seed: int) -> Scenes:
    """Returns scenes as large as COCO's images."""
    return Scenes(world=dataclasses.replace(world.easy(), height=640, width=640), seed=seed)


def missing(*names: str) -> list[str]:
    """Returns which packages are not there, and says so."""
    lost = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            lost.append(name)
    if lost:
        console.say(f"not installed: {', '.join(lost)}; do: pip install 'seg-jax[torch]'")
    return lost


def reason_without_step(run: Any) -> str:
    """Returns why transformers cannot take the training step of a run; empty where it can."""
    if not isinstance(run, supervised.Config):
        return "transformers takes the step of a configuration of finetune"
    if not isinstance(run.completed().model, qwen25_vl.Config):
        return "transformers takes the step of a Qwen2.5-VL"
    return "transformers has no packed rows" if run.feed.pack is not None else ""


def model(questions: Questions, size: Size = "tiny") -> Any:
    """Returns transformers' Qwen2.5-VL: of the same folder in float32, or random in bfloat16."""
    import torch

    # By name, here and in its sisters, as in annotation/hub.py.
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    if size == "tiny":
        theirs = kind.from_pretrained(experiments.QUICKSTART_START, dtype=torch.float32)
        return theirs.to(device()).eval()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device()):
            return kind(transformers.Qwen2_5_VLConfig(**questions.config.to_hf())).eval()
    finally:
        torch.set_default_dtype(before)


def device() -> str:
    """Returns where PyTorch computes: beside JAX, on an accelerator if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def inputs(questions: Questions, prompts: Prompts) -> dict[str, Any]:
    """Returns prompts as transformers' `generate` takes them: the same tokens, the same pixels."""
    import torch

    tokens, images = prompts.tokens, prompts.images
    vision = questions.config.vision
    side, real = vision.patch_size, images.image >= 0
    raw = images.patches[real].reshape(-1, 3, 1, side, side).astype(np.float32) / 255
    mean, std = (
        np.array(values, np.float32)[:, None, None, None]
        for values in (vision.image_mean, vision.image_std)
    )
    frames = np.repeat((raw - mean) / std, vision.temporal_patch_size, 2).reshape(len(raw), -1)
    frames = torch.tensor(frames, dtype=getattr(torch, questions.compute.dtype))
    sides = [place[own].max(0) + 1 for place, own in zip(images.place, real, strict=True)]
    tensors = {
        "input_ids": torch.tensor(tokens.ids).long(),
        "attention_mask": torch.tensor(tokens.segments == tokens.segments[:, -1:]).long(),
        "mm_token_type_ids": torch.tensor(tokens.ids == questions.bundle.tokenizer.image_id).int(),
        "pixel_values": frames,
        "image_grid_thw": torch.tensor([(1, int(height), int(width)) for height, width in sides]),
    }
    return {name: value.to(device()) for name, value in tensors.items()}


def processor(questions: Questions) -> Any:
    """Returns transformers' Qwen2.5-VL processor for these images; it cuts them as ours does.

    Without its part for videos, which needs torchvision.
    """
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images
    from transformers.processing_utils import ProcessorMixin

    class Stills(Qwen2_5_VLProcessor):
        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    layout, vision = questions.bundle.layout, questions.config.vision
    cutter = images.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=layout.min_pixels,
        max_pixels=layout.max_pixels,
        image_mean=list(vision.image_mean),
        image_std=list(vision.image_std),
    )
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(
        experiments.QUICKSTART_START, padding_side="left"
    )
    return Stills(cutter, tokenizer, chat_template=tokenizer.chat_template)
