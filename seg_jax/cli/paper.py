"""The runs of SimpleSeg at full size: what is published of them, and starting values for the rest.

Source: SimpleSeg, arXiv 2601.19228: 800,000 samples once, batches of 256, Muon, cosine from 5e-5
to 2e-6 after a warm-up of 3 % for SFT; GSPO on 400,000 prompts. Nothing more of its GSPO is
published: clips and minibatches are those of GSPO, arXiv 2507.18071, rate, group and batch those of
public runs on the same data sets.
"""

from __future__ import annotations

from pathlib import Path

from seg_jax.data.encode import Layout
from seg_jax.data.packing import Pack
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Built, Mixed, Scenes
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import kimi_vl, qwen25_vl
from seg_jax.runs import reinforcement, supervised
from seg_jax.runs.start import Model
from seg_jax.tasks.referring import Mixture, Referring
from seg_jax.training import loop, optimizers, policy, steps

BATCH = 256
SFT_SAMPLES = 800_000
GSPO_PROMPTS = 400_000
VISUAL_TOKENS = 576
"""Of an image: COCO's largest, 640 x 640 pixels, has 529 and is not shrunk."""
SHARDS = 64
"""Of weights where rows need not be as many as chips, and where widths are odd multiples of 64."""

QWEN_3B = qwen25_vl.Config(
    text=qwen25_vl.Text(
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
    ),
    tie_word_embeddings=True,
)
QWEN_7B = qwen25_vl.Config()
QWEN_32B = qwen25_vl.Config(
    text=qwen25_vl.Text(
        hidden_size=5120,
        intermediate_size=27_648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
    ),
    vision=qwen25_vl.Vision(intermediate_size=3456),
)
QWEN_72B = qwen25_vl.Config(
    text=qwen25_vl.Text(
        hidden_size=8192,
        intermediate_size=29_568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
    vision=qwen25_vl.Vision(intermediate_size=3456),
)
KIMI_A3B = kimi_vl.Config()


def sft_config(model: Model, *, name: str) -> supervised.Config:
    """Returns supervised fine-tuning of a model, all weights trained.

    Data are drawn scenes, which need no files; `refer_data()` gives data sets that were built.
    """
    return supervised.Config(
        out=Path(f"runs/{name}_sft"),
        model=model,
        compute=compute(),
        mesh=_mesh(model),
        source=Scenes(count=SFT_SAMPLES),
        task=task(),
        layout=layout(),
        feed=Feed(batch=BATCH),
        optimizer=optimizers.Muon(lr=5e-5, schedule=optimizers.Schedule(warmup=0.03, final=0.04)),
        loop=loop.Loop(steps=SFT_SAMPLES // BATCH, save_minutes=20.0),
        loss_chunk=256,
    )


def gspo_config(model: Model, *, name: str) -> reinforcement.Config:
    """Returns GSPO from a supervised model, the rate constant after the warm-up.

    Data are drawn scenes, which need no files; `refer_data()` gives data sets that were built.
    """
    return reinforcement.Config(
        out=Path(f"runs/{name}_gspo"),
        model=model,
        task=task(),
        layout=layout(),
        compute=compute(),
        # A minibatch of 64 prompts is divided among 64 shards.
        mesh=steps.Mesh(fsdp=SHARDS, tensor=-1),
        source=Scenes(seed=1, count=GSPO_PROMPTS),
        feed=Feed(batch=BATCH),
        sampling=steps.Sampling(answers=8, temperature=1.0, max_tokens=layout().max_answer),
        policy=policy.Policy(minibatches=4, clip_low=3e-4, clip_high=4e-4),
        optimizer=optimizers.AdamW(lr=1e-6, schedule=optimizers.Schedule(final=1.0)),
        loop=loop.Loop(steps=GSPO_PROMPTS // BATCH, save_minutes=20.0),
        loss_chunk=256,
    )


def refer_data(folder: Path = Path("data")) -> Built:
    """Returns the data sets that SimpleSeg was trained on, as `seg-jax build` leaves them."""
    names = ("refcoco_unc", "refcocoplus_unc", "refcocog_umd", "refclef_unc")
    return Built(folders=tuple(folder / name for name in names))


def packed_feed() -> Feed:
    """Returns rows of about four images, so that a batch is about `BATCH` of them."""
    return Feed(batch=SHARDS, workers=8, pack=Pack(tokens=3072, patches=6656))


def mixed_data(folder: Path = Path("data")) -> Mixed:
    """Returns these with gRefCOCO, for several objects and none, and COCO, for points and boxes.

    The weights are ours; nothing of the kind is published.
    """
    several = Built(folders=(folder / "grefcoco_unc",), absent=True)
    singly = Built(folders=(folder / "coco_instances",), split="train2017", singly=True)
    return Mixed(parts=(refer_data(folder), several, singly), weights=(0.6, 0.25, 0.15))


def all_questions() -> Mixture:
    """Returns every question of SimpleSeg's task set with shares of ours, and what is not there."""
    return Mixture(
        text_mask=0.5, text_box=0.1, text_point=0.1, point_mask=0.1, box_mask=0.1, absent=0.1
    )


def layout() -> Layout:
    """Returns rows of one image of COCO at its own size, a question and an outline.

    An outline of 64 points takes 900 tokens where every digit is one.
    """
    return Layout(
        max_pixels=28 * 28 * VISUAL_TOKENS,
        max_patches=4 * VISUAL_TOKENS,
        max_prompt=VISUAL_TOKENS + 64 + 128,
        max_question=128,
        max_answer=1024,
        canvas=(640, 640),
        buckets=4,
    )


def task() -> Referring:
    """Returns referring by text, three decimals, outlines simplified as the paper's best."""
    return Referring(digits=3, epsilon=0.005, max_points=64)


def compute() -> Compute:
    """Returns bfloat16 products of float32 weights, layers made again in the backward pass."""
    return Compute(dtype="bfloat16", param_dtype="float32", remat="full")


def _mesh(model: Model) -> steps.Mesh:
    """Returns all chips as shards of the weights, for Kimi-VL copies of 64 shards."""
    # MoonViT is 1152 wide, which no more chips divide.
    kimi = isinstance(model, kimi_vl.Config)
    return steps.Mesh(data=-1, fsdp=SHARDS) if kimi else steps.Mesh(fsdp=-1)
