"""SimpleSeg's supervised fine-tuning of Qwen2.5-VL-7B on 800,000 samples.

Meant for v5e-256 (16x16), v5p-64 (4x4x4) or 32 x H100.
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax finetune configs/simpleseg/qwen25_vl_7b_sft.py --checkpoint models/qwen25-vl-7b

Source: SimpleSeg, arXiv 2601.19228: 800,000 samples once, batches of 256, Muon, cosine from 5e-5
to 2e-6 after a warm-up of 3 %.
"""

from pathlib import Path

from seg_jax.data.encode import Layout
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.models.nn.compute import Compute
from seg_jax.models.vlm import qwen25_vl
from seg_jax.runs import supervised
from seg_jax.tasks.referring import Referring
from seg_jax.training import loop, optimizers, steps

SAMPLES = 800_000
BATCH = 256
VISUAL_TOKENS = 576
"""Of an image: COCO's largest, 640 x 640 pixels, has 529 and is not shrunk."""

MODEL = qwen25_vl.Config(
    text=qwen25_vl.Text(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
)
LAYOUT = Layout(
    max_pixels=28 * 28 * VISUAL_TOKENS,
    max_patches=4 * VISUAL_TOKENS,
    max_prompt=VISUAL_TOKENS + 64 + 128,
    max_question=128,
    max_answer=1024,
    canvas=(640, 640),
    buckets=4,
)
"""Rows of one image of COCO at its own size, a question and an outline.

An outline of 64 points takes 900 tokens where every digit is one.
"""
TASK = Referring(digits=3, epsilon=0.005, max_points=64)
"""Referring by text, three decimals, outlines simplified as the paper's best."""
COMPUTE = Compute(dtype="bfloat16", param_dtype="float32", remat="full")
"""Bfloat16 products of float32 weights, layers made again in the backward pass."""


def config() -> supervised.Config:
    """Returns the run, all weights trained."""
    return supervised.Config(
        out=Path("runs/qwen25_vl_7b_sft"),
        model=MODEL,
        compute=COMPUTE,
        mesh=steps.Mesh(fsdp=-1),
        source=Scenes(count=SAMPLES),
        task=TASK,
        layout=LAYOUT,
        feed=Feed(batch=BATCH),
        optimizer=optimizers.Muon(lr=5e-5, schedule=optimizers.Schedule(warmup=0.03, final=0.04)),
        loop=loop.Loop(steps=SAMPLES // BATCH, save_minutes=20.0),
        loss_chunk=256,
    )
