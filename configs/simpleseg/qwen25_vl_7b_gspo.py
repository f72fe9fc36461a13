"""SimpleSeg's GSPO of Qwen2.5-VL-7B on 400,000 prompts.

Meant for v5p-64 (4x4x4) or v5e-256 (16x16).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py.
seg-jax reinforce configs/simpleseg/qwen25_vl_7b_gspo.py
  --checkpoint runs/qwen25_vl_7b_sft/checkpoint

Source: SimpleSeg, arXiv 2601.19228, for the number of prompts, and nothing more is published of its
GSPO: clips and minibatches are those of GSPO, arXiv 2507.18071, rate, group and batch those of
public runs on the same data sets.
"""

from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.runs import experiments, reinforcement
from seg_jax.training import loop, optimizers, policy, steps

SFT = experiments.sibling(__file__, "qwen25_vl_7b_sft.py")
PROMPTS = 400_000
BATCH = 256


def config() -> reinforcement.Config:
    """Returns the run, the rate constant after the warm-up."""
    return reinforcement.Config(
        out=Path("runs/qwen25_vl_7b_gspo"),
        model=SFT.MODEL,
        task=SFT.TASK,
        layout=SFT.LAYOUT,
        compute=SFT.COMPUTE,
        # A minibatch of 64 prompts is divided among 64 shards.
        mesh=steps.Mesh(fsdp=64, tensor=-1),
        source=Scenes(seed=1, count=PROMPTS),
        feed=Feed(batch=BATCH),
        sampling=steps.Sampling(answers=8, temperature=1.0, max_tokens=SFT.LAYOUT.max_answer),
        policy=policy.Policy(minibatches=4, clip_low=3e-4, clip_high=4e-4),
        optimizer=optimizers.AdamW(lr=1e-6, schedule=optimizers.Schedule(final=1.0)),
        loop=loop.Loop(steps=PROMPTS // BATCH, save_minutes=20.0),
        loss_chunk=256,
    )
