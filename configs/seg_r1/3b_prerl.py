"""Seg-R1's first reinforcement of Qwen2.5-VL-3B: clicks alone on DIS5K, no answer to imitate.

Meant for eight H100; pods: README.md beside.
seg-jax reinforce configs/seg_r1/3b_prerl.py --checkpoint models/qwen25-vl-3b
  --segmenter models/sam2-l

Published (arXiv 2506.22624 and its release): data and one pass over them, wording, frame of 768,
four answers of up to 256 tokens at temperature 1, 24 prompts a step in three pieces, rate 1e-6
constant, 0.7 IoU + 0.3 S-measure + format. Not set by its scripts, so the defaults of what they
call: kl 0.04, betas 0.9 and 0.999, clipping at 1.0, no decay. Ours: float32 weights, and the
S-measure that the paper means (task.released: what its code computes).
"""

from pathlib import Path

from seg_jax.data.encode import Layout
from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Built
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import experiments, reinforcement
from seg_jax.tasks.prompted import Prompted
from seg_jax.training import loop, optimizers, policy, steps

MODEL = experiments.load("simpleseg/qwen25_vl_3b_sft.py").MODEL
VISUAL_TOKENS = 27 * 27
"""Of 756 x 756 pixels, what Qwen2.5-VL makes of an image of 768 x 768."""
QUESTION = 192
LAYOUT = Layout(
    max_pixels=28 * 28 * VISUAL_TOKENS,
    max_patches=4 * VISUAL_TOKENS,
    max_prompt=VISUAL_TOKENS + 39 + QUESTION,
    max_question=QUESTION,
    max_answer=1024,
)
"""Rows of one image: the wording takes 141 tokens behind it and some 15 before, and a tenth more
where compile makes a tokenizer; evaluation lets answers have 1,024 tokens."""
GRPO = policy.Policy(
    ratio="token",
    spread="sample",
    spread_eps=1e-4,
    anchor="self",
    kl=0.04,
    minibatches=1,
    accumulate=3,
)
"""GRPO as released: one update a batch, whose ratios are 1."""


def config() -> reinforcement.Config:
    """Returns the run."""
    return reinforcement.Config(
        out=Path("runs/seg_r1_3b_prerl"),
        model=MODEL,
        task=Prompted(stage="prerl", square=True),
        layout=LAYOUT,
        compute=Compute(dtype="bfloat16", param_dtype="float32", remat="full"),
        mesh=steps.Mesh(fsdp=-1),
        source=Built(folders=(Path("data/dis5k"),), singly=True),
        feed=Feed(batch=24),
        sampling=steps.Sampling(answers=4, temperature=1.0, max_tokens=256),
        policy=GRPO,
        optimizer=optimizers.AdamW(
            lr=1e-6, b2=0.999, schedule=optimizers.Schedule(warmup=0.0, final=1.0)
        ),
        loop=loop.Loop(epochs=1, save_minutes=20.0),
        loss_chunk=256,
    )
