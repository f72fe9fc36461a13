"""Seg-R1's fine-tuning of Qwen2.5-VL-3B on FCoT: 1,500 written thoughts with boxes and clicks.

Meant for eight H100; pods: README.md beside.
seg-jax finetune configs/seg_r1/3b_sft.py --checkpoint models/qwen25-vl-3b

Published (arXiv 2506.22624 and its release): data and one pass over them, wording, 2e-5, cosine
after a warm-up of a tenth, 4 rows a device in 4 pieces. Ours: eight devices, so 128 rows a step; a
loss on answers only (the release's is on questions too); answers of up to 1,024 tokens, longer
ones are passed over and counted (released: rows of 4,096 in all); float32 weights.
"""

import dataclasses
from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.data.sources import Built
from seg_jax.runs import experiments, supervised
from seg_jax.tasks.prompted import Mixture, Prompted
from seg_jax.training import loop, optimizers, sft

FIRST = experiments.sibling(__file__, "3b_prerl.py")
QUESTION = 256
LAYOUT = dataclasses.replace(
    FIRST.LAYOUT, max_prompt=FIRST.VISUAL_TOKENS + 215 + QUESTION, max_question=QUESTION
)
"""The system turn takes 138 tokens before the image; questions are the data set's own."""


def config() -> supervised.Config:
    """Returns the run, all weights trained."""
    first = FIRST.config()
    return supervised.Config(
        out=Path("runs/seg_r1_3b_sft"),
        model=FIRST.MODEL,
        task=Prompted(stage="sft", square=True, mixture=Mixture(whole=0.0, trace=1.0)),
        layout=LAYOUT,
        compute=first.compute,
        mesh=first.mesh,
        source=Built(folders=(Path("data/fcot"),)),
        feed=Feed(batch=128),
        objective=sft.Objective(accumulate=4),
        optimizer=optimizers.AdamW(
            lr=2e-5, b2=0.999, schedule=optimizers.Schedule(warmup=0.1, final=0.0)
        ),
        loop=loop.Loop(epochs=1, save_minutes=20.0),
        loss_chunk=256,
    )
