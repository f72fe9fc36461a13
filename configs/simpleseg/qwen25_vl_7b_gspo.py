"""SimpleSeg's GSPO of Qwen2.5-VL-7B on 400,000 prompts.

Meant for v5p-64 (4x4x4) or v5e-256 (16x16).
Data are drawn scenes; built data sets take their place as in qwen25_vl_7b_refer_sft.py, or by
--data, with --validate.split val. First see whether it can pay; `reinforce` says it of its first
prompts too:
seg-jax evaluate --checkpoint runs/qwen25_vl_7b_sft/checkpoint --scenes 1024 --samples 8
seg-jax reinforce configs/simpleseg/qwen25_vl_7b_gspo.py
  --checkpoint runs/qwen25_vl_7b_sft/checkpoint

SimpleSeg's (arXiv 2601.19228): GSPO on 400,000 prompts, rewarded by mask IoU, distance of the
centroids and format; nothing more is published. GSPO's (2507.18071): clips, four minibatches, no
KL term. Of public runs on the same data sets: rate, group, batch, temperature. Ours, of runs of a
million weights (README.md beside): the weights of the rewards; groups that do not differ are left
out and small spreads are not blown up, so that noise is no lesson; held-out images, of which the
best weights are kept. Batches are not filled again (`rounds`): that asks for prompts of one
length, which these rows are not, and what it pays is not measured.

Watch `clip_fraction`, 15 % in GSPO's paper on answers of thousands of tokens, and more on short
ones, for which policy.clip_low and clip_high are widened. Targets that SFT has softened want a
temperature below 1; these were not.
"""

from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Scenes
from seg_jax.runs import experiments, reinforcement
from seg_jax.training import loop, optimizers, policy, steps
from seg_jax.training.validation import Validation

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
        policy=policy.Policy(
            minibatches=4, clip_low=3e-4, clip_high=4e-4, spread_floor=0.1, drop_equal=True
        ),
        optimizer=optimizers.AdamW(lr=1e-6, schedule=optimizers.Schedule(final=1.0)),
        loop=loop.Loop(steps=PROMPTS // BATCH, save_minutes=20.0),
        validate=Validation(samples=1024, every=100, batch=256),
        loss_chunk=256,
    )
